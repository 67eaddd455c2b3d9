"""Evaluation on held-out patients inside a run; as a command, the audit of any model's answers (``audit.command``).

In a run there is one answer per record, scored and reported by group.

Answers are greedy, as in the papers' evaluations. In the log, ``reward`` is their mean reward as the run computes it,
``exact`` the share that is exactly right, and ``reward_sampled`` the mean reward of answers sampled as in training, the
quantity that reinforcement learning maximises.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fairgrpo_jax import demographics, files, metrics


if TYPE_CHECKING:  # the command needs neither JAX nor what imports it
    from fairgrpo_jax import answers, config as options, runs
    from fairgrpo_jax.data.record import Record


SMALLEST_GROUP = 20  # records; smaller groups cannot be the worst or the best group


def held_out(run: runs.Run, params: Any, step: int) -> dict[str, float]:
    """Answers held-out records; writes ``evals/<step>.jsonl`` and a row of the log, and returns its values.

    At step 0 and at the last step it answers all, in between those of ``chosen``.
    """
    from fairgrpo_jax import answers, hosts

    config = run.config
    records = run.sources["test"].records
    if 0 < step < config.steps:
        records = chosen(records, config.evaluation.records, config.seed)
    rows, drawn = answers.answer(
        answers.sampler(params, config.sampling),
        records,
        pool=run.pool,
        config=config,
        scorer=run.scorer,
        devices=run.mesh,
        key=run.key("evaluation", step),
        temperatures=(0.0, config.sampling.temperature),
        sizes=[run.sizes[record.uid] for record in records],
        phases=run.phases,
        measures=run.measures,
        reference=run.reference(params) if config.evaluation.perplexity else None,
    )
    if hosts.first():
        path = _path(run.folder, step)
        path.parent.mkdir(exist_ok=True)
        files.write(path, "".join(json.dumps(row) + "\n" for row in rows))
    values = summary(rows, config.data.scheme) | {"reward_sampled": _mean(drawn, "reward")}
    values |= measured(rows, config.evaluation) | by_task(rows, records)
    run.log.append("eval", step, values | run.phases.collect())
    return values


def chosen(records: Sequence[Record], count: int | None, seed: int) -> Sequence[Record]:
    """``count`` of the records in their order, of each dataset in its proportion; all if there are no more.

    The same records for the same seed, whatever step it is.
    """
    from fairgrpo_jax import grouping

    if count is None or count >= len(records):
        return records
    names = sorted({record.dataset for record in records})
    own = {name: [place for place, record in enumerate(records) if record.dataset == name] for name in names}
    rng = np.random.default_rng(seed)
    shares = np.array([len(places) for places in own.values()]) / len(records)
    counts = grouping.systematic_counts(shares, count, rng.random())
    pairs = zip(names, counts.tolist(), strict=True)
    kept = np.concatenate([rng.choice(own[name], size, replace=False) for name, size in pairs])
    return [records[int(place)] for place in np.sort(kept)]


def summary(rows: Sequence[answers.Answer], scheme: demographics.Scheme = demographics.DEFAULT) -> dict[str, float]:
    """Scalars of an evaluation for the log: held-out reward, and the figures of ``metrics.fairness_report``.

    ``worst_f1`` and ``best_f1`` are taken over the groups of single attributes with at least ``SMALLEST_GROUP``
    records, because the F1 of a few records is not meaningful; the report shows every group with its interval.

    Args:
        rows: of one evaluation, from ``answers.answer``.
        scheme: the groups that the run distinguishes.
    """
    found = figures(rows, scheme)
    large = [
        float(row["f1"])
        for row in found
        if row["attribute"] not in ("all", metrics.JOINT) and row["n"] >= SMALLEST_GROUP
    ]
    extremes = {"worst_f1": min(large), "best_f1": max(large)} if large else {}
    report = metrics.report_of(found)
    named = {name: report[f"overall/{name}"] for name in ("f1", "top1", "joint_f1_std") if f"overall/{name}" in report}
    paper = {name: value for name, value in report.items() if name.startswith("paper/")}
    return {name: _mean(rows, name) for name in ("reward", "exact")} | named | extremes | paper


def measured(rows: Sequence[answers.Answer], settings: options.Evaluation) -> dict[str, float]:
    """What ``evaluation.datasets``, ``components`` and ``perplexity`` ask for, overall and by dataset.

    Returns:
        With further datasets, ``exact/<dataset>`` and ``length/<dataset>``, in tokens; ``measured/<component>``, the
        mean of its scores; ``perplexity``, exp of the mean over all tokens; the last two also ``/<dataset>``.
    """
    from fairgrpo_jax import config as options

    names = sorted({row["dataset"] for row in rows})
    parts = [("", rows), *((f"/{name}", [row for row in rows if row["dataset"] == name]) for name in names)]
    values: dict[str, float] = {}
    for suffix, its in parts:
        if settings.datasets:
            values[f"length{suffix}"] = float(np.mean([row.get("length", 0) for row in its]))
            values |= {f"exact{suffix}": _mean(its, "exact")} if suffix else {}
        for component in settings.components:
            name = options.Component.parse(component).name
            scores = [row.get("measured", {}).get(name, math.nan) for row in its]
            scored = [score for score in scores if not math.isnan(score)]
            values |= {f"measured/{name}{suffix}": sum(scored) / len(scored)} if scored else {}
        if settings.perplexity:
            tokens = sum(row.get("length", 0) for row in its)
            values[f"perplexity{suffix}"] = math.exp(min(sum(row.get("nll", 0.0) for row in its) / max(tokens, 1), 700))
    return values


def by_task(rows: Sequence[answers.Answer], records: Sequence[Record]) -> dict[str, float]:
    """``task/<task>/<component>``, the mean of what each component of the reward gave; for records of several tasks."""
    tasks = [record.extra.get("task", "") for record in records]
    found: dict[str, list[float]] = {}
    for task, row in zip(tasks, rows, strict=True) if len({*tasks}) > 1 else ():
        for name, score in row.get("components", {}).items():
            if not math.isnan(score):
                found.setdefault(f"task/{task}/{name}", []).append(score)
    return {name: sum(scores) / len(scores) for name, scores in sorted(found.items())}


def figures(rows: Sequence[answers.Answer], scheme: demographics.Scheme = demographics.DEFAULT) -> list[dict[str, Any]]:
    """The rows of ``metrics.figures``, one a group, of an evaluation."""
    return metrics.figures(
        [row["prediction"] or None for row in rows],
        [row["answer"] for row in rows],
        [{"sex": row["sex"], "age": row["age"]} | row.get("attributes", {}) for row in rows],
        [row["dataset"] for row in rows],
        scheme=scheme,
    )


def _mean(rows: Sequence[answers.Answer], name: Literal["reward", "exact"]) -> float:
    """Mean of ``name`` over the rows that were scored."""
    scored = [row[name] for row in rows if not math.isnan(row[name])]
    return sum(scored) / len(scored) if scored else math.nan


def read(folder: Path, step: int) -> list[answers.Answer]:
    """Reads the rows that ``held_out`` wrote at a step."""
    return [json.loads(line) for line in _path(folder, step).read_text().splitlines()]


def _path(folder: Path, step: int) -> Path:
    return folder / "evals" / f"{step:06d}.jsonl"


def main(argv: Sequence[str] | None = None) -> None:
    """Audits tables and run folders; with options of a run, such as ``--model.path``, first answers its records.

    ``--submission FILE`` answers MedVidBench's test questions for its board instead.
    """
    from fairgrpo_jax.audit import command

    argv = sys.argv[1:] if argv is None else argv
    if any(token.partition("=")[0] == "--submission" for token in argv):
        from fairgrpo_jax import answering

        return answering.submit(argv)
    of_run, rest = split(argv)
    if of_run and not {"-h", "--help"} & {*rest}:
        from fairgrpo_jax import answering

        command.check(["answers", *rest])  # what is wrong here is said before the long work
        rest = [str(answering.main(of_run)), *rest]
    command.main(rest, _pictures)


def _pictures(folder: Path, uids: Sequence[str]) -> dict[str, str]:
    from fairgrpo_jax import pictures  # which knows all datasets, and is needed only where it is asked for

    return pictures.of_run(folder, uids)


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments with options of a run, which have a dot in their names or are four others; and those of an audit.

    >>> split(["--model.path", "MODEL", "--least", "20", "--samples", "4"])
    (['--model.path', 'MODEL', '--samples', '4'], ['--least', '20'])
    """
    parts: tuple[list[str], list[str]] = ([], [])
    place = 1
    for token in argv:
        if token.startswith("--"):
            name = token.split("=")[0]
            place = 0 if "." in name or name in ("--preset", "--workdir", "--samples", "--mesh") else 1
        parts[place].append(token)
    return parts


if __name__ == "__main__":
    main()
