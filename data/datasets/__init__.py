"""One file per dataset: ``ABOUT``, ``SPLITS`` and ``load``."""
