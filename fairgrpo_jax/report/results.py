"""Computes the numbers that the report prints and plots from run folders.

The interval of a group's score is that of ``metrics.intervals``. Intervals of differences come from one cluster
bootstrap: within a dataset, patients are drawn with replacement, with all their records, and the same draws are used
for all runs, steps and groups. So the difference between two runs is paired by record, and its interval is that of the
difference itself, narrower than two separate intervals suggest.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairgrpo_jax import demographics, metrics, tracking
from fairgrpo_jax.demographics import DEFAULT, EDGES, JOINT, Scheme
from fairgrpo_jax.report import completions


REPLICATES = 1000
TABLES = 6  # of completions, at most: the first and the last, and between them evenly
ATTRIBUTES = ("sex", "age")  # for runs whose config has none
FEW_PATIENTS = 50  # with fewer, a dataset supports no claim about accuracy
# The fairness measures: name, description, key of metrics.fairness_report, format.
MEASURES = (
    ("PP", "predictive parity: gap of the false discovery rate, × 100", "paper/PP", ".1f"),
    ("EOD", "equal opportunity: gap of the true positive rate, × 100", "paper/EOD", ".1f"),
    ("FPR_Diff", "gap of the false positive rate, × 100", "paper/FPR_Diff", ".1f"),
    ("equalized odds", "the larger gap of both rates, × 100", "overall/equalized_odds_diff", ".1f"),
    ("σF1", "standard deviation of F1 between groups", "paper/σF1", ".3f"),
    ("ΔF1", "gap of F1", "paper/ΔF1", ".3f"),
    ("σAcc", "standard deviation of Acc between groups, × 100", "paper/σAcc", ".1f"),
    ("ΔAcc", "gap of Acc, × 100", "paper/ΔAcc", ".1f"),
    ("Acc", "accuracy of each class against the rest, mean over classes, × 100", "paper/Acc", ".1f"),
    ("F1", "macro F1", "paper/F1", ".3f"),
    ("Acc_ES", "Acc / (1 + its standard deviation)", "paper/Acc_ES", ".1f"),
    ("F1_ES", "F1 / (1 + σF1)", "paper/F1_ES", ".3f"),
    ("joint σF1", "standard deviation of F1 between joint groups", "overall/joint_f1_std", ".3f"),
    ("worst F1", "lowest F1 of a group by one attribute, of all datasets", "overall/worst_f1", ".3f"),
    ("worst group", "the group that has it", "overall/worst_group", ".3f"),
    ("best F1", "highest F1 of a group", "overall/best_f1", ".3f"),
    ("best group", "the group that has it", "overall/best_group", ".3f"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The content of a run folder; missing parts are empty and named in ``notes``."""

    name: str
    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    evals: dict[int, list[dict[str, Any]]]  # step -> one row per held-out record
    samples: dict[int, list[completions.Prompt]]  # step -> prompts with their completions, of some of those kept
    kept: list[int]  # the steps that kept prompts
    notes: list[str]

    def curve(self, kind: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps at which a metric was logged, and its values."""
        rows = [(row["step"], row[metric]) for row in self.metrics if row["kind"] == kind and metric in row]
        steps, values = zip(*rows, strict=True) if rows else ((), ())
        return np.asarray(steps, int), np.asarray(values, float)

    def names(self, kind: str, prefix: str) -> list[str]:
        """The metrics of one kind of rows that begin with ``prefix``, in order of appearance."""
        rows = (row for row in self.metrics if row["kind"] == kind)
        return list(dict.fromkeys(name for row in rows for name in row if name.startswith(prefix)))


class Estimate(NamedTuple):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval, that of a difference, excludes zero."""
        return self.low > 0 or self.high < 0


class Series(NamedTuple):
    """One evaluation of one run: a column of the tables, a colour in the plots."""

    label: str
    run: int | None  # position of the run; None if all runs agree, as after a shared warm-up
    before: bool  # the state before training, or the first that was evaluated
    rows: dict[str, dict[str, Any]]  # by uid


class Group(NamedTuple):
    """A group of patients in a dataset, with its scores, their intervals and their paired bootstrap."""

    attribute: str
    name: str
    records: int
    patients: int
    intervals: dict[str, list[Estimate]]  # "accuracy" and "f1": one per series
    accuracy: np.ndarray  # (series, 1 + replicates); column 0 is the observed value
    f1: np.ndarray  # (series, 1 + replicates)

    def difference(self, score: str, new: int, old: int) -> Estimate:
        """One series minus another, paired by record."""
        draws = getattr(self, score)
        return estimate(draws[new] - draws[old])


class Joint(NamedTuple):
    """Variation of F1 over the joint groups, each (series, 1 + replicates)."""

    spread: np.ndarray  # standard deviation, ddof 1
    worst: np.ndarray
    best: np.ndarray


class Dataset(NamedTuple):
    """The held-out records of one dataset, group by group."""

    name: str
    records: int
    patients: int
    groups: list[Group]  # all records first, then attribute by attribute, joint groups last

    @property
    def attributes(self) -> list[str]:
        """The single attributes that are known for some record."""
        return [name for name in dict.fromkeys(g.attribute for g in self.groups) if name not in ("all", JOINT)]

    def of(self, *attributes: str) -> list[Group]:
        """The groups of these attributes."""
        return [group for group in self.groups if group.attribute in attributes]


def load(name: str, path: Path) -> Run:
    """Reads a run folder; a damaged file is left out, and the run's notes say so.

    Raises:
        ValueError: if ``path`` is not a run folder.
    """
    config, metrics = path / "config.json", path / "metrics.jsonl"
    evaluated = _numbered(path / "evals", ".jsonl")
    if not (config.exists() or metrics.exists() or evaluated):
        raise ValueError(
            f"{path} is no run folder: got neither config.json nor metrics.jsonl nor evals/; "
            "give the folder that `python -m fairgrpo_jax.train --workdir` wrote"
        )
    notes: list[str] = []
    settings = _sound(_object, config, {}, notes) if config.exists() else {}
    evals = {int(file.stem): _sound(_evaluation, file, [], notes) for file in evaluated}
    sampled = {int(file.stem): file for end in (".json", ".parquet") for file in _numbered(path / "samples", end)}
    reader = functools.partial(completions.read, scheme=scheme(settings))
    shown = {step: _sound(reader, sampled[step], [], notes) for step in thinned(sorted(sampled), TABLES)}
    run = Run(
        name=name,
        path=path,
        config=settings,
        metrics=_sound(_metrics, metrics, [], notes) if metrics.exists() else [],
        evals={step: rows for step, rows in sorted(evals.items()) if rows},
        samples={step: prompts for step, prompts in shown.items() if prompts},
        kept=sorted(sampled),
        notes=notes,
    )
    run.notes.extend(_missing(run))
    return run


def _sound(read: Callable[[Path], Any], path: Path, empty: Any, notes: list[str]) -> Any:
    """What a reader finds in a file; if the file is damaged, ``empty`` and a note."""
    try:
        return read(path)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        notes.append(f"{path.name} in {path.parent.name}/ is damaged and left out ({type(error).__name__}: {error}).")
        return empty


def _object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _metrics(path: Path) -> list[dict[str, Any]]:
    return [row for row in tracking.read_metrics(path) if isinstance(row.get("step"), int) and "kind" in row]


def _evaluation(path: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation, each with the fields that every figure needs."""
    if path.read_bytes()[-1:] not in (b"", b"\n"):
        raise ValueError("its last line is cut")
    rows = tracking.read_rows(path)
    for row in rows:
        for name in ("uid", "dataset", "patient", "prediction", "answer", "sex", "age"):
            row[name]
    return rows


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of some steps, the first and the last among them, the others evenly between.

    Example:
        >>> thinned(range(0, 100, 10), 4), thinned([0, 5], 4)
        ([0, 30, 60, 90], [0, 5])
    """
    picks = np.linspace(0, len(steps) - 1, min(len(steps), most))
    return [steps[pick] for pick in sorted({round(pick) for pick in picks.tolist()})]


def scheme(config: Mapping[str, Any]) -> Scheme:
    """The groups that a run distinguishes, from its ``config.json``."""
    data = config.get("data", {})
    return Scheme(tuple(data.get("attributes", ATTRIBUTES)), tuple(data.get("age_edges", EDGES)))


def series(runs: Sequence[Run]) -> list[Series]:
    """The evaluations to compare: before and after for each run; a single "before" if all runs start alike."""
    evaluated = [(position, run) for position, run in enumerate(runs) if run.evals]
    starts = [by_uid(run.evals[0]) for _, run in evaluated if 0 in run.evals]
    shared = len(starts) == len(evaluated) > 0 and all(_same_answers(starts[0], other) for other in starts[1:])
    columns = [Series("before", None, True, starts[0])] if shared else []
    for position, run in evaluated:
        label = run.name if len(runs) > 1 else "after"
        first, last = min(run.evals), max(run.evals)
        if not shared and first < last:
            when = "before" if first == 0 else f"step {first}"
            columns.append(Series(f"{label}, {when}", position, True, by_uid(run.evals[first])))
        if last > 0:
            columns.append(Series(label, position, False, by_uid(run.evals[last])))
    return columns


def datasets(columns: Sequence[Series], *, scheme: Scheme = DEFAULT, replicates: int = REPLICATES) -> list[Dataset]:
    """Accuracy and F1 of every dataset and group in every series, on the records that all series have.

    Accuracy is the share of records whose labels are exactly right. F1 is the macro mean over the labels that occur
    in the true answers of the group, one against the rest; 0/0 counts as 0.
    """
    common = set.intersection(*(set(column.rows) for column in columns)) if columns else set()
    by_dataset: dict[str, list[str]] = {}
    for uid in sorted(common):
        by_dataset.setdefault(columns[0].rows[uid]["dataset"], []).append(uid)
    return [
        _dataset(name, [[column.rows[uid] for uid in uids] for column in columns], scheme, replicates)
        for name, uids in sorted(by_dataset.items())
    ]


def estimate(values: np.ndarray) -> Estimate:
    """Observed value (first) and the central 95 % of the replicates; replicates without the group are ignored.

    If all replicates agree (e.g. every answer was right), a bootstrap gives no interval: NaN.
    """
    replicates = values[1:][np.isfinite(values[1:])]
    if not len(replicates) or np.ptp(replicates) < 1e-12:
        return Estimate(float(values[0]), np.nan, np.nan)
    low, high = np.quantile(replicates, (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))


def joint(tables: Sequence[Dataset]) -> Joint | None:
    """Variation of F1 over the joint groups, averaged over datasets; None if no dataset has two joint groups."""
    cells = [np.stack([group.f1 for group in table.of(JOINT)]) for table in tables if len(table.of(JOINT)) > 1]
    if not cells:
        return None
    return Joint(
        spread=np.mean([_nanstd(cell) for cell in cells], axis=0),
        worst=np.mean([np.fmin.reduce(cell) for cell in cells], axis=0),
        best=np.mean([np.fmax.reduce(cell) for cell in cells], axis=0),
    )


def pooled_accuracy(tables: Sequence[Dataset]) -> np.ndarray:
    """Accuracy over all records, with patients of each dataset drawn separately: (series, 1 + replicates)."""
    whole = [table.of("all")[0].accuracy * table.records for table in tables]
    return np.sum(whole, axis=0) / sum(table.records for table in tables)


def headline(tables: Sequence[Dataset]) -> list[tuple[str, np.ndarray]]:
    """The main numbers, each (series, 1 + replicates)."""
    if not tables:
        return []
    rows = [
        ("exact answers, all records", pooled_accuracy(tables)),
        ("F1, mean over datasets", np.mean([table.of("all")[0].f1 for table in tables], axis=0)),
    ]
    found = joint(tables)
    if found is not None:
        rows += [
            ("F1 of the worst joint group", found.worst),
            ("F1 of the best joint group", found.best),
            ("spread of F1 between joint groups", found.spread),
        ]
    return rows


def fairness_columns(
    columns: Sequence[Series], *, scheme: Scheme = DEFAULT
) -> list[tuple[str, str, str, list[float | str]]]:
    """Rows (name, description, format, value in each series) of the measures, on the records that all series have."""
    if not columns:
        return []
    common = set.intersection(*(set(column.rows) for column in columns))
    if not common:
        return []
    reports = [_fairness([row for uid, row in column.rows.items() if uid in common], scheme) for column in columns]
    for found in reports:
        if "overall/equalized_odds_diff" in found:
            found["overall/equalized_odds_diff"] = 100 * float(found["overall/equalized_odds_diff"])
    return [
        (name, meaning, form, [found[key] for found in reports])
        for name, meaning, key, form in MEASURES
        if key in reports[0]
    ]


def _fairness(rows: Sequence[dict[str, Any]], scheme: Scheme) -> dict[str, Any]:
    """``metrics.fairness_report``, with the worst and best groups named as in tables."""
    figures = metrics.figures(*_answers(rows), scheme=scheme)
    return metrics.report_of([row | {"group": row["name"]} for row in figures])


def _dataset(name: str, rows: list[list[dict[str, Any]]], scheme: Scheme, replicates: int) -> Dataset:
    first = rows[0]
    patient = np.unique([str(row["patient"]) for row in first], return_inverse=True)[1]
    number = int(patient.max()) + 1
    known = [_intervals(column, scheme) for column in rows]
    groups = []
    for head, members in demographics.members([person(row) for row in first], [name] * len(first), scheme):
        drawn = [
            metrics.bootstrap(
                *_answers([column[i] for i in members])[:2],
                patient[members],
                num_patients=number,
                num_resamples=replicates,
            )
            for column in rows
        ]
        accuracy, f1 = (np.stack([found[score] for found in drawn]) for score in ("top1", "f1"))
        attribute, group = head["attribute"], head["name"]
        intervals = {score: [column[attribute, group][score] for column in known] for score in ("accuracy", "f1")}
        groups.append(Group(attribute, group, len(members), len(set(patient[members])), intervals, accuracy, f1))
    return Dataset(name, len(first), number, groups)


def _answers(rows: Sequence[dict[str, Any]]) -> tuple[list, list, list, list]:
    """Predictions, labels, demographics and datasets as ``metrics`` takes them."""
    return (
        [row["prediction"] or None for row in rows],
        [row["answer"] for row in rows],
        [person(row) for row in rows],
        [row["dataset"] for row in rows],
    )


def person(row: Mapping[str, Any]) -> dict[str, Any]:
    """The known attributes of the patient of a row of ``evals/``."""
    return {"sex": row["sex"], "age": row["age"]} | row.get("attributes", {})


def _intervals(rows: Sequence[dict[str, Any]], scheme: Scheme) -> dict[tuple[str, str], dict[str, Estimate]]:
    """Maps (attribute, group) -> score -> estimate, by ``metrics.intervals``; NaN if the interval is a single point."""
    found = metrics.intervals(*_answers(rows), [str(row["patient"]) for row in rows], scheme=scheme)
    return {
        (row["attribute"], row["name"]): {
            score: Estimate(row[key], row[f"{key}_low"], row[f"{key}_high"])
            if row[f"{key}_low"] < row[f"{key}_high"]
            else Estimate(row[key], np.nan, np.nan)
            for score, key in (("accuracy", "top1"), ("f1", "f1"))
        }
        for row in found
    }


def _nanstd(values: np.ndarray) -> np.ndarray:
    """Sample standard deviation over the first axis, ignoring NaN."""
    present = np.isfinite(values)
    count = present.sum(0)
    centred = np.where(present, values - np.where(present, values, 0).sum(0) / np.maximum(count, 1), 0)
    return np.sqrt((centred**2).sum(0) / np.maximum(count - 1, 1))


def by_uid(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of an evaluation by the uid of their record."""
    return {row["uid"]: row for row in rows}


def _same_answers(one: Mapping[str, dict[str, Any]], other: Mapping[str, dict[str, Any]]) -> bool:
    return one.keys() == other.keys() and all(one[uid]["prediction"] == other[uid]["prediction"] for uid in one)


def _numbered(folder: Path, suffix: str) -> list[Path]:
    """The files named by a step number, in order of the step."""
    files = [file for file in folder.glob("*" + suffix) if re.fullmatch(r"\d+", file.stem)]
    return sorted(files, key=lambda file: int(file.stem))


def _missing(run: Run) -> list[str]:
    """Describes the parts of a complete run folder that this one lacks."""
    planned = run.config.get("steps")
    done = max((row["step"] for row in run.metrics if row["kind"] == "train"), default=0)
    notes = []
    if not run.config:
        notes.append("config.json is missing, so the settings are unknown.")
    if not done:
        notes.append("There are no reinforcement-learning steps yet.")
    elif planned and done < planned:
        notes.append(f"The run stands at step {done} of {planned}; all numbers are preliminary.")
    if not run.evals:
        notes.append("There is no held-out evaluation yet, so nothing can be said about groups of patients.")
    elif max(run.evals) == 0 or len(run.evals) == 1:
        notes.append(f"There is one held-out evaluation, at step {max(run.evals)}; nothing can be compared over time.")
    elif max(run.evals) < done:
        notes.append(f"The last held-out evaluation is of step {max(run.evals)}, the last step is {done}.")
    return notes
