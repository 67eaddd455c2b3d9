"""Order, proportions and resumption of the batches, on sources small enough to count by hand."""

import json
from collections import Counter
from typing import Any

import pytest

from fairgrpo_jax.data import mixture as mixing
from fairgrpo_jax.data.mixture import iterate
from fairgrpo_jax.data.record import Record, RecordList


def mixture(sources, **options) -> Any:
    """The function under test; Grain types its items as perhaps None, which these are not."""
    return mixing.mixture(sources, **options)


def source(name, count):
    rows = (Record(f"{name}/{i}", name, "", (), "?", "x", (), f"{i}", None, None, {}, "train") for i in range(count))
    return RecordList(tuple(rows))


A, B, C = source("a", 50), source("b", 20), source("c", 30)


def uids(batches):
    return [[record.uid for record in batch] for batch in batches]


def names(records):
    return Counter(record.dataset for record in records)


def test_an_epoch_is_every_record_once_and_the_next_has_another_order():
    batches = mixture([A, B, C], batch_size=10, seed=3)
    first, second = (sum(uids(batches[i] for i in range(start, start + 10)), []) for start in (0, 10))
    everything = sorted(record.uid for s in (A, B, C) for record in s)
    assert sorted(first) == everything and sorted(second) == everything
    assert first != second and first != everything


def test_proportions_are_kept_in_every_batch():
    batches = mixture([A, B, C], batch_size=20, seed=0, weights=(0.5, 0.2, 0.3))
    assert all(names(batches[i]) == {"a": 10, "b": 4, "c": 6} for i in range(30))


def test_proportions_do_not_drift_when_weights_are_awkward():
    sizes = {"a": 4000, "b": 539, "c": 271}
    counts = names(mixture([A, B, C], batch_size=4810, seed=0, weights=list(sizes.values()))[0])
    assert all(abs(counts[name] - size) <= 3 for name, size in sizes.items())


def test_weights_are_not_truncated():
    """0.21 / 0.07 is a little less than 3 in floating point."""
    counts = names(mixture([A, B], batch_size=2000, seed=0, weights=(0.07, 0.21))[0])
    assert counts == {"a": 500, "b": 1500}


def test_seeds_and_sources_have_orders_of_their_own():
    same = [source("x", 40), source("y", 40)]
    one, again, other = (mixture(same, batch_size=80, seed=seed)[0] for seed in (1, 1, 2))
    assert uids([one]) == uids([again]) and uids([one]) != uids([other])
    x, y = ([r.patient for r in one if r.dataset == name] for name in "xy")
    assert sorted(x) == sorted(y) and x != y


def test_the_global_batch_is_the_same_for_any_number_of_processes():
    def together(processes, step):
        parts = [
            mixture([A, B, C], batch_size=20, seed=0, weights=(5, 2, 3), process=p, processes=processes)[step]
            for p in range(processes)
        ]
        assert all(len(part) == 20 // processes for part in parts)
        return parts

    for step in (0, 7):
        (reference,) = uids(together(1, step))
        for processes in (2, 4):
            assert sum(uids(together(processes, step)), []) == reference  # and in order of process
    for part in together(2, 5):  # and no process is left with one source
        assert names(part) == {"a": 5, "b": 2, "c": 3}


def test_resume_gives_exactly_the_batches_of_an_unbroken_run():
    batches = mixture([A, B, C], batch_size=7, seed=0)

    def encode(batch):
        return [record.uid for record in batch]

    unbroken = iterate(batches, encode=encode)
    head = [next(unbroken) for _ in range(33)]  # into the third epoch
    state = json.loads(json.dumps(unbroken.get_state()))
    tail = [next(unbroken) for _ in range(8)]
    assert state == {"next_index": 33}
    assert head + tail == uids(batches[i] for i in range(41))
    resumed = iterate(mixture([A, B, C], batch_size=7, seed=0), encode=encode)
    resumed.set_state(state)
    assert [next(resumed) for _ in range(8)] == tail
    started = iterate(batches, start=33, encode=encode, threads=3, prefetch=2)
    assert started.get_state() == state and [next(started) for _ in range(8)] == tail


def test_resume_with_another_number_of_processes():
    state = {"next_index": 9}
    whole = mixture([A, B, C], batch_size=12, seed=0)[9]
    parts = [iterate(mixture([A, B, C], batch_size=12, seed=0, process=p, processes=4)) for p in range(4)]
    for part in parts:
        part.set_state(state)
    assert Counter(r.uid for part in parts for r in next(part)) == Counter(r.uid for r in whole)


def test_an_error_while_encoding_surfaces_at_its_batch():
    bad = mixture([A], batch_size=5, seed=0)[2][0].uid

    def encode(batch):
        if any(record.uid == bad for record in batch):
            raise ValueError(f"record {bad}: broken video")
        return len(batch)

    iterator = iterate(mixture([A], batch_size=5, seed=0), encode=encode)
    assert [next(iterator), next(iterator)] == [5, 5]
    with pytest.raises(ValueError, match=f"record {bad}: broken video"):
        next(iterator)


def test_batches_of_one_record():
    assert len(mixture([A, B], batch_size=2, seed=0, processes=2)[1_000_000]) == 1


@pytest.mark.parametrize(
    "sources,options,message",
    [
        ([], {}, "at least one"),
        ([A, RecordList(())], {}, r"empty: \[1\]"),
        ([A, B], {"weights": (1,)}, "wanted 2 positive"),
        ([A, B], {"weights": (1, 0)}, "wanted 2 positive"),
        ([A], {"batch_size": 0}, "batch_size 0"),
        ([A], {"batch_size": 5, "processes": 2}, "divisible"),
        ([A], {"process": 1}, "process 1 of 1"),
    ],
)
def test_a_mixture_that_cannot_be(sources, options, message):
    with pytest.raises(ValueError, match=message):
        mixture(sources, **{"batch_size": 4, "seed": 0, **options})
