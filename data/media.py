"""Decodes images, DICOM files and videos to uint8 RGB, one at a time, only on request."""

import io
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from fairgrpo_jax.data import archives, cells, dicom, pictures, prepared
from fairgrpo_jax.data.record import Media, Record, RecordList, Source


BOX_COLOUR, BOX_WIDTH = (0, 255, 0), 8  # as in the reference code of MedVidBench; pixels of the file
BOX_FACTOR = 56  # of which the sides of a reduced frame are multiples there
HELD_PIXELS = 2**28  # maximum pixels of a video held while its frames are counted: about 400 MB


@dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of a video.

    Attributes:
        frames: uint8 RGB (F, H, W, 3).
        times: (F,) seconds of each frame since the first frame of the video.
        seconds_per_frame: mean interval between sampled frames; between frames of the video if only one is sampled.
    """

    frames: np.ndarray
    times: np.ndarray
    seconds_per_frame: float


@dataclass(frozen=True, eq=False)
class Decoded:
    """The decoded media of a record by kind, each in the record's order."""

    images: tuple[np.ndarray, ...]
    videos: tuple[Clip, ...]


def decode(media: Media, *, num_frames: int | None = None) -> np.ndarray:
    """Decodes one image or video.

    An image is rotated upright by its EXIF data; a DICOM file is windowed by ``dicom.pixels``; several frames or pages
    are a video, never an image. A video of N frames is sampled at ``linspace(0, N - 1, F)``, rounded to the nearest
    frame (half to even), where N is counted by decoding, not taken from the header (but of a DICOM file). A video
    shorter than F frames repeats some. If the frame of ``media.box`` is not among the samples, it replaces the nearest
    one. The box is drawn before any resizing.

    Args:
        media: what to decode.
        num_frames: number F of frames of a video; default: ``media.num_frames``, and if that is None, all.

    Returns:
        uint8 RGB, (H, W, 3) or (F, H, W, 3).

    Raises:
        ValueError: if the file is missing, broken, empty or not 8-bit, frames differ in size, the frame of the box does
            not exist, or ``num_frames`` is below 1 or given for an image.
        ImportError: if a package that reads the file is not installed.

    Example:
        >>> from fairgrpo_jax.data import media
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> media.decode(synthetic.load("test", domains=("us",))[0].media[0]).shape
        (32, 32, 3)
    """
    if media.kind == "video":
        return decode_clip(media, num_frames=num_frames).frames
    if num_frames is not None:
        raise ValueError("num_frames is of videos and this is an image; leave it out")
    image = media.pixels if media.pixels is not None else _read_image(media)
    if media.box is None:
        return image
    _require_frame(media, 1)
    return _boxed(image, media)


