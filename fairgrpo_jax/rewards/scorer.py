"""A run's reward: its components by name, checked before the run, and what they give for a batch of completions."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fairgrpo_jax import config as options, normalization
from fairgrpo_jax.losses import overlong_penalty
from fairgrpo_jax.normalization import Key, PercentileTable, RunningQuantiles
from fairgrpo_jax.rewards import own
from fairgrpo_jax.rewards.answers import Answers, Asked, scale, task
from fairgrpo_jax.rewards.builtin import BUILTIN, JUDGED, Tools, require_gradable
from fairgrpo_jax.rewards.composition import Percentiles, compose, normalise
from fairgrpo_jax.rewards.judge_components import Component, Judge, Judged


class Scores(NamedTuple):
    """What a batch of completions is worth, on the host; K components.

    Attributes:
        rewards: (P, G) float32, NaN = not scored.
        raw: (P, G, K), each component in its own unit; NaN = not scored, or does not apply.
        values: (P, G, K), the same after normalisation.
        applies: (P, K) bool, whether the component applies to the record.
        parts: what a component is the mean of, (P, G) each, by names such as ``judge/terminology``.
    """

    rewards: np.ndarray
    raw: np.ndarray
    values: np.ndarray
    applies: np.ndarray
    parts: Mapping[str, np.ndarray] = {}

    @classmethod
    def of(cls, rewards: np.ndarray) -> "Scores":
        """Of rewards with a single component."""
        one = np.asarray(rewards, np.float32)
        return cls(one, one[..., None], one[..., None], np.ones((len(one), 1), bool))


class Started(NamedTuple):
    """The components of some completions, of which a judge's may still be awaited.

    Attributes:
        answers: the completions.
        applies: (P, K) bool.
        found: of each component, the rows that it applies to, and its scores or their future.
    """

    answers: Answers
    applies: np.ndarray
    found: "list[tuple[np.ndarray, np.ndarray | concurrent.futures.Future[Judged]]]"


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores completions as a run pays them; made by ``build``.

    Attributes:
        components: K of them.
        functions: of each, from answers to (P, G).
        keys: dataset (``scale``), task and component of every window of running percentiles; none with a table.
        table: fixed percentiles.
        settings: the options of the reward.
        sampling: the options of sampling, for the penalty of long completions.
        judge: a language model that some components ask, if any does.
        scaled: dataset, task and component of all that is normalised.
    """

    components: tuple[options.Component, ...]
    functions: tuple[Component, ...]
    keys: tuple[Key, ...]
    table: PercentileTable | None
    settings: options.Reward
    sampling: options.Sampling
    judge: Judge | None = None
    scaled: tuple[Key, ...] = ()

    def __call__(self, answers: Answers, quantiles: RunningQuantiles | None = None) -> Scores:
        """The scores of some completions.

        Args:
            answers: P records with G completions each.
            quantiles: the state of running percentiles, ``memory.quantiles``; without it, as in evaluation, what
                follows them stays as it is, so that progress is seen.

        Raises:
            ValueError: if a component returns another shape, or a function of the user fails.
        """
        return self.finish([(np.arange(len(answers.records)), self.start(answers))], quantiles)

    def start(self, answers: Answers) -> Started:
        """Begins to score some completions; a judge answers beside whatever is done next."""
        applies = self._applies(answers.records)
        found: list[tuple[np.ndarray, np.ndarray | concurrent.futures.Future[Judged]]] = []
        for k, function in enumerate(self.functions):
            rows = np.flatnonzero(applies[:, k])
            own_answers = answers if len(rows) == len(applies) else answers.take(rows)
            found.append((rows, function(own_answers) if len(rows) else np.zeros((0, answers.lengths.shape[1]))))
        return Started(answers, applies, found)

    def finish(
        self, started: Sequence[tuple[np.ndarray, Started]], quantiles: RunningQuantiles | None = None
    ) -> Scores:
        """The scores of completions that were started, as a call gives them.

        Args:
            started: parts of P records: the places of each among the P, and what ``start`` returned.
            quantiles: as for a call.
        """
        count = sum(len(places) for places, _ in started)
        shape = count, started[0][1].answers.lengths.shape[1]
        raw = np.full((*shape, len(self.components)), np.nan, np.float32)
        applies = np.zeros((count, len(self.components)), bool)
        records, lengths = np.empty(count, object), np.zeros(shape, np.int64)
        names = [f"{part.name}/{key}" for part in self.components for key in JUDGED.get(part.name, ())]
        details = {name: np.full(shape, np.nan, np.float32) for name in names}
        for places, part in started:
            records[places], lengths[places], applies[places] = part.answers.records, part.answers.lengths, part.applies
            for k, (rows, values) in enumerate(part.found):
                name = self.components[k].name
                if isinstance(values, concurrent.futures.Future):
                    values, parts = values.result()
                    for key in JUDGED[name]:
                        details[f"{name}/{key}"][places[rows]] = parts[key]
                values = np.asarray(values, np.float32)
                if values.shape != (len(rows), shape[1]):
                    raise ValueError(
                        f"got {name} of shape {values.shape}; wanted {(len(rows), shape[1])}, one a completion"
                    )
                raw[places[rows], :, k] = values
        return self._composed(raw, applies, list(records), lengths, details, quantiles)

    def _composed(
        self,
        raw: np.ndarray,
        applies: np.ndarray,
        records: Sequence[Asked],
        lengths: np.ndarray,
        details: Mapping[str, np.ndarray],
        quantiles: RunningQuantiles | None,
    ) -> Scores:
        parts, percentiles = self.components, self._percentiles(records, quantiles)
        if percentiles is None:
            parts = tuple(dataclasses.replace(part, normalised=False) for part in parts)
        scale = {"k": self.settings.steepness, "min_iqr": self.settings.min_iqr}
        rewards = np.asarray(compose(raw, parts, percentiles, applies=applies, **scale), np.float32)
        values = np.asarray(normalise(raw, parts, percentiles, **scale), np.float32)
        if self.sampling.truncated == "penalise":
            limit, buffer = self.sampling.max_new_tokens, self.sampling.overlong_buffer
            rewards = rewards + np.asarray(overlong_penalty(lengths, max_length=limit, buffer=buffer))
        return Scores(rewards.astype(np.float32), raw, values, applies, details)

    @property
    def judged(self) -> bool:
        """Whether components wait for a judge."""
        return self.judge is not None

    def watched(self) -> dict[str, float]:
        """Counts of the judge since the start of the process, for the log; see ``Judge.counts``."""
        return {} if self.judge is None else {f"judge/{name}": value for name, value in self.judge.counts().items()}

    @property
    def weights(self) -> tuple[float, ...]:
        """Of the summands."""
        return tuple(part.weight for part in self.components if not part.gate)

    def summands(self, scores: Scores) -> np.ndarray:
        """(P, G, K') the components that are added, each times the gates; NaN where one does not apply."""
        gates = np.array([part.gate for part in self.components])
        used = scores.applies[:, None, :]
        passed = np.prod(np.where(used & gates, scores.values, 1), axis=2, keepdims=True)
        return (np.where(used, scores.values, np.nan) * passed)[..., ~gates]

    def anchored(self, table: PercentileTable) -> "Scorer":
        """The same with fixed percentiles.

        Raises:
            ValueError: if some are missing; all are named.
        """
        table.lookup(self.scaled)
        return dataclasses.replace(self, keys=(), table=table)

    def scores_by_key(self, seen: Sequence[tuple[np.ndarray, Asked]]) -> dict[Key, list[float]]:
        """Scores of completions by what they are normalised with: (K,) each, with the record."""
        found: dict[Key, list[float]] = {key: [] for key in self.scaled}
        for raw, record in seen:
            for key, score in zip(_keys(record, self.components), raw.tolist(), strict=True):
                if key in found and not np.isnan(score):
                    found[key].append(score)
        return found

    def begin(self) -> RunningQuantiles | None:
        """Empty running percentiles, or None if the run has none."""
        return normalization.init_quantiles(len(self.keys), capacity=self.settings.window) if self.keys else None

    def observe(
        self, quantiles: RunningQuantiles | None, seen: Sequence[tuple[Scores, Sequence[Asked]]]
    ) -> RunningQuantiles | None:
        """The running percentiles after the scores of a step, with their records."""
        if quantiles is None:
            return None
        raw = np.concatenate([scores.raw for scores, _ in seen])
        ids = self._key_ids([record for _, records in seen for record in records])
        wide = np.broadcast_to(ids[:, None, :], raw.shape)
        known = wide >= 0
        return normalization.observe(quantiles, raw[known], wide[known])

    def _applies(self, records: Sequence[Asked]) -> np.ndarray:
        pairs = [(record.dataset, task(record)) for record in records]
        return np.array([[part.applies(*pair) for part in self.components] for pair in pairs], bool)

    def _key_ids(self, records: Sequence[Asked]) -> np.ndarray:
        """(P, K) int, the index in ``keys`` of each normalised component, -1 for the others."""
        place = {key: i for i, key in enumerate(self.keys)}
        found = [[place.get(key, -1) for key in _keys(record, self.components)] for record in records]
        return np.array(found, np.int32)

    def _percentiles(self, records: Sequence[Asked], quantiles: RunningQuantiles | None) -> Percentiles | None:
        if not any(part.normalised for part in self.components):
            return None
        if self.table is not None:
            found = [self.table.lookup(_keys(record, self.components), fallback=(0.0, 0.5, 1.0)) for record in records]
            p25, p50, p75 = (np.stack(p) for p in zip(*found, strict=True))
            return p25, p50, p75
        if quantiles is None:
            return None
        ids = self._key_ids(records)
        p25, p50, p75 = (
            np.where(ids < 0, q, np.asarray(p)[np.maximum(ids, 0)])
            for p, q in zip(normalization.quantiles(quantiles), (0.0, 0.5, 1.0), strict=True)
        )
        return p25, p50, p75


