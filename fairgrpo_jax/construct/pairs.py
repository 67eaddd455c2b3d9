"""From videos to the files of a dataset: what is asked, what it will cost, what is kept."""

import collections
import contextlib
import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fairgrpo_jax import files
from fairgrpo_jax.config.checks import require
from fairgrpo_jax.config.judge import Endpoint as Options
from fairgrpo_jax.construct import clips, ruled, written
from fairgrpo_jax.construct.annotated import Video
from fairgrpo_jax.construct.ruled import Pair
from fairgrpo_jax.construct.written import Text
from fairgrpo_jax.data.datasets import medvidbench
from fairgrpo_jax.data.splits import by_patient
from fairgrpo_jax.rewards.endpoint import Endpoint, Outcome
from fairgrpo_jax.rewards.similarity import Measure
from fairgrpo_jax.tracking.progress import Progress


SPLITS = ("train", "validation")
WRITTEN = ("dense_captioning", "video_summary", "region_caption")  # by models
TOGETHER = 32  # texts that are asked for at one time; as many again are prepared meanwhile


@dataclasses.dataclass(frozen=True)
class Writer(Options):
    """A language model that sees frames and writes texts, behind an endpoint in OpenAI's form."""

    section: ClassVar[str] = "writer"

    suffix: str = ""
    """What qa_type of its texts ends with, such as gpt or gemini; default: the name of the model."""
    max_tokens: int = 600
    """Largest answer in tokens; one that is cut off has failed. Models that think aloud need more."""
    total_seconds: float = 3600.0
    """Deadline of 32 texts together; what is open then has failed, and is asked again by the same command."""

    @property
    def name(self) -> str:
        """``suffix``, or the model's name as a part of ``qa_type``."""
        return self.suffix or re.sub(r"[^a-z0-9.]+", "-", self.model.rsplit("/", 1)[-1].lower()).strip("-")


@dataclasses.dataclass(frozen=True)
class First(Writer):
    """The first writer."""

    section: ClassVar[str] = "first"


@dataclasses.dataclass(frozen=True)
class Second(Writer):
    """The second writer."""

    section: ClassVar[str] = "second"


@dataclasses.dataclass(frozen=True)
class Rules:
    """How clips are cut, and which texts are kept."""

    tasks: tuple[str, ...] = medvidbench.TASKS
    """Tasks to make questions of, as MedVidBench names them."""
    fps: float = 1.0
    """Frames a second of a clip, at most 10: times are told in tenths of a second."""
    seconds: float = 60.0
    """Length of a clip."""
    frames: int = 128
    """Largest number of frames of a whole video, for summaries and ratings."""
    images: int = 8
    """Largest number of frames that a writer sees."""
    side: int = 512
    """Pixels of their longer side, at most."""
    alike: float = 0.3
    """Least similarity of the two texts; of several events that of the least alike. Below it both are dropped."""
    held_out: float = 0.15
    """Share of the source videos that are held out."""
    seed: int = 0
    """Seed of which they are."""

    def __post_init__(self):
        require(
            bool(self.tasks) and {*self.tasks} <= {*medvidbench.TASKS},
            f"rules.tasks={self.tasks}",
            f"some of {', '.join(medvidbench.TASKS)}",
        )
        require(0 < self.fps <= clips.FASTEST, f"rules.fps={self.fps}", f"above 0, and at most {clips.FASTEST}")
        require(self.seconds > 0, f"rules.seconds={self.seconds}", "above 0")
        for name in ("frames", "images", "side"):
            require(getattr(self, name) >= 2, f"rules.{name}={getattr(self, name)}", "at least 2")
        require(-1 <= self.alike <= 1, f"rules.alike={self.alike}", "in [-1, 1]")
        require(0 < self.held_out < 1, f"rules.held_out={self.held_out}", "in (0, 1)")


class Read(NamedTuple):
    """The videos of a source, and the folder that their frames are in."""

    root: Path
    videos: Sequence[Video]


class Estimate(NamedTuple):
    """What a writer will be asked and will cost if each call succeeds at once and nothing is in the cache."""

    calls: int
    tokens_in: int
    most_tokens_out: int
    most_cost: float


@dataclasses.dataclass
class Report:
    """What became of everything.

    Attributes:
        written: rows by split and kind.
        dropped: texts by task and reason.
        left_out: what no question was made of, by reason.
        failed: texts that a writer did not give, by writer and reason; the same command asks for these again.
        similarity: of the two texts by task, whether they were kept or not.
    """

    written: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    left_out: Counter[str] = dataclasses.field(default_factory=Counter)
    failed: Counter[tuple[str, str]] = dataclasses.field(default_factory=Counter)
    similarity: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))


