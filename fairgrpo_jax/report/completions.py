"""The completions that a run kept, for the report: ``samples/<step>.parquet``, and the JSON of earlier versions."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fairgrpo_jax import demographics
from fairgrpo_jax.demographics import Scheme


OUTCOMES = ("right", "wrong", "not scored", "truncated")
FIRST = ("reward", "advantage")  # of the numbers of a completion, before the components
_PARTS = ("component/", "normalised/")


class Completion(NamedTuple):
    """A completion, with the number of times that it occurs in its prompt with the same numbers."""

    text: str
    prediction: str | None  # what it answers
    length: int | None  # tokens, if known
    outcomes: tuple[str, ...]  # some of OUTCOMES
    numbers: dict[str, float]  # FIRST, component/NAME, normalised/NAME; NaN = not scored, or does not apply
    times: int


class Prompt(NamedTuple):
    """A prompt of a step, with its completions, those of the highest advantage first."""

    step: int
    uid: str
    dataset: str
    task: str
    sex: str | None
    age: float | None
    groups: list[str]  # "ATTRIBUTE: GROUP" for each attribute that is known, and the joint group
    question: str
    answer: str
    images: list[Path]
    completions: list[Completion]


def read(path: Path, scheme: Scheme) -> list[Prompt]:
    """The prompts of a table of completions; images lie in the folder of the file.

    Raises:
        ValueError, KeyError, TypeError, OSError: if it is damaged or no such table.
    """
    if path.suffix == ".json":
        rows = _rows_of_json(path, scheme)
    else:
        try:
            rows = pq.read_table(path, page_checksum_verification=True).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    return [_prompt(path.parent, own) for own in by_prompt.values()]


def numbers(prompts: Sequence[Prompt]) -> list[str]:
    """The numbers of the completions: reward, advantage, and the components if they say more than the reward does."""
    found = list(dict.fromkeys(name for prompt in prompts for said in prompt.completions for name in said.numbers))
    parts = [name for name in found if name not in FIRST]
    return [*FIRST, *(parts if len(parts) > 1 else [])]


def label(name: str) -> str:
    """How a number is called on the page.

    Example:
        >>> label("reward"), label("component/exact"), label("normalised/exact")
        ('reward', 'exact', 'exact, normalised')
    """
    kind, slash, part = name.partition("/")
    return name if not slash else part if kind == "component" else f"{part}, {kind}"


def digits(value: float) -> str:
    """The shortest digits of a number of 32 bits; "" for NaN.

    Example:
        >>> digits(float(np.float32(0.7))), digits(math.nan)
        ('0.7', '')
    """
    return str(np.float32(value)) if math.isfinite(value) else ""


def _prompt(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Prompt:
    first = rows[0]
    known = {name.removeprefix("attribute/"): at for name, at in first.items() if name.startswith("attribute/")}
    groups = [f"{name}: {at}" for name, at in known.items() if at is not None]
    if len(known) > 1 or not groups:
        groups.append(str(first["cell"]))
    equal: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        own = {name: at for name, at in row.items() if name != "rollout"}
        equal.setdefault(repr(own), []).append(row)
    said = [_completion(own[0], len(own)) for own in equal.values()]
    return Prompt(
        step=int(first["step"]),
        uid=str(first["uid"]),
        dataset=str(first["dataset"]),
        task=str(first["task"]),
        sex=first["sex"],
        age=None if math.isnan(age := _number(first["age"])) else age,
        groups=groups,
        question=str(first["question"]),
        answer=str(first["answer"]),
        images=[folder / Path(name).name for name in first["images"]],
        completions=sorted(said, key=lambda one: (-np.nan_to_num(one.numbers["advantage"]), -one.times)),
    )


def _completion(row: Mapping[str, Any], times: int) -> Completion:
    names = [*FIRST, *(name for kind in _PARTS for name in row if name.startswith(kind))]
    return Completion(
        text=str(row["completion"]),
        prediction=row["prediction"],
        length=row["length"],
        outcomes=_outcomes(row),
        numbers={name: _number(row[name]) for name in names},
        times=times,
    )


def _outcomes(row: Mapping[str, Any]) -> tuple[str, ...]:
    exact = _number(row["exact"])
    holds = (exact == 1, exact == 0, math.isnan(_number(row["reward"])), row["finished"] is False)
    return tuple(name for name, true in zip(OUTCOMES, holds, strict=True) if true)


def _number(value: Any) -> float:
    """NaN for null, as pandas writes it."""
    return math.nan if value is None else float(value)


def _rows_of_json(path: Path, scheme: Scheme) -> list[dict[str, Any]]:
    """The rows of a file as earlier versions wrote it; their reward was 1 for a right answer alone."""
    rows = []
    for place, sample in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        groups = demographics.groups({"sex": sample["sex"], "age": sample["age"]}, scheme)
        known = {name: sample[name] for name in ("uid", "dataset", "sex", "age", "question", "answer", "images")}
        known |= {"step": int(path.stem), "prompt": place, "task": ""}
        known |= {f"attribute/{name}": at for name, at in groups.items()}
        known |= {"cell": demographics.cell(groups.values()) or "unlabelled"}
        known |= {"prediction": None, "length": None, "finished": None}
        for said in sample["completions"]:
            reward = float(said["reward"])
            exact = math.nan if math.isnan(reward) else float(reward >= 1)
            told = {"completion": said["text"], "reward": reward, "advantage": said["advantage"], "exact": exact}
            rows.append(known | told)
    return rows
