"""What experts annotated on a video, in one form for all sources."""

import dataclasses
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple


Box = tuple[float, float, float, float]


class Span(NamedTuple):
    """What happens from ``start`` to ``end``, in seconds since the first frame; a label, or what was said."""

    start: float
    end: float
    label: str


class Marked(NamedTuple):
    """An object and its corners x1, y1, x2, y2 in pixels of the frame."""

    label: str
    box: Box


@dataclasses.dataclass(frozen=True)
class Video:
    """A video as a list of frames, with what is known of it; what is not known stays empty.

    Attributes:
        source: the dataset, as in ``data_source`` of MedVidBench.
        name: of the video in it.
        frames: files below the source's folder, evenly spaced.
        fps: frames a second.
        about: what the video shows, as it ends the sentence "This is a clip of ...".
        steps: one after the other, such as phases.
        labels: all that a step can be.
        actions: others, which may overlap.
        boxes: objects by the index of their frame.
        skills: levels 1 to 5 by aspect, such as ``"Respect for tissue"``.
        skill_level: of the surgeon: N, I or E, or empty.
        cvs: scores 0 to 2 by component of the critical view of safety, by ``rewards.medvid.ratings.CVS``.
        transcript: what was said.
    """

    source: str
    name: str
    frames: Sequence[PurePosixPath]
    fps: float
    about: str
    steps: Sequence[Span] = ()
    labels: Sequence[str] = ()
    actions: Sequence[Span] = ()
    boxes: Mapping[int, Sequence[Marked]] = dataclasses.field(default_factory=dict)
    skills: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skill_level: str = ""
    cvs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    transcript: Sequence[Span] = ()

    def __post_init__(self):
        named = f"video {self.name!r} of {self.source!r}"
        if not self.source or "/" in self.source or not self.name or not self.frames or not self.fps > 0:
            raise ValueError(
                f"got {named} with {len(self.frames)} frames at {self.fps} a second; wanted a name of each without a "
                "slash, and frames"
            )
        if wrong := [
            span for span in (*self.steps, *self.actions, *self.transcript) if not 0 <= span.start <= span.end
        ]:
            raise ValueError(f"got {wrong[0]} in {named}; wanted 0 <= start <= end in seconds")
        if strange := {step.label for step in self.steps} - {*self.labels}:
            raise ValueError(f"got the steps {sorted(strange)} in {named}; wanted some of labels: {[*self.labels]}")
        for place, marked in ((place, one) for place, marks in self.boxes.items() for one in marks):
            x1, y1, x2, y2 = marked.box
            if not 0 <= place < len(self.frames) or not (0 <= x1 < x2 and 0 <= y1 < y2):
                raise ValueError(
                    f"got {marked} on frame {place} of {len(self.frames)} in {named}; wanted 0 <= x1 < x2, 0 <= y1 < y2"
                )


# From the folder of a source to its videos.
Source = Callable[[Path], Sequence[Video]]

SOURCES = {"cholect50": "fairgrpo_jax.construct.cholect50:videos", "avos": "fairgrpo_jax.construct.avos:videos"}


def runs(labels: Sequence[str | None], fps: float) -> list[Span]:
    """Spans of neighbouring frames with the same label; a frame lasts until the next one begins.

    >>> runs(["cut", "cut", None, "tie"], fps=2.0)
    [Span(start=0.0, end=1.0, label='cut'), Span(start=1.5, end=2.0, label='tie')]
    """
    found: list[Span] = []
    for place, label in enumerate(labels):
        if label is None:
            continue
        end = (place + 1) / fps
        if place and labels[place - 1] == label:
            found[-1] = found[-1]._replace(end=end)
        else:
            found.append(Span(place / fps, end, label))
    return found


def read(name: str, root: Path) -> list[Video]:
    """The videos of a source.

    Args:
        name: ``cholect50``, ``avos``, or ``package.module:function`` of one's own.
        root: its folder.

    Raises:
        ValueError: if there is no such source, it has no videos, or they are of several sources.
    """
    module, _, attribute = SOURCES.get(name, name).partition(":")
    if "" not in sys.path:  # a console script has its own folder there instead
        sys.path.insert(0, str(Path.cwd()))
    try:
        function: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(SOURCES)
        raise ValueError(f"got source {name!r} ({error}); wanted one of {known}, or package.module:function") from error
    if not root.is_dir():
        raise ValueError(f"got {name}={root}, which is no folder; wanted that of the source")
    videos = list(function(root))
    kinds, names = {video.source for video in videos}, {video.name for video in videos}
    if len(kinds) != 1 or len(names) != len(videos):
        raise ValueError(
            f"got {len(videos)} videos with {len(names)} names of the sources {sorted(kinds)} from {name}={root}; "
            "wanted some, with a name each, of one source"
        )
    return sorted(videos, key=lambda video: video.name)
