"""What decoding computes where prompts leave and caches grow: ``python benchmarks/decode_rows.py``.

No model runs: lengths of completions are drawn, and the rules of ``rollout.sample`` are applied to them, which the
tests hold against its own count. A completion has ``median * exp(between * x + within * y)`` tokens, at most 4096, with
x of its prompt and y its own, both standard normal. Work is compared with one block of all rows that is decoded until
the last has ended, against caches of full length:

* row-steps: rows times tokens for which they are computed;
* reads: places of caches that attention reads, rows times the length of their caches;
* seconds: time that the memory of one H200 of four takes for the weights of Qwen2.5-VL-7B and these caches, both in
  bfloat16, at the maker's rate; a bound, not a measurement.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from fairgrpo_jax import rollout


WEIGHTS, PLACE, RATE = 15.2e9, 57_344, 4.8e12  # bytes, bytes a token, bytes a second
SHAPES = {"short": (300, 0.6, 0.5), "medium": (500, 0.5, 0.45), "long": (900, 0.5, 0.4)}  # median, between, within


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--rollouts", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--waves", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    lines = []
    for name, shape in SHAPES.items():
        lengths = draw(given.prompts, given.rollouts, given.tokens, *shape, seed=given.seed)
        longest, rows = int(lengths.max()), lengths.size
        block = np.array([longest * rows, longest * rows * given.tokens])
        seconds = longest * step(rows / given.devices, given.tokens)
        for waves in given.waves:
            parts = [wave(part, given.devices, given.tokens) for part in np.split(lengths, waves)]
            work = np.sum([part[:2] for part in parts], axis=0) / block
            spent = sum(part[2] for part in parts)
            lines.append(
                {
                    "lengths": f"{name}: mean {lengths.mean():.0f}, longest {longest}",
                    "waves": waves,
                    "row-steps": round(float(work[0]), 3),
                    "reads": round(float(work[1]), 3),
                    "seconds": round(spent, 1),
                    "seconds of one block": round(seconds, 1),
                    "shapes": len(set.union(*(part[3] for part in parts))),
                }
            )
    if given.json:
        print(json.dumps(lines, indent=2))
        return
    table = Table(*lines[0])
    table.columns[0].no_wrap = True
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console(width=120).print(table)


def draw(P: int, G: int, T: int, median: float, between: float, within: float, *, seed: int) -> np.ndarray:
    """Lengths (P, G) of completions."""
    rng = np.random.default_rng(seed)
    spread = between * rng.normal(size=(P, 1)) + within * rng.normal(size=(P, G))
    return np.clip(np.ceil(median * np.exp(spread)), 1, T).astype(int)


def step(rows: float, size: int) -> float:
    """Seconds of one token of a device's rows against caches of this length."""
    return (WEIGHTS + rows * size * PLACE) / RATE


def segments(lengths: np.ndarray, devices: int, T: int, first: int) -> Iterator[tuple[int, int, int, int]]:
    """The shapes of a batch whose completions have ``lengths`` (P, G): from and to which token, prompts, cache."""
    last = lengths.max(1).reshape(devices, -1)
    count, size, t = last.shape[1], min(first, max(T - 1, 1)), 1
    while True:
        enough = rollout.enough(count, T, first)
        end = min(size + 1, T)
        began = t
        while t < end and (alive := int((last > t).sum(1).max())) > enough:
            t += 1
        alive = int((last > t).sum(1).max())
        yield began, t, count * devices, size
        if alive == 0 or t == T:
            return
        if alive <= enough:
            count = rollout.halved(count, alive)
        if t > size:
            size = min(2 * size, T - 1)


def wave(
    lengths: np.ndarray, devices: int, T: int, first: int = rollout.FIRST
) -> tuple[float, float, float, set[tuple[int, int]]]:
    """Row-steps, places read, seconds and shapes of one wave."""
    G = lengths.shape[1]
    parts = list(segments(lengths, devices, T, first))
    tokens = len(lengths) * G + sum((end - began) * prompts * G for began, end, prompts, _ in parts)
    reads = sum((end - began) * prompts * G * size for began, end, prompts, size in parts)
    seconds = sum((end - began) * step(prompts * G / devices, size) for began, end, prompts, size in parts)
    return tokens, reads, seconds, {(prompts, size) for _, _, prompts, size in parts}


if __name__ == "__main__":
    main()
