"""Fair sampling: draws the rows of a training set by demographic cell, in proportion to what is still wrong there.

    >>> sampler = FairSampler(domains=[0] * 100, groups=[0] * 90 + [1] * 10, batch_size=8, seed=0)
    >>> rows = next(sampler)  # eight of the 100 rows, half of them of the rare group
    >>> int((rows >= 90).sum())
    4
    >>> sampler.observe(rewards=[[1, 1], [0, 0]], domains=[0, 0], groups=[0, 1])  # the rare group fails
    >>> sampler.probabilities_now().round(3).tolist()  # more of it in the next window
    [[0.425, 0.575, 0.0]]

It runs on the host, in this library's training loop and in any other; it is also a batch sampler for PyTorch's
``DataLoader``. Every draw is a function of the seed, of what has been observed and of how much has been drawn, so a run
resumes from ``state_dict`` as if it had not stopped, and several processes that observe the same rewards agree.
"""

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fairgrpo_jax import fairness, grouping
from fairgrpo_jax._statistics import as_ids


@dataclasses.dataclass
class _Window:
    """Batches drawn with the same probabilities."""

    probabilities: np.ndarray  # (D, Gr + 1)
    made: int  # batches returned before these were drawn
    batches: collections.deque[np.ndarray]  # rows (batch_size,), not yet returned


