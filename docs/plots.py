"""Draws the figures of docs/: ``python docs/plots.py`` (a minute on two cores). Nothing here trains.

That of docs/evaluation.md shows what `evaluate` says about the table of docs/diabetes.py.

Those of docs/fair_grpo.md come from the library itself: rewards are drawn from coins whose bias stands beside them, so
every curve shows the transform and not a policy. That of docs/evidence.md comes from the results of a study.
"""

import csv
import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fairgrpo_jax import advantages, audit, diagnostics, fairness
from fairgrpo_jax.demographics import Scheme
from fairgrpo_jax.report.plots import COLOURS, NEUTRAL
from fairgrpo_jax.study import compare


HERE = Path(__file__).parent
ROLLOUTS = 8
SIZES = (212_000, 33_000, 20_000, 10_000, 2_500, 2_300, 362)  # samples of the paper's seven datasets
CELLS = np.array([0.02, 0.18, 0.22, 0.08, 0.02, 0.18, 0.22, 0.08])  # sex x age: the youngest are rare


def main() -> None:
    """Writes docs/fair_grpo_weight.png, fair_grpo_blowup.png, fair_grpo_batch.png, evidence.png and evaluation.png."""
    for name, draw in (("weight", weight_of_a_group), ("blowup", blow_up), ("batch", batch_size)):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        draw(figure.subplots(1, 2))
        path = HERE / f"fair_grpo_{name}.png"
        figure.savefig(path, dpi=110)
        print(path.name)
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    evidence(figure.subplots(1, 2, width_ratios=(1, 1.25)))
    figure.savefig(HERE / "evidence.png", dpi=110)
    print("evidence.png")
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    evaluation(figure.subplots())
    figure.savefig(HERE / "evaluation.png", dpi=110)
    print("evaluation.png")


LABELS = {
    "after the warm-up": "warm-up",
    "grpo": "GRPO",
    "grpo_rs": "GRPO+RS",
    "fair_grpo": "FairGRPO",
    "fair_sampling": "fair sampling",
    "fair_sampling focus=0": "without focus",
}


def evidence(axes: np.ndarray) -> None:
    """The registered study: macro F1 against the worst cell's, and paired differences from GRPO."""
    with (HERE / "studies" / "confirmation.csv").open() as file:
        runs = list(csv.DictReader(file))
    names = ("worst_f1", "f1", "best_f1")
    found = {
        method: {name: np.array([float(run[name]) for run in runs if run["method"] == method]) for name in names}
        for method in LABELS
    }
    shades = dict(zip(LABELS, (NEUTRAL, *COLOURS), strict=False))
    for method, its in found.items():
        axes[0].plot(its["f1"], its["worst_f1"], "o", ms=3, alpha=0.35, color=shades[method], mew=0)
        axes[0].plot(its["f1"].mean(), its["worst_f1"].mean(), "o", ms=8, color=shades[method], label=LABELS[method])
    axes[0].set(xlabel="macro F1", ylabel="worst cell's F1")
    axes[0].legend(frameon=False, fontsize=8, loc="upper left")
    for row, method in enumerate([name for name in LABELS if name not in ("after the warm-up", "grpo")]):
        for place, (name, mark) in enumerate(zip(names, "osD", strict=True)):
            pair = compare.paired(found[method][name], found["grpo"][name])
            height = row + 0.22 * (place - 1)
            axes[1].plot([pair.low, pair.high], [height, height], color=shades[method], lw=1.4)
            axes[1].plot(pair.mean, height, mark, color=shades[method], ms=5)
            if row == 0:
                axes[1].plot(
                    [], [], mark, color="#555555", label=("worst cell's F1", "macro F1", "best cell's F1")[place]
                )
    axes[1].axvline(0, color="#999999", lw=0.8)
    axes[1].set_yticks(range(4), [LABELS[name] for name in LABELS if name not in ("after the warm-up", "grpo")])
    axes[1].set(xlabel="paired difference from GRPO, 95 % over seeds", ylim=(3.5, -0.5))
    axes[1].legend(frameon=False, fontsize=8, loc="upper right")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)


