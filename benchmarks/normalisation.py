"""Two datasets graded in different units, with and without normalisation: ``python benchmarks/normalisation.py``.

Grounding in one dimension. An example is a line of 32 cells on which an interval is bright, in noise; a completion is
an interval. In the easy dataset the interval is long, and a completion is graded from 1 to 5, as a judge grades:
1 + 4 IoU, the intersection over union with the true interval. In the hard one it is short, and the reward is the IoU.
One small network (ours, no language model) answers both: it is supervised for a while, then trained by policy gradient
with the library's own components, percentiles and advantages, in eight ways:

    advantage    the deviation of a prompt's rewards divides (grpo), or nothing does (dr_grpo)
    reward       as it is; normalised by running percentiles, or by those of the supervised policy; and, for
                 comparison, divided by the interquartile range of the latter alone, without the logistic curve

Every way starts from the same weights and sees the same examples and random keys in a seed. Printed are the
expected IoU of a sampled answer to 2,048 held-out examples of each dataset, paired differences with 95 % intervals, and
the share of |advantage| that the hard dataset causes.
"""

import argparse
import csv
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairgrpo_jax import advantages, normalization, rewards
from fairgrpo_jax.config import Component
from fairgrpo_jax.study import compare


CELLS = 32
WIDTHS = (2, 3, 4, 6, 8, 10, 12, 14)
DATASETS = ("easy", "hard")
LENGTHS = ((8, 14), (2, 4))  # of the interval, by dataset
NOISE = 0.7  # deviation, beside a contrast of 1
HIDDEN = 64
PROMPTS, ROLLOUTS, HELD_OUT, WINDOW = 64, 8, 2048, 1024
ADVANTAGES = {"grpo": advantages.grpo, "dr_grpo": advantages.dr_grpo}
REWARDS = ("as it is", "running percentiles", "fixed percentiles", "fixed range, no curve")
FIGURES = ("easy", "hard", "hard_share")
GRADE = ((1.0, 4.0), (0.0, 1.0))  # of an IoU, by dataset: offset and factor
PARTS = [Component("grade", normalised=True)]

ACTIONS = np.array([(start, start + width) for width in WIDTHS for start in range(CELLS - width + 1)])  # (A, 2)


class Batch(NamedTuple):
    """Examples: what is seen, the true intervals, and the dataset of each."""

    seen: jax.Array  # (P, CELLS + 1), the last column is the dataset
    truth: jax.Array  # (P, 2)
    dataset: jax.Array  # (P,) int32


def draw(key: jax.Array, count: int) -> Batch:
    """``count`` examples, half of each dataset."""
    length_key, start_key, noise_key = jax.random.split(key, 3)
    dataset = jnp.arange(count) % 2
    low, high = (jnp.array(LENGTHS)[dataset, side] for side in (0, 1))
    length = jax.random.randint(length_key, (count,), low, high + 1)
    start = jax.random.randint(start_key, (count,), 0, CELLS - length + 1)
    cells = jnp.arange(CELLS)[None, :]
    inside = (cells >= start[:, None]) & (cells < (start + length)[:, None])
    noise = NOISE * jax.random.normal(noise_key, (count, CELLS))
    return Batch(jnp.c_[inside + noise, dataset], jnp.stack([start, start + length], axis=1), dataset)


def iou(truth: jax.Array) -> jax.Array:
    """(P, A): of every answer with each true interval."""
    starts, ends = ACTIONS.T[:, None, :]
    shared = jnp.maximum(jnp.minimum(truth[:, 1:], ends) - jnp.maximum(truth[:, :1], starts), 0)
    total = (truth[:, 1:] - truth[:, :1]) + (ends - starts) - shared
    return shared / total


def begin(key: jax.Array) -> dict[str, jax.Array]:
    """Random weights of the network."""
    first, second = jax.random.split(key)
    return {
        "a": jax.random.normal(first, (CELLS + 1, HIDDEN)) / (CELLS + 1) ** 0.5,
        "b": jnp.zeros(HIDDEN),
        "c": jax.random.normal(second, (HIDDEN, len(ACTIONS))) / HIDDEN**0.5,
    }


def logits(params: dict[str, jax.Array], seen: jax.Array) -> jax.Array:
    """(P, A), of every answer."""
    return jnp.tanh(seen @ params["a"] + params["b"][None]) @ params["c"]


def supervised(params: Any, key: jax.Array, steps: int) -> Any:
    """The policy after ``steps`` of learning the best answers."""
    optimizer = optax.adam(3e-3)

    def loss(params: Any, batch: Batch) -> jax.Array:
        best = jnp.argmax(iou(batch.truth), axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch.seen), best).mean()

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, draw(key, PROMPTS)), state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))
    return params


