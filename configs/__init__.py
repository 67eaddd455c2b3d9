"""Experiments as Python: one file per experiment, overridable from the command line."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError(
        "import fairgrpo_jax.configs, not configs: a second copy of these modules would not know the first"
    )

import importlib
import pkgutil

from fairgrpo_jax.config import Config


DEFAULT = "clinic"


def names() -> list[str]:
    """The presets, by name."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Config:
    """The preset of that name.

    Raises:
      ValueError: if there is none, naming the known ones.
    """
    if name not in names():
        raise ValueError(f"got config {name!r}; wanted one of {', '.join(names())} (or options only, for {DEFAULT})")
    return importlib.import_module(f"{__name__}.{name}").get_config()


def summaries() -> dict[str, str]:
    """The first line of each preset's docstring."""
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names()}
    return {name: (module.__doc__ or "").strip().splitlines()[0] for name, module in modules.items()}
