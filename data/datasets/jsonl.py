"""Your own data: JSON lines or Parquet with the columns of TRL and verl.

One row per question. ``prompt`` (or ``problem``): text, or messages with ``role`` and ``content``, where the content is
text or parts; ``<image>`` and ``<video>`` in it stand for the media in order. ``images`` (a list), ``image``,
``videos`` (a list of files, or of lists of frames with ``fps`` per second): paths relative to the file or absolute; in
Parquet also ``{"bytes": ..., "path": ...}``. ``answer``, ``solution`` or ``reward_model.ground_truth``. ``sex`` (or
``gender``) and ``age`` in any known form. Optional: ``id``, ``data_source`` (the dataset's name), ``modality``,
``choices``, ``patient`` (unit of the split), ``split``, ``finding``. Every other column becomes an entry of
``Record.extra``, which can define groups.
"""

import dataclasses
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.about import About
from fairgrpo_jax.data.media import open_image
from fairgrpo_jax.data.record import Media, Record, RecordList
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.data.tables import Problems


SPLITS = ("train", "test")
HELD_OUT = 0.2  # share of the patients, if the file has no splits
ABOUT = About(
    name="jsonl",
    title="Your own data",
    where="your own files",
    licence="yours",
    download="train.jsonl and test.jsonl (or .parquet) in one folder, or one such file",
)
SUFFIXES = (".jsonl", ".json", ".parquet")

_NAMES = {
    "prompt": ("prompt", "problem"),
    "answer": ("answer", "solution"),
    "sex": ("sex", "gender"),
    "id": ("id", "uid"),
}
_KNOWN = {name for names in _NAMES.values() for name in names} | {
    *("image", "images", "videos", "fps", "age", "data_source", "modality", "choices"),
    *("patient", "split", "finding", "reward_model"),
}
_TAG = re.compile(r"<(image|video)>\n?")


def load(root: str | Path, *, split: str, num_frames: int = 4) -> RecordList:
    """One record per row.

    Args:
        root: a folder with ``<split>.jsonl``, ``.json`` (also lines) or ``.parquet``; or one such file.
        split: the name of a file in a folder. In a single file: the rows of this ``split``; without such a column,
            ``"train"`` or ``"test"``, with a fifth of the patients held out by the hash of their names.
        num_frames: number of frames of a video file that the model sees.

    Returns:
        A ``Source`` in the order of the rows. Without ``data_source`` the dataset is named after the folder or file;
        without ``patient`` every row is a separate patient.

    Raises:
        ValueError: if the file does not exist, is not UTF-8 or not Parquet; for all bad rows in one error, with their
            lines (rows for Parquet): no JSON object, a repeated key, no prompt or answer, an answer that is not one of
            the choices, media that do not match the tags, an invalid sex or age, a repeated id.

    Example:
        >>> import pathlib, tempfile
        >>> from fairgrpo_jax.data.datasets import jsonl
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "mine.jsonl"
        >>> row = '{"prompt": "<image>What is seen?", "image": "1.png", "solution": "Nodule", "age": "053Y"}'
        >>> _ = path.write_text(row)
        >>> record = [*jsonl.load(path, split="train"), *jsonl.load(path, split="test")][0]
        >>> record.question, record.answer, record.age
        ('What is seen?', 'Nodule', 53.0)
    """
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}; wanted at least 1")
    path = _file(Path(root), split)
    alone = path == Path(root)
    problems = Problems(path, unit="row" if path.suffix == ".parquet" else "line")
    records, column, seen = [], False, dict[str, int]()
    for line, row in _rows(path, problems):
        column = column or "split" in row
        try:
            record = _record(row, path, line, alone, num_frames)
            if (first := seen.setdefault(record.uid, line)) != line:
                raise ValueError(f"{record.uid} is also {problems.unit} {first}")
            if alone and column and not record.split:
                raise ValueError("split is missing and other rows have one")
            records.append(record)
        except ValueError as error:
            problems.add(line, str(error))
    problems.raise_if_any()
    if not alone or column:
        return RecordList(tuple(r for r in records if not alone or r.split == split))
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; {path} has no column split, so there are 'train' and 'test'")
    held_out = by_patient([r.patient for r in records], fraction=HELD_OUT, seed=0)
    kept = [r for r, out in zip(records, held_out, strict=True) if out == (split == "test")]
    return RecordList(tuple(dataclasses.replace(r, split=split) for r in kept))


def _file(root: Path, split: str) -> Path:
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise ValueError(f"{root} is no {', '.join(SUFFIXES)}; wanted a file of rows, or a folder of them")
        return root
    found = [root / f"{split}{suffix}" for suffix in SUFFIXES if (root / f"{split}{suffix}").is_file()]
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise ValueError(f"{root} has {there} of {', '.join(split + suffix for suffix in SUFFIXES)}; wanted one")
    return found[0]


