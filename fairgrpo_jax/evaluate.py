"""Evaluation on held-out patients: one answer a record, scored by exact match and by group.

Answers are greedy, as the papers evaluate.  ``reward_sampled`` in the log is the mean reward of answers drawn as in
training, the quantity that reinforcement learning maximises.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fairgrpo_jax import demographics, metrics, rollout, runs
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy


SMALLEST_GROUP = 20  # records; smaller groups are no candidates for the worst or the best


def held_out(run: runs.Run, params: Any, step: int) -> dict[str, float]:
    """Answers every held-out record; writes ``evals/<step>.jsonl`` and a row of the log, and returns its values."""
    records = run.sources["test"].records
    params = sampler(run, params)
    rows = answer(run, params, records)
    drawn = answer(run, params, records, temperature=run.config.sampling.temperature, step=step)
    path = _path(run.folder, step)
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scheme = demographics.Scheme(run.config.data.attributes, run.config.data.age_edges)
    values = summary(rows, scheme) | {"reward_sampled": sum(row["reward"] for row in drawn) / len(drawn)}
    run.log.append("eval", step, values | run.phases.collect())
    return values


def sampler(run: runs.Run, params: Any) -> Any:
    """The copy of the parameters with which a run samples; see ``rollout.weights``."""
    spec = run.config.sampling
    return rollout.weights(params, dtype=spec.dtype, tensor=spec.weights == "tensor")


def answer(
    run: runs.Run, params: Any, records: Sequence[Record], *, temperature: float = 0.0, step: int = 0
) -> list[dict]:
    """One completion for each record, greedy or drawn, with its extracted answer and its reward."""
    size = run.config.evaluation.batch
    parts = [records[i : i + size] for i in range(0, len(records), size)]
    padded = [[*part, *[part[0]] * (size - len(part))] for part in parts]  # one shape, one program
    rows = []
    with ThreadPoolExecutor(run.config.data.workers) as pool:
        for part, batch in zip(parts, pool.map(run.encode, padded), strict=True):
            with run.phases("evaluation"):
                rollouts = rollout.sample(
                    params,
                    run.put(batch.prompt),
                    run.key("evaluation", step),
                    config=run.model,
                    num_rollouts=1,
                    max_new_tokens=run.config.sampling.max_new_tokens,
                    temperature=temperature,
                    tensor=run.config.sampling.weights == "tensor",
                )
                texts = [row[0] for row in rollout.texts(rollouts, run.tokenizer)][: len(part)]
            rewards = accuracy.exact(texts, [record.answer for record in part])
            rows += [_row(run, *item) for item in zip(part, texts, rewards, strict=True)]
    return rows


def _row(run: runs.Run, record: Record, text: str, reward: float) -> dict:
    known = {
        "uid": record.uid,
        "dataset": record.dataset,
        "patient": record.patient,
        "sex": record.sex,
        "age": record.age,
    }
    said = {"answer": record.answer, "prediction": accuracy.extract(text) or "", "completion": text}
    told = runs.groups_of(record, run.config.data)
    further = {name: value for name, value in told.items() if name not in known}
    return known | said | {"reward": float(reward)} | ({"attributes": further} if further else {})


def summary(rows: Sequence[Mapping[str, Any]], scheme: demographics.Scheme = demographics.DEFAULT) -> dict[str, float]:
    """Scalars of the evaluation for the log: held-out reward, and the figures of ``metrics.fairness_report``.

    ``worst_f1`` and ``best_f1`` are taken over the groups of single attributes of at least ``SMALLEST_GROUP`` records,
    as the F1 of a handful of records says nothing; the report shows every group with its interval.

    Args:
        rows: of one evaluation, as ``answer`` gives them.
        scheme: the groups that the run tells apart.
    """
    figures = metrics.figures(
        [row["prediction"] or None for row in rows],
        [row["answer"] for row in rows],
        [{"sex": row["sex"], "age": row["age"]} | row.get("attributes", {}) for row in rows],
        [row["dataset"] for row in rows],
        scheme=scheme,
    )
    large = [
        float(row["f1"])
        for row in figures
        if row["attribute"] not in ("all", metrics.JOINT) and row["n"] >= SMALLEST_GROUP
    ]
    extremes = {"worst_f1": min(large), "best_f1": max(large)} if large else {}
    report = metrics.report_of(figures)
    named = {name: report[f"overall/{name}"] for name in ("f1", "top1", "joint_f1_std") if f"overall/{name}" in report}
    paper = {name: value for name, value in report.items() if name.startswith("paper/")}
    return {"reward": sum(row["reward"] for row in rows) / len(rows)} | named | extremes | paper


def read(folder: Path, step: int) -> list[dict]:
    """The rows that ``held_out`` wrote at a step."""
    return [json.loads(line) for line in _path(folder, step).read_text().splitlines()]


def _path(folder: Path, step: int) -> Path:
    return folder / "evals" / f"{step:06d}.jsonl"
