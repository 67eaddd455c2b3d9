"""Every advantage transform of the library against NumPy and plain Python: ``python benchmarks/advantages.py``.

One step of 512 prompts with 10 rollouts in 7 domains after 50 000 prompts of history. Three versions of each transform
see the same batch and, but for clusters, must give the same numbers before anything is timed:

* jax: the function of the library under ``jax.jit``, until its arrays are ready;
* NumPy: the same formula on whole arrays, with running sums, and scikit-learn's k-means where there are clusters;
* direct: one sample after the other in Python. For the FairGRPO family this averages the whole history anew for every
  rollout and refits scikit-learn's k-means to it in every step, as the authors' code does.

The three take turns, so that what else the machine does falls on all of them; the table gives medians.
"""

import argparse
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.cluster import KMeans

from fairgrpo_jax import _fairness_state, advantages, fairness


P, G, D, GROUPS = 512, 10, 7, 8
HISTORY = 50_000
EPSILON = 1e-6

Array = np.ndarray


class Batch(NamedTuple):
    """One step, and what was seen before it."""

    rewards: Array  # (P, G)
    lengths: Array  # (P, G)
    greedy: Array  # (P,)
    components: Array  # (P, G, 3)
    domains: Array  # (P,)
    groups: Array  # (P,)
    past_rewards: Array  # (HISTORY, G)
    past_domains: Array  # (HISTORY,)
    past_groups: Array  # (HISTORY,)


class Row(NamedTuple):
    """A transform in three versions, each a call without arguments that returns (P, G) advantages."""

    name: str
    ours: Callable
    vectorised: Callable[[], Array]
    direct: Callable[[], list]
    same: bool = True  # whether the numbers must agree: clusters depend on their starts


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to repeat each transform (default 2)")
    parser.add_argument("--only", default="", help="measure the transforms whose name contains this")
    options = parser.parse_args()

    table = Table(title=f"({P}, {G}) rewards, {D} domains, {HISTORY} prompts of history: medians of one step")
    table.add_column("transform")
    for column in ("jax, us", "NumPy, us", "direct, us", "NumPy / jax", "direct / jax", "repeats"):
        table.add_column(column, justify="right")
    console = Console(width=112)
    rows = [row for row in transforms(batch(fractional=False), batch(fractional=True)) if options.only in row.name]
    with console.status("") as status:
        for row in rows:
            status.update(row.name)
            if row.same:
                wanted = row.vectorised()
                np.testing.assert_allclose(row.ours(), wanted, rtol=2e-3, atol=2e-4, err_msg=row.name)
                np.testing.assert_allclose(row.direct(), wanted, rtol=1e-6, atol=1e-9, err_msg=row.name)
            ours, vectorised, direct, repeats = measure(row, options.seconds)
            figures = *(f"{x * 1e6:,.0f}" for x in (ours, vectorised, direct)), *ratios(ours, vectorised, direct)
            table.add_row(row.name, *figures, str(repeats))
    console.print(table)
    cpu = f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].device_kind}"
    console.print(f"{cpu}; Python {platform.python_version()}, jax {jax.__version__}, NumPy {np.__version__}")


def measure(row: Row, seconds: float) -> tuple[float, float, float, int]:
    """Median seconds of the three versions, which take turns; the slow one has the fewest."""
    calls = lambda: jax.block_until_ready(row.ours()), row.vectorised, row.direct
    jax.block_until_ready(row.ours())  # compiles
    spent: tuple[list[float], ...] = [], [], []
    end = time.perf_counter() + seconds
    while not spent[1] or time.perf_counter() < end:
        for call, times in zip(calls, spent, strict=True):
            if call is row.direct and sum(times) > seconds / 2:
                continue
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    ours, vectorised, direct = (statistics.median(times) for times in spent)
    return ours, vectorised, direct, len(spent[0])


def ratios(ours: float, *others: float) -> list[str]:
    """How many times as long the others take."""
    return [f"{other / ours:,.1f}" for other in others]


