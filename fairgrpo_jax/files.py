"""Files that are whole or not there: written beside their final path, forced to disk, then renamed."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends; an error leaves the old one as it was.

    A process that is killed leaves its draft, ``.NAME.tmp``, which the next one that writes the file takes over.

    >>> path = Path(tempfile.mkdtemp()) / "page.html"
    >>> with replacing(path) as file:
    ...     _ = file.write(b"whole")
    >>> path.read_text(), [found.name for found in path.parent.iterdir()]
    ('whole', ['page.html'])
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        with draft.open("wb") as file:
            yield file
            sync(file)
        os.replace(draft, path)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise
    _sync_folder(path.parent)


def write(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 as ``replacing`` does; a file that holds the same already is not touched."""
    data = text.encode()
    with contextlib.suppress(OSError):
        if path.stat().st_size == len(data) and path.read_bytes() == data:
            return
    with replacing(path) as file:
        file.write(data)


def sync(file: BinaryIO) -> None:
    """Forces what was written to an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def require_writable(folder: Path) -> None:
    """Creates a folder, and a file in it that is removed again.

    Raises:
        OSError: if that is not possible.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def cache_folder() -> Path:
    """Where files are kept that may be removed at any time: in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Where a user has neither, as in a container under any number, it is a folder of temporary files.
    """
    told = os.environ.get("XDG_CACHE_HOME")
    try:
        base = Path(told) if told else Path.home() / ".cache"
    except RuntimeError:
        base = Path(tempfile.gettempdir()) / f"cache-{os.getuid()}"
    return base / "fairgrpo_jax"


def _sync_folder(folder: Path) -> None:
    """Forces a rename to disk, where the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
