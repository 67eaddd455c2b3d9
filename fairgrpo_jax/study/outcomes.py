"""The figures of a finished run that a study compares."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fairgrpo_jax import config as options, demographics, evaluate, tracking
from fairgrpo_jax.answers import Answer


SMALLEST_CELL = 50  # held-out records; smaller demographic cells can be neither the worst nor the best

# Held-out figures first, then figures of the training.
FIGURES = {
    "worst_f1": "worst cell's F1",
    "f1": "macro F1",
    "spread_f1": "σF1 of cells",
    "best_f1": "best cell's F1",
    "top1": "top-1",
    "greedy": "greedy reward",
    "sampled": "sampled reward",
    "length": "length",
    "last_length": "length at the end",
    "last_length_worst": "length of the worst at the end",
    "effective_sample_size": "effective sample size",
    "max_advantage": "largest advantage",
    "from_natural": "distance from natural",
    "cluster_ari": "clusters, ARI",
    "cluster_nmi": "clusters, NMI",
}


def outcomes(folder: Path, config: options.Config, step: int) -> dict[str, float]:
    """All ``FIGURES`` of a run after ``step`` steps; NaN for those it does not have.

    ``worst_f1``, ``best_f1`` and ``spread_f1`` (standard deviation, ddof 0) are over the demographic cells of a
    dataset: its joint groups or, if it has only one attribute, the groups of that. Cells of fewer than
    ``SMALLEST_CELL`` held-out records are left out, then datasets with fewer than two cells; the rest is averaged over
    datasets. ``f1`` is the mean over all datasets of their macro F1. The training figures are means over all steps,
    those at the end over the last tenth of them; ``max_advantage`` is the largest.
    """
    log = tracking.read_metrics(folder / "metrics.jsonl")
    last = next(row for row in reversed(log) if row["kind"] == "eval" and row["step"] == step)
    steps = [row for row in log if row["kind"] == "train" and row["step"] <= step]

    def over_steps(name: str, pick=np.mean, last: float = 1.0) -> float:
        values = [row[name] for row in steps[-math.ceil(last * len(steps)) :] if name in row]
        return float(pick(values)) if values else math.nan

    held_out = {"f1": last["f1"], "top1": last["top1"], "greedy": last["reward"], "sampled": last["reward_sampled"]}
    return held_out | by_cell(evaluate.read(folder, step), config.data.scheme) | {
        "length": over_steps("rollout/length"),
        "last_length": over_steps("rollout/length", last=0.1),
        "last_length_worst": over_steps("rollout/length_worst", last=0.1),
        "effective_sample_size": over_steps("fairness/effective_sample_size"),
        "max_advantage": over_steps("advantage/max_abs", np.max),
        "from_natural": over_steps("drawn/from_natural"),
        "cluster_ari": over_steps("clusters/ari", np.nanmean),
        "cluster_nmi": over_steps("clusters/nmi", np.nanmean),
    }  # fmt: skip


def by_cell(rows: Sequence[Answer], scheme: demographics.Scheme) -> dict[str, float]:
    """``worst_f1``, ``best_f1`` and ``spread_f1`` of an evaluation; NaN without cells that are large enough."""
    finest: dict[str, str] = {}  # the joint groups come last
    cells: dict[tuple[str, str], list[float]] = {}
    for row in evaluate.figures(rows, scheme):
        if row["attribute"] != "all":
            finest[row["dataset"]] = row["attribute"]
            if row["n"] >= SMALLEST_CELL:
                cells.setdefault((row["dataset"], row["attribute"]), []).append(row["f1"])
    compared = [f1 for (dataset, attribute), f1 in cells.items() if finest[dataset] == attribute and len(f1) > 1]
    if not compared:
        return dict.fromkeys(("worst_f1", "best_f1", "spread_f1"), math.nan)
    picks = {"worst_f1": np.min, "best_f1": np.max, "spread_f1": np.std}
    return {name: float(np.mean([pick(f1) for f1 in compared])) for name, pick in picks.items()}
