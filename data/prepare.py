"""Writes a dataset as ArrayRecord files, which are faster to read than hundreds of thousands of single files.

``python -m fairgrpo_jax.data prepare NAME --root DIR --out DIR``; afterwards ``data.load(NAME, OUT, split=...)``
returns the same records and the same pixels as from the owner's folder. JPEG and video files are stored byte for byte;
DICOM is stored as an 8-bit PNG after its window. The result is a copy of the owner's data and falls under the same
licence.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from fairgrpo_jax import data
from fairgrpo_jax.data import dicom, media, prepared
from fairgrpo_jax.data.record import Media, Record, RecordList, Source


TABLES = (".csv", ".tsv", ".tab", ".json", ".jsonl", ".xlsx", ".parquet", "")  # files beside the media to hash


def prepare(
    name: str,
    root: str | Path | None,
    out: str | Path,
    *,
    splits: Sequence[str] | None = None,
    rows_per_part: int = 500,
    threads: int = 4,
    **options: Any,
) -> None:
    """Writes splits of a dataset to a folder; after an interruption, a second run continues with the unfinished part.

    Every medium is decoded once, so that broken media are errors here and not in training.

    Args:
        name: name in ``data.load``.
        root: the owner's folder.
        out: folder to write; each split needs about as much space as its media.
        splits: names of splits; default: all.
        rows_per_part: records per part; an interruption loses at most one part.
        threads: number of media decoded at the same time.
        options: options of ``data.load``; ``on_broken="skip"`` excludes records that cannot be decoded.

    Raises:
        ValueError: from ``data.load``; if the media of a record cannot be decoded; or if ``out`` was begun with another
            dataset, other options or other source files (the differences are named).

    Example:
        ``prepare("chexpert", "CheXpert-v1.0-small", "prepared/chexpert")``
    """
    out, splits = Path(out), tuple(splits or data.module(name).SPLITS)
    if rows_per_part < 1 or threads < 1:
        raise ValueError(f"rows_per_part is {rows_per_part}, threads {threads}; wanted at least 1 of each")
    if root is not None and prepared.is_prepared(root):
        raise ValueError(f"{root} is prepared already; give the owner's folder as root")
    sources = {split: data.load(name, root, split=split, **options) for split in splits}
    lines = {split: _lines(source) for split, source in sources.items()}
    side = {
        "schema": prepared.SCHEMA,
        "name": name,
        "options": options,
        "rows_per_part": rows_per_part,
        "splits": {split: _summary(sources[split], lines[split]) for split in splits},
        "sources": _hashes(root),
        "complete": False,
    }
    out.mkdir(parents=True, exist_ok=True)
    _agree(out, json.loads(json.dumps(side)))
    for split, source in sources.items():
        _write(out / f"{split}.jsonl", "".join(lines[split]))
        write_parts(out, split, source.records, lines[split], rows_per_part, threads)
    _write(out / prepared.MARK, json.dumps(side | {"complete": True}, indent=2) + "\n")


def _lines(source: Source) -> list[str]:
    return [prepared.line(record, prepared.stored_media(record.media)) + "\n" for record in source.records]


def _summary(source: Source, lines: list[str]) -> dict[str, Any]:
    left_out = dict(source.left_out) if isinstance(source, RecordList) else {}
    return {"records": len(lines), "sha256": hashlib.sha256("".join(lines).encode()).hexdigest(), "left_out": left_out}


def _hashes(root: str | Path | None) -> dict[str, str]:
    """Hashes of the tables in the owner's folder, from which the records are made."""
    if root is None:
        return {}
    root = Path(root)
    files = [root] if root.is_file() else sorted(path for path in root.iterdir() if path.is_file())
    found = {}
    for path in files:
        if path.suffix.lower() in TABLES:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _agree(out: Path, side: dict[str, Any]) -> None:
    """Writes down what is being prepared, or raises if the folder was begun with something else."""
    if not prepared.is_prepared(out):
        if any(out.iterdir()):
            raise ValueError(f"{out} holds files that are not of a prepared dataset; give an empty or a new folder")
        _write(out / prepared.MARK, json.dumps(side, indent=2) + "\n")
        return
    before = prepared.sidecar(out)
    differs = [key for key in side if key not in ("complete", "sources", "splits") and before[key] != side[key]]
    differs += [f"source {key}" for key in _changed(before["sources"], side["sources"])]
    differs += [f"records of {key}" for key in _changed(before["splits"], side["splits"])]
    if differs:
        raise ValueError(f"{out} was prepared from something else: {', '.join(differs)} differ; give another folder")


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


