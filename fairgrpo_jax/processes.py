"""Processes that end as the shell expects: helpers with their parent, commands with the reader of their output."""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator


def end_with_parent() -> None:
    """Makes this process end soon after its parent, however that ends: it would go on for minutes."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Ends a command quietly, as SIGPIPE would, when the reader of its standard output has gone (``| head -1``)."""
    try:
        yield
    except BrokenPipeError as error:
        if not nobody_reads():
            raise
        raise SystemExit(128 + signal.SIGPIPE) from error
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # nor is anything to be said about it when the interpreter flushes once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def nobody_reads() -> bool:
    """Whether standard output is a pipe that has no reader any more."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # no file at all
        return False