def batch(*, fractional: bool) -> Batch:
    """Rewards of prompts that are mostly easy or mostly hard: 0 or 1, or fractions of the ones."""
    rng = np.random.default_rng(0)

    def rewards(prompts: int) -> Array:
        r = (rng.random((prompts, G)) < rng.beta(0.6, 0.6, (prompts, 1))).astype(np.float32)
        return (r * rng.random(r.shape)).astype(np.float32) if fractional else r

    return Batch(
        rewards=rewards(P),
        lengths=rng.integers(1, 400, (P, G)),
        greedy=rewards(P)[:, 0],
        components=np.stack([rewards(P), rewards(P), rng.random((P, G)).astype(np.float32)], axis=2),
        domains=rng.integers(0, D, P).astype(np.int32),
        groups=rng.integers(0, GROUPS, P).astype(np.int32),
        past_rewards=rewards(HISTORY),
        past_domains=rng.integers(0, D, HISTORY).astype(np.int32),
        past_groups=rng.integers(0, GROUPS, HISTORY).astype(np.int32),
    )


def transforms(binary: Batch, fractional: Batch) -> list[Row]:
    """The rows of the table."""
    r, lengths, greedy, components = (
        jnp.asarray(x) for x in (binary.rewards, binary.lengths, binary.greedy, binary.components)
    )
    weights = jnp.array([1.0, 0.5, 0.25])

    def plain(name: str, formula: Callable, direct: Callable, *inputs: jax.Array, **options: object) -> Row:
        function = jax.jit(functools.partial(getattr(advantages, name), **options))
        host = [np.asarray(x, np.float64) for x in inputs]
        lists = [x.tolist() for x in host]
        return Row(name, lambda: function(*inputs), lambda: formula(*host), lambda: direct(*lists))

    return [
        plain("grpo", z_score, lambda r: [z_score_direct(row) for row in r], r),
        plain("dr_grpo", centre, lambda r: [centre_direct(row) for row in r], r),
        plain("rloo", rloo, lambda r: [rloo_direct(row) for row in r], r),
        plain("gpg", gpg, gpg_direct, r),
        plain("reinforce_plus_plus", whiten, whiten_direct, r, lengths),
        plain("reinforce_plus_plus_baseline", whiten_baseline, whiten_baseline_direct, r, lengths),
        plain("opo", opo, lambda r, n: [opo_direct(*row) for row in zip(r, n, strict=True)], r, lengths),
        plain("remax", lambda r, b: r - b[:, None], remax_direct, r, greedy),
        plain("pass_at_k", pass_at_k, lambda r: [pass_at_k_direct(row) for row in r], r),
        plain("gdpo", gdpo, gdpo_direct, components, weights),
        fair("fair_grpo, labels", binary, history=None, labelled=True, k_max=3, inverse_size=False),
        fair("fair_grpo, binary clusters", binary, history="binary", labelled=False, k_max=3, inverse_size=False),
        fair("fair_grpo, ring clusters", fractional, history="ring", labelled=False, k_max=3, inverse_size=False),
        fair("fair_grpo_nd, binary", binary, history="binary", labelled=False, k_max=3, inverse_size=True),
        fair("drpo, binary", binary, history="binary", labelled=False, k_max=10, inverse_size=True),
        group_dro(binary),
    ]


def seen(b: Batch, history: str | None, labelled: bool) -> fairness.FairnessState:
    """The state after the past of a batch, seen in batches of P."""
    state = fairness.init(D, GROUPS, G, history=history)  # pyright: ignore[reportArgumentType]
    groups = b.past_groups if labelled else np.full_like(b.past_groups, -1)
    for start in range(0, HISTORY, P):
        part = slice(start, start + P)
        r, d, g = (jnp.asarray(x[part]) for x in (b.past_rewards, b.past_domains, groups))
        state = _fairness_state.observe(r, d, g, state, decay=1.0)
    return state


