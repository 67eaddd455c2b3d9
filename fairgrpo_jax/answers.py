"""A policy's answers to records, as rows for evaluation and report."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax import batches, config as options, lengths, mesh, models, rewards, rollout, tracking, workers
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy, parsing


class Answer(TypedDict):
    """One completion of one record; a line of ``evals/<step>.jsonl``."""

    uid: str
    dataset: str
    patient: str
    sex: str | None  # "F" or "M"
    age: float | None  # years
    answer: str  # reference answer
    prediction: str  # extracted from the completion, "" if there is none
    completion: str
    reward: float  # as the run computes it
    exact: float  # 1.0 if the labels of the prediction are those of the reference, else 0.0
    attributes: NotRequired[dict[str, str | None]]  # further demographic attributes, if the run has any
    components: NotRequired[dict[str, float]]  # raw scores of the reward's components that apply, if it has several


def sampler(params: Any, sampling: options.Sampling) -> Any:
    """The copy of the parameters for sampling; see ``rollout.sampler_params``."""
    return rollout.sampler_params(params, dtype=sampling.dtype, tensor=sampling.weights == "tensor")


def answer(
    params: Any,
    records: Sequence[Record],
    *,
    pool: workers.Workers,
    config: options.Config,
    scorer: rewards.Scorer,
    devices: jax.sharding.Mesh,
    key: jax.Array,
    temperatures: Sequence[float] = (0.0,),
    sizes: Sequence[batches.Size] | None = None,
    phases: Callable[[str], Any] | None = None,
) -> list[list[Answer]]:
    """Samples one completion of each record at each temperature; returns it with its extracted answer and its reward.

    The sample of a record depends on the key and the record's index in ``records``, not on ``evaluation.batch``.

    Args:
        params: from ``sampler``.
        records: the records to answer; read and encoded a few batches ahead.
        pool: workers with the run's encoder.
        config: options of the run: sampling, sizes.
        scorer: the run's reward; what follows running percentiles is paid as it is.
        devices: the mesh.
        key: random key of this evaluation.
        temperatures: 0 is greedy; others sample as in training, including ``sampling.top_p``.
        sizes: of the records' prompts; those of like size are then answered together, with less padding.
        phases: a timer such as ``tracking.Phases``.

    Returns:
        For each temperature, the rows in the order of the records.
    """
    encode, size, sampling = pool.encoder, config.evaluation.batch, config.sampling
    phases = tracking.Phases() if phases is None else phases
    needed = np.zeros(len(records), int) if sizes is None else lengths.rung(encode.sizes, np.array(sizes))
    order = np.argsort(needed, kind="stable")
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    parts = [np.concatenate([part, np.repeat(part[:1], size - len(part))]) for part in parts]  # one shape, one program
    rows: list[list[Answer | None]] = [[None] * len(records) for _ in temperatures]
    waiting: collections.deque[tuple[list[Answer | None], np.ndarray, rewards.Started]] = collections.deque()
    encoded = pool.ahead([records[i] for i in part] for part in parts)
    for part, batch in zip(parts, encoded, strict=True):
        with phases("evaluation"):
            least = encode.sizes[-1] if sizes is None else encode.sizes[needed[part].max()]
            prompt = mesh.put(models.cut(batch.prompt, *least), devices)
            keys = record_keys(key, jax.device_put(part))
            drawn = [
                rollout.sample(
                    params,
                    prompt,
                    keys,
                    architecture=encode.architecture,
                    num_rollouts=1,
                    max_new_tokens=sampling.max_new_tokens,
                    temperature=temperature,
                    top_p=sampling.top_p if temperature else 1.0,
                    tensor=sampling.weights == "tensor",
                    cache=config.cache_dtype,
                )
                for temperature in temperatures
            ]
        own = batch.records[: len(set(part.tolist()))]
        for found, rollouts in zip(rows, drawn, strict=True):
            said = rollout.texts(rollouts, encode.processor.tokenizer)
            given = completed(rollouts, said, own, encode.architecture.eos_ids)
            waiting.append((found, part[: len(own)], scorer.start(given)))
        while len(waiting) > len(temperatures):  # a judge scores a batch while the next one is sampled
            _settle(*waiting.popleft(), config.data, scorer)
    for each in waiting:
        _settle(*each, config.data, scorer)
    return cast(list[list[Answer]], rows)


def _settle(
    found: list[Answer | None],
    places: np.ndarray,
    started: rewards.Started,
    settings: options.Data,
    scorer: rewards.Scorer,
) -> None:
    """Fills in the rows of a batch, once it is scored."""
    given = started.answers
    scores = scorer.finish([(np.arange(len(places)), started)])
    for i, (place, record, row) in enumerate(zip(places, given.records, given.texts, strict=True)):
        found[place] = _row(settings, cast(Record, record), row[0], scores.rewards[i, 0]) | _parts(scorer, scores, i)


@jax.jit
def record_keys(key: jax.Array, places: jax.Array) -> jax.Array:
    """Returns (N,) keys, one per index."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(places))


def completed(
    rollouts: rollout.RolloutBatch, texts: Sequence[Sequence[str]], records: Sequence[Record], eos_ids: Sequence[int]
) -> rewards.Answers:
    """The completions of the first rows, one per record, in the form that reward functions take."""
    mask = np.asarray(rollouts.mask)[: len(records)]
    ended = np.any(np.isin(np.asarray(rollouts.tokens)[: len(records)], eos_ids) & mask, axis=-1)
    return rewards.Answers(texts[: len(records)], records, mask.sum(-1), ended)


def _row(settings: options.Data, record: Record, text: str, reward: float) -> Answer:
    said = prediction(record, text, lettered=settings.letters)
    row = Answer(
        uid=record.uid,
        dataset=record.dataset,
        patient=record.patient,
        sex=record.sex,
        age=record.age,
        answer=record.answer,
        prediction=said or "",
        completion=text,
        reward=float(reward),
        exact=float(said is not None and accuracy.same_labels(said, record.answer)),
    )
    further = {name: at for name, at in batches.groups_of(record, settings).items() if name not in ("sex", "age")}
    if further:
        row["attributes"] = further
    return row


def prediction(record: Record, text: str, *, lettered: bool) -> str | None:
    """What a completion answers, in a box or answer tags; for a letter the choice's text, if prompts have letters."""
    said = parsing.parse(text).answer
    return accuracy.choice(said, record.choices) or said if said and lettered and record.choices else said


def _parts(scorer: rewards.Scorer, scores: rewards.Scores, row: int) -> Any:
    """The entry of a row with the components of its reward."""
    if len(scorer.components) == 1:
        return {}
    named = zip(scorer.components, scores.raw[row, 0].tolist(), scores.applies[row], strict=True)
    return {"components": {part.name: value for part, value, applies in named if applies}}
