"""The sizes of all prompts of a run, known before it starts from texts and headers of files, and what follows.

``fit`` finds records that do not fit and, as ``data.over_length`` says, refuses them, leaves them out or gives them
fewer media. ``ladder`` chooses the sizes to which prompts are padded: a few programs, little padding.
"""

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.progress

from fairgrpo_jax import batches, config as options, files, hosts
from fairgrpo_jax.batches import Size
from fairgrpo_jax.data import headers
from fairgrpo_jax.data.record import Media, Record, RecordList, Source, without_medium
from fairgrpo_jax.plan import cost


SHOWN = 5  # records named in a message
LONG = 5000  # records whose measuring shows a progress bar
ALIGNED = 64  # tokens or patches of which sizes on the ladder are multiples, the largest excepted
MOST_SIZES = 256  # distinct sizes that are compared to choose a ladder


@dataclasses.dataclass(frozen=True)
class Unfit:
    """A record that does not fit, and what became of it."""

    split: str
    uid: str
    why: str
    outcome: str  # "left out", or how many media it has kept


@dataclasses.dataclass(frozen=True)
class Fitted:
    """The records that fit, by use.

    Attributes:
        sources: by use.
        sizes: of their prompts, in their order.
        unfit: what was left out or changed.
        frame: the most patches of a frame or image.
    """

    sources: dict[str, Source]
    sizes: dict[str, list[Size]]
    unfit: list[Unfit]
    frame: int = 0

    @property
    def held_out(self) -> dict[str, Size]:
        """The sizes of the held-out prompts, by uid."""
        pairs = zip(self.sources["test"].records, self.sizes["test"], strict=True)
        return {record.uid: size for record, size in pairs}


class Ruler:
    """Measures the prompts of records, each distinct conversation once.

    Args:
        encode: the run's encoder.
        known: sizes of files read earlier.
    """

    def __init__(self, encode: batches.Encoder, known: headers.Known | None = None):
        self._encode, self._known = encode, known
        self._seen: dict[Any, tuple[Size, int]] = {}
        self._targets: dict[str, int] = {}

    def __call__(self, record: Record) -> Size:
        """Tokens and patches of a record's prompt.

        Raises:
            ValueError: as ``measure``.
        """
        return self.measure(record)[0]

    def measure(self, record: Record) -> tuple[Size, int]:
        """The size of a record's prompt, and the patches of its largest frame or image.

        Raises:
            ValueError: if a header cannot be read or the processor refuses the media, with the name of the record.
        """
        arguments = self._encode.arguments([record], [headers.sizes(record, self._known)])
        key = _key(arguments)
        if key not in self._seen:
            vision = self._encode.architecture.vision
            try:
                (found,) = self._encode.processor.measure(**arguments)
            except ValueError as error:
                raise ValueError(f"dataset {record.dataset}, record {record.uid}: {error}") from error
            unit = 0 if vision is None else vision.unit
            self._seen[key] = Size(found.tokens, found.units * unit), found.frame * unit
        return self._seen[key]

    def frames(self, record: Record) -> list[int]:
        """Number of sampled frames of each of a record's videos."""
        return [len(clip.times) for clip in headers.sizes(record, self._known).videos]

    def target(self, record: Record) -> int:
        """Number of tokens of a record's reference completion."""
        key = f"{record.finding}\n{record.answer}"
        if key not in self._targets:
            self._targets[key] = len(self._encode.target(record))
        return self._targets[key]


def _key(arguments: Mapping[str, Any]) -> Any:
    """What the size of a prompt depends on: texts, shapes of media, and times, which some families write out."""
    shapes = [[np.shape(medium) for medium in arguments[kind][0]] for kind in ("images", "videos")]
    return repr((arguments["messages"], shapes, [tuple(times) for times in arguments["times"][0]]))


