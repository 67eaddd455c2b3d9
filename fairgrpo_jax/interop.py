"""Wraps the pure functions for PyTorch and NumPy programs: arrays in, arrays out.

    >>> from fairgrpo_jax import advantages
    >>> grpo = on_numpy(advantages.grpo)
    >>> type(grpo(np.array([[1.0, 0.0]]))).__name__
    'ndarray'

``on_numpy`` and ``on_torch`` wrap any function of ``advantages``, ``fairness``, ``losses`` or ``normalization``.
Trainers with a flat batch, one row per completion, use ``layout``, ``by_prompt`` and ``by_sample``:

    >>> rows = layout(["a", "b", "a", "b"])  # which prompt each completion answers
    >>> print(by_sample(grpo(by_prompt([1.0, 0.0, 0.0, 0.0], rows)), rows).round(3))
    [ 0.707  0.    -0.707  0.   ]

The arithmetic runs on the CPU. On a machine with a GPU, set ``JAX_PLATFORMS=cpu`` before the first import of JAX;
otherwise JAX reserves memory that the other framework needs.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from fairgrpo_jax.sampler import FairSampler


def on_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with NumPy arrays as results; a ``FairnessState`` passes through as it is.

    Args:
        function: takes and returns arrays, alone or in tuples and dicts.

    Returns:
        A function with the same arguments. Its results are copies and can be written to.
    """

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        with _on_cpu():
            return _map_arrays(np.array, function(*args, **options))

    return wrapped


def on_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function with ``torch.Tensor`` arguments and results; a ``FairnessState`` passes through as it is.

    Args:
        function: takes and returns arrays, alone or in tuples and dicts.

    Returns:
        A function with the same arguments. Tensors may be on any device and of any dtype (bfloat16 is converted through
        float32). Results are on the device of the first tensor argument and carry no gradient, because advantages are
        constants in the loss.

    Raises:
        ImportError: if torch is not installed.
    """
    import torch  # pyright: ignore[reportMissingImports]

    def to_array(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        x = x.detach().cpu()
        return (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x).numpy()

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        leaves = jax.tree.leaves((args, options))
        device = next((x.device for x in leaves if isinstance(x, torch.Tensor)), torch.device("cpu"))
        args, options = jax.tree.map(to_array, (args, options))
        with _on_cpu():
            results = function(*args, **options)
        return _map_arrays(lambda x: torch.from_numpy(np.array(x)).to(device), results)

    return wrapped


def layout(prompt_ids: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Row numbers of the rollouts of each prompt in a flat batch.

    Args:
        prompt_ids: (N,) hashable ids, one per completion: verl's ``uid``, or the repeated index of the prompt.

    Returns:
        (P, G) int64 row numbers, prompts and rollouts in order of appearance; -1 where a prompt has fewer than G.

    Raises:
        ValueError: if there are no completions.

    >>> layout([7, 8, 7, 7]).tolist()
    [[0, 2, 3], [1, -1, -1]]
    """
    rows: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompt_ids):
        rows.setdefault(prompt, []).append(row)
    if not rows:
        raise ValueError("got no prompt ids; wanted one for every completion of the batch")
    table = np.full((len(rows), max(map(len, rows.values()))), -1)
    for i, places in enumerate(rows.values()):
        table[i, : len(places)] = places
    return table


def by_prompt(scores: ArrayLike, rows: np.ndarray) -> np.ndarray:
    """Reshapes flat scores (N,) to rewards (P, G), NaN (not scored) where a prompt has fewer than G rollouts.

    >>> by_prompt([1.0, 0.0, 0.5], layout(["a", "b", "a"])).tolist()
    [[1.0, 0.5], [0.0, nan]]
    """
    flat = np.asarray(scores, np.float32)
    _check(flat, rows)
    return np.where(rows < 0, np.float32(np.nan), flat[rows])


def by_sample(values: ArrayLike, rows: np.ndarray) -> np.ndarray:
    """Reshapes values (P, G), e.g. advantages, to the order (N,) of the flat batch.

    >>> by_sample([[1.0, -1.0], [2.0, 0.0]], layout(["a", "b", "a"])).tolist()
    [1.0, 2.0, -1.0]
    """
    table = np.asarray(values)
    if table.shape != rows.shape:
        raise ValueError(f"got values of shape {table.shape} for a layout of {rows.shape}; wanted the same shape")
    flat = np.zeros(np.count_nonzero(rows >= 0), table.dtype)
    flat[rows[rows >= 0]] = table[rows >= 0]
    return flat


class Repeated:
    """The order of rows that TRL's ``GRPOTrainer`` expects, with batches drawn by a ``sampler.FairSampler``.

    Each row of a batch comes ``generations`` times in a row, and the whole batch ``repeats`` times. Return it from the
    trainer's ``_get_train_sampler``; the reward function tells the sampler how the prompts were answered
    (``FairSampler.observe``).

    Args:
        sampler: draws the batches; its ``batch_size`` is the number of prompts that are generated for at once.
        generations: TRL's ``num_generations``.
        repeats: TRL's ``num_iterations * steps_per_generation``.
        batches: number of batches before the iterator ends.

    Raises:
        ValueError: for a number below 1.

    >>> from fairgrpo_jax.sampler import FairSampler
    >>> rows = list(Repeated(FairSampler([0, 0], [0, 1], batch_size=2), generations=2, batches=1))
    >>> sorted(rows), rows[0] == rows[1]
    ([0, 0, 1, 1], True)
    """

    def __init__(self, sampler: FairSampler, *, generations: int, repeats: int = 1, batches: int):
        if min(generations, repeats, batches) < 1:
            raise ValueError(f"got generations={generations}, repeats={repeats}, batches={batches}; wanted each >= 1")
        self.sampler, self.generations, self.repeats, self.batches = sampler, generations, repeats, batches

    def __len__(self) -> int:
        """Number of rows, repetitions included."""
        prompts = self.sampler.batch_size // self.sampler.processes  # those of this process
        return self.batches * prompts * self.generations * self.repeats

    def __iter__(self) -> Iterator[int]:
        """The rows, drawn as they are asked for."""
        for _ in range(self.batches):
            rows = np.repeat(next(self.sampler), self.generations)
            yield from np.tile(rows, self.repeats).tolist()


def _check(flat: np.ndarray, rows: np.ndarray) -> None:
    wanted = rows[rows >= 0].shape
    if flat.shape != wanted:
        raise ValueError(f"got scores of shape {flat.shape}; wanted {wanted}, one a completion")


def _on_cpu():
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def _map_arrays(convert: Callable[[Any], Any], tree: Any) -> Any:
    """Converts the arrays of a result but not the states, which remain JAX arrays."""
    return jax.tree.map(lambda x: convert(x) if isinstance(x, jax.Array) else x, tree, is_leaf=dataclasses.is_dataclass)