def _rows(path: Path, problems: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and columns of each row; invalid rows are added to ``problems``."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), start=1)
        return
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            try:
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if not text:
                    continue
                row = json.loads(text, object_pairs_hook=_once)
                json.dumps(row, ensure_ascii=False).encode()  # an unpaired surrogate is not text
            except (ValueError, RecursionError) as error:
                problems.add(line, f"no JSON ({error})")
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                problems.add(line, f"{text[:40]} is no object")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet ({error}); write it again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises if a key is repeated."""
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"keys {', '.join(sorted({n for n in names if names.count(n) > 1}))} are there twice")
    return row


def _record(row: Mapping[str, Any], path: Path, line: int, alone: bool, num_frames: int) -> Record:
    question, tags = _question(_one(row, "prompt"))
    media = _media(row, path.parent, num_frames)
    if tags and sorted(tags) != sorted(medium.kind for medium in media):
        raise ValueError(f"the prompt has {len(tags)} tags of media, the row {len(media)} media")
    dataset = _text(row, "data_source") or (path.stem if alone else path.resolve().parent.name)
    answer, choices = _answer(row), _choices(row)
    if choices and answer not in choices and not set(answer.split(", ")) <= set(choices):
        raise ValueError(f"answer is {answer!r}; wanted one of the choices, or several joined by ', '")
    name = _scalar("id", _one(row, "id")) or (str(line) if alone else f"{path.stem}-{line}")
    return Record(
        uid=f"{dataset}/{name}",
        dataset=dataset,
        modality=_text(row, "modality"),
        media=media,
        question=question,
        answer=answer,
        choices=choices,
        patient=_text(row, "patient") or name,
        sex=demographics.sex(_one(row, "sex")),
        age=demographics.age(row.get("age")),
        extra={key: _plain(value) for key, value in row.items() if key not in _KNOWN},
        split=_text(row, "split") if alone else path.stem,
        finding=_text(row, "finding"),
    )


def _one(row: Mapping[str, Any], name: str) -> Any:
    """The value of a column with several names; if a row has two of them, they must agree."""
    found = {key: row[key] for key in _NAMES[name] if row.get(key) is not None}
    values = list(found.values())
    if any(value != values[0] for value in values[1:]):
        raise ValueError(f"{' and '.join(found)} differ; keep one")
    return values[0] if values else None


def _question(prompt: Any) -> tuple[str, list[str]]:
    """The text of the question without media tags, and the kinds of the tags."""
    if isinstance(prompt, list):
        prompt = "\n".join(_turn(message) for message in prompt)
        if not prompt.strip("\n"):
            raise ValueError("prompt has no text")
    if not isinstance(prompt, str):
        raise ValueError(f"prompt is {_short(prompt)}; wanted text or a list of messages")
    question = _TAG.sub("", prompt).strip()
    if not question:
        raise ValueError("prompt has no text")
    return question, _TAG.findall(prompt)


def _turn(message: Any) -> str:
    """A system or user message as text, with media as tags."""
    if not isinstance(message, dict) or message.get("role") not in ("system", "user"):
        raise ValueError(f"prompt has the message {_short(message)}; wanted role system or user, and content")
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError(f"prompt has the content {_short(content)}; wanted text or a list of parts")
    texts = []
    for part in content:
        if part.get("type") in ("image", "video"):
            texts.append(f"<{part['type']}>")
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"prompt has the part {_short(part)}; wanted type text, image or video")
    return "".join(texts)


def _media(row: Mapping[str, Any], folder: Path, num_frames: int) -> tuple[Media, ...]:
    if row.get("image") is not None and row.get("images"):
        raise ValueError("image and images are both there; keep one")
    images = [row["image"]] if row.get("image") is not None else _list(row, "images")
    return (
        *(_image(image, folder) for image in images),
        *(_video(video, folder, row.get("fps"), num_frames) for video in _list(row, "videos")),
    )


def _image(value: Any, folder: Path) -> Media:
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return Media("image", pixels=open_image(io.BytesIO(value["bytes"]), str(value.get("path") or "its bytes")))
    if isinstance(value, dict):
        value = value.get("path")
    return Media("image", path=_path(value, folder))


def _video(value: Any, folder: Path, fps: Any, num_frames: int) -> Media:
    if isinstance(value, list):
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
            raise ValueError(f"fps is {_short(fps)}; wanted the frames a second of a video given as frames")
        if not value:
            raise ValueError("videos has a video without frames")
        frames = tuple(_path(frame, folder) for frame in value)
        return Media("video", frames=frames, fps=float(fps), num_frames=num_frames)
    if isinstance(value, dict):
        value = value.get("path") or value.get("video")
    return Media("video", path=_path(value, folder), num_frames=num_frames)


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{_short(value)} is no file name")
    return folder / value.removeprefix("file://")


def _answer(row: Mapping[str, Any]) -> str:
    value = _one(row, "answer")
    if value is None and isinstance(row.get("reward_model"), dict):
        value = row["reward_model"].get("ground_truth")
    if text := _scalar("answer", value):
        return text
    raise ValueError("answer is missing; wanted answer, solution or reward_model.ground_truth")


def _choices(row: Mapping[str, Any]) -> tuple[str, ...]:
    choices = tuple(_scalar("choices", choice) for choice in _list(row, "choices"))
    if len(set(choices)) < len(choices) or "" in choices:
        raise ValueError(f"choices are {_short(list(choices))}; wanted different ones, none empty")
    return choices


def _list(row: Mapping[str, Any], name: str) -> list[Any]:
    value = row.get(name)
    if value is None or isinstance(value, list):
        return value or []
    raise ValueError(f"{name} is {_short(value)}; wanted a list")


def _text(row: Mapping[str, Any], name: str) -> str:
    return _scalar(name, row.get(name))


def _scalar(name: str, value: Any) -> str:
    """A string, number or None as stripped text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {_short(value)}; wanted text or a number")
    return str(value).strip()


def _plain(value: Any) -> str:
    """A value of another column as text; a list or object as JSON."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
