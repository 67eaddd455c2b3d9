"""Real processes on this machine that run one program together, each test with a port of its own."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path


ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def started(
    count: int, arguments: Sequence[str], folder: Path, *, last: Sequence[str] = (), **environment: str
) -> Iterator[list[subprocess.Popen]]:
    """``count`` processes of ``python ARGUMENTS --distributed ...``; none outlives the block.

    The last one gets further arguments, ``last``. What process i says goes to ``folder/i.log``.
    """
    spec, running = f"127.0.0.1:{free_port()},{count}", []
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    variables.pop("PYTEST_XDIST_WORKER", None)
    try:
        for index in range(count):
            with (folder / f"{index}.log").open("w") as out:
                further = last if index == count - 1 else ()
                command = [sys.executable, *arguments, *further, "--distributed", f"{spec},{index}"]
                running.append(subprocess.Popen(command, cwd=ROOT, env=variables, stdout=out, stderr=out))
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def said(folder: Path, index: int) -> str:
    """What a process has said so far."""
    return (folder / f"{index}.log").read_text()


def together(count: int, arguments: Sequence[str], folder: Path, *, timeout: float = 600, **environment: str) -> None:
    """Runs processes to their end, which must be a good one."""
    with started(count, arguments, folder, **environment) as running:
        for index, process in enumerate(running):
            assert process.wait(timeout) == 0, f"process {index}: {said(folder, index)[-3000:]}"
