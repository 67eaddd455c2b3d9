"""One process at a time in a run folder, on one machine and between machines; real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from fairgrpo_jax import lock


HOLDER = "import sys, time; from pathlib import Path; from fairgrpo_jax import lock\n"
HOLDER += "with lock.held(Path(sys.argv[1])):\n print('held', flush=True)\n time.sleep(60)"


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_process_is_told_who_is_there(tmp_path, other):
    before = (tmp_path / "lock").read_bytes()
    with pytest.raises(ValueError, match=rf"another process is at work \(pid {other.pid} on \S+, since 20") as refusal:
        lock.held(tmp_path).__enter__()
    assert "\n" not in str(refusal.value) and (tmp_path / "lock").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_holder_holds_nothing(tmp_path, other, number):
    other.send_signal(number)
    other.wait()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert (tmp_path / "lock").read_text() == ""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "WATCH", 1.0)


def foreign(path):
    path.write_text(json.dumps({"pid": 12, "host": "node-7", "since": "2026-11-28 10:00:00+00:00"}))


def test_a_lock_of_another_machine_that_is_gone_is_taken_over(tmp_path, quick, capsys):
    """As where the file system does not pass flock on: this machine gets it, and the file names another one."""
    foreign(tmp_path / "lock")
    with lock.held(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert "of pid 12 on node-7; watching" in capsys.readouterr().out


def test_a_lock_of_another_machine_that_lives_is_respected(tmp_path, quick):
    """The other machine is a process that touches the file and holds no flock."""
    foreign(tmp_path / "lock")
    beat = f"import os, time\nwhile True: os.utime({str(tmp_path / 'lock')!r}); time.sleep(0.05)"
    with subprocess.Popen([sys.executable, "-c", beat]) as process:
        time.sleep(0.3)
        with pytest.raises(ValueError, match="another process is at work .pid 12 on node-7, since 2026-11-28 10:00:00"):
            lock.held(tmp_path).__enter__()
        process.kill()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == 12


def test_a_holder_shows_that_it_lives(tmp_path, quick):
    with lock.held(tmp_path):
        os.utime(tmp_path / "lock", (1, 1))
        time.sleep(0.5)
        assert (tmp_path / "lock").stat().st_mtime > 1


def test_without_flock_a_process_of_this_machine_is_watched_too(tmp_path, quick, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with lock.held(tmp_path):
        with pytest.raises(ValueError, match=f"pid {os.getpid()} on"):
            lock.held(tmp_path).__enter__()