def sides(sources: Sequence[Read], rules: Rules) -> dict[tuple[str, str], str]:
    """The split of each video by source and name; what shows the same operation is on one side.

    Raises:
        ValueError: if a side is empty.
    """
    names = [(video.source, video.name) for source in sources for video in source.videos]
    held_out = by_patient([medvidbench.operation(*name) for name in names], fraction=rules.held_out, seed=rules.seed)
    if held_out.all() or not held_out.any():
        raise ValueError(
            f"got {len(names)} videos, of which {held_out.sum()} are held out with rules.held_out={rules.held_out}, "
            f"rules.seed={rules.seed}; wanted some on both sides: another seed or share"
        )
    return {name: SPLITS[int(out)] for name, out in zip(names, held_out, strict=True)}


def questions(source: Read, rules: Rules, left_out: Counter[str]) -> Iterator[Pair | Text]:
    """All questions about the videos of a source, in their order; those with texts to be written among them."""
    tasks = {*rules.tasks}
    for video in source.videos:
        shown = {frame for clip in clips.cut(video, seconds=rules.seconds, fps=rules.fps) for frame in clip.places}
        left_out["frames with boxes between those of clips; a higher rules.fps has them"] += len({*video.boxes} - shown)
        found: list[Iterable[Pair | Text]] = []
        if len(video.frames) < clips.LEAST:
            left_out["videos of one frame"] += 1
            continue
        everything = clips.whole(video, fps=rules.fps, most=rules.frames)
        if "video_summary" in tasks:
            found.append(written.summary(everything, images=rules.images))
        if "skill_assessment" in tasks:
            found.append(ruled.skills(everything))
        if "cvs_assessment" in tasks:
            found.append(ruled.views(everything))
        if "next_action" in tasks:
            found.append(ruled.following(video, seconds=rules.seconds, fps=rules.fps))
        for clip in clips.cut(video, seconds=rules.seconds, fps=rules.fps):
            if "tal" in tasks:
                found.append(ruled.spans(clip, left_out))
            if "dense_captioning" in tasks:
                found.append(written.events(clip, images=rules.images))
            if "stg" in tasks:
                found.append(ruled.boxes(clip, source.root, left_out))
            if "region_caption" in tasks:
                found.append(written.regions(clip, images=rules.images))
        yield from itertools.chain.from_iterable(found)


def estimate(sizes: Sequence[int], writer: Options) -> Estimate:
    """What texts will cost of a writer, given the tokens that it reads for each: ``Text.tokens``."""
    tokens_in, tokens_out = sum(sizes), len(sizes) * writer.max_tokens
    return Estimate(
        len(sizes), tokens_in, tokens_out, (tokens_in * writer.price_in + tokens_out * writer.price_out) / 1e6
    )


def row(pair: Pair) -> dict[str, Any]:
    """A pair as MedVidBench has it; frames begin with the name of the source."""
    clip, video = pair.clip, pair.clip.video
    names = [f"{video.source}/{video.frames[place]}" for place in clip.places]
    fps = f"{clip.fps:g}" if clip.fps % 1 else f"{clip.fps:.1f}"
    return {
        "id": f"{video.name}&&{clip.first}&&{clip.last}&&{fps}",
        "conversations": [
            {"from": "human", "value": f"<video>\n{pair.question}"},
            {"from": "gpt", "value": pair.answer},
        ],
        "video": names,
        "sampled_video_frames": [*clip.places],
        "metadata": {
            "video_id": video.name,
            "fps": fps,
            "input_video_start_frame": str(clip.first),
            "input_video_end_frame": str(clip.last),
        },
        "qa_type": pair.kind,
        "data_source": video.source,
        "dataset_name": video.source,
        "struc_info": pair.structure,
        "is_RC": pair.region is not None,
        "RC_info": None
        if pair.region is None
        else {"start_frame": names[pair.region[0]], "start_frame_bbox": [*pair.region[1]]},
    }


