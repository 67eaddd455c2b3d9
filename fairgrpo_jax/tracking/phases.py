"""Times the phases of a step, with compilation counted separately."""

import contextlib
import threading
import time
from collections.abc import Iterator

import jax


class Phases:
    """Seconds of each phase of a step; compilation is a separate phase."""

    def __init__(self):
        _listen()
        self.seconds: dict[str, float] = {}
        self._begin, self._programs = time.perf_counter(), _PROGRAMS[0]

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of the block to phase ``name``, except compilation inside it, which is counted separately."""
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
        """Returns ``{"time/rollout": seconds, ...}`` since the last call; ``time/step`` is all but compilation.

        ``speed/programs`` is the number of programs compiled since then: 0 once a run has seen all its shapes.
        """
        now = time.perf_counter()
        self.seconds["step"] = now - self._begin - self.seconds.get("compile", 0.0)
        collected, self.seconds, self._begin = self.seconds, {}, now
        programs, self._programs = _PROGRAMS[0] - self._programs, _PROGRAMS[0]
        return {f"time/{name}": seconds for name, seconds in collected.items()} | {"speed/programs": programs}


_COMPILED = [0.0]  # seconds that this process has spent tracing and compiling
_PROGRAMS = [0]  # number of programs that this process has compiled
_listening = threading.Event()


def _listen() -> None:
    if not _listening.is_set():
        _listening.set()
        jax.monitoring.register_event_duration_secs_listener(_count_compilation)


def _count_compilation(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event.startswith("/jax/core/compile/"):
        _COMPILED[0] += duration_secs
        _PROGRAMS[0] += event.endswith("/backend_compile_duration")
