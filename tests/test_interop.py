"""NumPy arrays in and out, and flat batches laid out by prompt; torch is in parity/test_interop.py."""

import numpy as np
import pytest

from fairgrpo_jax import advantages, fairness, interop, losses
from fairgrpo_jax.sampler import FairSampler


def test_numpy_in_numpy_out():
    rewards = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    got = interop.on_numpy(advantages.grpo)(rewards, epsilon=0.0)
    assert type(got) is np.ndarray and got.flags.writeable
    np.testing.assert_allclose(got, [[2 / 3**0.5, -(3**-0.5), -(3**-0.5)], [3**-0.5, 3**-0.5, -2 / 3**0.5]], rtol=1e-6)


def test_the_state_stays_a_state_and_goes_back_in():
    fair = interop.on_numpy(fairness.fair_grpo)
    state = fairness.init(2, 1, 2, history=None)
    for step in (1, 2):
        values, state = fair(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1]), np.array([0, -1]), state)
        assert type(values) is np.ndarray and isinstance(state, fairness.FairnessState)
        assert state.domain_count.tolist() == [step, step]


def test_tuples_and_dicts_are_converted():
    loss, metrics = interop.on_numpy(losses.policy_loss)(
        np.log([[0.5, 0.6]]), np.log([[0.5, 0.5]]), np.ones(1), np.ones((1, 2))
    )
    assert all(type(x) is np.ndarray for x in (loss, *metrics.values()))
    np.testing.assert_allclose(loss, -1.1, rtol=1e-6)


def test_flat_batch_there_and_back_in_any_order():
    rng = np.random.default_rng(0)
    ids = rng.permutation(np.repeat(np.arange(6), 4))
    scores = rng.random(24)
    rows = interop.layout(ids)
    rewards = interop.by_prompt(scores, rows)
    assert rewards.shape == (6, 4) and np.all(np.diff(rows[:, 0]) > 0)
    for i, row in enumerate(rows):
        assert len(set(ids[row].tolist())) == 1
        np.testing.assert_allclose(rewards[i], scores[row], rtol=1e-6)
    np.testing.assert_allclose(interop.by_sample(rewards, rows), scores, rtol=1e-6)


def test_a_short_prompt_is_not_scored_where_it_has_no_rollout():
    rows = interop.layout(["a", "a", "b", "a", "b"])
    values = interop.on_numpy(advantages.dr_grpo)(interop.by_prompt([1, 2, 3, 6, 5], rows))
    np.testing.assert_allclose(interop.by_sample(values, rows), [-2, -1, -1, 3, 1])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="no prompt ids"):
        interop.layout([])
    with pytest.raises(ValueError, match=r"wanted \(2,\)"):
        interop.by_prompt([1.0], interop.layout(["a", "a"]))
    with pytest.raises(ValueError, match=r"layout of \(1, 2\)"):
        interop.by_sample([[1.0]], interop.layout(["a", "a"]))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_process_counts_its_own_rows(processes):
    sampler = FairSampler([0] * 8, [0, 1] * 4, batch_size=4, processes=processes)
    rows = interop.Repeated(sampler, generations=2, repeats=3, batches=5)
    assert len(rows) == len(list(rows)) == 4 // processes * 2 * 3 * 5
