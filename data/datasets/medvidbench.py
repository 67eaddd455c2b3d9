"""MedVidBench: eight tasks on videos of operations and nursing, from grounding in time and space to captioning.

Su et al., MedGRPO, CVPR 2026, arXiv 2512.06581. The owners publish 6,245 test questions without answers (which stay on
their server) and, on request, 6,270 questions with answers, but not the 531,850 pairs of the paper. Videos are lists of
JPEG frames. Questions and answers are in seconds from the first frame and in pixels of the files.
"""

import dataclasses
import hashlib
import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.images import check_split
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.rows import inside, read_json, text
from fairgrpo_jax.data.splits import by_patient


SPLITS = ("train", "validation", "test")
HELD_OUT_SPLIT = "validation"  # that runs evaluate: of test the answers are not public
ABOUT = About(
    "medvidbench",
    "MedVidBench",
    "https://huggingface.co/datasets/UII-AI/MedVidBench",
    "CC BY-NC-SA 4.0 (test); non-commercial, on request, not to be passed on (MedVidU_ECCV2026_TrainVal)",
    "cleaned_test_data_11_04.json and testdata.zip, unpacked; medvidu_eccv2026_trainval.json and its folder of frames",
    note="The test questions come without answers. No demographics.",
    published={"records/test": 6245},
)
TASKS = (
    "tal",
    "stg",
    "next_action",
    "dense_captioning",
    "video_summary",
    "region_caption",
    "skill_assessment",
    "cvs_assessment",
)
MOST_FRAMES = 768  # of a clip, as in the authors' inference
HELD_OUT = 0.2  # share of the videos, for validation

_FILES = {"train": "medvidu_eccv2026_trainval.json", "test": "cleaned_test_data_11_04.json"}
_FOLDERS = ("", "valdata", "testdata")
_KEYS = ("id", "qa_type", "video", "metadata", "conversations")
_TIMES = {  # the owners' three forms of a clip's position in its source video
    "frames": (("input_video_start_frame", "input_video_end_frame"), ("start_frame", "end_frame")),
    "seconds": (("input_video_start_time", "input_video_end_time"),),
}
_CHOLEC = ("cholec80", "cholect50", "cholectrack20")  # share one numbering: a number is one operation


