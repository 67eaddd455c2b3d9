"""The live display of a long loop."""

import collections
import statistics
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text


# The displayed numbers, in order: metric, short name, format.
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


class Progress:
    """A live line about a long loop: phase, bar, time left and the main metrics.

    On a terminal the display is redrawn in place. Elsewhere (a pipe, a CI log) one plain line is printed every
    ``every`` steps and after the last one, and phases are not shown. Notes are printed in both cases.

    The time left is the median duration of the last steps times the steps to come, so a single slow step (a
    compilation, an evaluation) hardly changes it.

    Args:
        total: number of steps of the loop.
        description: what the loop does, in a word or two.
        start: number of steps done before this process, for a resumed run.
        every: number of steps between plain lines.
        console: where to print; default: standard output.

    Raises:
        ValueError: if ``total`` or ``every`` is not positive, or ``start`` is outside [0, total].

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
        """Reports that ``step`` steps are done, with the metrics of the last one."""
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
        """Sets the current phase: "warm-up", "rollout", "update", "evaluation", ..."""
        self._phase = name

    def note(self, text: str) -> None:
        """Prints a permanent line above the display."""
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
    """The phases that take at least a twentieth of a step, and the time of compilation."""
    step, compiled = values.get("time/step", 0), values.get("time/compile", 0)
    phases = {name: value for name, value in values.items() if name.startswith("time/")}
    large = [
        f"{name.removeprefix('time/')} {value / step:.0%}"
        for name, value in phases.items()
        if name not in ("time/step", "time/compile") and step and value / step >= 0.05
    ]
    return [*large, *([f"compiled {compiled:.0f} s"] if compiled >= 0.5 else [])]


def _clock(seconds: float) -> str:
    """``75`` -> ``"1:15"``, ``3725`` -> ``"1:02:05"``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
