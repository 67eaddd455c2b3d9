"""The operating room: short films with the eight tasks of MedVidBench, made in seconds, to run MedGRPO's two stages.

A clip is eight frames of 128 x 128 pixels, one a second. In every two seconds the instrument cuts (red light), ties
(blue light) or rests; a white hook lies in one of twelve fields and moves at most once; three marks at the upper edge
are off, dim or bright; the tissue has one of five tints. Every task asks for something that can be seen, and answers
are in the owners' forms: times in seconds of the clip, boxes in pixels of the file, although the model sees 32 x 32.

Clips come from two rooms, named after two sources of MedVidBench: ``AVOS``, well lit, and ``EgoSurgery``, dark and
noisy. Scores of the second are lower, which is what normalisation across datasets is for. It says nothing about
medicine.
"""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fairgrpo_jax import files
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.record import Media, Record, RecordList


SIZE, FRAMES, CELL = 128, 8, 32  # pixels a side, frames of a clip, pixels a side of a field
SPLITS = ("train", "warmup", "test")
CLIPS = {"train": 240, "test": 40}
TASKS = (
    *("tal", "stg", "dense_captioning", "video_summary", "region_caption"),
    *("next_action", "skill_assessment", "cvs_assessment"),
)
ABOUT = About(
    name="medvid_toy",
    title="The operating room",
    where="fairgrpo_jax.data.datasets.medvid_toy",
    licence="as this software",
    download="nothing: it is made when asked for, as mp4 files in the cache",
    note="Its clips are cartoons with the tasks of MedVidBench.",
    shared=(("train", "warmup"),),  # both stages have the same clips, as in the paper
)
ROOMS = {"AVOS": (0.9, 6.0), "EgoSurgery": (0.45, 18.0)}  # brightness of what is seen, deviation of the noise
LIGHTS = {"cut": (200, 30, 30), "tie": (30, 30, 200)}
NEXT = {"cut": "tying", "tie": "cutting"}
COMPONENTS = ("two_structures", "cystic_plate", "hepatocystic_triangle")
NAMES = ("Two structures", "Cystic plate", "Hepatocystic triangle")

Split = Literal["train", "warmup", "test"]


@dataclass(frozen=True)
class _Clip:
    name: str
    room: str
    steps: tuple[str, ...]  # what happens in every two seconds; "" for nothing
    fields: tuple[int, int]  # of the hook, in the first and the second half
    marks: tuple[int, int, int]  # 0, 1 or 2
    tint: int  # 1 to 5
    frames: np.ndarray


def load(
    split: Split, *, clips: int | None = None, tasks: Sequence[str] = TASKS, folder: str | Path | None = None
) -> RecordList:
    """One record for every task of every clip; the clips are written as mp4 files, once.

    Args:
        split: ``"train"``, ``"warmup"`` (the same clips) or ``"test"``.
        clips: number of clips; default: ``CLIPS``.
        tasks: a selection of ``TASKS``.
        folder: for the files; default: ``fairgrpo_jax/medvid_toy`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be
            removed at any time.

    Returns:
        Records in the form of ``medvidbench.load``, with ``extra`` as there.

    Raises:
        ValueError: for an unknown split or task, or no clips.

    Example:
        >>> from fairgrpo_jax.data.datasets import medvid_toy
        >>> [record.answer for record in medvid_toy.load("test", clips=1, tasks=("tal", "next_action"))]
        ['6.0-8.0 seconds.', 'tying']
    """
    if split not in SPLITS or set(tasks) - set(TASKS) or (clips is not None and clips < 1):
        raise ValueError(
            f"got split {split!r}, tasks {tasks}, {clips} clips; wanted {SPLITS}, some of {TASKS}, some clips"
        )
    own = "test" if split == "test" else "train"
    rng = np.random.default_rng(["train", "test"].index(own))
    made = [_clip(f"{own}-{number}", rng) for number in range(clips or CLIPS[own])]
    place = _folder() if folder is None else Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    films = [_film(clip, place) for clip in made]
    pairs = [(clip, film, task) for clip, film in zip(made, films, strict=True) for task in TASKS]
    records = [_record(clip, film, task, row, split) for row, (clip, film, task) in enumerate(pairs)]
    return RecordList(tuple(record for record in records if record.extra["task"] in tasks))


