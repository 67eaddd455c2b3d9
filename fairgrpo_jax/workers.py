"""Encodes batches ahead of their use, in threads of this process or in processes of their own.

A batch is cut into parts of a few records, which are encoded side by side and joined in their order, so that its
content depends on neither the number of workers nor their kind. Processes pay where images are large and cores many:
what holds Python's lock is then not shared.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import shared_memory
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import batches, hosts, processes
from fairgrpo_jax.data.record import Record


PART = 8  # records that a worker encodes at a time
AHEAD = 2  # batches that are ready or being prepared beside the one in use


class Workers:
    """Workers of a run, of the number and kind that its options say.

    Processes start with the first batch, import this library and keep an encoder of their own. They are ended by
    ``close``, by the end of a ``with`` statement, and when this process ends.

    Args:
        encoder: the run's; ``data.workers`` and ``data.processes`` are those of its settings.
    """

    def __init__(self, encoder: batches.Encoder):
        self.encoder, settings = encoder, encoder.settings
        self._pool: concurrent.futures.Executor
        if settings.processes:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                settings.workers, multiprocessing.get_context("spawn"), _begin, (encoder,)
            )
            self._encode: Callable[..., Any] = _encode
        else:
            self._pool = concurrent.futures.ThreadPoolExecutor(settings.workers)
            self._encode = functools.partial(_apply, encoder)
        self._joiner = concurrent.futures.ThreadPoolExecutor(AHEAD + 1)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; what has not begun is dropped."""
        for pool in (self._pool, self._joiner):
            pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, records: Sequence[Record], length: int | None = None) -> concurrent.futures.Future[Any]:
        """Starts to encode a batch; of several processes, each encodes its rows.

        Args:
            records: those of the batch, of all processes.
            length: as in ``Encoder.targets``; None encodes prompts alone.

        Returns:
            A future of what the encoder returns; it raises a ValueError as the encoder does, and if a worker process
            was killed.
        """
        own = records[hosts.rows(len(records))]
        parts = [own[i : i + PART] for i in range(0, len(own), PART)]
        found = [self._pool.submit(self._encode, part, length) for part in parts]
        if hosts.count() == 1:
            return self._joiner.submit(_joined, found)
        return self._joiner.submit(self._of_all, found, records)

    def _of_all(self, parts: Sequence[concurrent.futures.Future[Any]], records: Sequence[Record]) -> Any:
        """The prompts of this process as part of a batch of all."""
        found = _joined(parts)
        batch, rest = (found, ()) if isinstance(found, batches.PromptBatch) else (found[0], found[1:])
        held = np.arange(len(records))[hosts.rows(len(records))]
        encode = lambda records: self.encoder(records).prompt
        whole = batches.PromptBatch(batch.prompt, list(records), *self.encoder.labels(records), held, encode)
        return (whole, *rest) if rest else whole

    def encode(self, records: Sequence[Record]) -> batches.PromptBatch:
        """Encodes a batch of prompts, and waits for it."""
        return self.submit(records).result()

    def ahead(self, asked: Iterable[Sequence[Record]], length: int | None = None) -> Iterator[Any]:
        """Encodes batches in their order, a bounded number ahead of their use."""
        rest = iter(asked)
        pending = collections.deque(self.submit(records, length) for records in itertools.islice(rest, AHEAD + 1))
        while pending:
            result = pending.popleft().result()
            pending.extend(self.submit(records, length) for records in itertools.islice(rest, 1))
            yield result

    def stream(self, asked: Iterable[Sequence[Record]], start: int, length: int | None = None) -> "Stream":
        """An endless stream of encoded batches; ``start`` is the number of the first, where ``asked`` begins."""
        return Stream(self.ahead(asked, length), start)


