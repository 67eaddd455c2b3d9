"""The remembered hardness of demographic cells, by hand; and weights of draws that lag."""

import chex
import jax
import numpy as np
import pytest

from fairgrpo_jax import fairness


NAN = float("nan")


def test_two_steps_by_hand():
    state = fairness.init_hardness(2, 2)
    state = fairness.observe_hardness([[1.0, 0], [1, 1], [0, 0]], [0, 0, 1], [0, -1, 1], state, decay=0.5)
    np.testing.assert_allclose(state.mass, [[1, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(state.total, [[0.5, 0, 0], [0, 1, 0]])
    state = fairness.observe_hardness([[1.0, NAN], [NAN, NAN]], [0, 1], [0, 1], state, decay=0.5)
    np.testing.assert_allclose(state.mass, [[1.5, 0, 0.5], [0, 0.5, 0]])
    np.testing.assert_allclose(state.total, [[0.25, 0, 0], [0, 0.5, 0]])
    everywhere = 0.75 / 2.5
    domain = np.array([(0.25 + 2 * everywhere) / 4, (0.5 + 2 * everywhere) / 2.5])
    expected = [
        [(0.25 + 2 * domain[0]) / 3.5, domain[0], 2 * domain[0] / 2.5],
        [domain[1], (0.5 + 2 * domain[1]) / 2.5, domain[1]],
    ]
    np.testing.assert_allclose(fairness.hardness(state, prior=2.0), expected, rtol=1e-6)


def test_flip_counts_prompts_whose_right_answer_does_not_prevail():
    rewards = [[0.0] * 4, [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4]
    state = fairness.observe_hardness(rewards, [0] * 5, np.arange(5), fairness.init_hardness(1, 5), measure="flip")
    np.testing.assert_array_equal(state.total[0, :5], [0, 1, 1, 0, 0])


def test_unlabelled_prompts_and_the_last_group_are_apart():
    state = fairness.observe_hardness([[0.0, 0], [1, 1]], [0, 0], [1, -1], fairness.init_hardness(1, 2))
    np.testing.assert_array_equal(state.mass, [[0, 1, 1]])
    np.testing.assert_array_equal(state.total, [[0, 1, 0]])


def test_ids_of_any_width():
    """Eight bits hold the ids of 127 groups, but not the number of groups."""
    state = fairness.init_hardness(1, 200)
    wide = fairness.observe_hardness([[1.0], [0.0]], [0, 0], [120, -1], state)
    narrow = fairness.observe_hardness([[1.0], [0.0]], np.zeros(2, np.int8), np.array([120, -1], np.int8), state)
    chex.assert_trees_all_equal(narrow, wide)
    with pytest.raises(ValueError, match="got groups from 0 to 4294967296; wanted ids that 32 bits hold"):
        fairness.observe_hardness([[1.0], [0.0]], [0, 0], np.array([0, 2**32]), state)


def test_how_often_a_cell_is_drawn_does_not_bias_it():
    """Half of the prompts of each cell are wrong; one is drawn nine times as often."""
    rewards = np.tile([[1.0, 1], [0, 0]], (50, 1))
    groups = (np.arange(100) < 90).astype(np.int32)
    found = fairness.hardness(
        fairness.observe_hardness(rewards, np.zeros(100, np.int32), groups, fairness.init_hardness(1, 2))
    )
    np.testing.assert_allclose(found[0, :2], 0.5)


def test_the_same_under_jit():
    rewards, domains, groups = np.array([[1.0, 0], [0, 0]]), np.array([0, 1]), np.array([-1, 0])
    state = fairness.init_hardness(2, 1)

    def step(rewards, state):
        return fairness.hardness(fairness.observe_hardness(rewards, domains, groups, state))

    chex.assert_trees_all_close(jax.jit(step)(rewards, state), step(rewards, state))


def test_residual_weights_restore_the_expectation():
    wanted, drawn = np.array([[0.2, 0.3], [0.5, 0.0]]), np.array([[0.4, 0.2], [0.4, 0.0]])
    np.testing.assert_allclose(fairness.residual_weights(wanted, drawn) * drawn, wanted)
    assert fairness.residual_weights([0.9, 0.1], [0.3, 0.7], cap=2.0).tolist() == [2.0, pytest.approx(1 / 7)]


STATE = fairness.init_hardness(1, 1)


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: fairness.init_hardness(0, 1), "0 domains"),
        (lambda: fairness.observe_hardness([[1.0]], [0, 0], [0], STATE), r"wanted \(P, G\), \(P,\) and \(P,\)"),
        (lambda: fairness.observe_hardness([[1.0]], [1], [0], STATE), r"domains from 1 to 1; wanted 0 .. 0"),
        (lambda: fairness.observe_hardness([[1.0]], [0], [1], STATE), "or -1 = unlabelled"),
        (lambda: fairness.observe_hardness([[1.5]], [0], [0], STATE), "rewards up to 1.5; wanted at most 1"),
        (lambda: fairness.observe_hardness([[1.0]], [0], [0], STATE, decay=1.0), "decay=1.0"),
        (lambda: fairness.observe_hardness([[1.0]], [0], [0], STATE, measure="x"), "measure='x'"),  # type: ignore
        (lambda: fairness.hardness(STATE, prior=0.0), "prior=0.0"),
        (lambda: fairness.residual_weights([0.5], [0.5, 0.5]), "the same shape twice"),
        (lambda: fairness.residual_weights([0.5], [0.5], cap=0.5), "cap=0.5"),
        (lambda: fairness.residual_weights([NAN], [0.5]), "not finite"),
    ],
)
def test_what_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()
