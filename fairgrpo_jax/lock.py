"""One process at a time in a run folder: an advisory lock that names its holder.

Whether a holder is still there is decided in two ways. On one machine, ``flock``: the kernel gives the lock back when
the process ends, however it ends. Between machines a shared file system may not pass ``flock`` on (Lustre without
``-o flock``, some FUSE mounts), so the holder also touches the file every ``BEAT`` seconds. A lock of another machine
is watched for ``WATCH`` seconds, by the file system's own times and no clock of ours: if its time moves, the holder
lives; if not, it is gone and the lock is taken over. A holder that ends by itself empties the file, so that nobody has
to watch.

Not covered: two processes started within a second on two machines that do not see each other's ``flock``.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


BEAT = 10.0  # seconds
WATCH = 35.0  # seconds; three beats and what a slow server adds


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds ``folder/lock`` while the block runs.

    Raises:
        ValueError: if another process holds it, with its pid, host and time.
    """
    path = folder / "lock"
    with path.open("a+") as file:
        _take(file, path)
        file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        json.dump({"pid": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        ended = threading.Event()
        threading.Thread(target=_beat, args=(file.fileno(), ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            file.truncate(0)


def _take(file: IO[str], path: Path) -> None:
    """Takes the lock of an open file, or raises."""
    passed_on = True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            raise ValueError(_refusal(path, _holder(path))) from error
        passed_on = False
    holder = _holder(path)
    if not holder or (passed_on and holder.get("host") == socket.gethostname()):
        return
    print(f"{path}: of pid {holder.get('pid')} on {holder.get('host')}; watching {WATCH:.0f} s whether it lives")
    seen, end = os.stat(path).st_mtime_ns, time.monotonic() + WATCH
    while time.monotonic() < end:
        time.sleep(min(1.0, WATCH / 10))
        os.listdir(path.parent)  # clients of NFS look at the server again
        if os.stat(path).st_mtime_ns != seen or _holder(path) != holder:
            raise ValueError(_refusal(path, _holder(path)))
    print(f"{path}: no sign of life, taken over", flush=True)


def _holder(path: Path) -> dict:
    """What the holder wrote; empty if it has given the lock back or not yet written."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _refusal(path: Path, holder: dict) -> str:
    who = "pid {pid} on {host}, since {since}".format_map({"pid": "?", "host": "?", "since": "?"} | holder)
    return (
        f"got a run folder {path.parent} in which another process is at work ({who}); wanted it to end first, or "
        "another --workdir"
    )


def _beat(handle: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(handle)
