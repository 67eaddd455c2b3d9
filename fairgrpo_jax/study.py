"""Compare advantage estimators: one warm-up, then each algorithm on the same data, and one report on all.

For every seed the supervised stage runs once; each algorithm starts from its weights and sees the same prompts in the
same order. ``report.html`` shows the runs of a seed side by side, by group, with intervals. With several seeds, a table
shows the differences from the first algorithm.

Example::

    python -m fairgrpo_jax.study clinic --algorithms grpo fair_grpo --seeds 0 1 2
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rich
from rich.table import Table

from fairgrpo_jax import commandline, config as options, mesh, report, sft, train


# Metrics and their headings: held-out reward of greedy and of sampled answers, F1 and its spread.
WATCHED = {
    "reward": "greedy",
    "reward_sampled": "sampled",
    "f1": "F1",
    "worst_f1": "worst F1",
    "best_f1": "best F1",
    "joint_f1_std": "joint σF1",
}


@dataclasses.dataclass(frozen=True)
class Arguments(commandline.Arguments):
    """Options of the study, in addition to those of a run."""

    algorithms: tuple[options.Algorithm, ...] = ("grpo", "fair_grpo")
    """Algorithms to compare; the first one is the reference."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; every algorithm runs once with each."""


def study(
    config: options.Config, workdir: Path, *, algorithms: Sequence[options.Algorithm], seeds: Sequence[int]
) -> dict[tuple[str, int], dict[str, float]]:
    """Runs every algorithm with every seed; returns the final held-out metrics by (algorithm, seed).

    The metrics after the warm-up have the algorithm name ``"warm-up"``.
    """
    results = {}
    for seed in seeds:
        folder = workdir / f"seed{seed}"
        warm = dataclasses.replace(config, seed=seed)
        results["warm-up", seed] = sft.sft(warm, folder / "warmup")
        for algorithm in algorithms:
            begun = dataclasses.replace(config.warmup, run=folder / "warmup")
            chosen = dataclasses.replace(warm, algorithm=algorithm, warmup=begun)
            results[algorithm, seed] = train.train(chosen, folder / algorithm)
        runs = {algorithm: folder / algorithm for algorithm in algorithms}
        path = report.build(
            runs, folder / "report.html", title=f"{config.name}, seed {seed}: {' and '.join(algorithms)}"
        )
        print(f"side by side: {path}")
    rich.print(table(results))
    return results


def table(results: dict[tuple[str, int], dict[str, float]]) -> Table:
    """Held-out metrics averaged over seeds, one row per algorithm; several seeds add standard deviations."""
    seeds = sorted({seed for _, seed in results})
    caption = f"mean ± standard deviation of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    drawn = Table(title=f"Held-out patients, {caption}", title_justify="left")
    for column in ("", *WATCHED.values()):
        drawn.add_column(column)
    for algorithm in dict.fromkeys(name for name, _ in results):
        values = np.array([[results[algorithm, seed].get(name, np.nan) for name in WATCHED] for seed in seeds])
        cells = [f"{mean:.3f}" for mean in values.mean(0)]
        if len(seeds) > 1:
            cells = [f"{cell} ± {spread:.3f}" for cell, spread in zip(cells, values.std(0, ddof=1), strict=True)]
        drawn.add_row(algorithm, *cells)
    return drawn


def main() -> None:
    """Runs the command line."""
    with commandline.one_line_errors():
        prog = "python -m fairgrpo_jax.study"
        arguments = commandline.parse(sys.argv[1:], prog=prog, description=__doc__, schema=Arguments)
        mesh.simulate(arguments.config.mesh)
        workdir = arguments.workdir or Path("outputs") / f"study-{arguments.config.name}"
        study(arguments.config, workdir, algorithms=arguments.algorithms, seeds=arguments.seeds)


if __name__ == "__main__":
    main()
