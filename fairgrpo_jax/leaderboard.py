"""The ten columns of MedVidBench's board from predictions, and predictions in the form of a submission.

    python -m fairgrpo_jax.leaderboard score outputs/RUN/evals/000300.jsonl --root MedVidBench --split validation
    python -m fairgrpo_jax.leaderboard submit outputs/RUN/evals/000300.jsonl --root MedVidBench --out submission.json

Predictions are the rows of an evaluation of ours, found by their uid, or a list in the owners' order: a submission.
``score`` prints the board's reading and the strict one. The columns of levels need a judge, ``--judge.url`` and
``--judge.model`` or ``--judge.path``: the board has GPT-4.1, and levels by another are not comparable with its. Free
answers to NAP are compared as the board does with ``--similarity FOLDER`` of all-MiniLM-L6-v2.
"""

import collections
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from fairgrpo_jax import commandline, config as options, data, files
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import judge_prompts
from fairgrpo_jax.rewards.judge import Judge
from fairgrpo_jax.rewards.local_judge import LocalJudge
from fairgrpo_jax.rewards.medvid import board
from fairgrpo_jax.rewards.medvid.samples import Sample
from fairgrpo_jax.rewards.parsing import plain_answer


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of ``score`` and ``submit``."""

    command: tyro.conf.Positional[Literal["score", "submit"]]
    """Print the columns, or write a submission."""
    predictions: tyro.conf.Positional[Path]
    """Rows of an evaluation (evals/<step>.jsonl), or a JSON list of {id, qa_type, prediction} in the owners' order."""
    root: Path
    """Folder of MedVidBench."""
    split: Literal["train", "validation", "test"] = "validation"
    """Of the predictions; a submission is of test."""
    annotations: str | None = None
    """Another file of questions in the folder."""
    per_dataset: bool = False
    """One table for each dataset, beside that of all."""
    similarity: Path | None = None
    """Folder of the sentence encoder for free answers to NAP."""
    procedures: Path | None = None
    """JSON object with the labels of NAP for each procedure of NurViD; default: the labels that occur."""
    out: Path = Path("submission.json")
    """File that submit writes."""
    judge: options.Judge = options.Judge()


def samples(records: Sequence[Record], answers: Sequence[str]) -> list[Sample]:
    """What the board needs of each record and its answer."""
    return [Sample.of(record, answer) for record, answer in zip(records, answers, strict=True)]


def submission(records: Sequence[Record], answers: Sequence[str]) -> list[dict[str, str]]:
    """A submission: the owners' id and qa_type of each record of a split, in their order, with its prediction.

    Args:
        records: all of the split, in the order of ``data.load``: the board goes by the place in the list, since ids
            repeat.
        answers: one of each.

    Raises:
        ValueError: if the order is another, or a record is missing.
    """
    rows = [int(record.extra["row"]) for record in records]
    if rows != list(range(len(rows))):
        raise ValueError(
            f"got {len(rows)} records whose rows are not 0 to {len(rows) - 1} in order; wanted all questions of the "
            "owners' file, which are matched by their place"
        )
    return [
        {
            "id": record.extra["id"],
            "qa_type": "_".join(filter(None, (record.extra["task"], record.extra["writer"]))),
            "prediction": answer,
        }
        for record, answer in zip(records, answers, strict=True)
    ]


def write(path: Path, records: Sequence[Record], answers: Sequence[str]) -> None:
    """Writes a submission and says so.

    Raises:
        ValueError: from ``submission``.
    """
    files.write(path, json.dumps(submission(records, answers), ensure_ascii=False, indent=1) + "\n")
    print(f"{path}: {len(answers)} predictions in the owners' order")


