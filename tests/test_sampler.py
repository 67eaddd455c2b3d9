"""Draws by demographic cell: expected frequencies, epochs, windows, resumption, processes."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fairgrpo_jax import fairness, grouping
from fairgrpo_jax.sampler import FairSampler


DOMAINS = np.repeat([0, 0, 0, 1, 1], [60, 20, 4, 10, 6])
GROUPS = np.repeat([0, 1, 2, 0, -1], [60, 20, 4, 10, 6])
CELLS = list(zip(DOMAINS.tolist(), GROUPS.tolist(), strict=True))


def sampler(**options) -> FairSampler:
    given: dict[str, Any] = {"batch_size": 12, "seed": 3, "window": 4} | options
    return FairSampler(DOMAINS, GROUPS, **given)


def feed(drawn: FairSampler, rows, rng):
    """The rarer a group, the more often it is wrong."""
    wrong = np.array([[0.1, 0.3, 0.9, 0.5]])[0, GROUPS[rows]]
    drawn.observe((rng.random((len(rows), 4)) > wrong[:, None]).astype(float), DOMAINS[rows], GROUPS[rows])


def test_numbers_of_each_cell_are_those_of_the_probabilities():
    drawn = sampler()
    q = grouping.sampling_probabilities(drawn.sizes, np.ones(drawn.sizes.shape))
    for _ in range(12):
        found = Counter(CELLS[row] for row in next(drawn))
        for cell in set(CELLS):
            assert abs(found[cell] - 12 * q[cell]) < 1
    np.testing.assert_allclose(drawn.probabilities, q)


def test_a_cell_is_drawn_through_before_a_row_comes_again():
    drawn, count = sampler(max_ratio=np.inf), Counter(dict.fromkeys(range(len(CELLS)), 0))
    for _ in range(40):
        count.update(next(drawn).tolist())
        for cell in set(CELLS):
            its = [count[row] for row in range(len(CELLS)) if CELLS[row] == cell]
            assert max(its) - min(its) <= 1
    assert count[80] > 10  # of the smallest cell


def test_each_epoch_has_another_order():
    drawn = FairSampler([0] * 8, [0] * 8, batch_size=1)
    epochs = [[int(next(drawn)[0]) for _ in range(8)] for _ in range(4)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and len(set(map(tuple, epochs))) == 4


def test_no_row_comes_more_often_than_its_cap():
    """A single patient, always wrong, among 199 who are always right: five times its natural share, in the mean."""
    domains, groups = np.zeros(200, int), np.array([0] * 199 + [1])
    counts = []
    for seed in range(20):
        drawn = FairSampler(domains, groups, batch_size=20, seed=seed, window=1, max_ratio=5, hardness_exponent=4.0)
        for _ in range(50):
            rows = next(drawn)
            drawn.observe(1.0 - groups[rows][:, None] * np.ones((1, 2)), domains[rows], groups[rows])
        assert drawn.probabilities_now()[0, 1] <= 5 / 200 + 1e-12
        counts.append(drawn.cursors[0, 1])
    natural = 50 * 20 / 200
    assert np.mean(counts) == pytest.approx(5 * natural, abs=4 * np.sqrt(50 * 0.25 / 20))


def test_what_is_hard_is_drawn_more_often():
    drawn, rng = sampler(batch_size=24, window=1), np.random.default_rng(0)
    for _ in range(30):
        feed(drawn, next(drawn), rng)
    hardness = np.asarray(fairness.hardness(drawn.hardness_state))
    assert hardness[0, 2] > hardness[0, 1] > hardness[0, 0]
    assert drawn.probabilities_now()[0, 2] == pytest.approx(0.05 * 4 / 100 + 0.95 * 0.4)  # at its cap, ten times


def test_batches_are_shuffled():
    """Mini-batches are parts of a batch: none may be a dataset."""
    first = [DOMAINS[next(d)].tolist() for d in (sampler(), sampler(seed=4))]
    assert all(domains not in (sorted(domains), sorted(domains)[::-1]) for domains in first)


def test_probabilities_stay_for_a_window_and_lag_is_told():
    drawn, rng, made = sampler(window=4, ahead=2), np.random.default_rng(0), []
    for _ in range(14):
        rows = next(drawn)
        made.append((drawn.lag, drawn.probabilities.round(9).tolist()))
        feed(drawn, rows, rng)
    assert [lag for lag, _ in made] == [0, 1, 2, 3, *[2, 3, 4, 5] * 2, 2, 3]
    windows = [made[start][1] for start in (0, 4, 8, 12)]
    assert [q for _, q in made] == [windows[i // 4] for i in range(14)] and len({str(q) for q in windows}) == 4


def test_upcoming_is_what_comes():
    drawn = sampler(ahead=3)
    for _ in range(9):
        upcoming = drawn.upcoming()
        assert len(upcoming) > 3
        np.testing.assert_array_equal(next(drawn), upcoming[0])


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_resumed_sampler_goes_on_to_the_last_bit(ahead):
    def go(drawn, rng, steps):
        rows = []
        for _ in range(steps):
            rows.append(next(drawn))
            feed(drawn, rows[-1], rng)
            rows.append(drawn.redraw(DOMAINS[rows[-1][:3]], GROUPS[rows[-1][:3]]))
        return rows

    whole = go(sampler(ahead=ahead), np.random.default_rng(1), 13)
    for stop in (1, 3, 4, 7):
        rng = np.random.default_rng(1)
        first = sampler(ahead=ahead)
        start = go(first, rng, stop)
        kept = json.loads(json.dumps(first.state_dict()))
        second = sampler(ahead=ahead)
        second.load_state_dict(kept)
        assert (second.lag, second.returned) == (first.lag, first.returned)
        np.testing.assert_array_equal(second.probabilities, first.probabilities)
        np.testing.assert_array_equal(np.stack(start + go(second, rng, 13 - stop)), np.stack(whole))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batches_of_one(processes):
    alone, rng = sampler(), np.random.default_rng(2)
    team = [sampler(process=i, processes=processes) for i in range(processes)]
    for _ in range(9):
        rows = next(alone)
        np.testing.assert_array_equal(np.stack([next(one) for one in team], 1).ravel(), rows)
        again = [one.redraw([0, 1], [1, -1]) for one in team]
        np.testing.assert_array_equal(np.stack(again, 1).ravel(), alone.redraw([0, 1], [1, -1]))
        rewards = rng.integers(0, 2, (12, 4))
        for one in (alone, *team):
            one.observe(rewards, DOMAINS[rows], GROUPS[rows])


def test_replacements_come_from_the_cells_that_lost():
    found = Counter(CELLS[row] for row in sampler().redraw([0, 0, 0, 1], [1, 1, 2, -1]))
    assert found == {(0, 1): 6, (0, 2): 3, (1, -1): 3}


@settings(deadline=None)  # compiles
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=12), st.integers(1, 9))
def test_any_cells(cells, batch_size):
    """Cells of 0 and 1 rows included: every batch is full, and of rows that exist."""
    domains, groups = np.array(cells).T
    drawn = FairSampler(domains, groups, batch_size=batch_size, window=2, num_domains=3, num_groups=3)
    for _ in range(3):
        rows = next(drawn)
        assert len(rows) == batch_size and rows.min() >= 0 and rows.max() < len(cells)
        drawn.observe(np.zeros((batch_size, 2)), domains[rows], groups[rows])
    assert drawn.cursors.sum() == batch_size * 4


def test_groups_of_eight_bits():
    groups = np.arange(400) % 127
    wide, narrow = (FairSampler(np.zeros(400, t), groups.astype(t), batch_size=4) for t in (np.int64, np.int8))
    np.testing.assert_array_equal(next(narrow), next(wide))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: FairSampler([0], [0, 1], batch_size=1), r"wanted \(N,\) twice"),
        (lambda: FairSampler([], [], batch_size=1), "at least one row"),
        (lambda: sampler(window=2, ahead=3), "ahead <= window"),
        (lambda: sampler(batch_size=9, processes=2), "divisible by the number of processes"),
        (lambda: sampler(seed=-1), "seed=-1"),
        (lambda: sampler(num_groups=2), "wanted 0 .. 1 and -1 .. 1"),
        (lambda: sampler(decay=2.0), "decay=2.0"),
        (lambda: sampler(prior=0.0), "prior=0.0"),
        (lambda: sampler(max_ratio=0.1), "max_ratio=0.1"),
        (lambda: sampler().redraw([1], [2]), "cells without rows"),
        (lambda: sampler().load_state_dict({"cursors": [[0]]}), "wanted the same data"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
