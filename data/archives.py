"""Reads files inside zip archives and nested archives in place; thread-safe.

The directory of an archive is read once per process. A file is then read by its offset (``os.pread``), so threads share
one handle without waiting for each other, and nothing is unpacked to disk. The one exception is an archive that is
itself compressed inside another: it is unpacked once per process to a nameless temporary file.
"""

import functools
import io
import os
import shutil
import struct
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any


LARGEST = 2 << 30  # bytes of a member that is read into memory


class _Archive:
    """One zip: a part of an open file, and its directory."""

    outer: "_Archive | None" = None

    def __init__(self, path: str, file: int, start: int, size: int):
        self.path, self.file, self.start, self.size = path, file, start, size
        try:
            with zipfile.ZipFile(_Part(file, start, size)) as archive:
                self.entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError, struct.error) as error:
            raise _broken(path, error) from error

    def entry(self, name: str) -> zipfile.ZipInfo:
        if name not in self.entries:
            raise ValueError(f"archive {self.path} has no member {name}; download it again from the dataset's owner")
        return self.entries[name]

    def offset(self, entry: zipfile.ZipInfo) -> int:
        """The position of an entry's bytes in the file, after its local header."""
        header = os.pread(self.file, 30, self.start + entry.header_offset)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise _broken(self.path, f"no header of {entry.filename}")
        return self.start + entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))

    def read(self, name: str) -> bytes:
        entry = self.entry(name)
        if entry.flag_bits & 1:
            raise ValueError(f"archive {self.path}: {name} is encrypted; unpack the archive with its password first")
        if entry.file_size > LARGEST:
            raise ValueError(f"archive {self.path}: {name} has {entry.file_size} bytes; wanted at most {LARGEST}")
        content = os.pread(self.file, entry.compress_size, self.offset(entry))
        try:
            content = _UNPACK[entry.compress_type](content, entry.file_size)
        except KeyError:
            raise ValueError(
                f"archive {self.path}: {name} is packed by method {entry.compress_type}; unpack the archive, or "
                "pack it again with deflate"
            ) from None
        except zlib.error as error:
            raise _broken(self.path, f"{name}: {error}") from error
        if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
            raise _broken(self.path, f"{name} does not have its checksum")
        return content

    def inner(self, name: str) -> "_Archive":
        """Opens an archive that is a member of this one."""
        entry, path = self.entry(name), f"{self.path}!{name}"
        if entry.compress_type == zipfile.ZIP_STORED:
            return _Archive(path, self.file, self.offset(entry), entry.file_size)
        with tempfile.TemporaryFile() as copy:
            source = zipfile.ZipFile(_Part(self.file, self.start, self.size))
            try:
                with source, source.open(entry) as packed:
                    shutil.copyfileobj(packed, copy, 1 << 20)
                copy.flush()
                handle = os.dup(copy.fileno())
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
                raise _broken(path, error) from error
        archive = _Archive(path, handle, 0, entry.file_size)
        weakref.finalize(archive, os.close, handle)
        return archive


class _Part(io.RawIOBase):
    """A range of an open file as a file object."""

    def __init__(self, file: int, start: int, size: int):
        self.file, self.start, self.size, self.place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        if place < 0:
            raise OSError(f"seek to {place}")
        self.place = place
        return place

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        count = max(0, min(len(view), self.size - self.place))
        content = os.pread(self.file, count, self.start + self.place)
        view[: len(content)] = content
        self.place += len(content)
        return len(content)


def _inflate(packed: bytes, size: int) -> bytes:
    """Unpacks at most one byte more than the directory says, however much the member holds."""
    return zlib.decompressobj(wbits=-zlib.MAX_WBITS).decompress(packed, size + 1)


_UNPACK: dict[int, Callable[[bytes, int], bytes]] = {
    zipfile.ZIP_STORED: lambda packed, size: packed,
    zipfile.ZIP_DEFLATED: _inflate,
}


_LOCK = threading.Lock()


def read(path: str | Path, member: str) -> bytes:
    """Reads a file inside an archive.

    Args:
        path: the zip file.
        member: the name inside, with ``"!"`` after each nested archive.

    Raises:
        ValueError: if archive or member do not exist, are broken or encrypted, or a checksum is wrong.

    Example:
        >>> import pathlib, tempfile, zipfile
        >>> from fairgrpo_jax.data import archives
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.zip"
        >>> with zipfile.ZipFile(path, "w") as archive:
        ...     archive.writestr("figures/x.txt", "seen")
        >>> archives.members(path), archives.read(path, "figures/x.txt")
        (('figures/x.txt',), b'seen')
    """
    *way, name = member.split("!")
    return _opened(path, tuple(way)).read(name)


def members(path: str | Path, *, inside: str = "") -> tuple[str, ...]:
    """Names of the files in an archive, in its order, for use with ``read``.

    Args:
        path: the zip file.
        inside: a member that is itself an archive: returns the names of its files, prefixed by it.

    Raises:
        ValueError: as ``read``.
    """
    way = tuple(inside.split("!")) if inside else ()
    return tuple("!".join((*way, name)) for name in _opened(path, way).entries)


def _opened(path: str | Path, way: tuple[str, ...]) -> _Archive:
    try:
        state = os.stat(path)
    except OSError as error:
        raise ValueError(f"archive {path} does not exist; download it again from the dataset's owner") from error
    with _LOCK:  # otherwise two threads would unpack one archive twice
        return _kept(str(path), state.st_mtime_ns, state.st_size, way)


@functools.lru_cache(maxsize=32)
def _kept(path: str, changed: int, size: int, way: tuple[str, ...]) -> _Archive:
    if way:
        outer = _kept(path, changed, size, way[:-1])
        archive = outer.inner(way[-1])
        archive.outer = outer  # it owns the file handle
        return archive
    file = os.open(path, os.O_RDONLY)
    try:
        archive = _Archive(path, file, 0, size)
    except ValueError:
        os.close(file)
        raise
    weakref.finalize(archive, os.close, file)
    return archive


def _broken(path: str, error: object) -> ValueError:
    return ValueError(f"archive {path} is broken ({error}); download it again from the dataset's owner")
