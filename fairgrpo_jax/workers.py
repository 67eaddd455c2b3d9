"""Encodes batches ahead of their use, in threads of this process or in processes of their own.

A batch is cut into parts of a few records, which are encoded side by side and joined in their order, so that its
content depends on neither the number of workers nor their kind. Processes pay where images are large and cores many:
what holds Python's lock is then not shared.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from fairgrpo_jax import batches, processes
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
        """Starts to encode a batch.

        Args:
            records: those of the batch.
            length: as in ``Encoder.targets``; None encodes prompts alone.

        Returns:
            A future of what the encoder returns; it raises a ValueError as the encoder does, and if a worker process
            was killed.
        """
        parts = [records[i : i + PART] for i in range(0, len(records), PART)]
        found = [self._pool.submit(self._encode, part, length) for part in parts]
        return self._joiner.submit(_joined, found)

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
    if isinstance(found[0], batches.PromptBatch):
        return batches.PromptBatch.joined(found)
    prompts, *arrays = zip(*found, strict=True)
    return batches.PromptBatch.joined(prompts), *(np.concatenate(array) for array in arrays)


def _apply(encoder: batches.Encoder, records: Sequence[Record], length: int | None) -> Any:
    return encoder(records) if length is None else encoder.targets(records, length=length)


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
    return _apply(_encoder, records, length)
