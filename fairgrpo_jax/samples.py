"""Tables of a step's completions, as Parquet: a few prompts with their images for the report, or all without images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fairgrpo_jax import answers, batches, config as options, files, rewards, rollout
from fairgrpo_jax.data import media
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.rewards import accuracy
from fairgrpo_jax.rewards.answers import task


UNLABELLED = "unlabelled"  # the cell of a patient of whom no attribute is known, here as in the log


class Drawn(Protocol):
    """P prompts with G scored completions each, as ``drawn.Sampled`` holds them."""

    @property
    def batch(self) -> batches.PromptBatch: ...

    @property
    def rollouts(self) -> rollout.RolloutBatch: ...

    @property
    def texts(self) -> Sequence[Sequence[str]]: ...

    @property
    def scores(self) -> rewards.Scores: ...

    @property
    def finished(self) -> np.ndarray: ...


def save(
    folder: Path,
    step: int,
    drawn: Drawn,
    advantages: np.ndarray,
    evaluation: options.Evaluation,
    encoder: batches.Encoder,
    scorer: rewards.Scorer,
) -> None:
    """Writes what the options ask for after a step into its run folder.

    ``samples/<step>.parquet`` holds the first prompts of every step with an evaluation, with images beside it;
    ``completions/<step>.parquet`` all prompts that the step learned from, without images.

    Args:
        folder: the run folder.
        step: number of updates that the policy had when it sampled, as in ``evals/<step>.jsonl``.
        drawn: the prompts that the step learned from.
        advantages: (P, G).
        evaluation: options that say how much is kept, and when.
        encoder: of the run.
        scorer: of the run.
    """
    name = f"{step:06d}"
    if evaluation.samples and step % evaluation.every == 0:
        first = drawn.batch.records[: evaluation.samples]
        (folder / "samples").mkdir(exist_ok=True)
        images = [_images(folder, f"samples/{name}-{i}", record) for i, record in enumerate(first)]
        _write(folder / "samples" / f"{name}.parquet", table(step, drawn, advantages, encoder, scorer, images))
    if evaluation.completions and step % evaluation.completions == 0:
        nothing = [[] for _ in drawn.batch.records]
        _write(folder / "completions" / f"{name}.parquet", table(step, drawn, advantages, encoder, scorer, nothing))


def table(
    step: int,
    drawn: Drawn,
    advantages: np.ndarray,
    encoder: batches.Encoder,
    scorer: rewards.Scorer,
    images: Sequence[Sequence[str]],
) -> pa.Table:
    """One row per completion of the first prompts, as many as there are lists of ``images``.

    Returns:
        Columns ``step``, ``prompt`` and ``rollout`` (places in the batch), ``uid``, ``dataset``, ``task``, ``sex``,
        ``age`` (years), ``attribute/NAME`` (the group by each attribute of the run, null = unknown), ``cell`` (the
        joint group), ``question``, ``answer`` (the reference), ``completion``, ``prediction`` (what it answers, null =
        nothing), ``exact`` (1 where that has the labels of the reference, NaN without one), ``length`` (tokens, the end
        token included), ``finished`` (whether it ended by itself), ``reward``, ``advantage``, ``component/NAME`` of
        every component of the reward in its own unit, ``normalised/NAME`` of those that are normalised, and ``images``
        (paths in the run folder). NaN in a score means not scored, or does not apply to the record.
    """
    scores, cells = drawn.scores, [*encoder.vocabulary.cells, UNLABELLED]
    lengths = np.asarray(drawn.rollouts.mask).sum(-1)
    columns = [(f"component/{part.name}", scores.raw[..., k]) for k, part in enumerate(scorer.components)]
    normalised = [(k, part) for k, part in enumerate(scorer.components) if part.normalised]
    columns += [(f"normalised/{part.name}", scores.values[..., k]) for k, part in normalised]
    rows: list[dict[str, Any]] = []
    for i, names in enumerate(images):
        record, cell = drawn.batch.records[i], cells[drawn.batch.groups[i]]
        known = {"step": step, "prompt": i} | _about(record, encoder.settings) | {"cell": cell, "images": [*names]}
        for g, text in enumerate(drawn.texts[i]):
            said = answers.prediction(record, text, lettered=encoder.settings.letters)
            right = said is not None and accuracy.same_answer(said, record)
            row = known | {"rollout": g, "completion": _text(text), "prediction": None if said is None else _text(said)}
            row |= {"exact": float(right) if record.answer.strip() else np.nan}
            row |= {"length": int(lengths[i, g]), "finished": bool(drawn.finished[i, g])}
            row |= {"reward": float(scores.rewards[i, g]), "advantage": float(advantages[i, g])}
            rows.append(row | {name: float(values[i, g]) for name, values in columns})
    return pa.Table.from_pylist(rows, schema=_schema(encoder.settings.attributes, [name for name, _ in columns]))


def _about(record: Record, settings: options.Data) -> dict[str, Any]:
    """What is known of a prompt."""
    known: dict[str, Any] = {"uid": record.uid, "dataset": record.dataset, "task": task(record)}
    known |= {"question": _text(record.question), "answer": _text(record.answer)}
    known |= {"sex": record.sex, "age": record.age}
    return known | {f"attribute/{name}": group for name, group in batches.groups_of(record, settings).items()}


def _schema(attributes: Sequence[str], scores: Sequence[str]) -> pa.Schema:
    text, number, count = pa.string(), pa.float32(), pa.int32()
    fields = dict.fromkeys(("step", "prompt", "rollout"), count) | dict.fromkeys(("uid", "dataset", "task"), text)
    fields |= {"sex": text, "age": pa.float64()} | {f"attribute/{name}": text for name in attributes}
    fields |= dict.fromkeys(("cell", "question", "answer", "completion", "prediction"), text)
    fields |= {"exact": number, "length": count, "finished": pa.bool_()}
    fields |= dict.fromkeys(("reward", "advantage", *scores), number)
    return pa.schema([*fields.items(), ("images", pa.list_(text))])


def _images(folder: Path, stem: str, record: Record) -> list[str]:
    """Writes the images and frames of a record; returns their paths in the run folder."""
    decoded = media.decode_record(record)
    frames = [*decoded.images, *(frame for clip in decoded.videos for frame in clip.frames)]
    names = [f"{stem}-{j}.png" for j in range(len(frames))]
    for name, frame in zip(names, frames, strict=True):
        with files.replacing(folder / name) as file:
            Image.fromarray(frame).save(file, "PNG")
    return names


def _write(path: Path, rows: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    with files.replacing(path) as file:
        pq.write_table(rows, file, compression="zstd", write_page_checksum=True)


def _text(text: str) -> str:
    """The text with a question mark for each half of a surrogate pair, which UTF-8 has no form for."""
    return text.encode(errors="replace").decode()
