"""Decodes compressed DICOM frames in a process of its own, for decoders that can end the process on a damaged stream.

One process is kept for the next files, and started again when it has ended. One that does not answer is ended. This
file is its program too: it is run by its path and imports nothing of the package.
"""

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any


PATIENCE = 60.0  # seconds in which the process must have answered, and one more for each frame
_PROGRAM = __file__


class Ended(Exception):
    """The process ended while it decoded."""


class Silent(Exception):
    """The process did not answer in time."""


class _Worker:
    """The process, with one request at a time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Any, seconds: float) -> Any:
        """The reply to a request; a process that has not replied after so many seconds is ended."""
        late = threading.Event()
        with self.lock:
            if self.process is None:
                pipe, nobody = subprocess.PIPE, subprocess.DEVNULL
                command = [sys.executable, "-P", _PROGRAM]
                self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nobody)
            process = self.process
            assert process.stdin is not None and process.stdout is not None
            watch = threading.Timer(seconds, lambda: (late.set(), process.kill()))
            watch.daemon = True
            watch.start()
            try:
                pickle.dump(request, process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
                process.stdin.flush()
                return pickle.load(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                code = self.close()
                if late.is_set():
                    raise Silent(f"no answer in {seconds:g} s") from error
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                raise Ended(f"it ended its decoder by {how}") from error
            finally:
                watch.cancel()

    def close(self) -> int:
        """Ends the process; returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        for pipe in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):  # what was not sent has nobody to go to
                pipe.close()
        return process.wait()


_worker = _Worker()


def _after_fork() -> None:
    """A forked process starts its own: this one's pipes belong to its parent."""
    global _worker
    _worker.process, _worker = None, _Worker()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(lambda: _worker.close())


def decode(source: Any, options: Mapping[str, Any]) -> list[Any]:
    """Decodes frames of a DICOM file as ``pydicom.pixels.iter_pixels`` does, in the other process.

    Args:
        source: the bytes of the file, or its dataset.
        options: of ``iter_pixels``.

    Returns:
        The stored values of each frame.

    Raises:
        Ended: if the decoder ended its process, and once more when it was tried again.
        Silent: if it has not answered after ``PATIENCE`` seconds, and one more for each frame.
        ValueError: with what the decoder said of a frame.
    """
    request, seconds = (source, dict(options)), PATIENCE + len(options.get("indices") or ())
    try:
        found = _worker.ask(request, seconds)
    except Ended:  # perhaps for another reason: memory, or somebody's signal
        found = _worker.ask(request, seconds)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _serve() -> None:
    """Replies to requests until nobody asks any more: frames, or the text of an error."""
    import io

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's affair
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # decoders print
    from pydicom.pixels.utils import iter_pixels

    while True:
        try:
            source, options = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            source = io.BytesIO(source) if isinstance(source, bytes) else source
            reply = list(iter_pixels(source, **options))
        except Exception as error:
            reply = str(error)
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


if __name__ == "__main__":
    _serve()
