"""A policy's answers to records, as rows: what evaluation, report and auditor read."""

from collections.abc import Callable, Sequence
from typing import Any, NotRequired, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax import batches, config as options, mesh, rewards, rollout, tracking
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy


class Answer(TypedDict):
    """One completion of one record; a line of ``evals/<step>.jsonl``."""

    uid: str
    dataset: str
    patient: str
    sex: str | None  # "F" or "M"
    age: float | None  # years
    answer: str  # of reference
    prediction: str  # taken from the completion, "" where there is none
    completion: str
    reward: float  # as the run pays it
    exact: float  # 1.0 where the boxed labels are those of the reference, else 0.0
    attributes: NotRequired[dict[str, str | None]]  # further demographic attributes, where the run has any


def sampler(params: Any, sampling: options.Sampling) -> Any:
    """The copy of the parameters with which a run samples; see ``rollout.sampler_params``."""
    return rollout.sampler_params(params, dtype=sampling.dtype, tensor=sampling.weights == "tensor")


def answer(
    params: Any,
    records: Sequence[Record],
    *,
    encode: batches.Encoder,
    config: options.Config,
    devices: jax.sharding.Mesh,
    key: jax.Array,
    temperatures: Sequence[float] = (0.0,),
    phases: Callable[[str], Any] | None = None,
) -> list[list[Answer]]:
    """One completion of each record at each temperature, with its extracted answer and its reward.

    What is drawn for a record depends on the key and the record's place in ``records``, not on ``evaluation.batch``.

    Args:
        params: of ``sampler``.
        records: to be answered; read and encoded a few batches ahead.
        encode: of the run.
        config: of the run: sampling, reward, sizes.
        devices: the mesh.
        key: random key of this evaluation.
        temperatures: 0 is greedy; others draw as in training, ``sampling.top_p`` included.
        phases: takes the time, as ``tracking.Phases``.

    Returns:
        For each temperature the rows, in the order of the records.
    """
    size, sampling, tokenizer = config.evaluation.batch, config.sampling, encode.processor.tokenizer
    phases = tracking.Phases() if phases is None else phases
    parts = [records[i : i + size] for i in range(0, len(records), size)]
    padded = ([*part, *[part[0]] * (size - len(part))] for part in parts)  # one shape, one program
    rows: list[list[Answer]] = [[] for _ in temperatures]
    encoded = batches.ahead(encode, padded, workers=config.data.workers)
    for index, (part, batch) in enumerate(zip(parts, encoded, strict=True)):
        with phases("evaluation"):
            prompt = mesh.put(batch.prompt, devices)
            keys = record_keys(key, jax.device_put(np.arange(size) + index * size))
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
                )
                for temperature in temperatures
            ]
        for found, rollouts in zip(rows, drawn, strict=True):
            with phases("evaluation"):
                rollouts = jax.device_get(rollouts)
            given = completed(rollouts, rollout.texts(rollouts, tokenizer), part, encode.architecture.eos_ids)
            scored = rewards.score(given, config.reward, sampling)[:, 0], rewards.exact(given)[:, 0]
            texts = [row[0] for row in given.texts]
            found += [_row(config.data, *item) for item in zip(part, texts, *scored, strict=True)]
    return rows


@jax.jit
def record_keys(key: jax.Array, places: jax.Array) -> jax.Array:
    """(N,) keys, one for each place."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(places))


def completed(
    rollouts: rollout.RolloutBatch, texts: Sequence[Sequence[str]], records: Sequence[Record], eos_ids: Sequence[int]
) -> rewards.Answers:
    """The completions of the first rows, one for each record, as rewards look at them."""
    mask = np.asarray(rollouts.mask)[: len(records)]
    ended = np.any(np.isin(np.asarray(rollouts.tokens)[: len(records)], eos_ids) & mask, axis=-1)
    return rewards.Answers(texts[: len(records)], records, mask.sum(-1), ended)


def _row(settings: options.Data, record: Record, text: str, reward: float, exact: float) -> Answer:
    row = Answer(
        uid=record.uid,
        dataset=record.dataset,
        patient=record.patient,
        sex=record.sex,
        age=record.age,
        answer=record.answer,
        prediction=accuracy.extract(text) or "",
        completion=text,
        reward=float(reward),
        exact=float(exact),
    )
    further = {name: at for name, at in batches.groups_of(record, settings).items() if name not in ("sex", "age")}
    if further:
        row["attributes"] = further
    return row