def fair(name: str, b: Batch, *, history: str | None, labelled: bool, k_max: int, inverse_size: bool) -> Row:
    """A member of the FairGRPO family."""
    state = seen(b, history, labelled)
    groups = b.groups if labelled else np.full_like(b.groups, -1)
    family = {"fair_grpo": fairness.fair_grpo, "fair_grpo_nd": fairness.fair_grpo_nd, "drpo": fairness.drpo}
    function = jax.jit(family[name.split(",")[0]])
    inputs = (b.rewards, b.domains, groups) if name.startswith("fair_grpo,") else (b.rewards, b.domains)
    on_device = [jnp.asarray(x) for x in inputs]
    every = np.concatenate([b.past_rewards, b.rewards]).astype(np.float64)
    domains = np.concatenate([b.past_domains, b.domains])
    past_groups = b.past_groups if labelled else np.full_like(b.past_groups, -1)
    cells = np.concatenate([past_groups, groups])
    running = sums(b.past_rewards, b.past_domains, past_groups)
    rows: list[list[list[float]]] = [every[domains == d].tolist() for d in range(D)]
    labels = [cells[domains == d].tolist() for d in range(D)]
    return Row(
        name,
        lambda: function(*on_device, state)[0],
        lambda: fair_vectorised(b, groups, running, every, domains, k_max, inverse_size),
        lambda: fair_direct(b, groups, rows, labels, k_max, inverse_size),
        same=labelled,
    )


def group_dro(b: Batch) -> Row:
    """Group DRO on the cells of a domain and a group, at its second step."""
    r, d, g = (jnp.asarray(x) for x in (b.rewards, b.domains, b.groups))
    function = jax.jit(fairness.group_dro)
    _, state = function(r, d, g, seen(b, None, labelled=True))
    risen = np.asarray(state.dro_log_weight, np.float64)[:, :GROUPS]
    return Row(
        "group_dro",
        lambda: function(r, d, g, state)[0],
        lambda: group_dro_vectorised(b.rewards.astype(np.float64), b.domains, b.groups, risen),
        lambda: group_dro_direct(b.rewards.tolist(), b.domains.tolist(), b.groups.tolist(), risen.tolist()),
    )


# NumPy: whole arrays, every reward scored.


def centre(r: Array) -> Array:  # noqa: D103
    return r - r.mean(axis=1, keepdims=True)


def z_score(r: Array, epsilon: float = EPSILON) -> Array:  # noqa: D103
    return centre(r) / (r.std(axis=1, ddof=1, keepdims=True) + epsilon)


def rloo(r: Array) -> Array:  # noqa: D103
    return centre(r) * (r.shape[1] / (r.shape[1] - 1))


def gpg(r: Array) -> Array:  # noqa: D103
    return centre(r) * (r.size / max(np.count_nonzero(r), 1))


def whiten(r: Array, lengths: Array) -> Array:  # noqa: D103
    mean = np.average(r, weights=lengths)
    variance = np.sum(lengths * (r - mean) ** 2) / (lengths.sum() - 1)
    return (r - mean) / np.sqrt(variance + 1e-8)


def whiten_baseline(r: Array, lengths: Array) -> Array:  # noqa: D103
    return whiten(centre(r), lengths)


def opo(r: Array, lengths: Array) -> Array:  # noqa: D103
    return r - np.average(r, axis=1, weights=lengths)[:, None]


def pass_at_k(r: Array) -> Array:  # noqa: D103
    ordered = np.sort(r, axis=1)
    lead = (ordered[:, -1] - ordered[:, -2]) / (r.std(axis=1, ddof=1) + EPSILON)
    return np.where(r == ordered[:, -1:], lead[:, None], 0)


def gdpo(components: Array, weights: Array) -> Array:  # noqa: D103
    scores = sum(w * z_score(components[:, :, k], 1e-4) for k, w in enumerate(weights))
    return np.divide(scores, np.std(scores, ddof=1) + 1e-4)