def build(
    reward: options.Reward,
    sampling: options.Sampling,
    records: Sequence[Asked],
    *,
    count: Callable[[str], int] | None = None,
    lettered: bool = False,
    judge: Judge | None = None,
) -> Scorer:
    """Checks a reward against the records that it will score.

    Args:
        reward: its options.
        sampling: of the run.
        records: of all uses.
        count: number of tokens of a text, for the length rewards.
        lettered: whether prompts list the choices with letters.
        judge: for the components ``judge`` and ``semantic``.

    Raises:
        ValueError: for an unknown component, one that applies to no record or cannot grade one, a record to which none
            applies, a function that cannot be imported, or percentiles that are missing for a dataset, task and
            component; each is named.
    """
    parts, pairs = reward.parts, sorted({(record.dataset, task(record)) for record in records})
    tools = Tools(reward, count, lettered, judge)
    functions = tuple(_function(part, tools) for part in parts)
    for part in parts:
        if not any(part.applies(*pair) for pair in pairs):
            there = ", ".join(f"{dataset}/{name}" if name else dataset for dataset, name in pairs)
            raise ValueError(f"got reward.components {str(part)!r}, which applies to no record; wanted some of {there}")
    for part, function in zip(parts, functions, strict=True):
        if part.name in BUILTIN:
            own_records = [record for record in records if part.applies(record.dataset, task(record))]
            require_gradable(part.name, function, own_records)
    bare = [pair for pair in pairs if not any(part.applies(*pair) for part in parts if not part.gate)]
    if bare:
        there = ", ".join("/".join(filter(None, pair)) for pair in bare)
        raise ValueError(f"got no reward component for records of {there}; wanted one: reward.components NAME@{there}")
    scales = sorted({(record.dataset, task(record), scale(record)) for record in records})
    wanted = [
        (on, name, part.name)
        for part in parts
        if part.normalised
        for dataset, name, on in scales
        if part.applies(dataset, name)
    ]
    table = None
    if reward.percentiles is not None:
        table = _table(reward)
        if missing := ["|".join(key) for key in wanted if key not in table.stats]:
            raise ValueError(
                f"got reward.percentiles={reward.percentiles} without {', '.join(missing)} (dataset|task|component); "
                "wanted the percentiles of all: PercentileTable.fit with their scores, or no table for those of the run"
            )
    return Scorer(
        parts,
        functions,
        () if table or reward.scale == "supervised" else tuple(wanted),
        table,
        reward,
        sampling,
        judge if asks_judge(reward.components) else None,
        tuple(wanted),
    )