def evaluation(axis: Axes) -> None:
    """Of those who got worse, how many a model found, by group, with 95 % intervals."""
    spec = importlib.util.spec_from_file_location("diabetes", HERE / "diabetes.py")
    assert spec and spec.loader
    spec.loader.exec_module(diabetes := importlib.util.module_from_spec(spec))
    _, age, sex, outcome, predicted, _ = zip(*diabetes.rows(), strict=True)
    settings = audit.Settings(Scheme(("sex", "age"), (40, 60)), positive="worse")
    people = {"sex": ["M" if code == 2 else "F" for code in sex], "age": age}
    rows = audit.examine(predicted, outcome, people, settings=settings)["groups"]
    place, marks = 0.0, []
    for row, before in zip(rows, [rows[0], *rows], strict=False):
        place += 1.6 if row["attribute"] != before["attribute"] else 1.0
        told = row["figures"]["true_positive_rate"]
        axis.plot([told["low"], told["high"]], [place, place], color=COLOURS[0], lw=1.6)
        axis.plot(told["value"], place, "o", color=COLOURS[0], ms=6)
        axis.text(1.03, place, f"{row['positives']}", va="center", fontsize=9)
        marks.append((place, "everybody" if row["attribute"] == "all" else row["name"]))
    axis.axvline(rows[0]["figures"]["true_positive_rate"]["value"], color=NEUTRAL, lw=0.8, ls="--")
    axis.text(1.03, 0.0, "got worse", va="center", fontsize=9)
    axis.set_yticks([place for place, _ in marks], [name for _, name in marks])
    axis.set_ylim(place + 0.7, -0.3)
    axis.set_xlim(0, 1.01)
    axis.set_xlabel("share of patients who got worse that the model found")
    axis.spines[["top", "right"]].set_visible(False)


def weight_of_a_group(axes: np.ndarray) -> None:
    """A group's weight, relative to one of 1,000 prompts and mean reward 0.5 in the same domain."""
    seen = np.unique(np.geomspace(2, 10_000, 30).astype(int))
    for colour, mean in zip(COLOURS, (0.05, 0.2, 0.5, 0.9), strict=True):
        axes[0].loglog(seen, [relative_weight(n, mean) for n in seen], color=colour, label=f"mean reward {mean}")
    means = np.linspace(0.02, 1, 30)
    for colour, n in zip(COLOURS, (10, 100, 1_000, 10_000), strict=True):
        axes[1].semilogy(means, [relative_weight(n, mean) for mean in means], color=colour, label=f"{n:,} prompts")
    _finish(axes[0], "prompts of the group seen so far", "weight relative to the reference")
    _finish(axes[1], "mean reward of the group", "")


def relative_weight(seen: int, mean: float) -> float:
    """By ``temperatures`` itself, on a state in which two groups have a past."""
    state = fairness.init(1, 2, 2, history=None)
    state = dataclasses.replace(
        state,
        group_count=jnp.array([[1_000, seen - 1, 0]], jnp.int32),
        group_mean=jnp.array([[0.5, mean, 0.0]], jnp.float32),
    )
    unseen = [[jnp.nan, jnp.nan], [mean, mean]]  # the reference is only looked at; the other group's mean stays
    weights, _, _ = fairness.temperatures(unseen, [0, 0], [0, 1], state)
    return float(weights[1] / weights[0])


def blow_up(axes: np.ndarray) -> None:
    """One success of a rare group in a batch of 64 prompts, against how the group did before."""
    means = np.geomspace(0.001, 0.5, 16)
    for colour, bound in zip(COLOURS, (None, 16.0, 4.0), strict=False):
        label = "no bound" if bound is None else f"max_weight {bound:g}"
        results = np.array([lucky_prompt(mean, bound) for mean in means])
        axes[0].semilogx(means, results[:, 0], color=colour, label=label)
        axes[1].semilogx(means, results[:, 1], color=colour, label=label)
    axes[0].axhline(diagnostics.ceiling(64, ROLLOUTS), color="#7a7a7a", ls="--", lw=1)
    axes[0].text(0.5, diagnostics.ceiling(64, ROLLOUTS) + 0.2, "exact ceiling", fontsize=8, color="#555555", ha="right")
    _finish(axes[0], "mean reward of the group before", "|advantage| of its success", bottom=0)
    _finish(axes[1], "mean reward of the group before", "its prompt's share of the batch's |A|", bottom=0)


