"""The pipe between ``step.py`` and the trainers it measures; the standard library only, for any interpreter.

A worker is a script that is started with the path of a JSON file, says what it holds, and then makes one step of
training for every line it reads:

    spec, say = worker.start()
    say(prompts=..., logits=...)                # the check that all workers train the same model on the same prompts
    with worker.Stopwatch() as watch: ...
    say(**watch.spent, tokens=...)              # after every step
"""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any


def start() -> tuple[dict[str, Any], Callable[..., None]]:
    """The worker's task, and the function that answers; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(pathlib.Path(sys.argv[1]).read_text())
    return spec, lambda **values: print(json.dumps(values), file=answers)


def requests() -> Iterator[None]:
    """One item for every step that is asked for, until the pipe is closed."""
    for _ in sys.stdin:
        yield


class Stopwatch:
    """Wall and processor seconds between entering and leaving, of all threads of this process."""

    spent: dict[str, float]

    def __enter__(self) -> "Stopwatch":
        self.begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = {"wall": time.perf_counter() - self.begun[0], "cpu": time.process_time() - self.begun[1]}


def reward(text: str) -> float:
    """Right or wrong about as often, of anything a random model writes."""
    return float(len(text) % 2)