def asks_judge(components: Sequence[str]) -> bool:
    """Whether one of the components, in their text form, is scored by a judge."""
    return any(options.Component.parse(text).name in JUDGED for text in components)


def _function(part: options.Component, tools: Tools) -> Component:
    if ":" in part.name:
        return own.load(part.name, messages=part.messages)
    if part.name not in BUILTIN:
        raise ValueError(
            f"got reward component {part.name!r}; wanted one of {', '.join(BUILTIN)}, or package.module:function"
        )
    if part.messages:
        raise ValueError(f"got reward.components {str(part)!r}; wanted messages for a function of yours alone")
    return BUILTIN[part.name](tools)


def _table(reward: options.Reward) -> PercentileTable:
    if not any(part.normalised for part in reward.parts):
        raise ValueError(
            f"got reward.percentiles={reward.percentiles} and no normalised component; wanted NAME,normalised among "
            f"reward.components={' '.join(reward.components)}"
        )
    assert reward.percentiles is not None
    return read_table(reward.percentiles)


def read_table(path: Path) -> PercentileTable:
    """Reads a table of percentiles.

    Raises:
        ValueError: if it is none.
    """
    try:
        return PercentileTable.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"got reward.percentiles={path} ({error.strerror}); wanted a table") from error
    except ValueError as error:
        raise ValueError(f"reward.percentiles={path}: {error}") from error


def _keys(record: Asked, components: Sequence[options.Component]) -> list[Key]:
    return [(scale(record), task(record), part.name) for part in components]