def fit(sources: Mapping[str, Source], encode: batches.Encoder, config: options.Config) -> Fitted:
    """Measures the records of a run by use, and treats those that do not fit.

    Media that cannot be read or processed are the matter of ``data.on_broken``, prompts and reference completions that
    are too long that of ``data.over_length``.

    Raises:
        ValueError: if records are refused, with names, their sizes, and the options that would let them in.
    """
    fitted, sizes = {}, {}
    with headers.Known() as known:
        sieve = _Sieve(Ruler(encode, known), config)
        for use, source in sources.items():
            taught = use == "warmup" and config.warmup.own_steps > 0
            found = [sieve(record, taught) for record in _watched(source.records, use)]
            kept = [pair for pair in found if pair is not None]
            fitted[use] = RecordList(tuple(record for record, _ in kept))
            sizes[use] = [size for _, size in kept]
    if sieve.refused:
        raise sieve.refusal()
    for use, source in fitted.items():
        if len(sources[use]) and not len(source):
            first = sieve.unfit[0]
            raise ValueError(f"got no record that fits for {use!r} ({first.uid}: {first.why}); wanted some")
    return Fitted(fitted, sizes, sieve.unfit, sieve.frame)


def _watched(records: Sequence[Record], use: str) -> Iterable[Record]:
    return rich.progress.track(records, f"sizes of prompts, {use}", transient=True, disable=len(records) < LONG)


class _Sieve:
    """Keeps what fits, and remembers what does not: ``unfit``, and ``refused`` where the options do not allow it."""

    def __init__(self, ruler: Ruler, config: options.Config):
        self._ruler, self._config = ruler, config
        self._done: dict[int, tuple[Record, tuple[Record, Size] | None]] = {}  # by identity: records stay alive
        self.unfit: list[Unfit] = []
        self.frame = 0  # the most patches of a frame or image of what is kept
        self.refused: list[str] = []
        self._sizes: list[Size] = []  # of the prompts refused as too long
        self._longest = 0  # tokens of the reference completions refused as too long
        self._broken = False  # whether media were refused

    def __call__(self, record: Record, taught: bool) -> tuple[Record, Size] | None:
        """The record that is used in the place of this one, and its size; None if there is none.

        Of a ``taught`` one the reference completion must fit too; it is measured also where the prompt is refused, so
        that all is refused at once.
        """
        if id(record) not in self._done:
            self._done[id(record)] = record, self._prompt(record)
        _, pair = self._done[id(record)]
        left_out = pair is None and self._config.data.over_length != "refuse"
        return pair if not taught or left_out or self.target(record) else None

    def _prompt(self, record: Record) -> tuple[Record, Size] | None:
        settings = self._config.data
        try:
            size, frame = self._ruler.measure(record)
            why = over(size, settings)
            if not why:
                self.frame = max(self.frame, frame)
                return record, size
            if settings.over_length == "truncate_media":
                for shorter, outcome in _with_fewer(record, self._ruler.frames(record)):
                    own, frame = self._ruler.measure(shorter)
                    if not over(own, settings):
                        self.frame = max(self.frame, frame)
                        self.unfit.append(Unfit(record.split, record.uid, why, outcome))
                        return shorter, own
        except ValueError as error:
            self._broken |= self._out(record, str(error), settings.on_broken == "skip")
        else:
            if self._out(record, why, settings.over_length != "refuse"):
                self._sizes.append(size)
        return None

    def target(self, record: Record) -> bool:
        """Whether a record's reference completion fits."""
        tokens, limit = self._ruler.target(record), self._config.sampling.max_new_tokens
        if tokens > limit:
            why = f"its reference completion has {tokens} tokens (sampling.max_new_tokens={limit})"
            if self._out(record, why, self._config.data.over_length != "refuse"):
                self._longest = max(self._longest, tokens)
        return tokens <= limit

    def _out(self, record: Record, why: str, allowed: bool) -> bool:
        """Notes what does not fit; returns whether it is refused."""
        if allowed:
            self.unfit.append(Unfit(record.split, record.uid, why, "left out"))
        else:
            self.refused.append(why if record.uid in why else f"{record.uid}: {why}")
        return not allowed

    def refusal(self) -> ValueError:
        """The error that names what is refused, and all options with which it would not be."""
        settings, lines = self._config.data, self.refused
        larger: list[str] = []
        hints: list[str] = []
        if self._sizes:
            tokens, patches = (max(column) for column in zip(*self._sizes, strict=True))
            larger += [f"--data.prompt-length {tokens}"] * (0 < settings.prompt_length < tokens)
            larger += [f"--data.num-patches {patches}"] * (0 < settings.num_patches < patches)
        if self._longest:
            larger.append(f"--sampling.max-new-tokens {self._longest}")
        if larger:
            hints.append(" ".join(larger))
        if self._sizes:
            hints.append("a smaller --data.max-pixels")
        if larger:
            hints.append(f"--data.over-length skip{' or truncate_media' if self._sizes else ''}")
        if self._broken:
            hints.append("files that can be read and processed, or --data.on-broken skip")
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        return ValueError(
            f"got {len(lines)} records that do not fit: {'; '.join(lines[:SHOWN])}{more}; wanted {', or '.join(hints)}"
        )


