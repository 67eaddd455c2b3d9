"""Compares a dataset on disk with its published figures, and finds problems that would invalidate a run."""

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairgrpo_jax import data
from fairgrpo_jax.data import about, archives, cells, demographics, media, splits
from fairgrpo_jax.data.record import Record, RecordList
from fairgrpo_jax.demographics import age_names


SHOWN = 10  # maximum number of missing files named
LABELS = 30  # maximum number of rows in the table of labels


@dataclass
class Report:
    """The result of a check.

    Attributes:
        lines: the lines of the report.
        wrong: problems, one sentence each; empty if the dataset is complete and as published.
    """

    lines: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def bad(self, text: str) -> None:
        """Adds a problem, also to the report."""
        self.lines.append(f"WRONG: {text}")
        self.wrong.append(text)


def check(name: str, root: str | Path | None, *, names: Sequence[str] | None = None, **options: Any) -> Report:
    """Loads all splits and compares them with the published figures, without decoding media.

    Problems are: splits that do not load, counts that differ from the published ones, missing files, and patients or
    media shared by two splits, unless the owner's split is known to share them (``About.shared``).

    Args:
        name: as in ``data.load``.
        root: the dataset's folder, the owner's or a prepared one; None for the synthetic clinic.
        names: splits to check; default: all. With a selection, counts over all splits are not compared.
        options: options of the dataset's ``load``; with any, published counts are shown but not compared.

    Example:
        >>> from fairgrpo_jax.data.check import check
        >>> report = check("synthetic", None, names=("train", "test"), domains=("us",))
        >>> report.wrong
        []
    """
    module = data.module(name)
    report = Report([f"{module.ABOUT.title} in {root}" if root else module.ABOUT.title])
    records: list[Record] = []
    names = tuple(names or module.SPLITS)
    for split in names:
        try:
            source = data.load(name, root, split=split, **options)
        except ValueError as error:
            report.bad(f"split {split} does not load: {error}")
            continue
        records.extend(source.records)
        if isinstance(source, RecordList):
            report.lines += [f"{split}: left out or incomplete: {n} {why}" for why, n in source.left_out.items()]
            report.lines += [f"{split}: {note}" for note in source.notes]
    loaded = {record.split for record in records}
    counts = about.counts(records)
    whole = not report.wrong and set(names) == set(module.SPLITS)
    _compare(report, counts, module.ABOUT.published, loaded if not options else set(), whole and not options)
    report.lines += ["", *table(records), ""] if records else []
    _missing(report, records)
    for shared in splits.leakage(records):
        told = frozenset(shared.splits) in set(map(frozenset, module.ABOUT.shared))
        report.lines.append(f"{shared} (known of the owner's split)") if told else report.bad(str(shared))
    report.lines.append("nothing is wrong" if not report.wrong else f"{len(report.wrong)} things are wrong")
    return report


def _compare(report: Report, counts: Counter[str], published: Any, loaded: set[str], whole: bool) -> None:
    """Adds a line per count: found, published, and whether they agree."""
    for name in dict.fromkeys((*(n for n in counts if "/" in n and not n.startswith("answer/")), "media", *published)):
        split = name.partition("/")[2] if name.startswith(("records/", "patients/")) else None
        compared = name in published and (whole if split is None else split in loaded)
        text = f"{name}: {counts[name]}" + (f", published {published[name]}" if name in published else "")
        if compared and counts[name] != published[name]:
            report.bad(text)
        else:
            report.lines.append(text + ("" if not compared else ", as published"))