def load(
    root: str | Path,
    *,
    split: Literal["train", "validation", "test"],
    tasks: Sequence[str] | None = None,
    annotations: str | None = None,
    prefix: str = "/root/data",
    num_frames: int | None = None,
    box_area: int | None = None,
) -> RecordList:
    """One record per question about a clip, with all its frames in the owners' order, including repeats.

    Args:
        root: the folder with the JSON files and, in it or in ``valdata`` or ``testdata``, the frames.
        split: ``"test"``: the owners' test questions, without answers. ``"train"`` and ``"validation"``: the questions
            with answers, with a fifth of the videos held out by the hash of their names.
        tasks: a selection of ``TASKS``; None for all.
        annotations: another JSON file in ``root`` of the same form, instead of the split's; with ``{split}`` in its
            name a file for each split, which is then taken whole: ``"{split}.json"`` is what ``construct`` writes.
        prefix: folder with which the owners' absolute frame paths begin; the rest of a path is relative to ``root``.
        num_frames: number of frames of a clip that the model sees, evenly spaced; None, as in the paper: all that are
            listed, at most ``MOST_FRAMES``.
        box_area: the authors' order, to compare with their figures: the region of a caption is drawn on the frame
            reduced to this many pixels, 37,632 of theirs, with the file's corners, so that it lands elsewhere.

    Returns:
        A ``Source`` in the order of the file, which is that of a submission. ``question`` is the owners' whole prompt;
        ``answer`` is their text, ``""`` if they give none (counted in ``left_out``); there are no ``choices``, since
        the question itself lists the labels to choose from. ``patient`` is the source video; videos with the same
        number in Cholec80, CholecT50 and CholecTrack20 are one operation. The uid is a hash of what identifies a
        question (id, task, question, frames, box), with the suffix ``-2`` and so on for repeated ones.

        The box of a region to caption is drawn on its frame (``Media.box``); a region whose frame is not in the clip
        has no box; its record is kept but counted in ``left_out``. ``extra``: ``task`` (of ``TASKS``), ``writer``
        ("gpt" or "gemini" if a model wrote the reference), ``source``, ``scale`` (the same: scores are on the scale of
        their source), ``video``, ``fps`` of the frames, ``id``, ``row`` (from 0), ``start``,
        ``end`` and ``unit`` ("frames" or "seconds" of the source video), ``box`` and ``struc_info``, the structured
        answer (a JSON list).

    Raises:
        ValueError: for missing files, all named; frames still in ``testdata.zip``; bad rows, all named; an unknown
            split or task.

    Source:
        The authors' inference code (UII-AI/MedGRPO-Code). Unlike there, the box is drawn before the frames are resized,
        and no frame is rotated. That a number is one operation in the three Cholec sets is our reading; if it is wrong,
        operations are kept together that could be separate.

    Example:
        ``load("MedVidBench", split="test", tasks=("tal", "stg"))[0].question``
    """
    check_split(split, SPLITS, ABOUT.title)
    if unknown := [task for task in tasks or () if task not in TASKS]:
        raise ValueError(f"tasks are {unknown}; wanted some of {', '.join(TASKS)}")
    if num_frames is not None and num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    root = Path(root)
    own = annotations is not None and "{split}" in annotations  # a file for each split
    name = (annotations or _FILES["test" if split == "test" else "train"]).replace("{split}", split)
    (table,) = ABOUT.require(root, name)
    rows, made, seen = read_json(table, _KEYS), [], Counter()
    place = _places(root, prefix)
    for number, row in rows:
        try:
            record = _record(row, number - 1, split, place, num_frames, box_area)
            seen[record.uid] += 1
            if seen[record.uid] > 1:
                record = dataclasses.replace(record, uid=f"{record.uid}-{seen[record.uid]}")
            made.append(record)
        except ValueError as error:
            rows.problems.add(number, str(error))
    if split != "test" and not own:
        held_out = by_patient([record.patient for record in made], fraction=HELD_OUT, seed=0)
        made = [record for record, out in zip(made, held_out, strict=True) if out == (split == "validation")]
    wanted = tuple(record for record in made if tasks is None or record.extra["task"] in tasks)
    if wanted and (root / "testdata.zip").is_file() and not wanted[0].media[0].frames[0].exists():
        raise ValueError(f"frame {wanted[0].media[0].frames[0]} does not exist: unpack testdata.zip in {root}")
    lacking = {
        "kept without an answer": sum(not record.answer for record in wanted),
        "kept without the box to caption": sum(
            record.extra["task"] == "region_caption" and not record.extra["box"] for record in wanted
        ),
    }
    return RecordList(wanted, {reason: count for reason, count in lacking.items() if count})


def _record(
    row: Mapping,
    index: int,
    split: str,
    place: Callable[[str], Path],
    num_frames: int | None,
    box_area: int | None,
) -> Record:
    metadata, source = _object(row, "metadata"), text(row, "data_source", empty=True) or text(row, "dataset_name")
    (task, writer), (question, answer) = _task(text(row, "qa_type")), _turns(row["conversations"])
    names, video = row["video"], text(metadata, "video_id")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"video is {reprlib.repr(names)}; wanted a list of frame files")
    box = _box(row, names)
    if num_frames is None and len(names) > MOST_FRAMES:
        num_frames = MOST_FRAMES
    start, end, unit = _part(metadata)
    key = json.dumps([text(row, "id"), row["qa_type"], question, names, box])
    return Record(
        uid=f"medvidbench/{hashlib.blake2b(key.encode(), digest_size=8).hexdigest()}",
        dataset="medvidbench",
        modality="video",
        media=(
            Media(
                "video",
                frames=tuple(map(place, names)),
                fps=_fps(metadata),
                box=box,
                num_frames=num_frames,
                box_area=box_area,
            ),
        ),
        question=question,
        answer=answer,
        choices=(),
        patient=operation(source, video),
        sex=None,
        age=None,
        extra={
            "task": task,
            "writer": writer,
            "source": source,
            "scale": source,
            "fps": text(metadata, "fps"),
            "video": video,
            "id": text(row, "id"),
            "row": str(index),
            "start": start,
            "end": end,
            "unit": unit,
            "box": "" if box is None else ", ".join(f"{value:g}" for value in box),
            "struc_info": _parts(row.get("struc_info")),
        },
        split=split,
    )


def _object(row: Mapping, key: str) -> Mapping:
    if not isinstance(row[key], dict):
        raise ValueError(f"{key} is {reprlib.repr(row[key])}; wanted an object")
    return row[key]


def _task(name: str) -> tuple[str, str]:
    """Parses ``"video_summary_gpt"`` into the task of ``TASKS`` and the writer of its references."""
    for task in TASKS:
        if name == task or name.startswith(f"{task}_"):
            return task, name[len(task) + 1 :]
    raise ValueError(f"qa_type is {name!r}; wanted one that begins with {', '.join(TASKS)}")


