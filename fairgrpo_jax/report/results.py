"""Reads run folders for the report, and chooses the evaluations that it compares."""

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairgrpo_jax import tracking
from fairgrpo_jax.audit.runs import scheme_of
from fairgrpo_jax.report import completions


TABLES = 6  # of completions, at most: the first and the last, and between them evenly
FEW_PATIENTS = 50  # with fewer, a dataset supports no claim about accuracy


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


class Series(NamedTuple):
    """One evaluation of one run: a column of the tables, a colour in the plots."""

    label: str
    run: int | None  # position of the run; None if all runs agree, as after a shared warm-up
    before: bool  # the state before training, or the first that was evaluated
    rows: dict[str, dict[str, Any]]  # by uid


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
    reader = functools.partial(completions.read, scheme=scheme_of(settings))
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