class Stream:
    """An endless iterator over encoded batches that knows its place."""

    def __init__(self, encoded: Iterator[Any], start: int):
        self._encoded, self._next = encoded, start

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        found = next(self._encoded)
        self._next += 1
        return found

    def get_state(self) -> dict[str, int]:
        """``next_index``, the number of batches that have been returned since the beginning."""
        return {"next_index": self._next}


def _joined(parts: Sequence[concurrent.futures.Future[Any]]) -> Any:
    try:
        found = [part.result() for part in parts]
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ValueError(
            "got a worker process that was ended from outside, for want of memory perhaps; wanted it alive: fewer "
            "--data.workers, or more memory"
        ) from error
    blocks = [part.block() for part in found if isinstance(part, _Sent)]
    try:
        return _copied(found, blocks)
    finally:
        for block in blocks:
            with contextlib.suppress(BufferError):  # where an error still holds what is in it
                block.close()
            block.unlink()


def _copied(found: Sequence[Any], blocks: Sequence[shared_memory.SharedMemory]) -> Any:
    """The parts of a batch as one, in memory of this process."""
    rest = iter(blocks)
    parts = [part.opened(next(rest)) if isinstance(part, _Sent) else part for part in found]
    if isinstance(parts[0], batches.PromptBatch):
        return batches.PromptBatch.joined(parts)
    prompts, *arrays = zip(*parts, strict=True)
    return batches.PromptBatch.joined(prompts), *(np.concatenate(array) for array in arrays)


def _apply(encoder: batches.Encoder, records: Sequence[Record], length: int | None) -> Any:
    return encoder(records) if length is None else encoder.targets(records, length=length)


# ---- in a process of its own -----------------------------------------------------------------------------------------


_encoder: batches.Encoder | None = None  # of a worker process


def _begin(encoder: batches.Encoder) -> None:
    """Prepares a worker process: it takes no accelerator, and ends when its parent does, not at Ctrl-C."""
    global _encoder
    jax.config.update("jax_platforms", "cpu")
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    processes.end_with_parent()
    _encoder = encoder


def _encode(records: Sequence[Record], length: int | None) -> Any:
    assert _encoder is not None
    found = _apply(_encoder, records, length)
    batch, rest = (found, None) if isinstance(found, batches.PromptBatch) else (found[0], found[1:])
    return _Sent.of(batch, rest) or found


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an array lies in shared memory."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A part of a batch whose prompts are in shared memory, since a pipe would copy their patches several times."""

    name: str
    batch: batches.PromptBatch  # with places instead of the prompts' arrays
    rest: tuple | None  # targets and their mask

    @classmethod
    def of(cls, batch: batches.PromptBatch, rest: tuple | None) -> "_Sent | None":
        """Moves the prompts into shared memory; None where there is too little, as in some containers."""
        sizes = [-(-x.nbytes // 64) * 64 for x in jax.tree.leaves(batch.prompt)]
        folder = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        if folder is None or folder.f_bavail * folder.f_frsize < 2 * sum(sizes):
            return None
        block = shared_memory.SharedMemory(create=True, size=sum(sizes))
        offsets = iter(itertools.accumulate(sizes, initial=0))

        def put(x: np.ndarray) -> Any:
            place = _Place(next(offsets), x.shape, x.dtype)
            _view(block, place)[...] = x
            return place

        prompt = jax.tree.map(put, batch.prompt)
        block.close()
        return cls(block.name, dataclasses.replace(batch, prompt=prompt), rest)

    def block(self) -> shared_memory.SharedMemory:
        """The memory, which the receiver closes and unlinks."""
        return shared_memory.SharedMemory(self.name)

    def opened(self, block: shared_memory.SharedMemory) -> Any:
        """What the encoder returned, its prompts still in the shared memory."""
        prompt = jax.tree.map(lambda place: _view(block, place), self.batch.prompt)
        batch = dataclasses.replace(self.batch, prompt=prompt)
        return batch if self.rest is None else (batch, *self.rest)


def _view(block: shared_memory.SharedMemory, place: _Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, block.buf, place.offset)
