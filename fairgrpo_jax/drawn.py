"""The prompts of a step with their scored completions, and which of them it learns from."""

import collections
import dataclasses

import jax
import numpy as np

from fairgrpo_jax import advantages, batches, rewards, rollout


@dataclasses.dataclass(frozen=True)
class Sampled:
    """P prompts with G scored completions each, on the host."""

    batch: batches.PromptBatch
    rollouts: rollout.RolloutBatch  # NumPy leaves (P, G, T)
    texts: list[list[str]]
    scores: rewards.Scores
    finished: np.ndarray  # (P, G) bool, whether the completion ended by itself, not at the length limit
    learned: np.ndarray  # (P, G, T) bool, the loss mask: every sampled token, or only those of completions that ended

    @property
    def rewards(self) -> np.ndarray:
        """Rewards (P, G) float32, NaN = not scored."""
        return self.scores.rewards

    @property
    def compared(self) -> np.ndarray:
        """Rewards (P, G) for the advantages: also NaN where the completion is excluded from learning."""
        return np.where(self.learned.any(-1), self.rewards, np.float32(np.nan))

    def join(self, other: "Sampled") -> "Sampled":
        """Concatenates the prompts of both, these first."""
        pairs = self._arrays(), other._arrays()
        rollouts, scores, finished, learned = jax.tree.map(lambda x, y: np.concatenate([x, y]), *pairs)
        return Sampled(self.batch.join(other.batch), rollouts, [*self.texts, *other.texts], scores, finished, learned)

    def take(self, rows: np.ndarray) -> "Sampled":
        """Selects the prompts of ``rows``, in that order."""
        rollouts, scores, finished, learned = jax.tree.map(lambda x: x[rows], self._arrays())
        return Sampled(self.batch.take(rows), rollouts, [self.texts[row] for row in rows], scores, finished, learned)

    def _arrays(self) -> tuple:
        return self.rollouts, self.scores, self.finished, self.learned


@dataclasses.dataclass(frozen=True)
class Kept(Sampled):
    """The P prompts that a step learns from."""

    rows: np.ndarray  # (P,) int, their indices among all prompts sampled for the step

    @property
    def lost(self) -> tuple[np.ndarray, np.ndarray]:
        """Domains and groups of the prompts whose rewards are all equal."""
        equal = ~np.asarray(advantages.has_signal(self.compared))
        return self.batch.domains[equal], self.batch.groups[equal]


def refill(kept: Kept | None, seen: list[Sampled], *, by_cell: bool = False) -> tuple[Kept, dict[str, int]]:
    """Dynamic sampling: chooses P of the prompts kept so far and the newest, preferring those whose rewards differ.

    A prompt whose rewards are all equal has no signal. If fewer than P prompts have a signal, the oldest of the others
    fill the batch.
    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), equation 11, which has no limit on the tries.

    Args:
        kept: result of the previous call in the same step.
        seen: all batches of the step, the newest last.
        by_cell: a lost prompt is replaced only by one of its own demographic cell, so that the shares of the cells stay
            as they were drawn.

    Returns:
        The P prompts, and two counts for the log: ``rollout/zero_variance``, prompts without signal among them, and
        ``rollout/replaced``, prompts replaced.
    """
    new = seen[-1]
    count = len(new.rewards)
    both = new if kept is None else Sampled.join(kept, new)
    places = np.arange(count) + sum(len(part.rewards) for part in seen[:-1])
    places = places if kept is None else np.concatenate([kept.rows, places])
    teaches = np.asarray(advantages.has_signal(both.compared))
    rows = np.argsort(~teaches, kind="stable")
    if by_cell:
        rows = rows[_within(both.batch, rows, seen[0].batch)]
    rows = rows[:count]
    equal, replaced = count - int(teaches[rows].sum()), len(teaches) - count
    found = Sampled.take(both, rows)
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Sampled)}
    return Kept(**fields, rows=places[rows]), {"rollout/zero_variance": equal, "rollout/replaced": replaced}


def _within(batch: batches.PromptBatch, rows: np.ndarray, drawn: batches.PromptBatch) -> np.ndarray:
    """Whether each of ``rows`` is among the first of its cell, as many as were ``drawn`` from it."""
    room = collections.Counter(drawn.cells)
    taken: collections.Counter[tuple[int, int]] = collections.Counter()
    first, cells = [], batch.cells
    for cell in (cells[row] for row in rows):
        first.append(taken[cell] < room[cell])
        taken[cell] += 1
    return np.array(first)
