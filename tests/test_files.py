"""Files are whole or not there."""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from fairgrpo_jax import files


def test_an_error_leaves_the_old_file(tmp_path):
    path = tmp_path / "page"
    files.write(path, "old")
    with pytest.raises(RuntimeError, match="power cut"), files.replacing(path) as file:
        file.write(b"half")
        raise RuntimeError("power cut")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["page"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files stands in for the full disk: the same call fails with the same kind of error."""
    path = tmp_path / "page"
    files.write(path, "old")
    code = f"""
import resource, signal
from pathlib import Path
from fairgrpo_jax import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try: files.write(Path({str(path)!r}), "new" * 1000)
except OSError as error: print(error.strerror)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "File too large\n" and path.read_text() == "old" and os.listdir(tmp_path) == ["page"]


def test_readers_never_see_a_part(tmp_path):
    path, texts = tmp_path / "page", ["a" * 300_000, "b" * 200_000]
    files.write(path, texts[0])
    ended, seen = threading.Event(), set()

    def read():
        while not ended.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(40):
        files.write(path, texts[turn % 2])
    ended.set()
    reader.join()
    assert seen <= {*texts}


def test_equal_text_is_not_written_again(tmp_path):
    path = tmp_path / "page"
    files.write(path, "ä")
    os.utime(path, (1, 1))
    files.write(path, "ä")
    assert path.stat().st_mtime == 1
    files.write(path, "ö")
    assert path.stat().st_mtime > 1 and path.read_text(encoding="utf-8") == "ö"


def test_a_user_without_a_home_keeps_files_among_temporary_ones(monkeypatch):
    """As in a container under any number; where there is a cache folder, no home is asked for."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("XDG_CACHE_HOME", "/kept")
    assert files.cache_folder() == Path("/kept/fairgrpo_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_folder().parent.parent == Path(tempfile.gettempdir())
