"""The prompts of reinforcement learning: which ones come next, encoded ahead of their use.

``InOrder`` reads them in an order that is fixed beforehand, naturally mixed or with balanced groups. ``ByCell`` draws
them by demographic cell, by what is still wrong there (``sampler.FairSampler``). The loop treats both alike.
"""

import collections
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from fairgrpo_jax import batches, config as options, grouping, sampler, workers
from fairgrpo_jax.data.record import Record


class InOrder:
    """Prompts in a fixed order."""

    def __init__(self, stream: workers.Stream):
        self._stream = stream

    def __iter__(self) -> Iterator[batches.PromptBatch]:
        """The object itself: it is endless."""
        return self

    def __next__(self) -> batches.PromptBatch:
        """The next batch."""
        return next(self._stream)

    def replace(self, domains: np.ndarray, groups: np.ndarray) -> batches.PromptBatch:
        """A batch from which prompts are taken in the place of lost ones: the next one, whatever was lost."""
        return next(self)

    def observe(self, rewards: np.ndarray, domains: np.ndarray, groups: np.ndarray) -> None:
        """Ignores the rewards of a step."""

    def watched(self) -> dict[str, float]:
        """Scalars for the log: none."""
        return {}

    def get_state(self) -> dict[str, Any]:
        """The position, as plain JSON."""
        return self._stream.get_state()


class ByCell:
    """Prompts drawn by demographic cell, in proportion to what is still wrong there.

    Args:
        records: the training records.
        pool: the workers of the run; each batch encoded ahead makes the probabilities a step older.
        size: prompts per batch.
        seed: random seed of the draws.
        settings: how to draw; ``data.sampling`` is "fair".
        state: from ``get_state``, to go on there.
    """

    def __init__(
        self,
        records: Sequence[Record],
        pool: workers.Workers,
        *,
        size: int,
        seed: int,
        settings: options.Draw,
        state: dict[str, Any] | None = None,
    ):
        self._records, self._pool, encode = records, pool, pool.encoder
        groups = grouping.explicit_groups(
            [batches.groups_of(record, encode.settings) for record in records], encode.vocabulary
        )
        self.sampler = sampler.FairSampler(
            np.array([encode.domains.index(record.dataset) for record in records]),
            groups,
            batch_size=size,
            seed=seed,
            num_domains=len(encode.domains),
            num_groups=len(encode.vocabulary.cells),
            ahead=min(workers.AHEAD, settings.window),
            **settings.rule,
        )
        if state is not None:
            self.sampler.load_state_dict(state)
        self._encoded: collections.deque[Future[batches.PromptBatch]] = collections.deque()

    def __iter__(self) -> Iterator[batches.PromptBatch]:
        """The object itself: it is endless."""
        return self

    def __next__(self) -> batches.PromptBatch:
        """The next batch."""
        upcoming = self.sampler.upcoming()[: self.sampler.ahead + 1]
        for rows in upcoming[len(self._encoded) :]:
            self._encoded.append(self._pool.submit(self._chosen(rows)))
        next(self.sampler)
        return self._encoded.popleft().result()

    def replace(self, domains: np.ndarray, groups: np.ndarray) -> batches.PromptBatch:
        """A batch from the cells of lost prompts, in their proportions, to replace them by."""
        return self._pool.encode(self._chosen(self.sampler.redraw(domains, groups)))

    def observe(self, rewards: np.ndarray, domains: np.ndarray, groups: np.ndarray) -> None:
        """Takes in a step: the rewards (N, G) of all N prompts that were sampled."""
        self.sampler.observe(rewards, domains, groups)

    def watched(self) -> dict[str, float]:
        """Scalars for the log: of the draw, and of each cell its probability, the ratio to the natural, its epochs."""
        wanted, sizes = self.sampler.probabilities, self.sampler.sizes
        names = [*self._pool.encoder.vocabulary.cells, "unlabelled"]
        values = {
            "drawn/from_natural": 0.5 * float(np.abs(wanted - sizes / sizes.sum()).sum()),
            "drawn/most_epochs": float(self.sampler.epochs.max()),
            "drawn/lag": float(self.sampler.lag),
        }
        for domain, group in zip(*np.nonzero(sizes), strict=True):
            cell = f"{self._pool.encoder.domains[domain]}/{names[group]}"
            values[f"drawn/probability/{cell}"] = float(wanted[domain, group])
            values[f"drawn/ratio/{cell}"] = float(wanted[domain, group] * sizes.sum() / sizes[domain, group])
            values[f"drawn/epochs/{cell}"] = float(self.sampler.epochs[domain, group])
        return values

    def get_state(self) -> dict[str, Any]:
        """The statistics, the position in each cell, and what has been drawn ahead, as plain JSON."""
        return self.sampler.state_dict()

    def _chosen(self, rows: np.ndarray) -> list[Record]:
        return [self._records[row] for row in rows]


Prompts = InOrder | ByCell
