"""Questions whose answers are the experts' own: when, where, which step is next, how well.

Nobody writes anything here: an answer is put together from labels, so that no model's error gets into it.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fairgrpo_jax.construct import clips
from fairgrpo_jax.construct.annotated import Box, Video
from fairgrpo_jax.construct.clips import Clip
from fairgrpo_jax.construct.frames import frame_size, spread
from fairgrpo_jax.rewards.medvid import ratings


MOST_SPANS = 20  # of an answer
MOST_BOXES = 10  # of an answer


class Pair(NamedTuple):
    """A question of a policy and its answer.

    Attributes:
        kind: the task, with the writer of a text behind it, as ``qa_type`` of MedVidBench.
        clip: what it is about.
        question: text.
        answer: text.
        structure: the answer in parts, as ``struc_info``.
        region: the index of a frame of the clip and the box that is drawn on it.
    """

    kind: str
    clip: Clip
    question: str
    answer: str
    structure: Any
    region: tuple[int, Box] | None = None


def spans(clip: Clip, left_out: Counter[str]) -> Iterator[Pair]:
    """When does each step and each action happen: ``tal``."""
    told = clip.spans([*clip.video.steps, *clip.video.actions])
    names = list(dict.fromkeys(span.label for span in told))
    for name in names:
        own = sorted((span.start, span.end) for span in told if span.label == name)
        if len(own) > MOST_SPANS:
            left_out[f"tal: more than {MOST_SPANS} spans"] += 1
            continue
        answer = ", ".join(f"{start}-{end}" for start, end in own) + " seconds."
        parts = [{"start": start, "end": end} for start, end in own]
        told_parts = {"procedure": clip.video.about, "action_list": names, "action": name, "spans": parts}
        question = (
            f'This is a clip of {clip.video.about}. When does "{name}" happen? Answer with all spans in seconds since '
            "the beginning of the clip, such as: 22.0-78.0, 89.0-94.0 seconds."
        )
        yield Pair("tal", clip, question, answer, [told_parts])


def boxes(clip: Clip, root: Path, left_out: Counter[str]) -> Iterator[Pair]:
    """Where is each object: ``stg``; not where there are two of it in a frame, since the question could mean either."""
    marks = clip.marks()
    for name in dict.fromkeys(one.label for of_frame in marks.values() for one in of_frame):
        own = {p: [m.box for m in of_frame if m.label == name] for p, of_frame in marks.items()}
        left_out["stg: two of an object in a frame"] += sum(len(found) > 1 for found in own.values())
        single = {clip.time(place): found[0] for place, found in own.items() if len(found) == 1}
        times = [[*single][place] for place in spread(len(single), MOST_BOXES)] if single else []
        if not times:
            continue
        track = {time: [round(corner, 2) for corner in single[time]] for time in times}
        height, width = frame_size(root / clip.video.frames[clip.first])
        question = (
            f"This is a clip of {clip.video.about}; its frames have {width} x {height} pixels. Where is the {name} at "
            f"{', '.join(times)} seconds? Answer with a box for each time, in pixels, such as: "
            "1.0 seconds: [235.08, 261.2, 561.58, 405.62]"
        )
        part = {
            "start": float(times[0]),
            "end": float(times[-1]),
            "stride": clip.stride,
            "object": name,
            "bbox_dict": track,
        }
        yield Pair("stg", clip, question, " ".join(f"{time} seconds: {box}" for time, box in track.items()), [part])


def following(video: Video, *, seconds: float, fps: float) -> Iterator[Pair]:
    """Which step is next: ``next_action``, of the clip that ends where another step begins."""
    steps = sorted(video.steps)
    for step, after in zip(steps, steps[1:], strict=False):
        clip = clips.before(video, after.start, seconds=seconds, fps=fps)
        if step.label == after.label or clip is None or after.start < step.end - 1e-6:
            continue
        question = (
            f"This is a clip of {video.about}. Which step comes next? Choose one of: {', '.join(video.labels)}. "
            "Answer with its name alone."
        )
        yield Pair("next_action", clip, question, after.label, {})


def skills(clip: Clip) -> Iterator[Pair]:
    """How well was it done: ``skill_assessment``."""
    told = clip.video.skills
    if told:
        question = (
            f"This is a clip of {clip.video.about}. Rate from 1 to 5: {', '.join(told)}. Answer such as: "
            "Respect for tissue: 2/5, Time and motion: 3/5"
        )
        answer = ", ".join(f"{name}: {level}/5" for name, level in told.items())
        part = {"skill_level": clip.video.skill_level, "skill_scores": dict(told)}
        yield Pair("skill_assessment", clip, question, answer, [part])


def views(clip: Clip) -> Iterator[Pair]:
    """Is the view safe: ``cvs_assessment``."""
    told = {key: clip.video.cvs[key] for key in ratings.CVS if key in clip.video.cvs}
    if told:
        question = (
            f"This is a clip of {clip.video.about}. Score the critical view of safety, each from 0 to 2. Answer such "
            "as: Two structures: 2, Cystic plate: 1, Hepatocystic triangle: 0"
        )
        answer = ", ".join(f"{ratings.CVS[key].capitalize()}: {score}" for key, score in told.items())
        yield Pair("cvs_assessment", clip, question, answer, [{"cvs_scores": told}])