def decode_clip(media: Media, *, num_frames: int | None = None, max_pixels: int | None = None) -> Clip:
    """Decodes the frames of a video as ``decode`` does, with their times; raises the same errors.

    Args:
        media: a video.
        num_frames: number F of frames; default: ``media.num_frames``, else by ``max_pixels``, else all.
        max_pixels: maximum pixels of all frames together; F is then given by ``adaptive_frames``.
    """
    num_frames = media.num_frames if num_frames is None else num_frames
    if media.kind != "video" or (num_frames is not None and num_frames < 1):
        raise ValueError(f"a {media.kind}, {num_frames} frames; wanted a video and at least one frame")

    def sample(times: np.ndarray, pixels: int) -> np.ndarray:
        count = num_frames
        if count is None and max_pixels is not None:
            seconds = float(times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
            count = min(len(times), adaptive_frames(seconds, pixels, max_pixels=max_pixels))
        return frame_indices(len(times), count, media)

    if media.path is not None and not prepared.holds_frames(media.path, media.member):
        return _read_video(media, sample)
    if media.pixels is not None:
        times = np.arange(len(media.pixels)) / (media.fps or 1.0)
        chosen = sample(times, media.pixels[0][..., 0].size)
        return _clip(media, media.pixels[chosen], times, chosen)
    return _read_frames(media, sample)


def adaptive_frames(seconds: float, pixels: int, *, max_pixels: int, slowest: float = 0.1, fastest: float = 3.0) -> int:
    """Number of frames to sample from a video: as many as the pixel budget allows, between 0.1 and 3 per second.

    F = min(max(max_pixels / pixels, slowest · seconds), fastest · seconds), rounded down to an even number, at least 2.
    A video so long that ``slowest`` exceeds the budget keeps ``slowest``: its frames must then be reduced to max_pixels
    / F pixels each.

    Args:
        seconds: duration of the video.
        pixels: height · width of a frame as seen by the model.
        max_pixels: budget for all frames together.
        slowest: least frames per second.
        fastest: largest frames per second.

    Raises:
        ValueError: if the duration is below 0, there are no pixels or no budget, or not 0 < slowest <= fastest.

    Source: 0.1 to 3 frames per second is the range in which MedVidBench was sampled; the rule is ours.

    Example:
        >>> from fairgrpo_jax.data.media import adaptive_frames
        >>> [adaptive_frames(seconds, 48 * 28 * 28, max_pixels=64 * 48 * 28 * 28) for seconds in (4, 60, 1800)]
        [12, 64, 180]
    """
    if not seconds >= 0 or pixels < 1 or max_pixels < 1 or not 0 < slowest <= fastest:
        raise ValueError(
            f"got {seconds} seconds, {pixels} pixels, a budget of {max_pixels}, {slowest} to {fastest} frames a "
            "second; wanted seconds >= 0, pixels and budget >= 1, 0 < slowest <= fastest"
        )
    frames = min(max(max_pixels / pixels, slowest * seconds), fastest * seconds)
    return max(2, int(frames) // 2 * 2)


def decode_record(record: Record) -> Decoded:
    """Decodes all media of a record; an error names the record.

    Raises:
        ValueError: as ``decode``, beginning with the names of dataset and record.

    Example:
        >>> from fairgrpo_jax.data import media
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> decoded = media.decode_record(synthetic.load("test", domains=("us",))[0])
        >>> len(decoded.images), len(decoded.videos)
        (1, 0)
    """
    try:
        images = tuple(decode(media) for media in record.media if media.kind == "image")
        videos = tuple(decode_clip(media) for media in record.media if media.kind == "video")
    except ValueError as error:
        raise ValueError(f"dataset {record.dataset}, record {record.uid}: {error}") from error
    return Decoded(images, videos)


def without_broken(source: Source, *, threads: int = 4) -> RecordList:
    """Selects the records whose media can be decoded; the others are counted and named in one warning.

    Every medium is decoded once, before training, because a record excluded during a run would change its batches.

    Args:
        source: the records to check.
        threads: number of records decoded at the same time.

    Raises:
        ImportError: if a decoder is not installed: the files that need it may be sound.

    Warns:
        UserWarning: the number of excluded records, the total, and the reasons of the first 20.

    Example:
        >>> from fairgrpo_jax.data import media
        >>> from fairgrpo_jax.data.datasets import synthetic
        >>> len(media.without_broken(synthetic.load("test", domains=("us",))))
        180
    """

    def problem(record: Record) -> str | None:
        try:
            decode_record(record)
        except ValueError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        problems = list(pool.map(problem, source.records))
    if found := [text for text in problems if text]:
        more = f"; and {len(found) - 20} more" if len(found) > 20 else ""
        text = f"{len(found)} of {len(problems)} records are left out: {'; '.join(found[:20])}{more}"
        warnings.warn(text, stacklevel=2)
    return RecordList(tuple(record for record, text in zip(source.records, problems, strict=True) if not text))


def files(media: Media) -> tuple[Path, ...]:
    """The files that are needed to decode a medium; an archive stands for its members.

    Example:
        >>> from pathlib import Path
        >>> from fairgrpo_jax.data import media
        >>> media.files(media.Media("video", frames=(Path("1.jpg"), Path("2.jpg")), fps=1.0))
        (PosixPath('1.jpg'), PosixPath('2.jpg'))
    """
    return media.frames if media.path is None else (media.path,)


def content(media: Media) -> bytes:
    """Reads the bytes of a medium's file, archive member or cell of a table.

    Raises:
        ValueError: if it is missing, or the archive is broken.
    """
    if media.path is not None and media.member is not None:
        if media.path.is_dir():
            return prepared.contents(media.path, media.member)[0]
        if cells.is_table(media.path):
            return cells.read(existing(media.kind, media.path), media.member)
        return archives.read(media.path, media.member)
    return existing(media.kind, media.path).read_bytes()


def existing(kind: str, path: Path | None) -> Path:
    """The path of a file.

    Raises:
        ValueError: if there is no such file.
    """
    path = Path(path or "")
    if not path.is_file():
        raise ValueError(f"{kind} {path} does not exist; download it again from the dataset's owner")
    return path


# ---- images ----------------------------------------------------------------------------------------------------------


def _read_image(media: Media) -> np.ndarray:
    if media.member is not None:
        inside = content(media)
        return open_image(io.BytesIO(inside), f"{media.path}!{media.member}", media)
    path = existing("image", media.path)
    with path.open("rb") as file:
        return open_image(file, str(path), media)


def open_image(file: IO[bytes], name: str, media: Media | None = None) -> np.ndarray:
    """Decodes an open image or DICOM file to uint8 RGB (H, W, 3); ``name`` is for error messages."""
    if dicom.is_dicom(name, file.read(132)):
        file.seek(0)
        return dicom.pixels(file.read(), name, window=(media and media.window) or "voi")
    file.seek(0)
    with pictures.opened(file, name) as image:
        return pictures.upright(image)


def _boxed(image: np.ndarray, media: Media) -> np.ndarray:
    """The image with the box, in its own size; with ``box_area`` by way of the smaller one on which it is drawn."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(image)
    own = picture.size
    if media.box_area is not None:
        picture = picture.resize(_reduced(*own, media.box_area), Image.Resampling.BICUBIC)
    ImageDraw.Draw(picture).rectangle([*(media.box or ())[1:]], outline=BOX_COLOUR, width=BOX_WIDTH)
    return np.array(picture if picture.size == own else picture.resize(own, Image.Resampling.BICUBIC))


def _reduced(width: int, height: int, area: int) -> tuple[int, int]:
    """Width and height as multiples of ``BOX_FACTOR`` with at most ``area`` pixels, as the reference code resizes."""
    sides = [max(BOX_FACTOR, round(side / BOX_FACTOR) * BOX_FACTOR) for side in (width, height)]
    if sides[0] * sides[1] > area:
        shrink = (width * height / area) ** 0.5
        sides = [max(BOX_FACTOR, int(side / shrink / BOX_FACTOR) * BOX_FACTOR) for side in (width, height)]
    return sides[0], sides[1]


# ---- videos ----------------------------------------------------------------------------------------------------------

Sampler = Callable[[np.ndarray, int], np.ndarray]  # times of all frames, pixels of one -> indices of the sample


def _read_frames(media: Media, sample: Sampler) -> Clip:
    """Reads a video stored as images, as files or in a prepared folder; decodes only the sampled ones."""
    stored = prepared.contents(media.path, media.member or "") if media.path is not None else []
    names = [f"{media.path}/{media.member}"] * len(stored) or [str(path) for path in media.frames]
    times = np.arange(len(names)) / (media.fps or 1.0)

    def read(index: int) -> np.ndarray:
        if stored:
            return open_image(io.BytesIO(stored[index]), names[index], media)
        with existing("frame", media.frames[index]).open("rb") as file:
            return open_image(file, names[index], media)

    first = read(0)
    chosen = sample(times, first[..., 0].size)
    pictures = {index: first if index == 0 else read(index) for index in dict.fromkeys(chosen.tolist())}
    for index, picture in pictures.items():
        if picture.shape != first.shape:
            raise ValueError(
                f"frame {names[index]} has the shape {picture.shape[:2]}, the first of its video {first.shape[:2]}; "
                "wanted one size: download them again from the dataset's owner"
            )
    return _clip(media, np.stack([pictures[index] for index in chosen.tolist()]), times, chosen)


def _read_video(media: Media, sample: Sampler) -> Clip:
    """Reads the sampled frames; a video too large to hold while its frames are counted is decoded twice."""
    import av
    import av.error

    name = f"{media.path}!{media.member}" if media.member is not None else str(existing("video", media.path))
    inside = content(media) if media.member is not None else None
    with open(name, "rb") if inside is None else io.BytesIO(inside) as file:
        if (kind := film_kind(file, name)) is not None:
            return _read_film(media, sample, file, name, kind)
    stamps, held, pixels = [], {}, 0
    try:
        with av.open(name if inside is None else io.BytesIO(inside), "r") as container:
            if not container.streams.video:
                raise ValueError(f"{name} has no video stream; download it again from the dataset's owner")
            promised = container.streams.video[0].frames  # 0 if the header does not say
            for index, frame in enumerate(container.decode(video=0)):
                stamps.append(frame.time)
                pixels = frame.width * frame.height
                if len(stamps) * pixels <= HELD_PIXELS:
                    held[index] = frame
        if not stamps or len(stamps) < promised:
            raise ValueError(
                f"video {name} is broken: {len(stamps)} of {promised} frames decode; download it again from the "
                "dataset's owner"
            )
        if any(stamp is None for stamp in stamps):
            raise ValueError(f"video {name} has frames without time stamps; re-encode it with constant frame rate")
        times = np.array(stamps)
        chosen = sample(times, pixels)
        wanted = set(chosen.tolist())
        if not wanted <= set(held):
            held = {}
            with av.open(name if inside is None else io.BytesIO(inside), "r") as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index in wanted:
                        held[index] = frame
        pictures = {index: _upright(held[index], name) for index in wanted}
    except av.error.FFmpegError as error:
        raise ValueError(f"video {name} is broken ({error}); download it again from the dataset's owner") from error
    return _clip(media, np.stack([pictures[index] for index in chosen.tolist()]), times, chosen)


def film_kind(file: IO[bytes], name: str) -> Literal["dicom", "pictures"] | None:
    """Which module reads an open file that is given as a video; None is PyAV. The file then stands at its beginning."""
    head = file.read(132)
    file.seek(0)
    return "dicom" if dicom.is_dicom(name, head) else "pictures" if pictures.has_pages(head) else None


def film(file: IO[bytes], name: str, kind: str, media: Media) -> tuple[tuple[int, int], np.ndarray]:
    """Height and width of the frames of such a file, and their times in seconds, from its header."""
    if kind == "dicom":
        return dicom.film(file, name, media.fps, window=media.window or "voi")
    return pictures.film(file, name, media.fps)


def _read_film(media: Media, sample: Sampler, file: IO[bytes], name: str, kind: str) -> Clip:
    """Reads the sampled frames of a DICOM file, or pages of an animation or TIFF."""
    size, times = film(file, name, kind, media)
    chosen = sample(times, size[0] * size[1])
    file.seek(0)
    if kind == "dicom":
        found = dicom.frames(file, name, chosen.tolist(), window=media.window or "voi")
    else:
        found = pictures.frames(file, name, chosen.tolist())
    return _clip(media, np.stack([found[index] for index in chosen.tolist()]), times, chosen)


def _upright(frame: Any, name: str) -> np.ndarray:
    """The pixels of a frame, turned as its display matrix says and players do."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns(frame, name)))


def quarter_turns(frame: Any, name: str) -> int:
    """How often a frame of a video is turned by 90 degrees counterclockwise to stand upright.

    Raises:
        ValueError: if it is turned by another angle.
    """
    if frame.rotation % 90:
        raise ValueError(f"video {name} is turned by {frame.rotation} degrees; wanted multiples of 90: re-encode it")
    return frame.rotation // 90


def _clip(media: Media, frames: np.ndarray, times: np.ndarray, chosen: np.ndarray) -> Clip:
    if media.box is not None:
        for place in np.flatnonzero(chosen == media.box[0]):
            frames[place] = _boxed(frames[place], media)
    return Clip(frames, times[chosen] - times[0], spacing(times, chosen))


def frame_indices(count: int, num_frames: int | None, media: Media) -> np.ndarray:
    """Indices of the sampled frames among ``count``, the boxed one included; see ``decode``."""
    chosen = np.arange(count) if num_frames is None else np.linspace(0, count - 1, num_frames).round().astype(int)
    if media.box is None:
        return chosen
    boxed = _require_frame(media, count)
    if boxed not in chosen:
        chosen[np.abs(chosen - boxed).argmin()] = boxed
    return chosen


def _require_frame(media: Media, count: int) -> int:
    frame = int((media.box or (0,))[0])
    if frame >= count:
        raise ValueError(f"the box is on frame {frame} of {count} of {', '.join(map(str, files(media)[:1]))}; from 0")
    return frame


def spacing(times: np.ndarray, chosen: np.ndarray) -> float:
    """Mean seconds between sampled frames; for a single one, between frames of the video."""
    picked = times[chosen] if len(chosen) > 1 else times
    return float(picked[-1] - picked[0]) / max(1, len(picked) - 1)