def sampled(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Answers of the policy and their rewards, (P, G) each."""
    below = jnp.cumsum(jax.nn.softmax(logits(params, batch.seen)), axis=1)
    drawn = jax.random.uniform(key, (len(batch.dataset), ROLLOUTS))
    chosen = jnp.minimum(jax.vmap(jnp.searchsorted)(below, drawn), len(ACTIONS) - 1)
    offset, factor = jnp.array(GRADE)[batch.dataset].T[..., None]
    return chosen, offset + factor * jnp.take_along_axis(iou(batch.truth), chosen, axis=1)


def percentiles(params: Any, key: jax.Array) -> jax.Array:
    """(3, 2): quartiles of the rewards of a policy, by dataset."""
    batch = draw(key, HELD_OUT)
    found = sampled(params, batch, key)[1]
    return jnp.stack([jnp.quantile(found[k::2], jnp.array(normalization.QUARTILES)) for k in (0, 1)], axis=1)


def reinforced(params: Any, key: jax.Array, advantage: str, reward: str, steps: int, rate: float) -> Any:
    """The policy after ``steps`` of policy gradient, and the mean share of |advantage| of the hard dataset."""
    optimizer, fixed = optax.adam(rate), percentiles(params, jax.random.fold_in(key, 1))

    def paid(scores: jax.Array, dataset: jax.Array, memory: Any) -> jax.Array:
        if reward == REWARDS[0]:
            return scores
        p25, p50, p75 = normalization.quantiles(memory) if reward == REWARDS[1] else fixed
        if reward == REWARDS[3]:
            return scores / jnp.maximum(p75 - p25, 0.01)[dataset][:, None]
        wide = [p[dataset][:, None] for p in (p25, p50, p75)]
        return rewards.compose(scores[..., None], PARTS, wide)

    def step(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        params, state, memory = carry
        example_key, answer_key = jax.random.split(key)
        batch = draw(example_key, PROMPTS)
        chosen, scores = sampled(params, batch, answer_key)
        values = ADVANTAGES[advantage](paid(scores, batch.dataset, memory))

        def loss(params: Any) -> jax.Array:
            found = jax.nn.log_softmax(logits(params, batch.seen))
            return -jnp.mean(values * jnp.take_along_axis(found, chosen, axis=1))

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        wide = jnp.broadcast_to(batch.dataset[:, None], scores.shape)
        memory = normalization.observe(memory, scores.reshape(-1), wide.reshape(-1))
        size = jnp.abs(values).sum(axis=1)
        return (optax.apply_updates(params, updates), state, memory), size[1::2].sum() / size.sum()

    memory = normalization.init_quantiles(2, capacity=WINDOW)
    (params, *_), shares = jax.lax.scan(step, (params, optimizer.init(params), memory), jax.random.split(key, steps))
    return params, shares.mean()


def held_out(params: Any, key: jax.Array) -> jax.Array:
    """(2,): expected IoU of a sampled answer, exactly, by dataset."""
    batch = draw(key, 2 * HELD_OUT)
    found = jnp.sum(jax.nn.softmax(logits(params, batch.seen)) * iou(batch.truth), axis=1)
    return jnp.stack([found[k::2].mean() for k in (0, 1)])


def measure(seeds: list[int], warmup: int, steps: int, rate: float) -> dict[tuple[str, str, int], list[float]]:
    """``FIGURES`` by advantage, reward and seed; those of the supervised policy under two empty names."""
    keys = jax.vmap(jax.random.key)(jnp.array(seeds))
    split = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
    first = jax.jit(jax.vmap(lambda a, b: supervised(begin(a), b, warmup)))(split[:, 0], split[:, 1])
    tested = jax.jit(jax.vmap(held_out))
    found = {
        ("", "", seed): [*row.tolist(), np.nan] for seed, row in zip(seeds, tested(first, split[:, 3]), strict=True)
    }
    for advantage in ADVANTAGES:
        for reward in REWARDS:
            run = jax.jit(jax.vmap(lambda p, key, a=advantage, r=reward: reinforced(p, key, a, r, steps, rate)))
            params, shares = jax.block_until_ready(run(first, split[:, 2]))
            print(f"{advantage}, {reward}", file=sys.stderr)
            for seed, row, share in zip(seeds, tested(params, split[:, 3]), shares, strict=True):
                found[advantage, reward, seed] = [*row.tolist(), share.item()]
    return found


def table(found: dict[tuple[str, str, int], list[float]], seeds: list[int]) -> str:
    """Means, and differences from the reward as it is with the same advantage, seed by seed."""
    lines = ["| advantage | reward | easy | hard | hard's share | easy: difference [95 %] | hard: difference [95 %] |"]
    lines += ["|---" * 7 + "|"]
    for advantage, reward in dict.fromkeys(key[:2] for key in found):
        own = np.array([found[advantage, reward, seed] for seed in seeds])
        easy, hard, share = own.mean(axis=0)
        if not advantage:
            lines.append(f"| – | supervised policy | {easy:.3f} | {hard:.3f} | – | – | – |")
            continue
        cells = ["–", "–"]
        if reward != REWARDS[0]:
            base = np.array([found[advantage, REWARDS[0], seed] for seed in seeds])
            pairs = [compare.paired(own[:, k], base[:, k]) for k in (0, 1)]
            cells = [f"{pair.mean:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]" for pair in pairs]
        lines.append(f"| {advantage} | {reward} | {easy:.3f} | {hard:.3f} | {share:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all ways, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(571, 579)])
    parser.add_argument("--warmup", type=int, default=100, help="supervised steps (default 100)")
    parser.add_argument("--steps", type=int, default=600, help="policy gradient steps (default 600)")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of the policy gradient (default 5e-4)")
    parser.add_argument("--csv", type=pathlib.Path, help="writes the figures of every seed here")
    chosen = parser.parse_args()
    found = measure(chosen.seeds, chosen.warmup, chosen.steps, chosen.rate)
    if chosen.csv:
        with chosen.csv.open("w", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["advantage", "reward", "seed", *FIGURES])
            writer.writerows([*key, *(f"{value:.6f}" for value in values)] for key, values in found.items())
    print(table(found, chosen.seeds))


if __name__ == "__main__":
    main()