def _write(path: Path, text: str) -> None:
    """Writes a file atomically."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


def write_parts(
    out: Path, split: str, records: Sequence[Record], lines: list[str], rows_per_part: int, threads: int
) -> None:
    """Writes the missing parts, with a progress bar."""
    from rich.console import Console
    from rich.progress import track

    starts = range(0, len(records), rows_per_part)
    for start in track(starts, f"{split}: parts of {rows_per_part} records", console=Console(stderr=True)):
        folder = prepared.tfds_folder(out, split, start // rows_per_part)
        if folder.exists():
            continue
        for unfinished in folder.parent.glob("incomplete.*"):
            shutil.rmtree(unfinished)
        rows = slice(start, start + rows_per_part)
        builder = Prepared(split, records[rows], lines[rows], threads, data_dir=folder.parent.parent)
        tfds.display_progress_bar(False)
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        shutil.rmtree(folder.parent.parent / "downloads", ignore_errors=True)


class _Info(tfds.core.DatasetInfo):
    """What is known of one's own data is known here alone."""

    def initialize_from_bucket(self) -> None:
        """Nothing is looked up; TFDS would leave an empty temporary folder for every part."""


class Prepared(tfds.core.GeneratorBasedBuilder):
    """One part of a split as a TensorFlow dataset: ``uid``, ``record`` (JSON), ``media`` (bytes of each item)."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded, so there is no file of checksums beside this one

    def __init__(
        self, split: str, records: Sequence[Record], lines: Sequence[str], threads: int, *, data_dir: str | Path
    ):
        self._split, self._rows, self._threads = split, list(zip(records, lines, strict=True)), threads
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        text, several = tfds.features.Text, tfds.features.Sequence
        item = tfds.features.Tensor(shape=(), dtype=np.str_)
        features = tfds.features.FeaturesDict({"uid": text(), "record": text(), "media": several(item)})
        about = "Records with their media, written by fairgrpo_jax.data.prepare; the licence is that of the source."
        return _Info(builder=self, description=about, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, len(self._rows), 4 * self._threads):  # few enough to hold in memory
                rows = self._rows[start : start + 4 * self._threads]
                stored = pool.map(lambda row: _stored(row[0]), rows)
                for place, ((record, line), items) in enumerate(zip(rows, stored, strict=True), start=start):
                    yield place, {"uid": record.uid, "record": line.strip(), "media": items}


def _stored(record: Record) -> list[bytes]:
    """The bytes of all items of a record, after checking that they can be decoded."""
    media.decode_record(
        dataclasses.replace(record, media=tuple(dataclasses.replace(m, num_frames=None) for m in record.media))
    )
    return [item for medium in record.media for item in _items(medium)]


def _items(medium: Media) -> list[bytes]:
    if medium.pixels is not None:
        return [_png(pixels) for pixels in (medium.pixels if medium.kind == "video" else medium.pixels[None])]
    if medium.frames:
        return [path.read_bytes() for path in medium.frames]
    inside = media.content(medium)
    if medium.kind == "image" and dicom.is_dicom(medium.member or medium.path or "", inside):
        return [_png(dicom.pixels(inside, str(medium.path), window=medium.window or "voi"))]
    return [inside]


def _png(pixels: np.ndarray) -> bytes:
    """Encodes pixels losslessly, with one channel if all three are equal."""
    from PIL import Image

    grey = (pixels == pixels[..., :1]).all()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if grey else pixels).save(buffer, "png")
    return buffer.getvalue()


def join_tfds(source: Source, folder: str | Path, *, split: str, feature: str = "image") -> RecordList:
    """Joins records of the owner's tables with the images prepared by TensorFlow Datasets' own builder.

    For ``chexpert``, whose builder drops sex and age; they are restored by its feature ``name``, the path of the image,
    of which the last four parts are compared (``train/patient00001/study1/view1_frontal.jpg``).

    Args:
        source: the loader's records of the owner's tables; the images themselves need not exist.
        folder: the builder's folder with ``dataset_info.json``, in ArrayRecord form, e.g. ``chexpert/3.1.0``.
        split: the name of the split there, ``"train"`` or ``"validation"``.
        feature: the name of the image feature there.

    Raises:
        ValueError: if records have no image there; they are counted and named.

    Example:
        ``join_tfds(data.load("chexpert", root, split="train"), "chexpert/3.1.0", split="train")``
    """
    rows = {_tail(name): row for row, name in enumerate(prepared.names(Path(folder), split))}
    absent = [record.uid for record in source.records if _tail(str(record.media[0].path)) not in rows]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(source)} records have no image in {folder} ({', '.join(absent[:5])} ...); wanted "
            "the same version of the dataset in both"
        )
    joined = []
    for record in source.records:
        member = f"{split}/{rows[_tail(str(record.media[0].path))]}/{feature}"
        joined.append(dataclasses.replace(record, media=(Media("image", path=Path(folder), member=member),)))
    return RecordList(tuple(joined))


def _tail(path: str) -> tuple[str, ...]:
    return Path(path).parts[-4:]
