"""A policy's answers to records, as rows for evaluation and report."""

import bisect
import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NotRequired, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax import (
    batches,
    config as options,
    hosts,
    learner,
    lengths,
    mesh,
    models,
    rewards,
    rollout,
    tracking,
    workers,
)
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
    length: NotRequired[int]  # tokens of the completion, with its end token
    nll: NotRequired[float]  # negative log-likelihood of the completion under the starting policy, in nats
    measured: NotRequired[dict[str, float]]  # scores of evaluation.components that apply
    probability: NotRequired[float]  # of the answer's first token, given what precedes it, in `answering`
    confidence: NotRequired[float]  # share of sampled answers that agree, in `answering`
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
    measures: rewards.Scorer | None = None,
    reference: Any = None,
    probabilities: bool = False,
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
        measures: scores that are no part of the reward, for ``measured``.
        reference: parameters whose likelihood of each completion is wanted, for ``nll``.
        probabilities: whether ``probability`` is wanted, of answers that stand in their completion word for word.

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
    waiting: collections.deque[_Waiting] = collections.deque()
    encoded = pool.ahead([records[i] for i in part] for part in parts)
    for part, batch in zip(parts, encoded, strict=True):
        with phases("evaluation"):
            least = encode.sizes[-1] if sizes is None else encode.sizes[needed[part].max()]
            prompt = mesh.put(models.cut(batch.prompt, *least), devices)
            keys = (
                record_keys(key, jax.device_put(part))
                if hosts.count() == 1
                else mesh.put(record_keys(key, part[hosts.rows(size)]), devices)
            )
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
        here = hosts.rows(size)
        own = batch.records[: len(set(part.tolist()))][here]
        for found, rollouts in zip(rows, drawn, strict=True):
            rollouts = learner.take(rollouts, here)
            likely = None if reference is None else _likelihoods(reference, prompt, rollouts, config, encode, devices)
            if not own:  # this process has but the repeated rows of the last batch
                continue
            said = rollout.texts(rollouts, encode.processor.tokenizer)
            given = completed(rollouts, said, own, encode.architecture.eos_ids)
            extra = measures and measures.start(given)
            first = _firsts(rollouts, said, own, encode.processor.tokenizer, config.data) if probabilities else None
            waiting.append(_Waiting(found, part[here][: len(own)], scorer.start(given), extra, likely, first))
        while len(waiting) > len(temperatures):  # a judge scores a batch while the next one is sampled
            _settle(waiting.popleft(), config.data, scorer, measures)
    for each in waiting:
        _settle(each, config.data, scorer, measures)
    if hosts.count() > 1:
        rows = [[next(filter(None, found)) for found in zip(*each, strict=True)]
                for each in zip(*hosts.everyone(rows), strict=True)]  # fmt: skip
    return cast(list[list[Answer]], rows)


class _Waiting(NamedTuple):
    """A batch of completions that a judge may still score."""

    found: list[Answer | None]
    places: np.ndarray
    started: rewards.Started
    measured: rewards.Started | None
    likely: np.ndarray | None
    first: list[float | None] | None


def _settle(waiting: _Waiting, settings: options.Data, scorer: rewards.Scorer, measures: rewards.Scorer | None) -> None:
    """Fills in the rows of a batch, once it is scored."""
    given, everyone = waiting.started.answers, np.arange(len(waiting.places))
    scores = scorer.finish([(everyone, waiting.started)])
    measured = None if waiting.measured is None or measures is None else measures.finish([(everyone, waiting.measured)])
    for i, (place, record, texts) in enumerate(zip(waiting.places, given.records, given.texts, strict=True)):
        row = _row(settings, cast(Record, record), texts[0], scores.rewards[i, 0])
        row["length"] = int(given.lengths[i, 0])
        if len(scorer.components) > 1:
            row["components"] = _parts(scorer, scores, i)
        if measures is not None and measured is not None:
            row["measured"] = _parts(measures, measured, i)
        if waiting.likely is not None:
            row["nll"] = float(waiting.likely[i])
        if waiting.first is not None and (probability := waiting.first[i]) is not None:
            row["probability"] = probability
        waiting.found[place] = row


def _firsts(
    rollouts: rollout.RolloutBatch,
    texts: Sequence[Sequence[str]],
    records: Sequence[Record],
    tokenizer: Any,
    settings: options.Data,
) -> list[float | None]:
    """The probability of the first token of each answer, as the sampler has it at temperature 1."""
    tokens, mask, logprobs = (np.asarray(x)[:, 0] for x in (rollouts.tokens, rollouts.mask, rollouts.logprobs))
    found: list[float | None] = []
    for row, _ in enumerate(records):
        text = texts[row][0]
        said = parsing.plain_answer(text) if settings.plain_answers else parsing.parse(text).answer
        place = text.rfind(said) if said else -1
        if place < 0:
            found.append(None)
            continue
        own = tokens[row][mask[row]]
        reached = lambda count, ids=own: len(tokenizer.decode(ids[:count], skip_special_tokens=True))
        count = bisect.bisect_right(range(len(own) + 1), place, key=reached)
        found.append(float(np.exp(logprobs[row, count - 1])))
    return found


def _likelihoods(
    params: Any,
    prompt: models.Prompt,
    rollouts: rollout.RolloutBatch,
    config: options.Config,
    encode: batches.Encoder,
    devices: jax.sharding.Mesh,
) -> np.ndarray:
    """Negative log-likelihoods (P,) of single completions, in nats; of several processes, of this one's."""
    mask = np.asarray(rollouts.mask)
    piece = learner.PolicyBatch(prompt, rollouts.tokens, mask, rollouts.logprobs, advantages=np.zeros(mask.shape[:2]))
    scored = learner.with_logprobs(
        params,
        piece,
        architecture=encode.architecture,
        temperature=1.0,
        compute=config.model.compute,
        policy="reference",
        place=lambda x: x if isinstance(x, models.Prompt) else mesh.put(x, devices),
    )
    return -np.asarray(scored.reference_logprobs, np.float64)[:, 0].sum(-1)


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
    said = parsing.plain_answer(text) if settings.plain_answers else prediction(record, text, lettered=settings.letters)
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
        exact=float(said is not None and accuracy.same_answer(said, record)),
    )
    further = {name: at for name, at in batches.groups_of(record, settings).items() if name not in ("sex", "age")}
    if further:
        row["attributes"] = further
    return row


def prediction(record: Record, text: str, *, lettered: bool) -> str | None:
    """What a completion answers, in a box or answer tags; for a letter the choice's text, if prompts have letters."""
    said = parsing.parse(text).answer
    return accuracy.choice(said, record.choices) or said if said and lettered and record.choices else said


def _parts(scorer: rewards.Scorer, scores: rewards.Scores, row: int) -> dict[str, float]:
    """The raw scores of the components that apply to a record."""
    named = zip(scorer.components, scores.raw[row, 0].tolist(), scores.applies[row], strict=True)
    return {part.name: value for part, value, applies in named if applies}
