"""What a language model has answered, in a SQLite file that processes share: one call a question among all of them.

Before a question is asked it is claimed. A claim belongs to an owner, one process, who changes a counter, its beat,
every few seconds while it holds claims. Whoever waits for a claim watches that counter by a clock of its own: if it
stands still for ``STALE`` seconds, the owner is gone and the claim is taken over. No two clocks are compared. An answer
is committed before anybody sees it, and the first one stays: all processes get the same. What waits together for the
disk shares a transaction (``Disk``), because each is forced to disk, and that takes longer than a quick answer.

A process that was stopped for longer than ``STALE`` and goes on has lost its claims; what it has in flight may then be
paid twice. The journal is SQLite's plain one, which works on network file systems that pass locks on.
"""

import contextlib
import json
import queue
import random
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar


P = ParamSpec("P")
T = TypeVar("T")

VERSION = 1
BEAT = 3.0  # seconds
STALE = 15.0  # seconds; five beats
PATIENCE = 60.0  # seconds for the lock of the file
PAUSE = 0.004  # seconds after a transaction, in which another process gets its turn
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, scores TEXT NOT NULL, reply TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS owners (owner TEXT PRIMARY KEY, beat INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS billed (
    model TEXT PRIMARY KEY, calls INTEGER NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL
) WITHOUT ROWID;
"""


class Billed(NamedTuple):
    """What a model has cost: the calls it answered, whether or not the answers could be used, and their tokens."""

    calls: int
    tokens_in: int
    tokens_out: int


class Cache:
    """An open cache; for one thread.

    >>> ours, theirs = Cache(None), Cache(None)  # in memory, each its own
    >>> ours.claim("key"), ours.store("key", (0.5,), "R2: 3"), ours.claim("key"), theirs.claim("key")
    (True, (0.5,), (0.5,), True)
    >>> ours.close(), theirs.close()
    (None, None)
    """

    def __init__(self, path: Path | None, option: str = "judge.cache"):
        """Opens or creates the file; None keeps everything in memory. ``option`` is its name in errors.

        Raises:
            ValueError: if the file is none of ours, or cannot be written.
        """
        self._owner = uuid.uuid4().hex
        self._seen: dict[str, tuple[int, float]] = {}  # owner -> its beat, and since when it is that
        wanted = "a file of ours, or a new one in a folder that can be written"
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path or ":memory:", isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise ValueError(f"got {option}={path} ({error}); wanted {wanted}") from error
        try:
            with self.transaction():
                (version,) = self._file.execute("PRAGMA user_version").fetchone()
                (tables,) = self._file.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if version != VERSION and (version or tables):
                    raise sqlite3.DatabaseError(f"version {version}, not {VERSION}")
                for statement in SCHEMA.split(";"):
                    self._file.execute(statement)
                self._file.execute(f"PRAGMA user_version = {VERSION}")
        except sqlite3.Error as error:
            self._file.close()
            raise ValueError(f"got {option}={path} ({error}); wanted {wanted}") from error

    def found(self, keys: Sequence[str]) -> dict[str, tuple[Any, ...]]:
        """The stored values of those keys that have any."""
        query = "SELECT scores FROM answers WHERE key = ?"
        rows = {key: self._file.execute(query, (key,)).fetchone() for key in keys}
        return {key: tuple(json.loads(row[0])) for key, row in rows.items() if row is not None}

    def claim(self, key: str) -> tuple[Any, ...] | bool:
        """The stored values; else True if the key is now ours to ask, False if a living process asks it."""
        if stored := self.found([key]):
            return stored[key]
        row = self._file.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
        if row is not None and row[0] != self._owner and not self._gone(row[0]):
            return False
        self._file.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, self._owner))
        self.beat()
        return True

    def store(self, key: str, scores: tuple[Any, ...], reply: str) -> tuple[Any, ...]:
        """Keeps an answer and gives the claim back; returns the values that the key has from now on."""
        self._file.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, json.dumps(scores), reply))
        self.release(key)
        return self.found([key])[key]

    def release(self, key: str) -> None:
        """Gives a claim back without an answer."""
        self._file.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self._owner))

    def beat(self) -> None:
        """Shows the others that this process lives."""
        self._file.execute("INSERT INTO owners VALUES (?, 0) ON CONFLICT DO UPDATE SET beat = beat + 1", (self._owner,))

    def bill(self, model: str, tokens_in: int, tokens_out: int) -> None:
        """Adds one answered call of a model to what it has cost."""
        self._file.execute(
            "INSERT INTO billed VALUES (?, 1, ?, ?) ON CONFLICT DO UPDATE SET calls = calls + 1,"
            " tokens_in = tokens_in + excluded.tokens_in, tokens_out = tokens_out + excluded.tokens_out",
            (model, tokens_in, tokens_out),
        )

    def billed(self, model: str) -> Billed:
        """What a model has cost, over all processes that shared this file."""
        query = "SELECT calls, tokens_in, tokens_out FROM billed WHERE model = ?"
        return Billed(*(self._file.execute(query, (model,)).fetchone() or (0, 0, 0)))

    def close(self) -> None:
        """Gives all claims of this process back and closes the file."""
        try:
            with self.transaction():
                self._file.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))
                self._file.execute("DELETE FROM owners WHERE owner = ?", (self._owner,))
        finally:
            self._file.close()

    def _gone(self, owner: str) -> bool:
        """Whether an owner's beat has not changed for ``STALE`` seconds of watching; those without one are gone."""
        row = self._file.execute("SELECT beat FROM owners WHERE owner = ?", (owner,)).fetchone()
        if row is None:
            return True
        now = time.monotonic()
        beat, since = self._seen.get(owner, (None, now))
        if beat != row[0]:
            self._seen[owner] = (row[0], now)
            return False
        return now - since > STALE

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Locks the file, so that what is read holds until the end of the block; all writes are kept, or none."""
        end = time.monotonic() + PATIENCE
        with self._file:
            self._file.execute("PRAGMA busy_timeout = 0")
            while True:
                try:
                    self._file.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError as error:  # SQLite's own waiting sleeps too long to get a turn
                    if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                        raise
                    time.sleep(random.uniform(0.5, 1.5) * PAUSE)
            self._file.execute(f"PRAGMA busy_timeout = {PATIENCE * 1000:.0f}")  # for the end, when readers may be there
            yield


class Disk:
    """A cache in a thread of its own; what waits together is done in one transaction.

    >>> disk = Disk(None)
    >>> disk.run(Cache.claim, "key").result(), disk.run(Cache.found, ["key"]).result()
    (True, {})
    >>> disk.close()
    """

    def __init__(self, path: Path | None, option: str = "judge.cache"):
        """Opens the cache; ``option`` is its name in errors.

        Raises:
            ValueError: as ``Cache`` does.
        """
        self._waiting: queue.SimpleQueue[tuple[Callable[[Cache], Any], Future[Any]] | None] = queue.SimpleQueue()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(path, option, opened), name="judge cache", daemon=True)
        self._thread.start()
        opened.result()

    def run(self, method: Callable[Concatenate[Cache, P], T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Runs a method of the cache; the future is done when what it wrote is on disk.

        It runs even if the future is cancelled: an answer that was paid for is kept, whoever still wants it.
        """
        if not self._thread.is_alive():
            raise RuntimeError("got a call of a judge that is closed")
        future: Future[T] = Future()
        self._waiting.put((lambda cache: method(cache, *args, **kwargs), future))
        return future

    def close(self) -> None:
        """Does what is waiting, and closes the cache."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self, path: Path | None, option: str, opened: Future[None]) -> None:
        try:
            cache = Cache(path, option)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        ended = False
        while not ended:
            jobs = [self._waiting.get()]
            while not self._waiting.empty():
                jobs.append(self._waiting.get())
            ended = None in jobs
            todo = [job for job in jobs if job is not None]
            try:
                with cache.transaction():
                    results = [function(cache) for function, _ in todo]
            except Exception as error:
                for _, future in todo:
                    with contextlib.suppress(InvalidStateError):  # cancelled
                        future.set_exception(error)
            else:
                for (_, future), result in zip(todo, results, strict=True):
                    with contextlib.suppress(InvalidStateError):
                        future.set_result(result)
            time.sleep(PAUSE)
        cache.close()
