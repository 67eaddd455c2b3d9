"""Datasets: one file per dataset, all mapped to one ``Record``."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError("import fairgrpo_jax.data, not data: a second copy of these modules would not know the first")

from collections.abc import Callable
from pathlib import Path

from fairgrpo_jax.data import covid_blues, synthetic
from fairgrpo_jax.data.record import Media as Media, Record as Record, Source as Source


def _synthetic(root: Path | None, **options) -> Source:
    if root is not None:
        raise ValueError(f"root is {root}; the synthetic clinic is made, not read: leave root out")
    return synthetic.load(**options)


def _covid_blues(root: Path | None, **options) -> Source:
    if root is None:
        raise ValueError(f"COVID-BLUES is read from its owners' folder: pass root=...; get it from {covid_blues.OWNER}")
    return covid_blues.load(root, **options)


LOADERS: dict[str, Callable[..., Source]] = {"covid_blues": _covid_blues, "synthetic": _synthetic}


def load(name: str, root: str | Path | None = None, *, split: str, **options) -> Source:
    """Loads one split of a dataset from the folder its owner publishes.

    Args:
        name: ``"covid_blues"`` or ``"synthetic"``.
        root: the dataset's folder; none for the synthetic clinic.
        split: the splits are those of the dataset's own module.
        options: of the dataset's own ``load``.

    Returns:
        A ``Source``: ``len(source)``, ``source[i]`` and ``source.records``; media is decoded only when asked.

    Raises:
        ValueError: an unknown name; what the dataset's loader refuses; a split without a record.

    Example:
        >>> from fairgrpo_jax import data
        >>> len(data.load("synthetic", split="test", domains=("us",)))
        180
    """
    if name not in LOADERS:
        raise ValueError(f"no dataset {name!r}; known are {', '.join(sorted(LOADERS))}")
    source = LOADERS[name](None if root is None else Path(root), split=split, **options)
    if not len(source):
        raise ValueError(f"the {split!r} split of {name} has no record; check root {root} and the options {options}")
    return source