def write(
    sources: Sequence[Read],
    out: Path,
    rules: Rules,
    writers: Sequence[Endpoint],
    measure: Measure | None,
    *,
    progress: Progress | None = None,
) -> Report:
    """Asks for the texts, and writes ``train.json`` and ``validation.json`` whole, or not at all.

    Args:
        sources: with a name each; ``out`` gets a link of that name to the folder of each.
        out: folder.
        rules: what is asked and kept.
        writers: two, or none if there is nothing to write.
        measure: of the similarity of two texts.
        progress: told of each text.

    Raises:
        ValueError: if a writer gives no text at all, or a side of the split has no rows.
    """
    report, split = Report(), sides(sources, rules)
    for source in sources:
        _link(out / source.videos[0].source, source.root)
    with contextlib.ExitStack() as stack:
        opened = {side: stack.enter_context(files.replacing(out / f"{side}.json")) for side in SPLITS}
        rows: Counter[str] = Counter()
        for pair in _pairs(sources, rules, writers, measure, report, progress):
            side = split[pair.clip.video.source, pair.clip.video.name]
            opened[side].write(("," if rows[side] else "[").encode() + b"\n" + _line(row(pair)))
            rows[side] += 1
            report.written[side, pair.kind] += 1
        if empty := [side for side in SPLITS if not rows[side]]:
            raise ValueError(f"got no questions for {empty[0]}; wanted some: other rules.tasks, or more annotations")
        for file in opened.values():
            file.write(b"\n]\n")
    return report


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def _link(link: Path, root: Path) -> None:
    """The frames' folder, by its source's name, among the files that name frames."""
    if link.resolve() == root.resolve():
        return
    if link.exists() or link.is_symlink():
        raise ValueError(f"got {link}, which is not the folder {root}; wanted another --out, or the same source")
    link.symlink_to(root.resolve(), target_is_directory=True)


def _pairs(
    sources: Sequence[Read],
    rules: Rules,
    writers: Sequence[Endpoint],
    measure: Measure | None,
    report: Report,
    progress: Progress | None,
) -> Iterator[Pair]:
    """Pairs that need nobody, and those whose texts agree, in the order of the questions but for these behind."""
    done = 0
    for source in sources:
        waiting: collections.deque[tuple[list[Text], list[Future[list[Outcome]]]]] = collections.deque()
        texts: list[Text] = []
        for found in itertools.chain(questions(source, rules, report.left_out), [None]):
            if isinstance(found, Pair):
                yield found
                continue
            texts += [found] if found is not None else []
            if texts and (found is None or len(texts) == TOGETHER):
                asked = [text.ask(source.root, side=rules.side) for text in texts]
                waiting.append((texts, [writer.ask(asked) for writer in writers]))
                texts = []
            while waiting and (found is None or len(waiting) > 1):
                its, futures = waiting.popleft()
                outcomes = [future.result() for future in futures]
                try:
                    _require_answers(outcomes, writers, report)
                except ValueError:
                    wait([future for _, more in waiting for future in more])  # what is paid for is kept
                    raise
                yield from _agreed(its, outcomes, rules, writers, measure, report)
                done += len(its)
                if progress is not None:
                    progress.update(done, {})


def _agreed(
    texts: Sequence[Text],
    outcomes: Sequence[Sequence[Outcome]],
    rules: Rules,
    writers: Sequence[Endpoint],
    measure: Measure | None,
    report: Report,
) -> Iterator[Pair]:
    """The pairs of those texts that both writers gave and that are alike."""
    assert measure is not None
    for text, first, second in zip(texts, *outcomes, strict=True):
        if first.values is None or second.values is None:
            lacking = [w.options.section for w, o in zip(writers, (first, second), strict=True) if o.values is None]
            report.dropped[text.task, f"no text of {' and '.join(lacking)}"] += 1
            continue
        alike = float(np.min(measure(first.values, second.values)))
        report.similarity[text.task].append(alike)
        if not alike >= rules.alike:
            report.dropped[text.task, f"similarity below {rules.alike:g}"] += 1
            continue
        for writer, outcome in zip(writers, (first, second), strict=True):
            answer, structure = text.finish(outcome.values)
            assert isinstance(writer.options, Writer)
            kind = f"{text.task}_{writer.options.name}"
            yield Pair(kind, text.clip, text.question, answer, structure, text.region)


def _require_answers(outcomes: Sequence[Sequence[Outcome]], writers: Sequence[Endpoint], report: Report) -> None:
    """Counts what a writer did not give, and refuses one that gives nothing: the first texts, or many together."""
    for writer, own in zip(writers, outcomes, strict=True):
        reasons = Counter(outcome.reason for outcome in own if outcome.values is None)
        report.failed.update({(writer.options.section, reason): n for reason, n in reasons.items()})
        if reasons.total() == len(own) and (len(own) == TOGETHER or not report.similarity):
            told = ", ".join(f"{reason}: {n}" for reason, n in reasons.items())
            raise ValueError(
                f"got none of {len(own)} texts from {writer.options.section}.url={writer.options.url} for "
                f"{writer.options.model!r} ({told}); wanted an endpoint that answers: the same command goes on from "
                "here"
            )
