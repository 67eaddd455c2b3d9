"""The judge's cache between processes: one call a question, also when one of them is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.rewards import judge_cache, judge_prompts as prompts
from fairgrpo_jax.rewards.judge import Judge
from fairgrpo_jax.rewards.judge_cache import Cache
from tests.scripted_judge import Reply, Scripted


ROOT = Path(__file__).parent.parent
CHILD = """
import sys
from pathlib import Path
from fairgrpo_jax.config.judge import Judge as Options
from fairgrpo_jax.rewards import judge_cache, judge_prompts as prompts
from fairgrpo_jax.rewards.judge import Judge

url, cache, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
judge_cache.BEAT = 0.2
with Judge(Options(url=url, model="m", cache=cache, concurrency=4)) as judge:
    questions = [prompts.coherent(f"thought number {i};", "What?") for i in range(count)]
    print(judge.submit(questions).result()[:, 0].tolist(), flush=True)
"""


def thoughts(count):
    return [prompts.coherent(f"thought number {i};", "What?") for i in range(count)]


def child(server, cache, count):
    command = [sys.executable, "-c", CHILD, server.url, str(cache), str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def answer(body, before):
    """Yes to even numbers, a little late."""
    number = int(body["messages"][0]["content"].split("number ")[1].split(";")[0])
    return Reply(text="No" if number % 2 else "Yes", seconds=0.05)


def test_two_processes_ask_each_question_once(tmp_path):
    cache, count = tmp_path / "judge.sqlite", 40
    with Scripted(answer) as server:
        with Judge(Options(url=server.url, model="m", cache=cache, concurrency=4)) as judge:
            with child(server, cache, count) as other:
                server.wait_for(1)
                ours = judge.submit(thoughts(count)).result(timeout=100)[:, 0].tolist()
                theirs = other.communicate(timeout=100)[0]
            calls = judge.counts()["calls"]
            assert judge.billed().calls == count
    assert ours == [1.0, 0.0] * (count // 2) and theirs.strip() == str(ours)
    assert [server.times(f" {i};") for i in range(count)] == [1] * count
    assert 0 < calls < count, calls


def test_a_killed_process_loses_only_what_it_had_in_flight(tmp_path, monkeypatch):
    """The other answers its six first questions and holds the next four; it is killed while we wait for these."""
    monkeypatch.setattr(judge_cache, "STALE", 4.0)
    cache, count, held = tmp_path / "judge.sqlite", 20, threading.Event()

    def script(body, before):
        if 6 < len(server.arrived) <= 10:
            held.wait(100)
        return answer(body, before)

    with Scripted(script) as server, child(server, cache, count) as other:
        server.wait_for(10)
        in_flight = [arrival.text for arrival in server.arrived[6:10]]
        with Judge(Options(url=server.url, model="m", cache=cache, concurrency=4)) as judge:
            future = judge.submit(thoughts(count))
            server.wait_for(20)
            os.kill(other.pid, signal.SIGKILL)
            scores = future.result(timeout=100)[:, 0].tolist()
            counts = judge.counts()
        held.set()
    assert scores == [1.0, 0.0] * (count // 2)
    assert counts["calls"] == 14 and counts["cache_hits"] == 6
    times = {arrival.text: server.times(arrival.text) for arrival in server.arrived}
    assert len(times) == count and all(n == 1 + (text in in_flight) for text, n in times.items())


def test_who_fails_lets_the_others_ask(tmp_path):
    script = lambda body, before: Reply(text="?") if before == 0 else Reply()
    soon = 9.0  # before a claim would be taken over
    with Scripted(script) as server:
        shared = Options(
            url=server.url, model="m", cache=tmp_path / "c", attempts=1, attempt_seconds=soon, total_seconds=soon
        )
        with Judge(shared) as first, Judge(shared) as second:
            assert np.isnan(first.submit(thoughts(1)).result(timeout=60)).all()
            assert (second.submit(thoughts(1)).result(timeout=60) == 1).all()


def test_who_asks_for_long_keeps_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(judge_cache, "BEAT", 0.1)
    monkeypatch.setattr(judge_cache, "STALE", 1.0)
    done = threading.Event()
    with Scripted(lambda body, before: Reply(seconds=0 * done.wait(60))) as server:
        shared = Options(url=server.url, model="m", cache=tmp_path / "c")
        with Judge(shared) as first, Judge(shared) as second:
            ours = first.submit(thoughts(1))
            server.wait_for(1)
            theirs = second.submit(thoughts(1))
            time.sleep(2)  # twice as long as a claim lasts of which nothing is heard
            done.set()
            assert ours.result(timeout=60) == theirs.result(timeout=60) == 1
    assert len(server.arrived) == 1


def test_a_claim_is_taken_over_only_when_its_owner_stands_still(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(judge_cache.time, "monotonic", lambda: now)
    ours, theirs = Cache(tmp_path / "c"), Cache(tmp_path / "c")
    assert theirs.claim("a") is True and ours.claim("a") is False
    for _ in range(5):  # they live
        now += judge_cache.STALE
        theirs.beat()
        assert ours.claim("a") is False
    now += judge_cache.STALE + 1
    assert ours.claim("a") is True  # they stood still
    assert theirs.store("a", (1.0,), "late but first") == (1.0,)  # and went on all the same
    assert ours.store("a", (0.0,), "second") == (1.0,)
    assert ours.claim("a") == (1.0,) and theirs.claim("a") == (1.0,)
    assert theirs.claim("b") is True
    theirs.release("b")
    assert ours.claim("b") is True and theirs.claim("b") is False
    ours.close()  # gives back what it has
    assert theirs.claim("b") is True
    theirs.close()


def test_what_is_written_together_is_kept_together_or_not_at_all(tmp_path):
    disk = judge_cache.Disk(tmp_path / "c")
    blocked = threading.Event()
    first = disk.run(lambda cache: blocked.wait(30))  # holds the thread, so that the next two share a transaction
    time.sleep(0.05)
    stored, failed = disk.run(Cache.store, "a", (1.0,), "Yes"), disk.run(lambda cache: 1 // 0)
    blocked.set()
    assert first.result(30)
    with pytest.raises(ZeroDivisionError):
        stored.result(30)
    with pytest.raises(ZeroDivisionError):
        failed.result(30)
    assert disk.run(Cache.found, ["a"]).result(30) == {}
    disk.close()
    with pytest.raises(RuntimeError, match="closed"):
        disk.run(Cache.found, ["a"])


def test_a_file_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    text, other, folder = tmp_path / "notes.txt", tmp_path / "other.sqlite", tmp_path
    text.write_text("no database, but long enough to have a header of a hundred bytes. " * 3)
    with sqlite3.connect(other) as file:
        file.execute("CREATE TABLE patients (id)")
    file.close()
    for path in (text, other, folder, text / "below"):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(ValueError, match=f"got judge.cache={path} .*; wanted a file of ours"):
            Judge(Options(model="m", cache=path))
        assert not path.is_file() or path.read_bytes() == before


def test_the_file_holds_no_text_of_ours(tmp_path):
    with Scripted(answer) as server, Judge(Options(url=server.url, model="m", cache=tmp_path / "c")) as judge:
        assert np.isfinite(judge.submit(thoughts(2)).result(timeout=60)).all()
    assert b"thought" not in (tmp_path / "c").read_bytes()