def unsayable(records: Sequence[Record], count: Callable[[str], int], limit: int) -> str:
    """A sentence about answers that alone have more tokens than a completion; empty if there are none.

    Args:
        records: of the run.
        count: counts the tokens of a text.
        limit: the most tokens of a completion.
    """
    long = [record for record in records if len(record.answer.encode()) > limit]  # a token is a byte or more
    sizes = {record.uid: tokens for record in long if (tokens := count(record.answer)) > limit}
    if not sizes:
        return ""
    most = max(sizes, key=lambda uid: sizes[uid])
    return (
        f"{len(sizes)} of {len(records)} answers are longer than a completion may be (sampling.max_new_tokens={limit}; "
        f"{most}: {sizes[most]:,} tokens), so no completion can say them"
    )


def over(size: Size, settings: options.Data) -> str:
    """What is too long about a prompt, as a sentence; empty if nothing is."""
    found = []
    if 0 < settings.prompt_length < size.tokens:
        found.append(f"{size.tokens:,} tokens (data.prompt_length={settings.prompt_length})")
    if 0 < settings.num_patches < size.patches:
        found.append(f"{size.patches:,} patches (data.num_patches={settings.num_patches})")
    return " and ".join(found)


def _with_fewer(record: Record, frames: list[int]) -> Iterator[tuple[Record, str]]:
    """The record with ever fewer media: half the frames of its videos, and so on down to two; then fewer images.

    The last image goes first, and every turn of the user that shows something keeps one medium.
    """
    media = record.media
    while frames and max(frames) > 2:
        frames = [max(2, count // 4 * 2) for count in frames]
        counts = iter(frames)
        media = tuple(_sampled(medium, counts) for medium in media)
        yield dataclasses.replace(record, media=media), f"shortened to {' + '.join(map(str, frames))} frames"
    shorter = dataclasses.replace(record, media=media)
    turns = [number for number, turn in enumerate(record.turns) for part in turn.content if part is None]
    turns = turns or [0] * len(media)  # of every medium
    shown = collections.Counter(turns)
    for place in reversed(range(len(media))):
        if media[place].kind == "image" and shown[turns[place]] > 1:
            shown[turns[place]] -= 1
            shorter = without_medium(shorter, place)
            yield shorter, f"shortened to {len(shorter.media)} of {len(media)} media"


def _sampled(medium: Media, counts: Iterator[int]) -> Media:
    return dataclasses.replace(medium, num_frames=next(counts)) if medium.kind == "video" else medium


def settle(settings: options.Data, sizes: Sequence[Size], encode: batches.Encoder) -> options.Data:
    """The options of the data with the sizes of the prompts in place of those that are left to them (0), rounded up.

    Args:
        settings: the options of the data.
        sizes: of all prompts of the run.
        encode: of the run; its processor has the pixel budget with which they were measured.
    """
    if not settings.measured:
        return settings
    tokens, patches = (max(column) for column in zip(*sizes, strict=True))
    return dataclasses.replace(
        settings,
        prompt_length=settings.prompt_length or _up(tokens, ALIGNED, 1 << 40),
        num_patches=settings.num_patches or _up(patches, _aligned(encode.architecture), 1 << 40),
    )


def flags(settings: options.Data) -> str:
    """The sizes of prompts and the pixel budget as options of a command line.

    >>> flags(options.Data(prompt_length=320, num_patches=256, max_pixels=65536))
    '--data.prompt-length 320 --data.num-patches 256 --data.max-pixels 65536'
    """
    names = ("prompt_length", "num_patches", "min_pixels", "max_pixels")
    values = {name: getattr(settings, name) for name in names}
    return " ".join(f"--data.{name.replace('_', '-')} {value}" for name, value in values.items() if value is not None)


# ---- sizes to pad to -------------------------------------------------------------------------------------------------


def on_ladder(encode: batches.Encoder, sizes: Sequence[Size]) -> batches.Encoder:
    """The encoder of a run that pads prompts to ``data.buckets`` sizes, chosen for those of its records."""
    settings = encode.settings
    limit = Size(settings.prompt_length, settings.num_patches if encode.architecture.vision is not None else 0)
    found = ladder(sizes, settings.buckets, architecture=encode.architecture, limit=limit)
    return dataclasses.replace(encode, ladder=found)


def ladder(sizes: Sequence[Size], count: int, *, architecture: Any, limit: Size) -> tuple[Size, ...]:
    """The sizes to which prompts are padded: at most ``count``, from small to large, with the least work on padding.

    A prompt is padded to the first size that holds both its tokens and its patches; each size holds the one before. The
    work is counted in FLOPs of the prompt pass.

    Args:
        sizes: of all prompts.
        count: number of sizes; 1 gives the largest alone.
        architecture: the model's.
        limit: no size is larger.

    Example:
        >>> from fairgrpo_jax.models import qwen2_5_vl
        >>> found = [Size(100, 64)] * 9 + [Size(400, 1024)]
        >>> ladder(found, 2, architecture=qwen2_5_vl.tiny(), limit=Size(500, 1024))
        (Size(tokens=128, patches=64), Size(tokens=448, patches=1024))
    """
    step = _aligned(architecture)
    round_up = lambda size: Size(_up(size.tokens, ALIGNED, limit.tokens), _up(size.patches, step, limit.patches))
    distinct, counts = np.unique([round_up(size) for size in sizes], axis=0, return_counts=True)
    flops = lambda size: (
        cost.rollout_flops(
            architecture, cost.Sizes(prompts=1, rollouts=1, prompt=int(size[0]), completion=1, patches=int(size[1]))
        )[0].total
    )
    order = np.argsort([flops(size) for size in distinct], kind="stable")
    distinct, counts = distinct[order], counts[order]
    groups = np.array_split(np.arange(len(distinct)), min(len(distinct), MOST_SIZES))
    ends = np.array([group[-1] + 1 for group in groups])
    holds = np.maximum.accumulate(distinct)[ends - 1]  # the size that holds all up to each end
    number = np.add.accumulate(counts)[ends - 1]
    work = np.array([flops(size) for size in holds])
    chosen = _cheapest(number, work, count)
    return tuple(Size(*map(int, holds[end])) for end in chosen)


def _cheapest(number: np.ndarray, work: np.ndarray, count: int) -> list[int]:
    """Where to cut a row of sizes: ``number`` of prompts up to each, and the ``work`` of one of that size."""
    size = len(number)
    best = number * work  # of the first levels up to each end, with one level; then with one more, and so on
    cuts: list[np.ndarray] = []
    for _ in range(min(count, size) - 1):
        # Cut after the row, with a level up to the column.
        through = best[:, None] + (number[None] - number[:, None]) * work[None]
        through[np.tril_indices(size)] = np.inf
        through = np.vstack([through, best])  # no cut
        cuts.append(through.argmin(0))
        best = through.min(0)
    ends, at = [], size - 1
    for cut in reversed(cuts):
        if cut[at] < size:
            ends.append(at)
            at = int(cut[at])
    return [*reversed([*ends, at])]


def _aligned(architecture: Any) -> int:
    """Patches of which sizes are multiples: about ``ALIGNED``, whole merged tokens or windows."""
    unit = 1 if architecture.vision is None else architecture.vision.unit
    return -(-ALIGNED // unit) * unit


def _up(count: int, step: int, limit: int) -> int:
    return min(-(-count // step) * step, limit)


def rung(ladder: Sequence[Size], sizes: np.ndarray) -> np.ndarray:
    """For each of the sizes (N, 2), the index of the first of the ladder that holds it.

    >>> rung([Size(8, 0), Size(16, 4)], np.array([[9, 0], [8, 0]])).tolist()
    [1, 0]
    """
    return (~(np.asarray(sizes)[:, None] <= np.array(ladder)[None]).all(-1)).sum(1)


def groups(ladder: Sequence[Size], sizes: np.ndarray, count: int) -> list[tuple[np.ndarray, Size]]:
    """Cuts a batch into ``count`` equal groups of prompts of like size, small ones first.

    Every group has as many prompts of one process as of another, in the order of the processes.

    Args:
        ladder: the sizes to which prompts are padded.
        sizes: of the prompts (N, 2), N / processes of each process.
        count: a divisor of N / processes.

    Returns:
        For each group the indices of its prompts and the size that holds them.

    >>> groups([Size(8, 0), Size(16, 4)], np.array([[9, 0], [8, 0], [16, 4], [1, 0]]), 2)
    [(array([1, 3]), Size(tokens=8, patches=0)), (array([0, 2]), Size(tokens=16, patches=4))]
    """
    needed = rung(ladder, sizes)
    return [(rows, ladder[needed[rows].max()]) for rows in in_order(needed, count)]


def in_order(needed: np.ndarray, count: int) -> list[np.ndarray]:
    """The indices of ``count`` equal parts of a batch, sorted by what each prompt needs (N,) within each process."""
    each = hosts.by_process(len(needed))
    order = np.take_along_axis(each, np.argsort(needed[each], axis=1, kind="stable"), axis=1)
    return [part.reshape(-1) for part in np.split(order, count, axis=1)]


def padding(ladder: Sequence[Size], sizes: np.ndarray, count: int) -> tuple[float, float]:
    """The shares of padding among the tokens and among the patches of a batch (N, 2) in ``count`` groups.

    >>> padding([Size(8, 0), Size(16, 4)], np.array([[8, 2], [8, 0], [16, 4], [4, 0]]), 2)
    (0.25, 0.25)
    """
    parts = groups(ladder, sizes, count)
    whole = np.sum([len(rows) * np.array(size) for rows, size in parts], axis=0)
    tokens, patches = 1 - sizes.sum(0) / np.maximum(whole, 1)
    return float(tokens), float(patches) if whole[1] else 0.0


def told(sizes: Sequence[Size], ladder: Sequence[Size] = ()) -> list[str]:
    """Sentences about the sizes of prompts and about the ladder, for the reader of a log."""
    table = np.array(sizes)
    said = []
    for column, name in enumerate(Size._fields):
        low, middle, most, high = np.percentile(table[:, column], [0, 50, 99, 100], method="higher")
        said.append(f"{low:,} to {high:,} {name} a prompt (median {middle:,}, 99 % at most {most:,})")
    if ladder:
        places, lines = rung(ladder, table), []
        for place, size in enumerate(ladder):
            own = table[places == place]
            spare = 1 - own.sum(0) / np.maximum(len(own) * np.array(size), 1)
            share = "" if len(ladder) == 1 else f"{len(own) / len(table):.0%}, "
            lines.append(f"{size.tokens:,} tokens and {size.patches:,} patches ({share}padding {spare[0]:.0%})")
        said.append(f"padded to {', '.join(lines)}")
    return said


def histogram(sizes: Sequence[Size]) -> list[str]:
    r"""Lines that show how many prompts there are by tokens, and by patches if there are any; eight bins each.

    >>> print("\n".join(histogram([Size(90, 0), Size(100, 0), Size(170, 0)])))
        90 to     99 tokens       1 ####################
       100 to    109 tokens       1 ####################
       110 to    119 tokens       0
       120 to    129 tokens       0
       130 to    139 tokens       0
       140 to    149 tokens       0
       150 to    159 tokens       0
       160 to    170 tokens       1 ####################
    """
    lines = []
    for name, values in zip(Size._fields, np.array(sizes).T, strict=True):
        if not values.any():
            continue
        edges = np.unique(np.linspace(values.min(), values.max() + 1, 9).astype(int))
        counts = np.histogram(values, edges)[0]
        for count, low, high in zip(counts, edges, edges[1:], strict=False):
            bar = "#" * int(np.ceil(20 * count / counts.max()))
            lines.append(f"{low:6,} to {high - 1:6,} {name} {count:7,} {bar}".rstrip())
    return lines


def write(path: Path, unfit: Sequence[Unfit]) -> None:
    """Writes one line for each record that does not fit; removes the file if there is none."""
    if unfit:
        files.write(path, "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in unfit))
    else:
        path.unlink(missing_ok=True)
