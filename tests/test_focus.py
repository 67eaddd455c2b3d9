"""Weighting prompts by their failure rate: by hand, against stated objectives, and beside every estimator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fairgrpo_jax import advantages as adv, estimators, fairness


NAN = float("nan")


def test_by_hand():
    """Prompts solved 3, 1 and 0 times of 4; weights 1/4, 3/4 and 1; equal squares of the first two."""
    rewards = [[1.0, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    z = np.array([[0.5, 0.5, 0.5, -1.5], [1.5, -0.5, -0.5, -0.5]])
    c = np.sqrt(2 / (0.25**2 + 0.75**2))
    found = adv.grpo(rewards, focus=1.0, epsilon=0.0)
    np.testing.assert_allclose(found[:2], z * [[0.25], [0.75]] * c, rtol=1e-6)
    np.testing.assert_array_equal(found[2], 0)


def test_zero_is_the_estimator_itself():
    rewards = jnp.array(np.random.default_rng(0).normal(size=(5, 4)))
    chex.assert_trees_all_equal(adv.grpo(rewards, focus=0.0), adv.grpo(rewards))


def test_unscored_rollouts_count_in_no_mean():
    """Solved once of two that were scored: failure rate 1/2, as the other prompt's."""
    found = adv.focused([[1.0, -1, 0, 0], [1, 1, -1, -1]], [[1.0, 0, NAN, NAN], [1, 1, 0, 0]], 2.0)
    np.testing.assert_allclose(found, [[1.0, -1, 0, 0], [1, 1, -1, -1]], rtol=1e-6)


@pytest.mark.parametrize("name", estimators.NAMES)
def test_every_estimator_takes_it(name):
    """The ratio to the plain estimator is the failure rate times one number, and the mean square stays."""
    rewards = np.random.default_rng(1).integers(0, 2, (12, 8)).astype(np.float32)
    rewards[0], rewards[1], rewards[2] = 1, 0, [1, *[0] * 7]
    scored = estimators.Scored.of(rewards, np.arange(12) % 2, np.arange(12) % 3 - 1)
    memory = estimators.Memory(fairness.init(2, 2, 8, history=None))  # without clusters
    plain, _, _ = estimators.estimate(name, scored, memory)
    found, _, _ = jax.jit(lambda s, m: estimators.estimate(name, s, m, focus=1.5))(scored, memory)
    np.testing.assert_allclose(jnp.sum(found**2), jnp.sum(plain**2), rtol=1e-5)
    weighted = np.asarray(plain) * (1 - rewards.mean(1, keepdims=True)) ** 1.5
    scale = np.sqrt(np.sum(np.asarray(plain) ** 2) / np.sum(weighted**2))
    np.testing.assert_allclose(found, weighted * scale, rtol=2e-4, atol=1e-6)


def test_epsilon_is_that_of_the_function_with_the_name():
    """It is added to the deviations too, not only a bound of the temperatures."""
    rewards, domains, groups = [[1.0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 1, 0]], [0] * 3, [0, 0, 1]
    state = fairness.init(1, 2, 4, history=None)
    wanted, _ = fairness.fair_grpo(rewards, domains, groups, state, epsilon=0.3)
    scored, memory = estimators.Scored.of(rewards, domains, groups), estimators.Memory(state)
    found, _, _ = estimators.estimate("fair_grpo", scored, memory, epsilon=0.3)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    assert abs(float(found[0, 0]) - float(fairness.fair_grpo(rewards, domains, groups, state)[0][0, 0])) > 0.1


OBJECTIVES = {
    "grpo": (adv.grpo, lambda p: np.arcsin(np.sqrt(p)) + np.sqrt(p * (1 - p))),
    "dr_grpo": (adv.dr_grpo, lambda p: -((1 - p) ** 2)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_is_that_of_the_stated_objective(name):
    """A policy that is right with probability p: all 0 .. G successes by their binomial chance, finite differences."""
    estimator, objective = OBJECTIVES[name]
    rollouts = 2000
    successes = np.arange(rollouts + 1)
    rewards = (np.arange(rollouts)[None] < successes[:, None]).astype(np.float64)
    values = np.asarray(adv.focused(estimator(rewards), rewards, 1.0), np.float64)

    def gradient(p):
        """E[mean of A_i d log pi(rollout i) / dp]."""
        score = (rewards - p) / (p * (1 - p))
        return stats.binom.pmf(successes, rollouts, p) @ (values * score).mean(1)

    def slope(p, h=1e-5):
        return (objective(p + h) - objective(p - h)) / (2 * h)

    for p in (0.1, 0.3, 0.7, 0.9):
        assert gradient(p) / gradient(0.5) == pytest.approx(slope(p) / slope(0.5), rel=0.02)


def test_gradients_are_finite_where_everything_is_solved():
    rewards = jnp.array([[1.0, 1, 1], [1, 0, 0]])
    for focus in (0.5, 1.0, 2.0):
        chex.assert_tree_all_finite(jax.grad(lambda r, k=focus: jnp.sum(adv.focused(r**2, r, k)))(rewards))
    chex.assert_tree_all_finite(jax.jit(adv.focused)(rewards, rewards, 0.0))


def test_traced_zero_keeps_solved_prompts():
    rewards = jnp.array([[1.0, 1.0], [1.0, 0.0]])
    np.testing.assert_allclose(jax.jit(adv.focused)(rewards, rewards, 0.0), rewards)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: adv.focused([[1.0]], [[1.0, 0.0]], 1.0), "wanted one a rollout"),
        (lambda: adv.grpo([[1.0, 0.0]], focus=-1.0), "focus=-1.0; wanted an exponent >= 0"),
        (lambda: adv.grpo([[1.0, 0.0]], focus=NAN), "focus=nan"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
