"""Sizes of images and videos from their headers: no pixel is decoded, and files that were read once are remembered.

Only the pages of a GIF, PNG or WebP that is given as a video are decoded, since they tell their durations then.

The result is in the form of ``media.decode_record``. Every picture is a view of a single byte: it has the shape of the
real one and takes no memory.
"""

import contextlib
import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from fairgrpo_jax import files
from fairgrpo_jax.data import dicom, media, pictures, prepared
from fairgrpo_jax.data.record import Media, Record


FORM = 2  # of what is kept in ``Known``; raised when files are read in another way


def sizes(record: Record, known: "Known | None" = None) -> media.Decoded:
    """The media of a record as ``media.decode_record`` gives them, but only in shape: all pixels are one black byte.

    The number of frames of a video and their times are those of its packets; in a damaged file fewer may decode. A
    PNG file whose orientation stands behind its pixels, which cameras do not write, counts as upright.

    Args:
        record: the record.
        known: sizes read earlier; files that have not changed since are not opened.

    Raises:
        ValueError: as ``media.decode_record``, for what a header shows.

    Example:
        >>> from fairgrpo_jax.data import headers
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> headers.sizes(synthetic.load("test", domains=("us",))[0]).images[0].shape
        (32, 32, 3)
    """
    try:
        images, clips = [], []
        for medium in record.media:
            told = _remembered(medium, known)
            if medium.kind == "image":
                images.append(_black(*told["size"]))
            else:
                times = np.array(told["times"])
                frames = _black(len(times), *told["size"])
                clips.append(media.Clip(frames, times, told["spacing"]))
    except ValueError as error:
        raise ValueError(f"dataset {record.dataset}, record {record.uid}: {error}") from error
    return media.Decoded(tuple(images), tuple(clips))


class Known:
    """What headers said, kept in a file of SQLite by path, size and time of change; threads and processes may share it.

    Args:
        path: the file; None is ``fairgrpo_jax/media.sqlite`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. It may be deleted
            at any time.
    """

    def __init__(self, path: Path | None = None):
        self.path = files.cache_folder() / "media.sqlite" if path is None else path
        self._said: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def __enter__(self) -> "Known":
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as table:
            self._said = dict(table.execute("SELECT medium, said FROM headers"))
        return self

    def __exit__(self, *_: Any) -> None:
        """Writes what is new; a folder that cannot be written costs the next run its time and nothing else."""
        with contextlib.suppress(sqlite3.Error, OSError), self._open() as table:
            table.executemany("INSERT OR REPLACE INTO headers VALUES (?, ?)", self._new.items())

    def get(self, key: str) -> dict[str, Any] | None:
        """What was said of a medium, if it is known."""
        said = self._said.get(key)
        return None if said is None else json.loads(said)

    def put(self, key: str, said: dict[str, Any]) -> None:
        """Keeps what was said of a medium."""
        self._said[key] = self._new[key] = json.dumps(said)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as table, table:
            table.execute("CREATE TABLE IF NOT EXISTS headers (medium TEXT PRIMARY KEY, said TEXT)")
            yield table


def _remembered(medium: Media, known: Known | None) -> dict[str, Any]:
    if known is None or medium.pixels is not None:
        return _read(medium)
    key = _key(medium)
    said = known.get(key)
    if said is None:
        said = _read(medium)
        known.put(key, said)
    return said


def _key(medium: Media) -> str:
    """Names the file in its present state, and what of a medium decides which frames are sampled."""
    path = media.files(medium)[0]
    try:
        state = path.stat()
    except OSError:
        raise ValueError(f"{medium.kind} {path} does not exist; download it again from the dataset's owner") from None
    sampled = [medium.num_frames, medium.fps, medium.box and medium.box[0], len(medium.frames)]
    file = [str(path.absolute()), medium.member, state.st_size, state.st_mtime_ns]
    return json.dumps([FORM, *file, medium.kind, medium.window, *sampled])


def _read(medium: Media) -> dict[str, Any]:
    """``size`` (height, width), and for a video ``times`` of the sampled frames and their ``spacing``, in seconds."""
    if medium.kind == "image":
        if medium.pixels is not None:
            size = medium.pixels.shape[:2]
        elif medium.member is not None:
            size = _image(io.BytesIO(media.content(medium)), f"{medium.path}!{medium.member}", medium)
        else:
            path = media.existing("image", medium.path)
            with path.open("rb") as file:
                size = _image(file, str(path), medium)
        return {"size": [*map(int, size)]}
    size, times = _film(medium)
    chosen = media.frame_indices(len(times), medium.num_frames, medium)
    return {
        "size": [*map(int, size)],
        "times": (times[chosen] - times[0]).tolist(),
        "spacing": media.spacing(times, chosen),
    }


def _image(file: IO[bytes], name: str, medium: Media) -> tuple[int, int]:
    """Height and width of an open image or DICOM file."""
    if dicom.is_dicom(name, file.read(132)):
        file.seek(0)
        return dicom.size(file, name, window=medium.window or "voi")
    file.seek(0)
    with pictures.opened(file, name) as image:
        return pictures.size(image)


def _film(medium: Media) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of a video's frames, and the times of all of them in seconds."""
    if medium.pixels is not None:
        return medium.pixels.shape[1:3], np.arange(len(medium.pixels)) / (medium.fps or 1.0)
    if medium.frames:
        with media.existing("frame", medium.frames[0]).open("rb") as file:
            size = _image(file, str(medium.frames[0]), medium)
        return size, np.arange(len(medium.frames)) / (medium.fps or 1.0)
    assert medium.path is not None
    if prepared.holds_frames(medium.path, medium.member):
        stored = prepared.contents(medium.path, medium.member or "")
        size = _image(io.BytesIO(stored[0]), f"{medium.path}/{medium.member}", medium)
        return size, np.arange(len(stored)) / (medium.fps or 1.0)
    return _packets(medium)


def _packets(medium: Media) -> tuple[tuple[int, int], np.ndarray]:
    import av
    import av.error

    name = f"{medium.path}!{medium.member}" if medium.member is not None else str(media.existing("video", medium.path))
    inside = None if medium.member is None else media.content(medium)
    with open(name, "rb") if inside is None else io.BytesIO(inside) as file:
        if (kind := media.film_kind(file, name)) is not None:
            return media.film(file, name, kind, medium)
    try:
        with av.open(name if inside is None else io.BytesIO(inside), "r") as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream; download it again from the dataset's owner")
            stream = container.streams.video[0]
            size = stream.codec_context.height, stream.codec_context.width
            stamps = [packet.pts for packet in container.demux(stream) if packet.size and packet.pts is not None]
            base = float(stream.time_base or 1)
            if stamps and container.seek(0) is None and (frame := next(container.decode(stream), None)) is not None:
                turned = media.quarter_turns(frame, name) % 2
                size = (size[1], size[0]) if turned else size
    except av.error.FFmpegError as error:
        raise ValueError(f"video {name} is broken ({error}); download it again from the dataset's owner") from error
    if not stamps or not all(size):
        raise ValueError(f"video {name} has no frames; download it again from the dataset's owner")
    return size, np.sort(np.array(stamps)) * base


def _black(*shape: int) -> np.ndarray:
    return np.broadcast_to(np.uint8(0), (*shape, 3))
