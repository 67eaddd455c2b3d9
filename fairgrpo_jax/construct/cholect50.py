"""CholecT50: removals of gallbladders, a frame a second, with a phase and triplets of instrument, verb and target.

    ROOT/labels/VID01.json         one a video
    ROOT/videos/VID01/000000.png   frames by number

A frame has a list of vectors of 15 numbers, -1 for what is not there: triplet; instrument, score, x, y, width, height;
verb; target, score, x, y, width, height; phase. Corners are shares of the frame's width and height.

Nwoye et al., Medical Image Analysis 2022; https://github.com/CAMMA-public/cholect50, CC BY-NC-SA 4.0.
"""

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from fairgrpo_jax.construct.annotated import Marked, Video, runs
from fairgrpo_jax.construct.frames import frame_size


VECTOR, TRIPLET, INSTRUMENT, BOX, PHASE = 15, 0, 1, slice(3, 7), 14
ABOUT = "a laparoscopic cholecystectomy, the removal of a gallbladder"


def videos(root: Path) -> list[Video]:
    """The videos of the folder.

    Raises:
        ValueError: for a folder of another form, labels that cannot be read, or frames that are missing.
    """
    tables = sorted(root.glob("labels/VID*.json"))
    if not tables:
        raise ValueError(f"{root} has no labels/VID*.json; wanted CholecT50 as its owners publish it")
    return [_video(root, table) for table in tables]


def _video(root: Path, table: Path) -> Video:
    try:
        told = json.loads(table.read_text(encoding="utf-8-sig"))
        names, fps = _names(told["categories"]), float(told["fps"])
        by_frame = {int(frame): vectors for frame, vectors in told["annotations"].items()}
        if wrong := [v for vectors in by_frame.values() for v in vectors if len(v) != VECTOR]:
            raise ValueError(f"a vector of {len(wrong[0])} numbers: {reprlib.repr(wrong[0])}; wanted {VECTOR}")
        count = max(int(told["num_frames"]), max(by_frame) + 1)
        folder = root / "videos" / table.stem
        missing = [n for n in range(count) if not (folder / f"{n:06d}.png").is_file()]
        if missing:
            raise ValueError(f"{len(missing)} of {count} frames are not in {folder}, the first {missing[0]:06d}.png")
        size = frame_size(folder / "000000.png")
        every = [by_frame.get(frame, []) for frame in range(count)]
        actions = [
            span
            for triplet in sorted({_id(v, TRIPLET) for vectors in every for v in vectors} - {-1})
            for span in runs(
                [_said(names["triplet"], triplet) if triplet in {_id(v, TRIPLET) for v in vectors} else None
                 for vectors in every], fps,
            )
        ]  # fmt: skip
        phases = [next((_id(v, PHASE) for v in vectors if _id(v, PHASE) >= 0), None) for vectors in every]
        return Video(
            source="CholecT50",
            name=table.stem,
            frames=[PurePosixPath("videos", table.stem, f"{n:06d}.png") for n in range(count)],
            fps=fps,
            about=ABOUT,
            steps=runs([None if phase is None else names["phase"][phase] for phase in phases], fps),
            labels=[*names["phase"].values()],
            actions=[span for span in actions if "null" not in span.label],
            boxes={n: marks for n, vectors in enumerate(every) if (marks := _marks(vectors, names, size))},
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{table}: {error!r}; wanted a video's labels as the owners of CholecT50 publish them"
        ) from error


def _names(categories: Any) -> dict[str, dict[int, str]]:
    """Names by kind and number; the owners' description says list, their files hold an object."""
    told: Mapping[str, Any] = (
        categories if isinstance(categories, dict) else {k: v for d in categories for k, v in d.items()}
    )
    return {kind: {int(number): str(name) for number, name in ids.items()} for kind, ids in told.items()}


def _id(vector: Sequence[Any], place: int) -> int:
    return int(vector[place])


def _said(names: Mapping[int, str], triplet: int) -> str:
    """``"grasper,retract,gallbladder"`` in words."""
    return re.sub(r"[,_]", " ", names[triplet])


def _marks(
    vectors: Sequence[Sequence[Any]], names: Mapping[str, Mapping[int, str]], size: tuple[int, int]
) -> list[Marked]:
    """The instruments of a frame with their boxes; one that takes part in two triplets once."""
    height, width = size
    found: dict[Marked, None] = {}
    for vector in vectors:
        x, y, w, h = map(float, vector[BOX])
        if _id(vector, INSTRUMENT) >= 0 and min(x, y) >= 0 and min(w, h) > 0:
            corners = (x * width, y * height, min(x + w, 1) * width, min(y + h, 1) * height)
            x1, y1, x2, y2 = (round(corner, 2) for corner in corners)
            found[Marked(names["instrument"][_id(vector, INSTRUMENT)].replace("_", " "), (x1, y1, x2, y2))] = None
    return list(found)
