"""Order, proportions and resumption of the batches, on sources small enough to count by hand."""

import dataclasses
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from fairgrpo_jax import grouping
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
    sizes = {"a": 1000, "b": 100, "c": 67}
    counts = names(mixture([A, B, C], batch_size=1167, seed=0, weights=list(sizes.values()))[0])
    assert all(abs(counts[name] - size) <= 3 for name, size in sizes.items())


def test_weights_are_not_truncated():
    """0.21 / 0.07 is a little less than 3 in floating point."""
    counts = names(mixture([A, B], batch_size=1200, seed=0, weights=(0.07, 0.21))[0])
    assert counts == {"a": 300, "b": 900}


@pytest.mark.parametrize(
    "temperature,expected",
    [
        (1.0, {"a": 320, "b": 80, "c": 20}),
        (0.5, {"a": 240, "b": 120, "c": 60}),  # 4 : 2 : 1
        (0.0, {"a": 140, "b": 140, "c": 140}),
    ],
)
def test_temperature_of_the_sizes(temperature, expected):
    sources = [source("a", 160), source("b", 40), source("c", 10)]
    counts = names(mixture(sources, batch_size=420, seed=0, temperature=temperature)[0])
    assert all(abs(counts[name] - count) <= 2 for name, count in expected.items())
    if temperature == 1.0:
        assert uids([mixture(sources, batch_size=50, seed=0)[3]]) == uids(
            [mixture(sources, batch_size=50, seed=0, weights=(160, 40, 10))[3]]
        )


def test_groups_balanced_by_repetition_keep_their_ratio_in_the_mix():
    """Resampled rows are a source like any other: both sexes equally often within their share."""
    rows = [dataclasses.replace(record, sex="F" if i < 10 else "M") for i, record in enumerate(A)]
    groups = np.array([int(record.sex == "M") for record in rows])
    balanced = RecordList(tuple(rows[row] for row in grouping.balanced_rows(groups, seed=0)))
    drawn = sum((mixture([balanced, B], batch_size=20, seed=0, weights=(4, 1))[i] for i in range(5)), [])
    assert len(balanced) == 80 and Counter(r.sex for r in drawn if r.dataset == "a") == {"F": 40, "M": 40}
    assert names(drawn) == {"a": 80, "b": 20}


@pytest.mark.parametrize("before,after", [(1, 2), (2, 4), (4, 2), (2, 1)])
def test_resume_at_another_number_of_processes_goes_on_in_the_same_order(before, after):
    def run(processes, start, count):
        options = {"batch_size": 20, "seed": 5, "weights": (5, 2, 3), "processes": processes}
        parts = [iterate(mixture([A, B, C], process=p, **options), start=start) for p in range(processes)]
        batches = [sum((next(part) for part in parts), []) for _ in range(count)]
        (state,) = {json.dumps(part.get_state()) for part in parts}
        return uids(batches), json.loads(state)["next_index"]

    unbroken, _ = run(1, 0, 9)
    head, step = run(before, 0, 4)
    tail, _ = run(after, step, 5)
    assert step == 4 and head + tail == unbroken


def test_a_source_smaller_than_the_number_of_processes():
    parts = [
        mixture([A, source("tiny", 2)], batch_size=8, seed=0, weights=(1, 1), process=p, processes=4) for p in range(4)
    ]
    assert all(names(part[step]) == {"a": 1, "tiny": 1} for part in parts for step in range(5))


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
        ([A, B], {"weights": (1, float("nan"))}, "wanted 2 positive"),
        ([A, B], {"weights": "sizes"}, "'sizes'"),
        ([A, B], {"temperature": 1.5}, "temperature 1.5; wanted 'size'"),
        ([A, B], {"temperature": 0.5, "weights": (1, 2)}, "temperature is 0.5 and weights are given"),
        ([A], {"batch_size": 0}, "batch_size 0"),
        ([A], {"batch_size": 5, "processes": 2}, "divisible"),
        ([A], {"process": 1}, "process 1 of 1"),
    ],
)
def test_a_mixture_that_cannot_be(sources, options, message):
    with pytest.raises(ValueError, match=message):
        mixture(sources, **{"batch_size": 4, "seed": 0, **options})
