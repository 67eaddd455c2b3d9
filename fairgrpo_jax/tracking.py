"""What a run tells while it works: ``metrics.jsonl``, the live display, and the seconds of each phase.

A run appends one JSON object a line to ``metrics.jsonl``::

    {"kind": "train", "step": 12, "reward/mean": 0.71, "time/step": 0.11}

``kind`` is ``"warmup"``, ``"train"`` or ``"eval"``, every other field is a number, and every field about wall time
starts with ``time/`` (seconds) or ``speed/``, so that two runs of one seed agree in all other fields.  A process may be
killed at any moment: at worst the last line is cut in two, and whoever opens the file next drops that half line.
"""

import collections
import contextlib
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


# The numbers worth watching, in the order of display: metric, short name, format.
_WATCHED = (
    ("reward/mean", "reward", "{:.3f}"),
    ("loss", "loss", "{:+.3f}"),
    ("reward/zero_variance_share", "zero-variance", "{:.0%}"),
    ("advantage/max_abs", "max |A|", "{:.1f}"),
    ("fairness/effective_sample_size", "effective n", "{:.1f}"),
    ("time/step", "s/step", "{:.2f}"),
    ("speed/rollout_tokens_per_s", "tokens/s", "{:.0f}"),
    ("speed/update_mfu", "MFU", "{:.0%}"),
)


class MetricsLog:
    """An append-only JSONL file of metrics that survives ``kill -9``.

    Each row is one flushed write.  NaN and infinities have no JSON form: they are written as ``null`` and read back as
    NaN by :func:`read_metrics`, so a metric that came out undefined differs from one that was not computed.

    Opening an existing file continues it; a half-written last line is dropped first.

    Args:
        path: the file; its folder is created when missing.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> with MetricsLog(path) as log:
        ...     log.append("train", 1, {"reward/mean": np.float32(0.5), "loss": float("nan")})
        ...     log.append("train", 2, {"reward/mean": 0.75})
        ...     log.truncate_after(train=1)
        1
        >>> read_metrics(path)
        [{'kind': 'train', 'step': 1, 'reward/mean': 0.5, 'loss': nan}]
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines, complete = _json_lines(self.path)
            if not complete:
                _replace(self.path, lines)
        self._file = self.path.open("a", encoding="utf-8")

    def append(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Write one row; values are Python, NumPy or JAX scalars.

        Raises:
            ValueError: if a value is no single number, or a metric is called "kind" or "step".
        """
        if clash := {"kind", "step"} & values.keys():
            raise ValueError(f"metrics named {sorted(clash)} would hide the row's own fields; rename them")
        row = {"kind": kind, "step": int(step)} | {name: _number(name, value) for name, value in values.items()}
        self._file.write(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def truncate_after(self, **last_steps: int) -> int:
        """Forget the rows that come after a checkpoint, and return how many they were.

        ``truncate_after(train=100, eval=100)`` keeps, of each kind named, the rows with ``step`` up to and including
        the number; -1 forgets the kind altogether.  Kinds that are not named stay whole.
        """
        self._file.close()
        lines, _ = _json_lines(self.path)
        kept = []
        for line in lines:
            row = json.loads(line)
            if row["step"] <= last_steps.get(row["kind"], math.inf):
                kept.append(line)
        _replace(self.path, kept)
        self._file = self.path.open("a", encoding="utf-8")
        return len(lines) - len(kept)

    def close(self) -> None:
        """Close the file; further rows are refused."""
        self._file.close()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a JSONL file as they stand (``null`` is None); a half-written last line is left out.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.
    """
    return [json.loads(line) for line in _json_lines(Path(path))[0]]


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``, oldest first, with ``null`` read as NaN.

    Raises:
        ValueError: if a line other than the last one is not a JSON object.
    """
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in read_rows(path)]


