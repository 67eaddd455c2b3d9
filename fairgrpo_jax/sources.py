"""Loads the records of a run, by use, from the datasets that its options name."""

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from fairgrpo_jax import config as options, data
from fairgrpo_jax.data import demographics, splits
from fairgrpo_jax.data.record import Record, RecordList, Source


def load(config: options.Config) -> dict[str, Source]:
    """Loads the records of all datasets by use: "train", "warmup" and "test"; prints what the loaders left out.

    Training uses the first of a dataset's splits, evaluation the last (MedVidBench's validation: of its test split the
    answers are not public), and the supervised stage ``warmup.split`` if the dataset has it. Of
    ``evaluation.datasets`` only the split of evaluation is loaded. Reinforcement learning has ``data.tasks`` alone.
    With ``evaluation.split`` there is that split alone, records without an answer included.

    Raises:
        ValueError: from ``data.load``, if several datasets come without the folder that holds them, or for a task that
            no training record has.
    """
    settings = config.data
    trained, root = settings.name.split(","), settings.root
    names = [*trained, *config.evaluation.datasets]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"got {', '.join(twice)} twice among data.name and evaluation.datasets; wanted each once")
    if len(names) > 1 and root is None:
        raise ValueError(f"got {', '.join(names)} without data.root; wanted the folder that holds them all")
    splits = {split for name in trained for split in data.module(name).SPLITS}
    if config.warmup.split not in {options.Warmup.split, *splits}:
        raise ValueError(
            f"got warmup.split={config.warmup.split} for {', '.join(trained)}; wanted one of "
            f"{', '.join(sorted(splits))}"
        )
    given = loader_options(settings, names)
    records: dict[str, list[Record]] = {"train": [], "warmup": [], "test": []}
    for name in names:
        dataset = data.module(name)
        known = inspect.signature(dataset.load).parameters
        extra = {"num_frames": settings.num_frames or None} | given[name] if "num_frames" in known else given[name]
        own = {"columns": data.columns(settings.columns), "codes": data.codes(settings.codes)}
        for key in [key for key, value in own.items() if value]:
            if key not in known:
                raise ValueError(f"got data.{key} for {name}; wanted it for one's own data alone (data.name=jsonl)")
            extra[key] = own[key]
        if unknown := extra.keys() - known.keys():
            wanted = ", ".join(known.keys() - {"root", "split"}) or "none"
            raise ValueError(f"got data.options {', '.join(unknown)} for {name}; wanted some of: {wanted}")
        for key, value in given[name].items():
            usual = known[key].default
            if isinstance(usual, int | float) and not isinstance(value, int | float):
                raise ValueError(
                    f"got data.options {key}={value} for {name}; wanted a value like {usual}, spaces between options"
                )
        taught = config.warmup.split if config.warmup.split in dataset.SPLITS else dataset.SPLITS[0]
        held_out = getattr(dataset, "HELD_OUT_SPLIT", dataset.SPLITS[-1])
        by_use = {"train": dataset.SPLITS[0], "warmup": taught, "test": held_out}
        if name not in trained or config.evaluation.split:
            by_use = {"test": config.evaluation.split or held_out}
        folder = root / name if root and len(names) > 1 else root
        for split in dict.fromkeys(by_use.values()):
            source = data.load(name, folder, split=split, on_broken=settings.on_broken, **extra)
            answered = [record for record in source.records if record.answer or config.evaluation.split]
            left_out = dict(getattr(source, "left_out", {})) | {"no answer": len(source) - len(answered)}
            for reason, count in left_out.items():
                if count:
                    print(f"{name}, {split}: {count} rows left out: {reason}")
            for note in getattr(source, "notes", ()):
                print(f"{name}, {split}: {note}")
            for use in [use for use, its in by_use.items() if its == split]:
                records[use] += answered
    if settings.tasks and not config.evaluation.split:
        records["train"] = of_tasks(records["train"], settings.tasks)
    if "age" in settings.attributes:
        require_whole_bands([*records["train"], *records["test"]], settings.age_edges)
    return {use: RecordList(tuple(found)) for use, found in records.items()}


def of_tasks(records: Sequence[Record], tasks: Sequence[str]) -> list[Record]:
    """The records of some tasks.

    Raises:
        ValueError: for a task that no record has.
    """
    known = sorted({record.extra.get("task", "") for record in records})
    if missing := [task for task in tasks if task not in known]:
        raise ValueError(
            f"got data.tasks {', '.join(missing)}, which no training record has; wanted some of {', '.join(known)}"
        )
    return [record for record in records if record.extra.get("task", "") in tasks]


def loader_options(settings: options.Data, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parses ``data.options`` by dataset."""
    found: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in settings.options:
        name, dot, rest = text.partition(".")
        name, rest = (name, rest) if dot and name in found else (names[0], text)
        if len(names) > 1 and rest == text:
            raise ValueError(f"got data.options {text} with {len(names)} datasets; wanted NAME.KEY=VALUE")
        key, value = data.option(rest)
        found[name][key] = value
    return found


def require_attributes(records: Sequence[Record], names: Sequence[str]) -> None:
    """Checks that every attribute that groups are made of is one that records may have.

    Raises:
        ValueError: for a name that no record has, with those that some have and the nearest one. Sex and age need not
            be there: data without demographics have them unknown.
    """
    known = {"sex", "age"}.union(*(record.extra for record in records))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"got data.attributes {name!r}, which no record has; wanted some of {', '.join(sorted(known))}{hint}"
            )


def require_whole_bands(records: Sequence[Record], edges: Sequence[float]) -> None:
    """Checks that no edge of the age bins cuts a band that stands for the age of a patient.

    Raises:
        ValueError: with the bands that are cut, records that have them, and edges that cut none.
    """
    bands: dict[str, tuple[float, float]] = {}
    told: dict[str, list[str]] = {}
    for record in records:
        if (band := demographics.band(record)) is not None:
            bands[record.extra[demographics.AGE_TOLD]] = band
            told.setdefault(record.extra[demographics.AGE_TOLD], []).append(record.uid)
    cut = [text for text, band in bands.items() if demographics.is_cut(band, edges)]
    if not cut:
        return
    named = "; ".join(f"{text}: {len(told[text])} records, {', '.join(told[text][:3])}" for text in sorted(cut)[:10])
    whole = demographics.whole_edges(bands.values())
    raise ValueError(
        f"got ages that are bands and data.age_edges {', '.join(f'{edge:g}' for edge in edges)}, which cut {named}; "
        + (f"wanted edges from {', '.join(whole)}, or " if whole else "wanted ")
        + f"the bands as groups: --data.attributes {demographics.AGE_TOLD} in place of age"
    )


def check_leakage(one: Source, other: Source, settings: options.Data) -> None:
    """Checks that no patient is in both sources; raises or prints according to ``data.leakage``.

    Raises:
        ValueError: with names of such patients.
    """
    try:
        splits.check_leakage(one.records, other.records)
    except ValueError as error:
        if settings.leakage == "refuse":
            raise ValueError(f"{error} (or --data.leakage report, to train on an official split as it is)") from error
        print(f"warning: {error}")