def _clip(name: str, rng: np.random.Generator) -> _Clip:
    room = str(rng.choice(list(ROOMS)))
    steps = tuple(str(rng.choice(["cut", "tie", ""])) for _ in range(FRAMES // 2))
    steps = steps if any(steps) else ("cut", *steps[1:])
    first = int(rng.integers(4, 16))  # below the marks
    fields = (first, first if rng.random() < 0.7 else int(rng.integers(4, 16)))
    marks = (int(rng.integers(3)), int(rng.integers(3)), int(rng.integers(3)))
    tint = int(rng.integers(1, 6))
    light, noise = ROOMS[room]
    frames = np.full((FRAMES, SIZE, SIZE, 3), 20.0)
    frames[..., 1] += 18 * tint
    for half in range(2):
        x1, y1, x2, y2 = _box(fields[half])
        frames[4 * half : 4 * half + 4, y1:y2, x1:x2] = 60 + 190 * light
    for place, step in enumerate(steps):
        if step:
            frames[2 * place : 2 * place + 2, :CELL, 3 * CELL :] = light * np.array(LIGHTS[step])
    for place, mark in enumerate(marks):
        frames[:, 4 : CELL - 4, CELL * place + 4 : CELL * (place + 1) - 4, 2] = 110 * mark * light
    frames += rng.normal(0, noise, (FRAMES, SIZE // 4, SIZE // 4, 1)).repeat(4, 1).repeat(4, 2)
    return _Clip(name, room, steps, fields, marks, tint, frames.clip(0, 255).astype(np.uint8))


def _folder() -> Path:
    return files.cache_folder() / "medvid_toy"


def _film(clip: _Clip, folder: Path) -> Path:
    """The clip as a file, whose name tells what it shows; written beside its place first, if it is not there."""
    import av

    path = folder / f"{clip.name}-{hashlib.blake2b(clip.frames.tobytes(), digest_size=8).hexdigest()}.mp4"
    if path.is_file():
        return path
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".mp4", delete=False) as draft:
        with av.open(draft.name, "w", format="mp4") as container:
            stream = container.add_stream(
                "libx264", rate=1, options={"crf": "12", "preset": "veryfast", "threads": "1"}
            )
            stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
            for frame in clip.frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            container.mux(stream.encode())
    os.replace(draft.name, path)
    return path


def _box(field: int) -> tuple[int, int, int, int]:
    x, y = CELL * (field % 4), CELL * (field // 4)
    return x, y, x + CELL, y + CELL


def _spans(clip: _Clip, action: str) -> list[tuple[float, float]]:
    """Spans of an action in seconds, neighbours joined."""
    found: list[tuple[float, float]] = []
    for place, step in enumerate(clip.steps):
        if step == action:
            start = found.pop()[0] if found and found[-1][1] == 2 * place else 2.0 * place
            found.append((start, 2.0 * place + 2))
    return found


def _asked(clip: _Clip, task: str) -> tuple[str, str, list[Any]]:
    """Question, answer and structured answer."""
    last = next(step for step in reversed(clip.steps) if step)
    if task == "tal":
        spans = _spans(clip, last)
        told = [{"action": last, "spans": [{"start": a, "end": b} for a, b in spans]}]
        return f"When do they {last}?", ", ".join(f"{a}-{b}" for a, b in spans) + " seconds.", told
    if task == "stg":
        boxes = {f"{time:.1f}": list(_box(clip.fields[time // 4])) for time in (1, 5)}
        text = " ".join(f"{time} seconds: {box}" for time, box in boxes.items())
        return "Where is the hook at 1.0 and 5.0 seconds?", text, [{"object": "hook", "bbox_dict": boxes}]
    if task == "dense_captioning":
        first = next(step for step in clip.steps if step)
        events = [(*_spans(clip, first)[0], first)] + ([(*_spans(clip, last)[0], last)] if last != first else [])
        told = [{"start": a, "end": b, "caption": f"A {action}."} for a, b, action in events]
        return "Describe each event.", "\n".join(f"{a}-{b} seconds: A {action}." for a, b, action in events), [told]
    if task == "video_summary":
        steps = [step for step, _ in itertools.groupby(clip.steps) if step]
        return "Sum up the clip.", f"A {', a '.join(steps)}.", []
    if task == "region_caption":
        side = ("left", "right")[clip.fields[0] % 4 // 2]
        return "What is marked?", f"A hook at the {side}.", []
    if task == "next_action":
        return "What is next: cutting, tying, suturing?", NEXT[last], []
    if task == "skill_assessment":
        levels = {"Respect for tissue": clip.tint, "Time and motion": 1 + sum(map(bool, clip.steps))}
        text = ", ".join(f"{name}: {level}/5" for name, level in levels.items())
        return "Rate the skill.", text, [{"skill_level": "I", "skill_scores": levels}]
    scores = dict(zip(COMPONENTS, clip.marks, strict=True))
    text = ", ".join(f"{name}: {mark}" for name, mark in zip(NAMES, clip.marks, strict=True))
    return "Score the view.", text, [{"cvs_scores": scores}]


def _record(clip: _Clip, film: Path, task: str, row: int, split: Split) -> Record:
    question, answer, told = _asked(clip, task)
    x1, y1, x2, y2 = map(float, _box(clip.fields[0]))
    box = (0.0, x1, y1, x2, y2) if task == "region_caption" else None
    return Record(
        uid=f"medvid_toy/{clip.name}/{task}",
        dataset="medvid_toy",
        modality="video",
        media=(Media("video", path=film, box=box),),
        question=question,
        answer=answer,
        choices=(),
        patient=clip.name,
        sex=None,
        age=None,
        extra={
            "task": task,
            "writer": "gpt" if task in ("dense_captioning", "video_summary", "region_caption") else "",
            "source": clip.room,
            "scale": clip.room,
            "video": clip.name,
            "fps": "1.0",
            "id": f"{clip.name}&&0&&{FRAMES}&&1.0",
            "row": str(row),
            "start": "0",
            "end": str(FRAMES),
            "unit": "frames",
            "box": "" if box is None else ", ".join(f"{value:g}" for value in box),
            "struc_info": json.dumps(told) if told else "",
        },
        split=split,
    )