def table(records: Sequence[Record], *, edges: Sequence[float] = (25, 50, 75)) -> list[str]:
    r"""Lines of a table: records by label (rows, the most frequent first) and sex and age bin (columns).

    Example:
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> from fairgrpo_jax.data.check import table
        >>> print("\n".join(table(synthetic.load("test", domains=("us",)).records)))
        label        all        F        M  sex unk    26–50    51–75      >75  age unk
        B-lines       90        0        0       90       30       30       30        0
        A-lines       90        0        0       90       30       30       30        0
    """
    cells: dict[str, Counter[str]] = {}
    for record in records:
        group = demographics.attributes(record, edges=edges)
        for label in about.labels(record) or ("(open question)",):
            row = cells.setdefault(label, Counter())
            row.update(("all", group["sex"] or "sex unk", group["age"] or "age unk"))
    used = [name for name in age_names(edges) if any(row[name] for row in cells.values())]
    columns = ["all", "F", "M", "sex unk", *used, "age unk"]
    order = sorted(cells, key=lambda label: -cells[label]["all"])
    width = max([len("label"), *(min(len(label), 30) for label in order[:LABELS])])
    lines = [" ".join([f"{'label':{width}}", *(f"{name:>8}" for name in columns)])]
    for label in order[:LABELS]:
        lines.append(" ".join([f"{label[:30]:{width}}", *(f"{cells[label][name]:8}" for name in columns)]))
    return [*lines, *([f"and {len(order) - LABELS} more labels"] if len(order) > LABELS else [])]


def _missing(report: Report, records: Sequence[Record]) -> None:
    """Reports missing files and archive members that records refer to."""
    wanted: dict[tuple[Path, str | None], str] = {}
    for record in records:
        for medium in record.media:
            for path in media.files(medium):
                wanted.setdefault((path, medium.member), record.uid)
    there = {path: _state(path) for path, _ in wanted}
    held: dict[tuple[Path, str], frozenset[str]] = {}
    absent = []
    for (path, member), uid in wanted.items():
        if there[path] is None:
            absent.append(f"{path} of {uid}{_similar(path)}" if len(absent) < SHOWN else uid)
        elif member is not None and not os.path.isdir(path) and not cells.is_table(path):
            if member not in _held(held, path, member):
                absent.append(f"{path}!{member} of {uid}")
    report.lines.append(f"{len(wanted)} media files, {len(absent)} missing")
    for state in ("empty", "a folder"):
        if found := [
            f"{path} of {uid}" for (path, member), uid in wanted.items() if not member and there[path] == state
        ]:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            report.bad(f"{state}: {', '.join(found[:SHOWN])}{more}")
    if absent:
        more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
        report.bad(f"missing {', '.join(absent[:SHOWN])}{more}")


def _state(path: Path) -> str | None:
    """Whether a file is a folder or empty; None if there is none."""
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return "a folder" if stat.S_ISDIR(state.st_mode) else "" if state.st_size else "empty"


def _similar(path: Path) -> str:
    """A file that may be meant by one that is missing: of capitals or another encoding of the same letters."""
    plain = lambda name: unicodedata.normalize("NFKC", name).casefold()
    there = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    near = [one.name for one in there if plain(one.name) == plain(path.name)]
    return f" (there is {near[0]!a}, with other capitals or letters: {path.name!a})" if near else ""


def _held(held: dict[tuple[Path, str], frozenset[str]], path: Path, member: str) -> frozenset[str]:
    """The members of the archive that contains a member; empty if the archive is broken."""
    inside = member.rpartition("!")[0]
    if (path, inside) not in held:
        try:
            held[path, inside] = frozenset(archives.members(path, inside=inside))
        except ValueError:
            held[path, inside] = frozenset()
    return held[path, inside]


def listing() -> list[str]:
    r"""Describes every dataset: title, where to get it, licence, what to download, and what to know.

    Example:
        >>> from fairgrpo_jax.data.check import listing
        >>> print("\n".join(listing()[:3]))
        chexpert: CheXpert
            from      https://stanfordmlgroup.github.io/competitions/chexpert
            licence   Stanford University Dataset Research Use Agreement
    """
    lines = []
    for name in data.DATASETS:
        module = data.module(name)
        told = module.ABOUT
        lines += [f"{name}: {told.title}", f"    from      {told.where}", f"    licence   {told.licence}"]
        lines += [f"    download  {told.download}", f"    splits    {', '.join(module.SPLITS)}"]
        lines += [f"    note      {told.note}"] if told.note else []
        lines += [""]
    return lines
