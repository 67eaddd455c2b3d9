"""The results of a study as text: means, the registered comparisons, and all paired differences."""

import csv
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fairgrpo_jax.study import compare
from fairgrpo_jax.study.outcomes import FIGURES
from fairgrpo_jax.study.registration import Primary


Results = Mapping[tuple[str, str, int], Mapping[str, float]]  # (setting, method, seed) -> figures
WARM_UP = "after the warm-up"
SHOWN = ("worst_f1", "f1", "spread_f1", "best_f1", "top1", "sampled", "effective_sample_size", "max_advantage")


def as_csv(results: Results) -> str:
    """One line a run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", "method", "seed", *FIGURES])
    for (setting, method, seed), found in results.items():
        writer.writerow([setting, method, seed, *(found.get(name, math.nan) for name in FIGURES)])
    return out.getvalue()


def as_markdown(
    title: str,
    results: Results,
    *,
    reference: str,
    primaries: Sequence[Primary],
    registered: str | None,
    alpha: float,
    command: str,
    best_of: bool = False,
) -> str:
    """The whole result.

    Args:
        title: heading.
        results: figures of all runs.
        reference: the method that the others are compared with.
        primaries: the registered comparisons, judged in each setting.
        registered: when and as what the study was registered; None = it was not.
        alpha: level of the adjusted tests.
        command: the command that makes these results.
        best_of: whether the settings are alternatives, of which each method may have its best.
    """
    lines = [f"# {title}", "", f"`{command}`", ""]
    lines += [f"Preregistered: {registered}." if registered else "Exploratory: not preregistered.", ""]
    for setting in dict.fromkeys(setting for setting, _, _ in results):
        its = {(method, seed): found for (name, method, seed), found in results.items() if name == setting}
        lines += [f"## {setting or 'The setting of the preset'}", "", *_means(its), ""]
        if primaries:
            lines += [*judged(its, primaries, alpha=alpha), ""]
        lines += [*_differences(its, reference), ""]
        if any(found.get("cluster_ari", math.nan) == found.get("cluster_ari", math.nan) for found in its.values()):
            lines += ["Groups found by clustering, against the patients' own, mean over the steps:", ""]
            lines += [*_means(its, ("cluster_ari", "cluster_nmi")), ""]
    if best_of:
        chosen, its = _at_best(results)
        lines += ["## Each method at its own best setting", ""]
        lines += ["By mean macro F1 on the same held-out patients, which flatters all methods alike:", ""]
        lines += [*(f"- {method}: {setting}" for method, setting in chosen.items()), "", *_means(its), ""]
        lines += [*_differences(its, reference), ""]
    return "\n".join(lines)


def _at_best(results: Results) -> tuple[dict[str, str], dict[tuple[str, int], Mapping[str, float]]]:
    """The setting in which each method has the highest mean macro F1, and its figures there."""
    f1: dict[str, dict[str, list[float]]] = {}
    for (setting, method, _), found in results.items():
        f1.setdefault(method, {}).setdefault(setting, []).append(found["f1"])
    chosen = {method: max(means, key=lambda name, its=means: np.mean(its[name])) for method, means in f1.items()}
    its = {(method, seed): found for (name, method, seed), found in results.items() if chosen[method] == name}
    return chosen, its


def _columns(its: Mapping[tuple[str, int], Mapping[str, float]], method: str) -> dict[int, Mapping[str, float]]:
    return {seed: found for (name, seed), found in its.items() if name == method}


def _means(its: Mapping[tuple[str, int], Mapping[str, float]], names: Sequence[str] = SHOWN) -> list[str]:
    """Mean ± standard deviation over seeds, one row a method."""
    lines = [f"| | n | {' | '.join(FIGURES[name] for name in names)} |", "|---" * (len(names) + 2) + "|"]
    for method in dict.fromkeys(name for name, _ in its):
        runs = list(_columns(its, method).values())
        cells = []
        for name in names:
            values = np.array([run.get(name, math.nan) for run in runs], float)
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append("–" if np.isnan(values).any() else f"{values.mean():.3f}{spread}")
        lines.append(f"| {method} | {len(runs)} | {' | '.join(cells)} |")
    return lines


def judged(
    its: Mapping[tuple[str, int], Mapping[str, float]], primaries: Sequence[Primary], *, alpha: float
) -> list[str]:
    """The registered comparisons, p adjusted over all of them."""
    found = []
    for primary in primaries:
        ours, theirs = _columns(its, primary.better), _columns(its, primary.than)
        seeds = sorted(ours.keys() & theirs.keys())
        values = ([side[seed][primary.figure] for seed in seeds] for side in (ours, theirs))
        found.append(compare.paired(*values, margin=primary.margin))
    adjusted = compare.holm([pair.p for pair in found])
    lines = [
        f"Registered comparisons; two-sided exact sign-flip tests, p adjusted by Holm over {len(found)}, level "
        f"{alpha:g}:",
        "",
        "| comparison | difference [95 %] | seeds | p | adjusted | holds | seeds for power 0.8 |",
        "|---" * 7 + "|",
    ]
    for primary, pair, p in zip(primaries, found, adjusted, strict=True):
        holds = "yes" if p < alpha and pair.mean > 0 else "no"
        needed = compare.seeds_needed(pair.mean, pair.deviation, alpha=alpha) if pair.deviation > 0 else "–"
        lines.append(
            f"| {primary.text} | {_with_interval(pair)} | {pair.better} of {pair.n} | {pair.p:.4f} | {p:.4f} "
            f"| {holds} | {needed} |"
        )
    return lines


def _differences(its: Mapping[tuple[str, int], Mapping[str, float]], reference: str) -> list[str]:
    """Every method against the reference, not adjusted."""
    names = SHOWN[:6]
    base = _columns(its, reference)
    if not base:
        return []
    lines = [f"Paired differences from {reference} [95 %], seeds with a gain, p not adjusted:", ""]
    lines += [f"| | {' | '.join(FIGURES[name] for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for method in dict.fromkeys(name for name, _ in its):
        ours = _columns(its, method)
        seeds = sorted(ours.keys() & base.keys())
        if method == reference or not seeds:
            continue
        cells = []
        for name in names:
            a, b = ([side[seed].get(name, math.nan) for seed in seeds] for side in (ours, base))
            if np.isnan([*a, *b]).any():
                cells.append("–")
                continue
            pair = compare.paired(a, b)
            cells.append(f"{_with_interval(pair)}; {pair.better}/{pair.n}; p {pair.p:.3f}")
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines if len(lines) > 4 else []


def _with_interval(pair: compare.Paired) -> str:
    interval = "" if pair.n == 1 else f" [{pair.low:+.3f}, {pair.high:+.3f}]"
    return f"{pair.mean:+.3f}{interval}"
