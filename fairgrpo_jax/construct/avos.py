"""AVOS: open surgery, with spans of cutting, tying and suturing, and boxes of hands and tools on some frames.

    ROOT/ANY.csv    video_id, start_seconds, end_seconds, start_frame, end_frame, label
    ROOT/ANY.csv    image_name (VIDEO-FRAME.jpg), x1, y1, x2, y2, class; in pixels; may be absent
    ROOT/frames_15fps/VIDEO/FRAME.jpg

Tables are known by their columns, and the rate by the folder's name. Frames are to be taken out of the films first, as
MedVidBench has them. The columns are those that programs of others read; we have not seen the files themselves.

Goodman et al., JAMA Surgery 2024.
"""

import csv
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from fairgrpo_jax.construct.annotated import Marked, Span, Video
from fairgrpo_jax.data import tables


SPANS = ("video_id", "start_seconds", "end_seconds", "start_frame", "end_frame", "label")
BOXES = ("image_name", "x1", "y1", "x2", "y2", "class")
LABELS = ("cutting", "tying", "suturing")
BACKGROUND = "background"
NAMES = {"bovie": "electrocautery pen", "needledriver": "needle driver"}
ABOUT = "an open operation"


def videos(root: Path) -> list[Video]:
    """The videos of the folder.

    Raises:
        ValueError: for a folder of another form, bad rows, all named, or frames that are missing.
    """
    folders = [(path, re.fullmatch(r"frames_(\d+(?:\.\d+)?)fps", path.name)) for path in sorted(root.iterdir())]
    rated = [(path, float(match[1])) for path, match in folders if match]
    found = {name: [path for path in sorted(root.glob("*.csv")) if _has(path, name)] for name in (SPANS, BOXES)}
    if len(rated) != 1 or not found[SPANS]:
        raise ValueError(
            f"{root} has {len(rated)} folders frames_<rate>fps and {len(found[SPANS])} tables with the columns "
            f"{', '.join(SPANS)}; wanted one folder, and a table"
        )
    ((folder, fps),) = rated
    spans, boxes = _spans(found[SPANS]), _boxes(found[BOXES])
    return [_video(root, folder / name, fps, spans[name], boxes.get(name, {})) for name in sorted(spans)]


def _video(root: Path, folder: Path, fps: float, spans: list[Span], boxes: dict[int, list[Marked]]) -> Video:
    numbered = sorted((int(path.stem), path) for path in folder.glob("*.jpg") if path.stem.isdigit())
    if not numbered or numbered[-1][0] - numbered[0][0] != len(numbered) - 1:
        raise ValueError(
            f"{folder} has {len(numbered)} frames, not numbered without gaps; wanted all of the film, <number>.jpg"
        )
    first = numbered[0][0]
    return Video(
        source="AVOS",
        name=folder.name,
        frames=[PurePosixPath(path.relative_to(root)) for _, path in numbered],
        fps=fps,
        about=ABOUT,
        steps=sorted(span for span in spans if span.label != BACKGROUND),
        labels=LABELS,
        boxes={number - first: marks for number, marks in boxes.items() if 0 <= number - first < len(numbered)},
    )


def _spans(paths: list[Path]) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for path in paths:
        table = tables.read_csv(path, SPANS)
        for line, row in table:
            label = row["label"].lower()
            try:
                start, end = float(row["start_seconds"]), float(row["end_seconds"])
                if not 0 <= start <= end or label not in (*LABELS, BACKGROUND) or not row["video_id"]:
                    raise ValueError
            except ValueError:
                told = ", ".join(row[name] for name in SPANS)
                table.problems.add(line, f"{told}; wanted a video, 0 <= start <= end, and {', '.join(LABELS)}")
                continue
            found[row["video_id"]].append(Span(start, end, label))
    return found


def _boxes(paths: list[Path]) -> dict[str, dict[int, list[Marked]]]:
    found: dict[str, dict[int, list[Marked]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        table = tables.read_csv(path, BOXES)
        for line, row in table:
            named = re.fullmatch(r"(?:.*/)?(.+)-(\d+)\.\w+", row["image_name"])
            try:
                x1, y1, x2, y2 = (float(row[name]) for name in ("x1", "y1", "x2", "y2"))
                if named is None or not (0 <= x1 < x2 and 0 <= y1 < y2) or not row["class"]:
                    raise ValueError
            except ValueError:
                told = ", ".join(row[name] for name in BOXES)
                table.problems.add(line, f"{told}; wanted VIDEO-FRAME.jpg, 0 <= x1 < x2, 0 <= y1 < y2, and a class")
                continue
            label = NAMES.get(row["class"].lower(), row["class"].lower())
            found[named[1]][int(named[2])].append(Marked(label, (x1, y1, x2, y2)))
    return found


def _has(path: Path, columns: tuple[str, ...]) -> bool:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {*columns} <= {name.strip() for name in next(csv.reader(file), [])}
