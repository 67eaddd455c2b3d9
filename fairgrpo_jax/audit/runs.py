"""Reads the evaluations of a run folder as records of an audit."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax import demographics
from fairgrpo_jax.audit.records import Records
from fairgrpo_jax.data import forms
from fairgrpo_jax.demographics import Scheme


def is_run(path: Path) -> bool:
    """Whether a folder has evaluations of a run."""
    return (path / "evals").is_dir()


def steps(folder: Path) -> list[int]:
    """The steps at which a run was evaluated."""
    return sorted(int(path.stem) for path in (folder / "evals").glob("*.jsonl") if path.stem.isdigit())


def read(folder: Path, step: int | None = None, *, name: str = "") -> Records:
    """Reads one evaluation of a run; neither the model nor its data is needed.

    Args:
        folder: of the run.
        step: of the evaluation; by default the last.
        name: of the model; by default the folder's.

    Returns:
        Records in groups of the run's own ``data.attributes`` and ``data.age_edges``.

    Raises:
        ValueError: if there is no such evaluation, or it is damaged.
    """
    there = steps(folder)
    if not there or (step is not None and step not in there):
        told = ", ".join(map(str, there)) or "none"
        raise ValueError(f"{folder} has evaluations of the steps {told}; wanted {'one' if step is None else step}")
    chosen = there[-1] if step is None else step
    path = folder / "evals" / f"{chosen:06d}.jsonl"
    found = forms.find(path, "")
    problems = found.problems()
    rows = []
    for line, row in found.read(problems):
        if absent := [key for key in ("uid", "dataset", "patient", "answer", "prediction") if key not in row]:
            problems.add(line, f"has no {', '.join(absent)}")
        rows.append(row)
    problems.raise_if_any()
    if not rows:
        raise ValueError(f"{path} is empty; wanted a line for each record")
    scheme, (scores, told) = _scheme(folder / "config.json"), _scores(rows)
    return Records(
        name=name or folder.resolve().name,
        source=str(path),
        ids=[str(row["uid"]) for row in rows],
        predictions=[row["prediction"] or None for row in rows],
        labels=[str(row["answer"]) for row in rows],
        attributes=attributes(rows, scheme),
        datasets=[str(row["dataset"]) for row in rows],
        patients=[str(row["patient"]) for row in rows],
        scores=scores,
        texts=[str(row.get("completion", "")) for row in rows],
        notes=(f"answers of step {chosen}, of the evaluations at {', '.join(map(str, there))}", *told),
        scheme=scheme,
    )


def person(row: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the patient of a row of ``evals/``."""
    return {"sex": row.get("sex"), "age": row.get("age")} | row.get("attributes", {})


def attributes(rows: Sequence[Mapping[str, Any]], scheme: Scheme) -> dict[str, list[Any]]:
    """The attributes of the patients of N rows, N values each: those of the scheme, or all that there are."""
    people = [person(row) for row in rows]
    names = scheme.attributes or tuple(dict.fromkeys(name for its in people for name in its))
    return {name: [its.get(name) for its in people] for name in names}


def scheme_of(config: Mapping[str, Any]) -> Scheme:
    """The groups that a run distinguishes, from its ``config.json``."""
    data = config.get("data", {})
    edges = data.get("age_edges", demographics.EDGES)
    return Scheme(tuple(data["attributes"]) if data.get("attributes") else None, tuple(edges))


SCORES = {
    "confidence": "scores are the shares of sampled answers that agree with the greedy one",
    "probability": "scores are the probabilities of the first token of each answer, given what the model wrote before",
}


def _scores(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float] | None, list[str]]:
    """Scores that ``answering`` has left, and a sentence about what they are."""
    for name, told in SCORES.items():
        if any(name in row for row in rows):
            return [float(row.get(name, math.nan)) for row in rows], [told]
    return None, []


def _scheme(path: Path) -> Scheme:
    if not path.is_file():
        return demographics.DEFAULT
    try:
        return scheme_of(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); wanted the config of the run") from error