def answers(records: Sequence[Record], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The answer of each record: by uid from the rows of an evaluation, by place from a submission.

    Rows of other records are counted, named and not used.

    Raises:
        ValueError: for records without an answer or with several, or a list of another length or order.
    """
    if rows and "uid" in rows[0]:
        found = {str(row["uid"]): plain_answer(str(row["completion"])) for row in rows}
        twice = [name for name, count in collections.Counter(str(row["uid"]) for row in rows).items() if count > 1]
        if twice:
            raise ValueError(f"got several rows of {len(twice)} records ({', '.join(twice[:3])}); wanted one each")
        if others := found.keys() - {record.uid for record in records}:
            print(f"{len(others)} rows of records outside the split are not used: {', '.join(sorted(others)[:3])}")
        missing = [record.uid for record in records if record.uid not in found]
        if missing:
            raise ValueError(
                f"got no prediction for {len(missing)} of {len(records)} records ({', '.join(missing[:3])}); wanted "
                "all of the split: evaluate it whole, or name the split that was evaluated"
            )
        return [found[record.uid] for record in records]
    if len(rows) != len(records):
        raise ValueError(
            f"got {len(rows)} predictions for {len(records)} records; wanted one each, in the owners' order"
        )
    for place, (row, record) in enumerate(zip(rows, records, strict=True)):
        kind = "_".join(filter(None, (record.extra["task"], record.extra["writer"])))
        if row.get("qa_type", kind) != kind or row.get("id", record.extra["id"]) != record.extra["id"]:
            raise ValueError(
                f"got prediction {place} of {row.get('id')}, {row.get('qa_type')}; wanted {record.extra['id']}, {kind}"
            )
    return [str(row["prediction"]) for row in rows]


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of predictions, JSON or JSON lines.

    Raises:
        ValueError: if it is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = (line for line in text.split("\n") if line.strip())
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ValueError(f"got {path} ({error}); wanted predictions as JSON lines or a JSON list") from error
    for row in rows:
        said = row.get("completion" if "uid" in row else "prediction") if isinstance(row, dict) else None
        if not isinstance(said, str):
            raise ValueError(
                f"got {path} with rows of another form; wanted uid and completion, or id, qa_type, prediction, in text,"
                f" not {str(row)[:80]}"
            )
    return rows


def asking(judge: Judge | LocalJudge) -> board.Judge:
    """A judge in the form that ``board.columns`` takes."""

    def levels(pairs: Sequence[board.Pair]) -> np.ndarray:
        how = judge.options
        if how.path is not None:
            asked = [
                q for pair in pairs for q in judge_prompts.agreement(pair.answer, pair.reference, wording=pair.wording)
            ]
        else:
            clinical = judge_prompts.clinical
            asked = [clinical(pair.answer, pair.reference, wording=pair.wording, mode=how.mode) for pair in pairs]
        return judge.submit(asked).result().reshape(len(pairs), -1)

    return levels


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """Columns by reading as a Markdown table.

    >>> print(table({"board": {"VS_llm": 4.1836, "average": float("nan")}}))
    | | VS_llm | average |
    |---|---|---|
    | board | 4.184 | - |
    """
    names = list(next(iter(columns.values())))
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for title, values in columns.items():
        told = ["-" if math.isnan(values[name]) else f"{values[name]:.3f}" for name in names]
        lines.append(f"| {title} | {' | '.join(told)} |")
    return "\n".join(lines)


def run(told: Arguments) -> None:
    """Does what the command line says.

    Raises:
        ValueError: from reading the data, the predictions or the judge.
    """
    source = data.load(
        "medvidbench",
        told.root,
        split="test" if told.command == "submit" else told.split,
        annotations=told.annotations,
    )
    records = list(source.records)
    said = answers(records, read(told.predictions))
    if told.command == "submit":
        write(told.out, records, said)
        return
    from fairgrpo_jax.rewards.similarity import measure  # loads a model's code

    alike = measure(told.similarity)
    lists = json.loads(told.procedures.read_text(encoding="utf-8")) if told.procedures else None
    scored = samples(records, said)
    judge = LocalJudge(told.judge) if told.judge.path else Judge(told.judge) if told.judge.model else None
    try:
        ask = None if judge is None else asking(judge)
        parts = {"all datasets": scored} | (board.by_source(scored) if told.per_dataset else {})
        for title, its in parts.items():
            print(f"\n{title}: {len(its)} answers")
            readings = {
                name: board.columns(its, leaderboard=name == "board", measure=alike, judge=ask, procedures=lists)
                for name in ("board", "strict")
            }
            print(table(readings))
    finally:
        if judge is not None:
            judge.close()


def main() -> None:
    """Runs the command line."""
    with commandline.one_line_errors():
        run(tyro.cli(Arguments, args=sys.argv[1:], prog="python -m fairgrpo_jax.leaderboard", description=__doc__))


if __name__ == "__main__":
    main()
