"""Advantages against hand calculation, NumPy and their own symmetries; eagerly, under jit and under vmap."""

import doctest
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fairgrpo_jax import advantages


NAN = float("nan")
RNG = np.random.default_rng(0)
REWARDS = RNG.random((5, 4)).astype(np.float32)
ESTIMATORS = {
    "grpo": advantages.grpo,
    "grpo_others": lambda r: advantages.grpo(r, leave_one_out=True),
    "dr_grpo": advantages.dr_grpo,
    "rloo": advantages.rloo,
}


@pytest.fixture(params=ESTIMATORS)
def estimator(request):
    return ESTIMATORS[request.param]


@pytest.fixture(params=[lambda f: f, jax.jit], ids=["eager", "jit"])
def transform(request):
    return request.param


def test_examples_in_docstrings():
    assert doctest.testmod(advantages).failed == 0


@pytest.mark.parametrize("ddof", [0, 1])
def test_grpo_is_the_z_score(transform, ddof):
    got = transform(lambda r: advantages.grpo(r, ddof=ddof))(REWARDS)
    wanted = (REWARDS - REWARDS.mean(1, keepdims=True)) / (REWARDS.std(1, keepdims=True, ddof=ddof) + 1e-6)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_grpo_by_hand():
    # mean 1/4, squares 3/16 * ... : variance (3 * 1/16 + 9/16) / 3 = 1/4, deviation 1/2
    np.testing.assert_allclose(advantages.grpo([[1.0, 0, 0, 0]], epsilon=0.0), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-6)


def test_epsilon_is_added_to_the_deviation():
    np.testing.assert_allclose(advantages.grpo([[1.0, 0, 0, 0]], epsilon=0.5), [[0.75, -0.25, -0.25, -0.25]], rtol=1e-6)


def test_rloo_compares_with_the_others(transform):
    wanted = [[row[i] - np.delete(row, i).mean() for i in range(4)] for row in REWARDS]
    np.testing.assert_allclose(transform(advantages.rloo)(REWARDS), wanted, atol=1e-6)


def test_grpo_leave_one_out_by_loop(transform):
    wanted = [
        [(row[i] - (o := np.delete(row, i)).mean()) / (o.std(ddof=1) + 1e-6) for i in range(4)] for row in REWARDS
    ]
    got = transform(lambda r: advantages.grpo(r, leave_one_out=True))(REWARDS)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_leave_one_out_seven_against_one_does_not_explode():
    got = advantages.grpo([[0.35] * 7 + [0.9]], leave_one_out=True)
    others_std = np.std([0.35] * 6 + [0.9], ddof=1)
    np.testing.assert_allclose(got[0, 7], 0.55, rtol=1e-5)  # the others are equal: not divided
    np.testing.assert_allclose(got[0, :7], -(0.55 / 7) / (others_std + 1e-6), rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35, 0.1, 1e6])
def test_equal_rewards_give_exactly_zero(estimator, transform, value):
    assert np.all(np.asarray(transform(estimator)(np.full((3, 7), value, np.float32))) == 0)


def test_a_single_rollout_gives_zero(estimator):
    assert np.all(np.asarray(estimator([[0.7], [0.0]])) == 0)


def test_nan_is_as_if_the_rollout_were_absent(estimator, transform):
    with_gap = np.insert(REWARDS, 2, NAN, axis=1)
    got = np.asarray(transform(estimator)(with_gap))
    assert np.all(got[:, 2] == 0)
    np.testing.assert_allclose(np.delete(got, 2, axis=1), estimator(REWARDS), rtol=1e-5)


def test_nan_everywhere_and_all_but_one(estimator):
    assert np.all(np.asarray(estimator([[NAN, NAN], [NAN, 1.0]])) == 0)


def test_a_constant_added_changes_nothing_and_costs_no_precision(estimator):
    rewards = RNG.integers(0, 5, (6, 8)).astype(np.float32)
    np.testing.assert_allclose(estimator(rewards + 4096), estimator(rewards), atol=1e-5)