def sums(r: Array, domains: Array, groups: Array) -> tuple[Array, Array]:
    """Prompts and their summed mean rewards, (D, GROUPS + 1), the last column for the unlabelled."""
    counts, totals = np.zeros((D, GROUPS + 1)), np.zeros((D, GROUPS + 1))
    np.add.at(counts, (domains, groups), 1)
    np.add.at(totals, (domains, groups), r.astype(np.float64).mean(axis=1))
    return counts, totals


def fair_vectorised(
    b: Batch,
    groups: Array,
    running: tuple[Array, Array],
    every: Array,
    domains: Array,
    k_max: int,
    inverse_size: bool,
) -> Array:
    """FairGRPO from running sums."""
    r = b.rewards.astype(np.float64)
    counts, totals = (a + new for a, new in zip(running, sums(r, b.domains, groups), strict=True))
    count, mean = counts[b.domains, groups], (totals / np.maximum(counts, 1))[b.domains, groups]
    of_domain = totals.sum(axis=1) / counts.sum(axis=1)
    if groups[0] < 0:
        for d in range(D):
            here = b.domains == d
            size, means, centroids = fitted(every[domains == d], k_max)
            nearest = np.argmin(((r[here][:, None, :] - centroids[None]) ** 2).sum(axis=2), axis=1)
            count[here], mean[here] = size[nearest], means[nearest]
            if inverse_size:
                of_domain[d] = np.average(means, weights=1 / size)
    t = np.sqrt(counts.sum(axis=1)) * of_domain
    scaled = z_score(r) / (np.maximum(t, EPSILON)[b.domains] * np.sqrt(count) * np.maximum(mean, 1e-12))[:, None]
    return scaled / (np.std(scaled, ddof=1) + EPSILON)


def fitted(points: Array, k_max: int) -> tuple[Array, Array, Array]:
    """Sizes, mean rewards and centroids of scikit-learn's clusters at the elbow."""
    fits = [KMeans(k, n_init="auto", random_state=0).fit(points) for k in range(1, k_max + 1)]
    falls = -np.diff([float(fit.inertia_ or 0) for fit in fits])
    flat = np.flatnonzero(falls[1:] < 0.1 * falls[:-1])
    fit = fits[flat[0] + 1] if len(flat) else fits[-1]
    return np.bincount(np.asarray(fit.labels_)), fit.cluster_centers_.mean(axis=1), fit.cluster_centers_


def group_dro_vectorised(r: Array, domains: Array, groups: Array, risen: Array) -> Array:  # noqa: D103
    counts, totals = sums(r, domains, groups)
    counts, totals = counts[:, :GROUPS], totals[:, :GROUPS]
    risen = risen + np.where(counts > 0, 0.01 * (1 - totals / np.maximum(counts, 1)), 0)
    q = np.exp(risen) / np.exp(risen).sum()
    return (q * len(r) / np.maximum(counts, 1))[domains, groups][:, None] * z_score(r)


# Direct: one sample after the other.


def centre_direct(row: list) -> list:  # noqa: D103
    mean = statistics.fmean(row)
    return [x - mean for x in row]


def z_score_direct(row: list, epsilon: float = EPSILON) -> list:  # noqa: D103
    mean = statistics.fmean(row)
    deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5
    return [(x - mean) / (deviation + epsilon) for x in row]


def rloo_direct(row: list) -> list:  # noqa: D103
    return [x - statistics.fmean(row[:i] + row[i + 1 :]) for i, x in enumerate(row)]


def gpg_direct(r: list) -> list:  # noqa: D103
    alpha = sum(len(row) for row in r) / max(sum(x != 0 for row in r for x in row), 1)
    return [[alpha * x for x in centre_direct(row)] for row in r]


def whiten_direct(r: list, lengths: list) -> list:  # noqa: D103
    pairs = [pair for row in zip(r, lengths, strict=True) for pair in zip(*row, strict=True)]
    tokens = sum(n for _, n in pairs)
    mean = sum(x * n for x, n in pairs) / tokens
    variance = sum(n * (x - mean) ** 2 for x, n in pairs) / (tokens - 1)
    return [[(x - mean) / (variance + 1e-8) ** 0.5 for x in row] for row in r]


