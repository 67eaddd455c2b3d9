"""Reads datasets written by ``data.prepare``: the same records, with their media in ArrayRecord files.

A prepared folder holds ``prepared.json`` (its origin), ``<split>.jsonl`` (one record per line) and, for every
``rows_per_part`` records, a TensorFlow Datasets folder ``<split>-<part>/prepared/1.0.0`` with the features ``uid``,
``record`` (the same line) and ``media`` (the bytes of each medium); ``tfds.builder_from_directories`` reads the parts
as one dataset. TensorFlow is not needed.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fairgrpo_jax.data.record import Media, Record, RecordList, Turn


MARK = "prepared.json"
SCHEMA = 1  # version of the folder's form


def is_prepared(root: str | Path) -> bool:
    """Whether a folder was written by ``data.prepare``."""
    return (Path(root) / MARK).is_file()


def load(name: str, root: str | Path, *, split: str, **options: Any) -> RecordList:
    """Loads one split of a prepared dataset; called by ``data.load`` for such a folder.

    Args:
        name: the dataset's name.
        root: the prepared folder.
        split: one of the prepared splits.
        options: the options of the preparation, or none. ``num_frames`` may differ, because whole videos are stored.

    Raises:
        ValueError: if dataset, schema, split or options differ, the preparation did not finish, or the records are not
            those that were written.

    Example:
        ``data.load("chexpert", "prepared/chexpert", split="train")``
    """
    root = Path(root)
    side = sidecar(root)
    if side["schema"] != SCHEMA:
        raise ValueError(f"{root} has the form {side['schema']}, this version reads {SCHEMA}; prepare it again")
    if side["name"] != name:
        raise ValueError(f"{root} is prepared from {side['name']!r}; load it by that name, not as {name!r}")
    if not side["complete"]:
        raise ValueError(
            f"{root} is not fully prepared; run the same prepare command again, it goes on where it stopped"
        )
    if split not in side["splits"]:
        raise ValueError(f"split is {split!r}; {root} was prepared with {', '.join(side['splits'])}")
    num_frames = options.pop("num_frames", None)
    made = {key: value for key, value in side["options"].items() if key not in ("num_frames", "on_broken")}
    if options and options != made:
        raise ValueError(f"options are {options}; {root} was prepared with {made}: leave them out, or prepare it again")
    path = root / f"{split}.jsonl"
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != side["splits"][split]["sha256"]:
        raise ValueError(f"{path} is not the file that was written with {MARK}; prepare it again")
    lines = content.decode().removesuffix("\n").split("\n")
    return RecordList(
        tuple(_record(json.loads(line), root, split, row, num_frames) for row, line in enumerate(lines)),
        side["splits"][split]["left_out"],
    )


def sidecar(root: Path) -> dict[str, Any]:
    """Reads ``prepared.json``.

    Raises:
        ValueError: if it is damaged.
    """
    try:
        side = json.loads((root / MARK).read_text(encoding="utf-8"))
        if {"schema", "name", "options", "rows_per_part", "splits", "sources", "complete"} <= set(side):
            return side
    except ValueError:
        pass
    raise ValueError(f"{root / MARK} is damaged; prepare the dataset again")


def contents(path: Path, member: str) -> list[bytes]:
    """Reads the bytes of a medium: one item, or one per frame.

    Args:
        path: a prepared folder, or one of TensorFlow Datasets.
        member: ``"<split>/<row>/<number>"`` of a prepared folder, ``"<split>/<row>/<first>-<last>"`` for frames;
            ``"<split>/<row>/<feature>"`` of a TFDS folder.

    Raises:
        ValueError: if there is no such record or medium.
    """
    split, row, which = member.split("/")
    try:
        if not is_prepared(path):
            return [_part(str(path), split)[int(row)][which]]
        part, place = divmod(int(row), sidecar_rows(str(path)))
        media = _part(str(tfds_folder(path, split, part)), split)[place]["media"]
        first, _, last = which.partition("-")
        return list(media[int(first) : int(last or first) + 1])
    except (KeyError, IndexError, OSError, RuntimeError) as error:
        raise ValueError(f"{path}: no {member} in the prepared files ({error}); prepare the dataset again") from error


def names(folder: Path, split: str) -> list[str]:
    """The feature ``name`` of every example of a TFDS folder, in order."""
    source = _part(str(folder), split)
    return [source[row]["name"].decode() for row in range(len(source))]


def tfds_folder(root: Path, split: str, part: int) -> Path:
    """The folder of a part of a split."""
    return root / f"{split}-{part:05d}" / "prepared" / "1.0.0"


@functools.lru_cache(maxsize=64)
def sidecar_rows(root: str) -> int:
    """Number of records per part."""
    return sidecar(Path(root))["rows_per_part"]


@functools.lru_cache(maxsize=4096)
def _part(folder: str, split: str) -> Sequence[Mapping[str, Any]]:
    """Random access to the examples of a TFDS folder, with images as bytes."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    features = builder.info.features
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    as_bytes: Any = tfds.decode.SkipDecoding
    return builder.as_data_source(split, decoders={name: as_bytes() for name in images})


def holds_frames(path: Path, member: str | None) -> bool:
    """Whether a video is stored as its frames in a prepared folder, and not as one file.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data.prepared import holds_frames
        >>> holds_frames(Path("."), "train/7/0-3"), holds_frames(Path("."), "train/7/0")
        (True, False)
    """
    return path.is_dir() and "-" in (member or "").rpartition("/")[2]


def line(record: Record, media: list[dict[str, Any]]) -> str:
    """A record as a line of ``<split>.jsonl``."""
    told = {
        name: getattr(record, name)
        for name in ("uid", "dataset", "modality", "question", "answer", "patient", "sex", "age", "split", "finding")
    }
    told |= {"choices": list(record.choices), "extra": dict(record.extra), "media": media}
    if record.turns:
        told["turns"] = [{"role": turn.role, "content": list(turn.content)} for turn in record.turns]
    return json.dumps(told, ensure_ascii=False)


def stored_media(media: Sequence[Media]) -> list[dict[str, Any]]:
    """Media in the form of the table: kind, index among the stored items, frames, rate and box."""
    told, place = [], 0
    for medium in media:
        stored = medium.pixels is not None and medium.kind == "video"
        count = len(medium.pixels) if stored and medium.pixels is not None else len(medium.frames)
        member = f"{place}-{place + count - 1}" if count else f"{place}"
        place += count or 1
        item = {"kind": medium.kind, "member": member, "num_frames": medium.num_frames, "fps": medium.fps}
        window = {"window": medium.window} if medium.window and medium.kind == "video" else {}
        area = {} if medium.box_area is None else {"box_area": medium.box_area}
        told.append(item | {"box": medium.box and list(medium.box)} | window | area)
    return told


def _record(told: dict[str, Any], root: Path, split: str, row: int, num_frames: int | None) -> Record:
    media = tuple(
        Media(
            item["kind"],
            path=root,
            member=f"{split}/{row}/{item['member']}",
            num_frames=(num_frames or item["num_frames"]) if item["kind"] == "video" else None,
            fps=item["fps"],
            window=item.get("window"),
            box=item["box"] and tuple(item["box"]),
            box_area=item.get("box_area"),
        )
        for item in told.pop("media")
    )
    choices = tuple(told.pop("choices"))
    turns = tuple(Turn(turn["role"], tuple(turn["content"])) for turn in told.pop("turns", ()))
    return Record(**told, media=media, choices=choices, turns=turns)