class FairSampler:
    """An endless iterator over batches of rows, drawn by ``grouping.sampling_probabilities``.

    The numbers per cell are drawn by systematic sampling, so that they are off by less than one. The rows of a cell
    come without replacement, in a new random order each epoch of the cell. The probabilities stay as they are for
    ``window`` batches. They use the mean rewards given to ``observe`` so far, and nothing else about the policy.

    Args:
        domains: (N,) int, the dataset of each row, 0 .. D - 1.
        groups: (N,) int, the demographic group of each row, 0 .. Gr - 1, or -1 = unlabelled. The unlabelled rows of a
            dataset are one cell.
        batch_size: rows per batch, over all processes.
        seed: random seed of orders and draws, >= 0.
        num_domains: D; default: as many as occur.
        num_groups: Gr; default: as many as occur.
        window: number of batches drawn with the same probabilities, >= 1.
        ahead: number of batches drawn before they are asked for, at most ``window``: what a prefetching pipeline may
            read of ``upcoming``. The probabilities of a batch are at most ``window + ahead`` batches old.
        decay: per step, of the observed hardness; see ``fairness.observe_hardness``.
        prior: prompts, see ``fairness.hardness``.
        measure: see ``fairness.observe_hardness``.
        process: index of this process.
        processes: number of processes, each with a sampler of the same arguments; each gets every ``processes``-th row.
        size_exponent, hardness_exponent, domain_exponent, max_ratio, floor: see ``grouping.sampling_probabilities``.

    Raises:
        ValueError: for arguments that do not fit.

    Source: ours, measured on the clinic only (docs/evidence.md).
    """

    def __init__(
        self,
        domains: ArrayLike,
        groups: ArrayLike,
        *,
        batch_size: int,
        seed: int = 0,
        num_domains: int | None = None,
        num_groups: int | None = None,
        window: int = 8,
        ahead: int = 0,
        size_exponent: float = 1.0,
        hardness_exponent: float = 1.0,
        domain_exponent: float = 0.5,
        max_ratio: float = 10.0,
        floor: float = 0.05,
        decay: float = 0.95,
        prior: float = 4.0,
        measure: fairness.Measure = "error",
        process: int = 0,
        processes: int = 1,
    ):
        d, g = (np.asarray(as_ids(x, name), np.int64) for x, name in ((domains, "domains"), (groups, "groups")))
        if d.ndim != 1 or d.shape != g.shape or not len(d):
            raise ValueError(f"got domains {d.shape} and groups {g.shape}; wanted (N,) twice, with at least one row")
        if not 0 <= ahead <= window or window < 1:
            raise ValueError(f"got window={window}, ahead={ahead}; wanted a window >= 1 and 0 <= ahead <= window")
        if batch_size < 1 or not 0 <= process < processes or batch_size % processes:
            raise ValueError(
                f"got batch_size={batch_size}, process {process} of {processes}; wanted a batch divisible by the "
                "number of processes and a process index below it"
            )
        if seed < 0:
            raise ValueError(f"got seed={seed}; wanted a seed >= 0")
        shape = (num_domains or int(d.max()) + 1, (int(g.max()) + 1 if num_groups is None else num_groups) + 1)
        if d.min() < 0 or d.max() >= shape[0] or g.min() < -1 or g.max() >= shape[1] - 1:
            raise ValueError(
                f"got domains {d.min()} to {d.max()} and groups {g.min()} to {g.max()}; wanted 0 .. {shape[0] - 1} and "
                f"-1 .. {shape[1] - 2}"
            )
        self.batch_size, self.seed, self.window, self.ahead = batch_size, seed, window, ahead
        self.process, self.processes = process, processes
        self._rule = dict(
            size_exponent=size_exponent,
            hardness_exponent=hardness_exponent,
            domain_exponent=domain_exponent,
            max_ratio=max_ratio,
            floor=floor,
        )
        self._memory: dict[str, Any] = dict(decay=decay, measure=measure)
        self._prior = prior
        cell = np.ravel_multi_index((d, g % shape[1]), shape)
        sizes = np.bincount(cell, minlength=shape[0] * shape[1])
        self._order = np.argsort(cell, kind="stable")  # the rows cell by cell, each in the order of its epoch
        self._start = np.cumsum(sizes) - sizes
        self._epoch = np.full(len(sizes), -1)  # whose order it is
        self.sizes = sizes.reshape(shape)
        self.hardness_state = fairness.init_hardness(shape[0], shape[1] - 1)
        fairness.observe_hardness(
            np.zeros((0, 1)), d[:0], g[:0], self.hardness_state, **self._memory
        )  # checks the options
        self.probabilities_now()
        self.cursors = np.zeros(shape, np.int64)  # rows ever drawn from each cell
        self.returned = 0  # batches
        self._draws = 0
        self._windows: collections.deque[_Window] = collections.deque()
        self._last: _Window | None = None

    def __iter__(self) -> Iterator[np.ndarray]:
        """The sampler itself: it is endless."""
        return self

    def __next__(self) -> np.ndarray:
        """The next batch: int64 rows, of this process."""
        self.upcoming()
        while not self._windows[0].batches:
            self._windows.popleft()
        self._last = self._windows[0]
        self.returned += 1
        return self._mine(self._last.batches.popleft())

    def upcoming(self) -> list[np.ndarray]:
        """The next batch, the ``ahead`` ones after it and what else is drawn, of this process; takes none of them."""
        while sum(len(window.batches) for window in self._windows) <= self.ahead:
            wanted = self.probabilities_now()
            batches = collections.deque(self._draw(wanted) for _ in range(self.window))
            self._windows.append(_Window(wanted, self.returned, batches))
        return [self._mine(batch) for window in self._windows for batch in window.batches]

    def redraw(self, domains: ArrayLike, groups: ArrayLike) -> np.ndarray:
        """Another batch, from the cells of some prompts and in their proportions: replacements for prompts lost.

        Args:
            domains: (n,) of the prompts to replace, of all processes, n >= 1.
            groups: (n,)

        Returns:
            As many rows as a batch has, those of this process.
        """
        lost = np.zeros(self.sizes.shape)
        np.add.at(lost, (np.asarray(domains), np.asarray(groups)), 1)
        if (lost * (self.sizes == 0)).any() or not lost.any():
            raise ValueError("got prompts to replace from cells without rows, or none; wanted prompts of this sampler")
        return self._mine(self._draw(lost / lost.sum()))

    def observe(self, rewards: ArrayLike, domains: ArrayLike, groups: ArrayLike) -> None:
        """Takes in a step: all prompts sampled in it, over all processes, also those that were thrown away.

        Args:
            rewards: (P, G) <= 1, where 1 is a full success; NaN = not scored.
            domains: (P,) int.
            groups: (P,) int, -1 = unlabelled.
        """
        self.hardness_state = fairness.observe_hardness(rewards, domains, groups, self.hardness_state, **self._memory)

    def probabilities_now(self) -> np.ndarray:
        """Probabilities (D, Gr + 1) by what has been observed, with which the next window will be drawn."""
        hardness = fairness.hardness(self.hardness_state, prior=self._prior)
        return grouping.sampling_probabilities(self.sizes, np.asarray(hardness, np.float64), **self._rule)

    @property
    def probabilities(self) -> np.ndarray:
        """Probabilities (D, Gr + 1) with which the batch returned last was drawn."""
        return self.probabilities_now() if self._last is None else self._last.probabilities

    @property
    def lag(self) -> int:
        """How many batches were returned between the making of these probabilities and the batch returned last."""
        return 0 if self._last is None else self.returned - 1 - self._last.made

    @property
    def epochs(self) -> np.ndarray:
        """(D, Gr + 1) how often each cell has been drawn through; 0 for cells without rows."""
        return self.cursors / np.maximum(self.sizes, 1)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as plain JSON."""
        last = None if self._last is None else [self._last.probabilities.tolist(), self._last.made]
        waiting = [[w.probabilities.tolist(), w.made, [b.tolist() for b in w.batches]] for w in self._windows]
        return {
            "returned": self.returned,
            "draws": self._draws,
            "cursors": self.cursors.tolist(),
            "mass": np.asarray(self.hardness_state.mass).tolist(),
            "total": np.asarray(self.hardness_state.total).tolist(),
            "windows": waiting,
            "last": last,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken.

        Raises:
            ValueError: if the state is of other cells.
        """
        cursors = np.asarray(state["cursors"], np.int64)
        if cursors.shape != self.sizes.shape:
            raise ValueError(f"got a state of cells {cursors.shape} for {self.sizes.shape}; wanted the same data")
        self.cursors, self.returned, self._draws = cursors, state["returned"], state["draws"]
        self.hardness_state = fairness.HardnessState(jnp.asarray(state["mass"]), jnp.asarray(state["total"]))
        self._windows = collections.deque(
            _Window(np.asarray(q), made, collections.deque(np.asarray(rows, np.int64) for rows in batches))
            for q, made, batches in state["windows"]
        )
        last = state["last"]
        self._last = None if last is None else _Window(np.asarray(last[0]), last[1], collections.deque())

    def _draw(self, probabilities: np.ndarray) -> np.ndarray:
        """Rows (batch_size,) of all processes, in random order; moves the cursors on."""
        rng = np.random.default_rng([self.seed, 0, self._draws])
        counts = grouping.systematic_counts(probabilities, self.batch_size, rng.random()).ravel()
        sizes, cursors = self.sizes.ravel(), self.cursors.ravel()
        epochs, places = np.divmod(cursors, np.maximum(sizes, 1))
        going_on = (self._epoch == epochs) & (places + counts <= sizes)
        cell = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(cell)) - (np.cumsum(counts) - counts)[cell]
        rows = self._order[np.where(going_on[cell], (self._start + places)[cell] + within, 0)]
        for beginning in np.flatnonzero(~going_on & (counts > 0)):
            rows[cell == beginning] = self._take(int(beginning), int(counts[beginning]))
        self.cursors = self.cursors + counts.reshape(self.sizes.shape)
        self._draws += 1
        return rng.permutation(rows)

    def _take(self, cell: int, count: int) -> np.ndarray:
        """The next rows of a cell that begins an epoch, once or several times."""
        start, size = int(self.cursors.flat[cell]), int(self.sizes.flat[cell])
        here, parts = slice(self._start[cell], self._start[cell] + size), []
        while count:
            epoch, place = divmod(start, size)
            if self._epoch[cell] != epoch:
                rng = np.random.default_rng([self.seed, 1, cell, epoch])
                self._order[here] = rng.permutation(np.sort(self._order[here]))
                self._epoch[cell] = epoch
            parts.append(self._order[here][place : place + count].copy())
            start, count = start + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _mine(self, rows: np.ndarray) -> np.ndarray:
        return rows[self.process :: self.processes]