def whiten_baseline_direct(r: list, lengths: list) -> list:  # noqa: D103
    return whiten_direct([centre_direct(row) for row in r], lengths)


def opo_direct(row: list, lengths: list) -> list:  # noqa: D103
    baseline = sum(x * n for x, n in zip(row, lengths, strict=True)) / sum(lengths)
    return [x - baseline for x in row]


def remax_direct(r: list, greedy: list) -> list:  # noqa: D103
    return [[x - b for x in row] for row, b in zip(r, greedy, strict=True)]


def pass_at_k_direct(row: list) -> list:  # noqa: D103
    second, best = sorted(row)[-2:]
    mean = statistics.fmean(row)
    deviation = (sum((x - mean) ** 2 for x in row) / (len(row) - 1)) ** 0.5
    return [(best - second) / (deviation + EPSILON) if x == best else 0.0 for x in row]


def gdpo_direct(components: list, weights: list) -> list:  # noqa: D103
    summed = []
    for prompt in components:
        scores = [z_score_direct(list(component), 1e-4) for component in zip(*prompt, strict=True)]
        summed.append([sum(w * x for w, x in zip(weights, xs, strict=True)) for xs in zip(*scores, strict=True)])
    deviation = statistics.stdev([x for row in summed for x in row])
    return [[x / (deviation + 1e-4) for x in row] for row in summed]


def fair_direct(b: Batch, groups: Array, rows: list, labels: list, k_max: int, inverse_size: bool) -> list[list[float]]:
    """FairGRPO with all history averaged anew for every rollout; rows and labels include this batch."""
    clusters = [fitted(np.array(history), k_max) for history in rows] if groups[0] < 0 else []
    scaled = []
    for row, d, g in zip(b.rewards.tolist(), b.domains.tolist(), groups.tolist(), strict=True):
        scores = z_score_direct(row)
        for i, score in enumerate(scores):
            history = rows[d]
            count, mean = len(history), sum(map(sum, history)) / (G * len(history))
            if g < 0:
                size, means, centroids = clusters[d]
                nearest = min(range(len(size)), key=lambda c: sum((x - y) ** 2 for x, y in zip(row, centroids[c])))  # noqa: B023, B905
                group_count, group_mean = size[nearest], means[nearest]
                if inverse_size:
                    mean = sum(m / n for m, n in zip(means, size, strict=True)) / sum(1 / n for n in size)
            else:
                alike = [old for old, label in zip(history, labels[d], strict=True) if label == g]
                group_count, group_mean = len(alike), sum(map(sum, alike)) / (G * len(alike))
            t = max(count**0.5 * mean, EPSILON) * group_count**0.5 * group_mean
            scores[i] = score / t if t > 0 else score
        scaled.append(scores)
    deviation = statistics.stdev([x for scores in scaled for x in scores])
    return [[x / (deviation + EPSILON) for x in scores] for scores in scaled]


def group_dro_direct(r: list, domains: list, groups: list, risen: list) -> list:  # noqa: D103
    cells: dict[tuple[int, int], list[float]] = {}
    for row, d, g in zip(r, domains, groups, strict=True):
        cells.setdefault((d, g), []).append(statistics.fmean(row))
    grown = [[2.718281828459045**x for x in of_domain] for of_domain in risen]
    for (d, g), means in cells.items():
        grown[d][g] *= 2.718281828459045 ** (0.01 * (1 - statistics.fmean(means)))
    total = sum(map(sum, grown))
    out = []
    for row, d, g in zip(r, domains, groups, strict=True):
        ratio = grown[d][g] / total * len(r) / len(cells[d, g])
        out.append([ratio * x for x in z_score_direct(row)])
    return out


if __name__ == "__main__":
    main()
