"""Deterministic mixing of datasets with Grain; the position in the order of batches is a single integer."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import grain
import numpy as np

from fairgrpo_jax.data.record import Record, Source


def mixture(
    sources: Sequence[Source],
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | Literal["size"] = "size",
    temperature: float = 1.0,
    process: int = 0,
    processes: int = 1,
) -> grain.MapDataset:
    """An endless sequence of batches: all sources are shuffled and repeated, then mixed in fixed proportions.

    ``source -> shuffle -> repeat -> mix -> batch -> slice per process``, in that order. Batching comes before slicing:
    a mix is periodic, so slicing its rows would assign whole sources to single processes. Batch n over all processes
    holds the same records for any number of processes. Each source is drawn without replacement, in a new order each
    epoch. Proportions are exact, not sampled: of the first n rows, n · weight / sum(weights) come from a source, except
    for one or two rows. Grain stores weights as whole numbers: they are rounded to hundredths of the smallest.

    Args:
        sources: the datasets, none of which is empty.
        batch_size: records per batch over all processes; divisible by ``processes``.
        seed: random seed of the orders, >= 0; source i is shuffled with a seed derived from (seed, i).
        weights: positive, one per source; or ``"size"``, n ** temperature for a source of n records.
        temperature: exponent of ``"size"``, in [0, 1]: 1 is a single shuffled pool, 0 draws equally from all sources,
            and in between small sources are drawn more often than in proportion to size. Not allowed with explicit
            weights.
        process: index of this process.
        processes: number of processes that read together.

    Returns:
        A ``grain.MapDataset`` whose item n is this process's part of batch n, a list of ``Record``.

    Raises:
        ValueError: if there are no sources or an empty one, weights or temperature are invalid, or the processes do not
            divide the batch.

    Example:
        >>> from fairgrpo_jax.data import mixture
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> sources = [synthetic.load("train", domains=(name,)) for name in ("us", "diabetes")]
        >>> batches = mixture.mixture(sources, batch_size=4, seed=0, weights=(3, 1))
        >>> sorted(record.dataset for record in batches[0])
        ['diabetes', 'us', 'us', 'us']
    """
    empty = [i for i, source in enumerate(sources) if not len(source)]
    if not sources or empty:
        raise ValueError(f"sources to mix: {len(sources)}, of which empty: {empty}; give at least one, none empty")
    shares = _shares([len(source) for source in sources], weights, temperature)
    if batch_size < 1 or not 0 <= process < processes or batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size}, process {process} of {processes}; wanted a batch divisible by the number of "
            "processes and a process index below it"
        )
    streams = [
        grain.MapDataset.source(source).shuffle(seed=_seed(seed, i)).repeat() for i, source in enumerate(sources)
    ]
    mixed = grain.MapDataset.mix(streams, [round(100 * share / min(shares)) for share in shares])
    local = mixed.batch(batch_size // processes, drop_remainder=True, batch_fn=list)  # endless: no remainder
    return local[process::processes]


def _shares(sizes: Sequence[int], weights: Sequence[float] | str, temperature: float) -> list[float]:
    if isinstance(weights, str):
        if weights != "size" or not 0 <= temperature <= 1:
            raise ValueError(
                f"weights are {weights!r} and the temperature {temperature}; wanted 'size' with one in [0, 1], or a "
                "weight for each source"
            )
        return [size**temperature for size in sizes]
    if len(weights) != len(sizes) or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights are {list(weights)}; wanted {len(sizes)} positive ones, leave out what weighs 0")
    if temperature != 1:
        raise ValueError(f"temperature is {temperature} and weights are given; it is of weights='size' only")
    return list(weights)


def iterate(
    dataset: grain.MapDataset,
    *,
    start: int = 0,
    encode: Callable[[list[Record]], Any] | None = None,
    threads: int = 2,
    prefetch: int = 2,
) -> grain.DatasetIterator:
    """Reads the batches in order, ahead of use, in threads.

    Args:
        dataset: from ``mixture``.
        start: index of the first batch; ``next_index`` of a checkpoint.
        encode: function applied to every batch in the threads: decoding of media, processing, tokenising. It must
            depend only on its batch, otherwise a resumed run differs.
        threads: number of batches encoded at the same time.
        prefetch: number of batches held ready; limits the memory.

    Returns:
        A Grain iterator. ``get_state()`` is ``{"next_index": n}``, plain JSON, the number of batches returned; after
        ``set_state`` the following batches are exactly those of an uninterrupted run. Errors of a source or of
        ``encode`` are raised at their batch; nothing is skipped.

    Example:
        >>> from fairgrpo_jax.data import mixture
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> batches = mixture.mixture([synthetic.load("train", domains=("us",))], batch_size=4, seed=0)
        >>> iterator = mixture.iterate(batches, encode=lambda batch: [record.uid for record in batch])
        >>> first, state, second = next(iterator), iterator.get_state(), next(iterator)
        >>> state, next(mixture.iterate(batches, start=1))[0].uid == second[0]
        ({'next_index': 1}, True)
    """
    dataset = dataset if encode is None else dataset.map(encode)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    iterator = iter(dataset.to_iter_dataset(options))
    iterator.set_state({"next_index": start})
    return iterator


def _seed(seed: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, index]).generate_state(1)[0])
