"""Datasets: one file per dataset, all mapped to one ``Record``."""

if not __name__.startswith("fairgrpo_jax."):
    raise ImportError("import fairgrpo_jax.data, not data: a second copy of these modules would not know the first")

import contextlib
import gc
import importlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from fairgrpo_jax.data import prepared
from fairgrpo_jax.data.media import without_broken
from fairgrpo_jax.data.record import Media as Media, Record as Record, Source as Source


# Each is a module in datasets/, imported on first use, so that its dependencies do not slow down the others.
DATASETS = (
    *("chexpert", "covid_blues", "ham10000", "hemorrhage", "isic2020", "jsonl", "medvid_toy", "medvidbench"),
    *("pad_ufes_20", "pmc_vqa", "slake", "synthetic", "vindr_mammo", "vqa_rad"),
)
MADE = ("synthetic", "medvid_toy")  # without files


def module(name: str) -> ModuleType:
    """Imports the module of a dataset, with ``ABOUT``, ``SPLITS`` and ``load``.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> from fairgrpo_jax import data
        >>> data.module("synthetic").SPLITS
        ('train', 'warmup', 'test')
    """
    if name not in DATASETS:
        raise ValueError(f"no dataset {name!r}; known are {', '.join(DATASETS)}")
    return importlib.import_module(f"fairgrpo_jax.data.datasets.{name}")


def load(
    name: str,
    root: str | Path | None = None,
    *,
    split: str,
    on_broken: Literal["raise", "skip"] = "raise",
    **options,
) -> Source:
    """Loads one split of a dataset from its folder as the owner publishes it.

    Args:
        name: one of ``DATASETS``; ``python -m fairgrpo_jax.data check --all`` describes them and says where to get
            them.
        root: the dataset's folder, or one that ``data.prepare`` made from it; None for those of ``MADE``.
        split: one of the splits of the dataset's module.
        on_broken: treatment of records whose media cannot be decoded: ``"raise"``, an error when they are decoded;
            ``"skip"``, all media are decoded once now, and broken ones are excluded, counted and named in a warning.
            A decoder that is not installed is an ImportError either way.
        options: options of the dataset's ``load``.

    Returns:
        A ``Source``: ``len(source)``, ``source[i]`` and ``source.records``; media are decoded only on request.

    Raises:
        ValueError: if the name is unknown or the split has no records, or from the dataset's loader.

    Example:
        >>> from fairgrpo_jax import data
        >>> len(data.load("synthetic", split="test", domains=("us",)))
        180
    """
    if on_broken not in ("raise", "skip"):
        raise ValueError(f"on_broken is {on_broken!r}; wanted 'raise' or 'skip'")
    with _no_collection():
        source = _load(name, root, split, options)
    if not len(source):
        raise ValueError(f"the {split!r} split of {name} has no record; check root {root} and the options {options}")
    return source if on_broken == "raise" else without_broken(source)


def option(text: str) -> tuple[str, Any]:
    """Parses a loader option of a command line, ``key=value``; the value is read as JSON if possible, else as text.

    Raises:
        ValueError: if it has another form.

    Example:
        >>> from fairgrpo_jax import data
        >>> data.option("version=2"), data.option("split_by=article")
        (('version', 2), ('split_by', 'article'))
    """
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"option is {text!r}; wanted KEY=VALUE, such as version=2")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def columns(given: Sequence[str]) -> dict[str, str]:
    """Parses ``NAME=COLUMN`` of a command line, for ``load("jsonl", ..., columns=...)``.

    Raises:
        ValueError: if one has another form.

    Example:
        >>> from fairgrpo_jax import data
        >>> data.columns(["answer=label", "patient=mrn"])
        {'answer': 'label', 'patient': 'mrn'}
    """
    pairs = [text.partition("=") for text in given]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise ValueError(f"got columns {', '.join(wrong)}; wanted NAME=COLUMN, such as answer=label")
    return {name: column for name, _, column in pairs}


def codes(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parses ``COLUMN.CODE=VALUE`` of a command line, for ``load("jsonl", ..., codes=...)``.

    Raises:
        ValueError: if one has another form.

    Example:
        >>> from fairgrpo_jax import data
        >>> data.codes(["sex.1=M", "sex.2=F", "age.999="])
        {'sex': {'1': 'M', '2': 'F'}, 'age': {'999': ''}}
    """
    found: dict[str, dict[str, str]] = {}
    for text in given:
        code, equals, value = text.partition("=")
        column, dot, code = code.partition(".")
        if not (equals and dot and column and code):
            raise ValueError(f"got code {text!r}; wanted COLUMN.CODE=VALUE, such as sex.1=M")
        found.setdefault(column, {})[code] = value
    return found


def _load(name: str, root: str | Path | None, split: str, options: dict[str, Any]) -> Source:
    dataset = module(name)
    if root is not None and prepared.is_prepared(root):
        return prepared.load(name, root, split=split, **options)
    _require_known(dataset.load, options)
    if name in MADE:
        if root is not None:
            raise ValueError(f"root is {root}; {dataset.ABOUT.title.lower()} is made, not read: leave root out")
        return dataset.load(split, **options)
    if root is None:
        raise ValueError(f"{name} is read from its owner's folder: pass root=...; get it from {dataset.ABOUT.where}")
    return dataset.load(Path(root), split=split, **options)


def _require_known(load: Callable[..., Source], options: Iterable[str]) -> None:
    """Checks the names of options.

    Raises:
        ValueError: with those that there are.
    """
    known = [name for name in inspect.signature(load).parameters if name not in ("root", "split")]
    if unknown := [name for name in options if name not in known]:
        raise ValueError(f"got the options {', '.join(unknown)}; wanted some of {', '.join(known) or 'none'}")


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disables garbage collection, which would take as long as creating hundreds of thousands of records."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
