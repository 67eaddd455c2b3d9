"""Keeps a few prompts of a step for the report: images, completions, rewards and advantages."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fairgrpo_jax import files
from fairgrpo_jax.data import media
from fairgrpo_jax.data.record import Record


def save(
    folder: Path,
    step: int,
    records: Sequence[Record],
    texts: Sequence[Sequence[str]],
    rewards: np.ndarray,
    advantages: np.ndarray,
) -> None:
    """Writes ``samples/<step>.json`` and its images into a run folder.

    Args:
        folder: the run folder.
        step: reinforcement learning step.
        records: the N prompts to keep.
        texts: G completions of each of P >= N prompts.
        rewards: (P, G).
        advantages: (P, G).
    """
    (folder / "samples").mkdir(exist_ok=True)
    rows = []
    for i, record in enumerate(records):
        decoded = media.decode_record(record)
        frames = [*decoded.images, *(frame for clip in decoded.videos for frame in clip.frames)]
        names = [f"samples/{step:06d}-{i}-{j}.png" for j in range(len(frames))]
        for name, frame in zip(names, frames, strict=True):
            with files.replacing(folder / name) as file:
                Image.fromarray(frame).save(file, "PNG")
        completions = [
            {"text": text, "reward": float(reward), "advantage": float(value)}
            for text, reward, value in zip(texts[i], rewards[i], advantages[i], strict=True)
        ]
        known = {"uid": record.uid, "dataset": record.dataset, "sex": record.sex, "age": record.age}
        asked = {"question": record.question, "answer": record.answer, "images": names}
        rows.append(known | asked | {"completions": completions})
    files.write(folder / "samples" / f"{step:06d}.json", json.dumps(rows))
