"""Reads and writes safetensors files in pieces: no tensor is held whole unless the caller asks for it.

A file is eight bytes with the length of its header, the header (JSON: name -> dtype, shape, offsets), and the data.
"""

import dataclasses
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors


DTYPES: dict[str, Any] = {
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
}
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: its dtype, shape and position."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Reads entries ``start`` to ``stop`` along the first axis into a new array in the dtype of the file."""
        size = int(np.prod(self.shape[1:], dtype=np.int64))
        place = self.offset + start * size * self.dtype.itemsize
        data = np.fromfile(self.path, self.dtype, (stop - start) * size, offset=place)
        return data.reshape(stop - start, *self.shape[1:])

    def read(self) -> np.ndarray:
        """Reads the whole tensor."""
        return self.rows(0, self.shape[0])


def header(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, not yet read.

    The safetensors library checks the file first: that the header is whole, and that the tensors fill the data without
    gap or overlap, each with the bytes of its shape.

    Raises:
        ValueError: if the library refuses the file, or it has a dtype other than float16, bfloat16 and float32.
    """
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"got {path}, {path.stat().st_size} bytes, as no whole safetensors file ({error}); wanted one: copy again"
        ) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    places: dict[str, Any] = {
        name: (entry["dtype"], tuple(entry["shape"]), entry["data_offsets"][0]) for name, entry in entries.items()
    }
    if foreign := sorted({dtype for dtype, *_ in places.values()} - DTYPES.keys()):
        raise ValueError(f"got {path} with tensors of {', '.join(foreign)}; wanted {', '.join(DTYPES)}, not quantised")
    return {
        name: Tensor(path, 8 + length + start, shape, DTYPES[dtype]) for name, (dtype, shape, start) in places.items()
    }


def require_folder(path: Path) -> None:
    """Checks that a path is a folder; the error says how to get one.

    Raises:
        ValueError: if it is not.
    """
    if not path.is_dir():
        raise ValueError(
            f"got {path}, which is not a folder; wanted a checkpoint folder as Hugging Face publishes it, e.g. by "
            "`hf download NAME --local-dir FOLDER`"
        )


def folder(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint folder, from ``model.safetensors`` or the files in its index.

    Raises:
        ValueError: if there is no folder or no safetensors file (pickled weights are not read), or a file is missing,
            truncated, or does not match the index.
    """
    require_folder(path)
    if (path / SINGLE).exists():
        return header(path / SINGLE)
    if not (path / INDEX).exists():
        pickled = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth") for file in path.glob(kind))
        got = f"only pickled weights ({pickled[0]})" if pickled else "no weights"
        raise ValueError(f"got {path} with {got}; wanted {SINGLE} or {INDEX}: pickles run code and are never read")
    try:
        places = dict(json.loads((path / INDEX).read_text())["weight_map"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"got {path / INDEX} without a weight_map; wanted it whole: copy it again") from error
    if outside := sorted({str(name) for name in places.values() if Path(str(name)).name != name}):
        raise ValueError(f"got {path / INDEX} that names {', '.join(outside)}; wanted files of its own folder")
    if absent := sorted({name for name in places.values() if not (path / name).exists()}):
        raise ValueError(f"got {path} without {', '.join(absent)}, which {INDEX} names; wanted all of them: copy again")
    held = {name: header(path / name) for name in sorted(set(places.values()))}
    promised = {(tensor, name) for tensor, name in places.items()}
    found = {(tensor, name) for name, tensors in held.items() for tensor in tensors}
    if promised != found:
        faults = [f"{name} lacks {tensor}" for tensor, name in sorted(promised - found)]
        faults += [f"{name} holds {tensor} beyond the index" for tensor, name in sorted(found - promised)]
        raise ValueError(
            f"got files in {path} that are not those of {INDEX}, {len(faults)} faults:\n  " + "\n  ".join(faults)
        )
    return {tensor: held[name][tensor] for tensor, name in places.items()}


Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def write(path: Path, shapes: Shapes, tensors: Iterable[np.ndarray]) -> None:
    """Writes one file, taking the tensors one at a time.

    Args:
        path: path of the file.
        shapes: shape and dtype of every tensor, in order.
        tensors: as many arrays.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    names, end = {dtype: name for name, dtype in DTYPES.items()}, 0
    for name, (shape, dtype) in shapes.items():
        begin, end = end, end + nbytes(shape, dtype)
        entries[name] = {"dtype": names[np.dtype(dtype)], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, (shape, dtype)), tensor in zip(shapes.items(), tensors, strict=True):
            if tensor.shape != shape or tensor.dtype != dtype:
                raise ValueError(f"got {name} as {tensor.dtype} {tensor.shape}; wanted {dtype} {shape}")
            np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).tofile(file)


def write_folder(path: Path, shapes: Shapes, tensors: Iterable[np.ndarray], max_shard_bytes: int) -> None:
    """Writes ``model.safetensors``, or several files of at most ``max_shard_bytes`` and their index.

    Args:
        path: an existing folder.
        shapes: shape and dtype of every tensor, in order.
        tensors: the arrays in the same order, taken one at a time.
        max_shard_bytes: maximum bytes of data in one file; a larger tensor gets its own file.
    """
    shards = list(_shards(shapes, max_shard_bytes))
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = [SINGLE]
    source = iter(tensors)
    for name, shard in zip(files, shards, strict=True):
        write(path / name, shard, (next(source) for _ in shard))
    if len(shards) > 1:
        total = sum(nbytes(*entry) for entry in shapes.values())
        places = {tensor: name for name, shard in zip(files, shards, strict=True) for tensor in shard}
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2)
        (path / INDEX).write_text(text + "\n")


def nbytes(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of an array."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _shards(shapes: Shapes, limit: int) -> Iterator[dict]:
    shard, size = {}, 0
    for name, entry in shapes.items():
        if shard and size + nbytes(*entry) > limit:
            yield shard
            shard, size = {}, 0
        shard[name], size = entry, size + nbytes(*entry)
    yield shard
