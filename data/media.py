"""Decodes images and videos to uint8 RGB, one at a time, only when asked."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fairgrpo_jax.data.record import Media, Record


@dataclass(frozen=True, eq=False)
class Clip:
    """Sampled frames of a video.

    Attributes:
        frames: uint8 RGB (F, H, W, 3).
        times: seconds of each frame since the first of the video, (F,).
        seconds_per_frame: mean distance of two sampled frames; of two frames of the video if only one is sampled.
    """

    frames: np.ndarray
    times: np.ndarray
    seconds_per_frame: float


@dataclass(frozen=True, eq=False)
class Decoded:
    """The media of one record by kind, each in the record's order."""

    images: tuple[np.ndarray, ...]
    videos: tuple[Clip, ...]


def decode(media: Media, *, num_frames: int | None = None) -> np.ndarray:
    """The pixels of one image or video.

    An image is turned upright as its EXIF data say. A video of N frames is sampled at ``linspace(0, N - 1, F)``,
    rounded to the nearest frame (half to even), where N is counted by decoding, not believed from the header. A video
    shorter than F frames repeats some. While N is unknown all its frames are held in memory: made for clips of
    seconds, not for hours of surgery.

    Args:
        media: what to decode.
        num_frames: frames F of a video; by default ``media.num_frames``, and if that is None, all.

    Returns:
        uint8 RGB, (H, W, 3) or (F, H, W, 3).

    Raises:
        ValueError: the file is missing, broken, empty or not 8-bit; ``num_frames`` below 1 or given for an image.

    Example:
        >>> from fairgrpo_jax.data import media, synthetic
        >>> media.decode(synthetic.load("test", domains=("us",))[0].media[0]).shape
        (32, 32, 3)
    """
    if media.kind == "video":
        return decode_clip(media, num_frames=num_frames).frames
    if num_frames is not None:
        raise ValueError("num_frames is of videos and this is an image; leave it out")
    return media.pixels if media.pixels is not None else _read_image(_file(media))


def decode_clip(media: Media, *, num_frames: int | None = None) -> Clip:
    """The frames of a video as ``decode`` samples them, with their times; for its errors see there."""
    num_frames = media.num_frames if num_frames is None else num_frames
    if media.kind != "video" or (num_frames is not None and num_frames < 1):
        raise ValueError(f"a {media.kind}, {num_frames} frames; wanted a video and at least one frame")
    if media.pixels is not None:
        frames, times = media.pixels, np.arange(len(media.pixels)) / (media.fps or 1.0)
        chosen = _sample(len(frames), num_frames)
        return Clip(frames[chosen], times[chosen], _spacing(times, chosen))
    return _read_video(_file(media), num_frames)


def decode_record(record: Record) -> Decoded:
    """All media of a record; what cannot be decoded is an error that names the record.

    Raises:
        ValueError: as ``decode``, naming the dataset and the record first.

    Example:
        >>> from fairgrpo_jax.data import media, synthetic
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


def _file(media: Media) -> Path:
    path = Path(media.path or "")
    if not path.is_file():
        raise ValueError(f"{media.kind} {path} does not exist; download it again from the dataset's owner")
    return path


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"image {path} holds {image.mode} pixels; window it to 8 bits first")
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"image {path} is broken ({error}); download it again from the dataset's owner") from error


def _read_video(path: Path, num_frames: int | None) -> Clip:
    import av
    import av.error

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} has no video stream; download it again from the dataset's owner")
            promised = container.streams.video[0].frames  # 0 if the header does not tell
            frames = list(container.decode(video=0))
        if not frames or len(frames) < promised:
            raise ValueError(
                f"video {path} is broken: {len(frames)} of {promised} frames decode; download it again from the "
                "dataset's owner"
            )
        chosen = _sample(len(frames), num_frames)
        pixels = np.stack([frames[i].to_ndarray(format="rgb24") for i in chosen])
    except av.error.FFmpegError as error:
        raise ValueError(f"video {path} is broken ({error}); download it again from the dataset's owner") from error
    if any(frame.time is None for frame in frames):
        raise ValueError(f"video {path} has frames without time stamps; re-encode it with constant frame rate")
    times = np.array([frame.time for frame in frames])
    return Clip(pixels, times[chosen] - times[0], _spacing(times, chosen))


def _sample(count: int, num_frames: int | None) -> np.ndarray:
    return np.arange(count) if num_frames is None else np.linspace(0, count - 1, num_frames).round().astype(int)


def _spacing(times: np.ndarray, chosen: np.ndarray) -> float:
    """Mean seconds between neighbours of the sample; a sample of one stands for its video's own rate."""
    picked = times[chosen] if len(chosen) > 1 else times
    return float(picked[-1] - picked[0]) / max(1, len(picked) - 1)