def lucky_prompt(mean: float, max_weight: float | None) -> tuple[float, float]:
    """|A| of the rare prompt's one success, and the prompt's share of the batch; 50 of 5,000 prompts were rare."""
    rng = np.random.default_rng(0)
    state = fairness.init(1, 2, ROLLOUTS, history=None)
    state = dataclasses.replace(
        state,
        domain_count=jnp.array([5_000], jnp.int32),
        domain_mean=jnp.array([0.5], jnp.float32),
        group_count=jnp.array([[4_950, 50, 0]], jnp.int32),
        group_mean=jnp.array([[0.5, mean, 0.0]], jnp.float32),
    )
    rewards = (rng.random((64, ROLLOUTS)) < 0.5).astype(np.float32)
    rewards[0] = [1.0] + [0.0] * (ROLLOUTS - 1)
    groups = np.array([1] + [0] * 63)
    values, _ = fairness.fair_grpo(rewards, np.zeros(64, int), groups, state, max_weight=max_weight)
    return float(values[0, 0]), float(diagnostics.group_share(values, groups, 2)[1])


def batch_size(axes: np.ndarray) -> None:
    """How many prompts a batch is worth, on the paper's dataset sizes and skewed demographics."""
    sizes = (16, 32, 64, 128, 256, 512, 1024)
    methods: dict[str, Callable] = {
        "GRPO": lambda r, d, g, s: (advantages.grpo(r), s, jnp.ones(len(r))),
        "FairGRPO": lambda *x: weighted(*x, max_weight=None),
        "FairGRPO, max_weight 4": lambda *x: weighted(*x, max_weight=4.0),
        "FairGRPO, group level only": lambda *x: weighted(*x, max_weight=None, levels="group"),
    }
    for colour, (name, method) in zip(COLOURS, methods.items(), strict=True):
        spread = np.array([concentration(jax.jit(method), n) for n in sizes])
        axes[0].semilogx(sizes, spread[:, 0], "o-", ms=3, color=colour, label=name)
        axes[1].semilogx(sizes, spread[:, 1], "o-", ms=3, color=colour, label=name)
    for axis, label in zip(axes, ("effective prompts / prompts with signal", "top prompt's share of |A|"), strict=True):
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        _finish(axis, "prompts in the batch", label, bottom=0, legend=axis is axes[1])


def weighted(rewards, domains, groups, state, **options):
    """Advantages, state and weights of FairGRPO."""
    weights, _, state = fairness.temperatures(rewards, domains, groups, state, **options)
    return fairness.rescale(rewards, weights), state, weights


def concentration(method: Callable, prompts: int, steps: int = 24) -> tuple[float, float]:
    """Effective sample size over prompts with signal, and the top prompt's share; medians of the last half."""
    rng = np.random.default_rng(0)
    state = fairness.init(len(SIZES), len(CELLS), ROLLOUTS, history=None)
    skill = rng.uniform(0.15, 0.8, (len(SIZES), len(CELLS)))
    seen = []
    for _ in range(steps):
        domains = rng.choice(len(SIZES), prompts, p=np.array(SIZES) / sum(SIZES))
        groups = rng.choice(len(CELLS), prompts, p=CELLS)
        bias = rng.beta(4 * skill[domains, groups], 4 * (1 - skill[domains, groups]))
        rewards = (rng.random((prompts, ROLLOUTS)) < bias[:, None]).astype(np.float32)
        values, state, weights = method(rewards, domains, groups, state)
        signal = np.asarray(advantages.has_signal(rewards))
        effective = diagnostics.effective_sample_size(np.where(signal, weights, 0))
        seen.append((float(effective) / max(signal.sum(), 1), float(diagnostics.top_prompt_share(values))))
    return tuple(np.median(seen[steps // 2 :], axis=0))


def _finish(axis: Axes, x: str, y: str, bottom: float | None = None, *, legend: bool = True) -> None:
    axis.set_xlabel(x, fontsize=9)
    axis.set_ylabel(y, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(color="#e4e4e4", lw=0.7)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if bottom is not None:
        axis.set_ylim(bottom=bottom)
    if legend:
        axis.legend(fontsize=7.5, frameon=False)


if __name__ == "__main__":
    matplotlib.use("agg")
    main()