def test_permuting_rollouts_and_prompts_permutes(estimator):
    order, rows = RNG.permutation(4), RNG.permutation(5)
    base = np.asarray(estimator(REWARDS))
    np.testing.assert_allclose(estimator(REWARDS[rows][:, order]), base[rows][:, order], atol=1e-5)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_each_prompt_sums_to_zero(name):
    np.testing.assert_allclose(np.sum(ESTIMATORS[name](REWARDS), axis=1), 0, atol=1e-5)


def test_vmap_and_jit_agree_with_one_at_a_time(estimator):
    batch = RNG.random((3, 5, 4)).astype(np.float32)
    got = jax.jit(jax.vmap(estimator))(batch)
    np.testing.assert_allclose(got, np.stack([estimator(b) for b in batch]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype, wanted", [("float32", "float32"), ("bfloat16", "float32"), ("int32", "float32")])
def test_result_is_float32(estimator, dtype, wanted):
    assert estimator(jnp.zeros((2, 3), dtype)).dtype == wanted


def test_float64_is_kept(estimator):
    with jax.enable_x64(True):
        assert estimator(jnp.zeros((2, 3), jnp.float64)).dtype == "float64"


def test_gradients(estimator):
    with jax.enable_x64(True):
        check_grads(estimator, (jnp.asarray(REWARDS, jnp.float64),), order=1, atol=1e-5, rtol=1e-5)
    constant = jnp.array([[1.0, 1.0, 1.0], [NAN, 0.5, 0.5], [0.0, 1.0, 0.0]])
    gradient = np.asarray(jax.grad(lambda r: jnp.sum(estimator(r) * jnp.arange(9.0).reshape(3, 3)))(constant))
    assert np.all(np.isfinite(gradient)) and np.all(gradient[:2] == 0) and np.any(gradient[2] != 0)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4)])
def test_wrong_rank_is_refused(estimator, shape):
    with pytest.raises(ValueError, match="prompts, rollouts"):
        estimator(np.zeros(shape))


def test_wrong_ddof_is_refused():
    with pytest.raises(ValueError, match="ddof=2"):
        advantages.grpo(REWARDS, ddof=2)


def test_effective_sample_size():
    assert advantages.effective_sample_size([0.5] * 6) == pytest.approx(6)
    assert advantages.effective_sample_size([3.0, 1.0]) == pytest.approx(16 / 10)
    assert advantages.effective_sample_size([0.0, 0.0]) == 0
    assert advantages.effective_sample_size([1e-30, 1e-30]) == pytest.approx(2)  # the squares alone would underflow


def test_shares():
    a = np.array([[1.0, -1.0], [0.5, -0.5], [1.5, -1.5], [1.0, -1.0]])
    got = advantages.group_share(a, [0, 2, 0, -1], 3)
    np.testing.assert_allclose(got, [5 / 8, 0, 1 / 8])
    assert advantages.top_prompt_share(a) == pytest.approx(3 / 8)
    assert np.all(np.asarray(advantages.group_share(0 * a, [0, 1, 2, 0], 3)) == 0)
    assert advantages.top_prompt_share(0 * a) == 0
    with pytest.raises(ValueError, match="one id a prompt"):
        advantages.group_share(a, [0, 1], 3)


def test_zero_variance_share():
    rewards = [[0.35] * 3, [0.0, 1.0, 0.0], [NAN, 1.0, NAN], [NAN] * 3]
    assert advantages.zero_variance_share(rewards) == 0.75
    assert advantages.has_signal(rewards).tolist() == [False, True, False, False]


def test_ceiling_is_reached_by_one_lucky_prompt():
    scores = np.zeros((6, 4))
    scores[2] = advantages.grpo([[1.0, 0, 0, 0]])[0]
    assert advantages.ceiling(6, 4) == pytest.approx(np.max(scores / scores.std(ddof=1)), rel=1e-5)
    assert advantages.ceiling(64, 8) == pytest.approx(21.15, abs=0.01)
    with pytest.raises(ValueError, match="1 rollouts"):
        advantages.ceiling(64, 1)


def test_the_pure_core_imports_nothing_heavy():
    code = (
        "import sys, fairgrpo_jax.fairness, fairgrpo_jax.losses, fairgrpo_jax.metrics, fairgrpo_jax.rewards.accuracy; "
        "print(sorted({'flax', 'transformers', 'torch', 'sklearn', 'optax', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
