"""Batches encoded by threads and by real processes: the same, in order, bounded, and what happens when one dies."""

import dataclasses
import os
import signal
import threading
import time
from typing import Any, cast

import jax
import numpy as np
import pytest

from fairgrpo_jax import batches, config as options, grouping, policy, workers
from fairgrpo_jax.data.datasets import synthetic


RECORDS = synthetic.load("test", domains=("us", "ct"), scale=0.5).records


def encoder(**data):
    config = options.Config(data=options.Data(**data))
    architecture, processor = policy.describe(config.model, config.data)
    vocabulary = grouping.vocabulary(batches.groups_of(record, config.data) for record in RECORDS)
    return batches.Encoder(config.data, architecture, processor, ("ct", "us"), vocabulary)


def assert_same(got, wanted):
    assert [record.uid for record in got.records] == [record.uid for record in wanted.records]
    arrays = lambda batch: (batch.prompt, batch.domains, batch.groups)
    jax.tree.map(np.testing.assert_array_equal, arrays(got), arrays(wanted))


@pytest.fixture(scope="module")
def processes():
    with workers.Workers(encoder(workers=2, processes=True)) as pool:
        yield pool


def test_threads_and_processes_encode_what_the_encoder_does(processes):
    """21 records, in parts of 8, 8 and 5; with reference completions too."""
    asked = RECORDS[:21]
    plain = encoder()
    with workers.Workers(plain) as threads:
        for pool in (threads, processes):
            assert_same(pool.encode(asked), plain(asked))
            got, wanted = pool.submit(asked, 30).result(), plain.targets(asked, length=30)
            assert_same(got[0], wanted[0])
            for mine, theirs in zip(got[1:], wanted[1:], strict=True):
                np.testing.assert_array_equal(mine, theirs)


def test_prompts_come_through_shared_memory_that_is_given_back(processes, monkeypatch):
    """Where there is none, as in some containers, through a pipe; a block is unlinked as soon as it is copied."""
    seen, opened = [], workers._Sent.opened
    monkeypatch.setattr(workers._Sent, "opened", lambda self, block: seen.append(self.name) or opened(self, block))
    batch = processes.encode(RECORDS[:9])
    assert len(seen) == 2 and not any(os.path.exists(f"/dev/shm/{name}") for name in seen)
    assert_same(batch, encoder()(RECORDS[:9]))
    monkeypatch.setattr(workers.os, "statvfs", lambda path: os.statvfs_result([1] * 10))
    assert workers._Sent.of(batch, None) is None


def test_a_stream_knows_its_place_and_errors_come_at_their_batch(processes):
    bad = dataclasses.replace(RECORDS[4], question="why " * 100)
    asked = [RECORDS[0:2], RECORDS[2:4], [bad], RECORDS[6:8]]
    stream = processes.stream(asked, start=5)
    assert [record.uid for record in next(stream).records] == [record.uid for record in RECORDS[:2]]
    assert stream.get_state() == {"next_index": 6}
    next(stream)
    with pytest.raises(ValueError, match=f"record {bad.uid}: .*tokens"):
        next(stream)


@dataclasses.dataclass
class Slow:
    """Stands in for an encoder, to count what has begun: a prompt is the number of its record."""

    settings: options.Data
    begun: list
    lock: threading.Lock

    def __call__(self, records):
        with self.lock:
            self.begun += records
        prompt: Any = np.array(records)
        return batches.PromptBatch(prompt, list(records), np.array(records), np.array(records), np.arange(len(records)))


def test_only_a_few_batches_are_encoded_ahead():
    slow: Any = Slow(options.Data(workers=4), [], threading.Lock())
    taken, asked = [], ([n] for n in range(40))
    with workers.Workers(slow) as pool:
        for batch in pool.ahead(cast(Any, asked)):
            taken += batch.records
            time.sleep(0.002)
            assert len(slow.begun) <= len(taken) + workers.AHEAD + 1
    assert taken == [*range(40)]


def test_a_worker_that_is_killed_is_named():
    with workers.Workers(encoder(workers=1, processes=True)) as pool:
        pool.encode(RECORDS[:1])
        (worker,) = cast(Any, pool._pool)._processes
        os.kill(worker, signal.SIGINT)  # Ctrl-C is the parent's matter
        pool.encode(RECORDS[:1])
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(ValueError, match="worker process that was ended from outside.*fewer --data.workers"):
            pool.encode(RECORDS[:1])