class Progress:
    """One live line about a long loop: phase, bar, time left and the numbers worth watching.

    On a terminal the display redraws itself in place.  Elsewhere (a pipe, a CI log) it prints one plain line every
    ``every`` steps and at the last one, and phases are silent.  Notes are printed on both.

    The time left is the median duration of the last steps times the steps to come, so one slow step (a compilation, an
    evaluation) does not frighten anybody.

    Args:
        total: number of steps of the whole loop.
        description: what the loop does, in a word or two.
        start: steps done before this process, when a run is resumed.
        every: distance of the plain lines in steps.
        console: where to print; standard output by default.

    Raises:
        ValueError: if ``total`` or ``every`` is not positive, or ``start`` lies outside [0, total].

    Example:
        >>> with Progress(2, "training", every=1, console=Console(width=100)) as progress:
        ...     progress.note("compiling the sampler")
        ...     progress.phase("rollout")
        ...     progress.update(2, {"reward/mean": 0.5})  # doctest: +ELLIPSIS
        training: compiling the sampler
        training 2/2 · ... · reward 0.500
    """

    def __init__(
        self, total: int, description: str, *, start: int = 0, every: int = 20, console: Console | None = None
    ):
        if total < 1 or every < 1 or not 0 <= start <= total:
            raise ValueError(
                f"got total={total}, start={start}, every={every}; wanted total >= 1, every >= 1, 0 <= start <= total"
            )
        self._total, self._description, self._every = total, description, every
        self._step, self._phase, self._numbers = start, "", ""
        self._console = console or Console()
        self._durations: collections.deque[float] = collections.deque(maxlen=31)
        self._begun = self._last = time.monotonic()
        self._spinner = Spinner("dots")
        self._live = Live(get_renderable=self._render, console=self._console) if self._console.is_terminal else None

    def __enter__(self) -> "Progress":
        self._begun = self._last = time.monotonic()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._phase = "" if error is None else "stopped"
        if self._live:
            self._live.stop()

    def update(self, step: int, values: Mapping[str, Any]) -> None:
        """Say that ``step`` steps are done, with the metrics of the last one."""
        now = time.monotonic()
        if step > self._step:
            self._durations.extend([(now - self._last) / (step - self._step)] * min(step - self._step, 31))
        done_before, self._step, self._last = self._step, step, now
        numbers = [f"{name} {form.format(values[key])}" for key, name, form in _WATCHED if key in values]
        self._numbers = " · ".join([*numbers, *_shares(values)])
        if not self._live and (step // self._every > done_before // self._every or step == self._total):
            parts = [f"{self._description} {step}/{self._total}", self._times(), self._numbers]
            self._print(" · ".join(part for part in parts if part))

    def phase(self, name: str) -> None:
        """Name what the loop is doing now: "warm-up", "rollout", "update", "evaluation", ..."""
        self._phase = name

    def note(self, text: str) -> None:
        """Say something once and for good, above the display."""
        self._print(f"{self._description}: {text}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _times(self) -> str:
        elapsed = _clock(time.monotonic() - self._begun)
        if self._step >= self._total or not self._durations:
            return elapsed
        return f"{elapsed}, {_clock(statistics.median(self._durations) * (self._total - self._step))} left"

    def _render(self) -> RenderableType:
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self._total, completed=self._step, width=max(10, min(40, self._console.width - 60)))
        lead = Text("✓", "green") if self._step >= self._total else self._spinner
        count = Text(f"{self._step}/{self._total}")
        line.add_row(
            lead, Text(self._description, "bold"), bar, count, Text(self._times(), "cyan"), Text(self._phase, "dim")
        )
        return Group(line, Text("  " + self._numbers, "dim", no_wrap=True, overflow="ellipsis"))


def _shares(values: Mapping[str, Any]) -> list[str]:
    """The phases that take a twentieth of a step or more, and what compiling took beside it."""
    step, compiled = values.get("time/step", 0), values.get("time/compile", 0)
    phases = {name: value for name, value in values.items() if name.startswith("time/")}
    large = [
        f"{name.removeprefix('time/')} {value / step:.0%}"
        for name, value in phases.items()
        if name not in ("time/step", "time/compile") and step and value / step >= 0.05
    ]
    return [*large, *([f"compiled {compiled:.0f} s"] if compiled >= 0.5 else [])]


class Phases:
    """Seconds of each phase of a step, compilation apart."""

    def __init__(self):
        _listen()
        self.seconds: dict[str, float] = {}
        self._begin, self._programs = time.perf_counter(), _PROGRAMS[0]

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the block to phase ``name``; compilation inside it is counted as such."""
        compiled, begin = _COMPILED[0], time.perf_counter()
        yield
        compiled = _COMPILED[0] - compiled
        elapsed = time.perf_counter() - begin
        compiled = min(compiled, elapsed)  # nested traces are reported twice
        elapsed -= compiled
        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed
        if compiled:
            self.seconds["compile"] = self.seconds.get("compile", 0.0) + compiled

    def collect(self) -> dict[str, float]:
        """``{"time/rollout": seconds, ...}`` since the last call, with the whole as ``time/step``.

        ``speed/programs`` counts the programs compiled since then: 0 once a run has seen all its shapes.
        """
        now = time.perf_counter()
        self.seconds["step"] = now - self._begin - self.seconds.get("compile", 0.0)
        collected, self.seconds, self._begin = self.seconds, {}, now
        programs, self._programs = _PROGRAMS[0] - self._programs, _PROGRAMS[0]
        return {f"time/{name}": seconds for name, seconds in collected.items()} | {"speed/programs": programs}


_COMPILED = [0.0]  # seconds that this process has spent tracing and compiling
_PROGRAMS = [0]  # that this process has compiled
_listening = threading.Event()


def _listen() -> None:
    if not _listening.is_set():
        _listening.set()
        jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def _count_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        _COMPILED[0] += duration_secs
        _PROGRAMS[0] += event.endswith("/backend_compile_duration")


def _number(name: str, value: Any) -> int | float | None:
    """The scalar as a JSON number; None when it is not finite."""
    array = np.asarray(value)
    if array.shape != () or not (array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"):
        raise ValueError(f"metric {name!r}: got {_shown(value)}; wanted one number, reduce it before logging")
    if array.dtype.kind in "biu":
        return int(array)
    number = float(str(array))  # the shortest digits that name this float: 0.1, not 0.10000000149011612
    return number if math.isfinite(number) else None


def _shown(value: Any) -> str:
    return f"an array of shape {value.shape}" if getattr(value, "shape", ()) else repr(value)


def _json_lines(path: Path) -> tuple[list[str], bool]:
    """The lines of a JSONL file that hold an object, and whether the file ends where a line ends."""
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    tail = lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(
                f"{path}, line {number}: got {line[:60]!r}, wanted a JSON object. Only a last line may be cut short; "
                "restore the file or delete the line."
            )
    return lines, not tail


def _replace(path: Path, lines: Sequence[str]) -> None:
    """Put ``lines`` in place of the file's content, all or nothing."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(draft, path)


def _clock(seconds: float) -> str:
    """``75`` -> ``"1:15"``, ``3725`` -> ``"1:02:05"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
