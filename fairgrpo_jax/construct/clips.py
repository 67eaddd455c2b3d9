"""Parts of videos as a policy sees them, with annotations in seconds of the clip."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from fairgrpo_jax.construct.annotated import Marked, Span, Video


LEAST = 2  # frames of a clip
FASTEST = 10  # frames a second: times are told in tenths


@dataclasses.dataclass(frozen=True)
class Clip:
    """Every ``stride``-th frame of a video from ``first`` to before ``last``."""

    video: Video
    first: int
    last: int
    stride: int

    @property
    def places(self) -> range:
        """The frames' indices in the video."""
        return range(self.first, self.last, self.stride)

    @property
    def fps(self) -> float:
        """Frames a second that the policy sees."""
        return self.video.fps / self.stride

    @property
    def seconds(self) -> float:
        """Length."""
        return (self.last - self.first) / self.video.fps

    def spans(self, told: Sequence[Span]) -> list[Span]:
        """Those that the clip shows, cut to it, in tenths of a second from its first frame; none of no length."""
        begin, found = self.first / self.video.fps, []
        for span in told:
            start, end = max(0.0, span.start - begin), min(self.seconds, span.end - begin)
            if start <= self.seconds and end >= 0:
                found.append(Span(_tenths(start), _tenths(end), span.label))
        return [span for span in dict.fromkeys(found) if span.start < span.end]

    def marks(self) -> dict[int, Sequence[Marked]]:
        """The experts' boxes by the index of the frame in the clip."""
        boxes = self.video.boxes
        return {place: boxes[frame] for place, frame in enumerate(self.places) if frame in boxes}

    def time(self, place: int) -> str:
        """When a frame of the clip is seen, as answers write it."""
        return f"{place / self.fps:.1f}"


def cut(video: Video, *, seconds: float, fps: float) -> Iterator[Clip]:
    """A video as clips of a length, one after the other; a shorter rest is one of its own if it has two frames."""
    stride, length = _stride(video, fps), max(1, round(seconds * video.fps))
    for first in range(0, len(video.frames), length):
        clip = Clip(video, first, min(first + length, len(video.frames)), stride)
        if len(clip.places) >= LEAST:
            yield clip


def before(video: Video, time: float, *, seconds: float, fps: float) -> Clip | None:
    """The clip that ends where a time begins; None if there are too few frames."""
    last = min(math.ceil(time * video.fps - 1e-9), len(video.frames))
    clip = Clip(video, max(0, last - round(seconds * video.fps)), last, _stride(video, fps))
    return clip if len(clip.places) >= LEAST else None


def whole(video: Video, *, fps: float, most: int) -> Clip:
    """The whole video with ``most`` frames at most."""
    stride = max(_stride(video, fps), math.ceil(len(video.frames) / most))
    return Clip(video, 0, len(video.frames), stride)


def _stride(video: Video, fps: float) -> int:
    return max(1, round(video.fps / fps), math.ceil(video.fps / FASTEST))


def _tenths(seconds: float) -> float:
    return round(seconds, 1)