def _turns(turns: object) -> tuple[str, str]:
    """Question, without the video tag, and answer; ``""`` if there is none."""
    said: dict[str, str] = {}
    for turn in turns if isinstance(turns, list) else ():
        who = turn.get("from") if isinstance(turn, dict) else None
        if who not in ("human", "gpt") or who in said or not isinstance(turn.get("value"), str | None):
            raise ValueError(f"conversations hold {reprlib.repr(turn)}; wanted one human turn and at most one of gpt")
        said[who] = (turn.get("value") or "").replace("<video>", "").strip()
    if not said.get("human"):
        raise ValueError("conversations hold no question; wanted a human turn")
    for who in said:
        text(said, who, empty=True)  # unpaired surrogates are not text
    return said["human"], said.get("gpt", "")


def _fps(metadata: Mapping) -> float:
    try:
        fps = float(text(metadata, "fps"))
    except ValueError:
        fps = math.nan
    if not 0 < fps < math.inf:
        raise ValueError(f"metadata.fps is {metadata.get('fps')!r}; wanted frames a second, above 0")
    return fps


def _part(metadata: Mapping) -> tuple[str, str, str]:
    for unit, names in _TIMES.items():
        for first, last in names:
            if first in metadata or last in metadata:
                return text(metadata, first, empty=True), text(metadata, last, empty=True), unit
    return "", "", ""


def _box(row: Mapping, names: Sequence[str]) -> tuple[float, float, float, float, float] | None:
    """Index of the frame and corners of the region to caption; None if there is none on these frames."""
    region = row.get("RC_info") or {}
    if not isinstance(region, dict):
        raise ValueError(f"RC_info is {reprlib.repr(region)}; wanted an object or null")
    frame, corners = region.get("start_frame"), region.get("start_frame_bbox")
    if not frame and not corners:
        return None
    numbers = (
        [c for c in corners if isinstance(c, int | float) and math.isfinite(c)] if isinstance(corners, list) else []
    )
    if len(numbers) != 4 or numbers != corners or numbers[0] > numbers[2] or numbers[1] > numbers[3]:
        raise ValueError(f"RC_info.start_frame_bbox is {reprlib.repr(corners)}; wanted [x1, y1, x2, y2] in pixels")
    x1, y1, x2, y2 = map(float, numbers)
    return (float(names.index(frame)), x1, y1, x2, y2) if frame in names else None


def _parts(value: object) -> str:
    """The structured answer as a JSON list, given a list or a single object; "" for none."""
    if not value:
        return ""
    if not isinstance(value, list | dict):
        raise ValueError(f"struc_info is {reprlib.repr(value)}; wanted a list, an object or null")
    return json.dumps(value if isinstance(value, list) else [value], ensure_ascii=False)


def operation(source: str, video: str) -> str:
    """The source video, with the same name for sources that show the same operation.

    >>> operation("CholecT50", "VID05"), operation("AVOS", "v5")
    ('cholec/5', 'AVOS/v5')
    """
    numbers = re.findall(r"\d+", video)
    if source.lower().startswith(_CHOLEC) and len(numbers) == 1:
        return f"cholec/{int(numbers[0])}"
    return f"{source}/{video}"


def _places(root: Path, prefix: str) -> Callable[[str], Path]:
    """Returns a function from the owner's path of a frame to the user's; looks up each source's folder once."""
    start = PurePosixPath(prefix)
    below: dict[str, Path] = {}  # by first folder
    found: dict[str, Path] = {}  # clips share frames

    def place(name: str) -> Path:
        if name not in found:
            path = PurePosixPath(name.replace("\\", "/"))
            if path.is_absolute() and not path.is_relative_to(start):
                raise ValueError(f"frame {name!r} does not begin with {prefix}; pass prefix=..., what it begins with")
            path = inside(str(path.relative_to(start) if path.is_absolute() else path))
            first, *rest = path.parts
            usual, parts = (first, rest) if first in _FOLDERS and rest else ("", [first, *rest])
            if parts[0] not in below:
                below[parts[0]] = _folder(root, parts[0], usual=usual)
            found[name] = below[parts[0]].joinpath(*parts)
        return found[name]

    return place


def _folder(root: Path, source: str, *, usual: str) -> Path:
    """The folder with the frames of a source; the usual one if it is not found."""
    return next((root / folder for folder in (usual, *_FOLDERS) if (root / folder / source).exists()), root / usual)
