"""What is said about the spread of a batch, by hand and on real advantages."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import advantages, diagnostics


NAN = float("nan")


def test_effective_sample_size():
    assert diagnostics.effective_sample_size([0.5] * 6) == pytest.approx(6)
    assert diagnostics.effective_sample_size([3.0, 1.0]) == pytest.approx(16 / 10)
    assert diagnostics.effective_sample_size([0.0, 0.0]) == 0
    assert diagnostics.effective_sample_size([1e-30, 1e-30]) == pytest.approx(2)  # the squares alone would underflow
    assert diagnostics.effective_sample_size(jnp.ones(300, jnp.float16)) == 300  # 300^2 is beyond float16
    assert diagnostics.effective_sample_size(jnp.ones(3000, jnp.bfloat16)) == 3000


def test_shares():
    a = np.array([[1.0, -1.0], [0.5, -0.5], [1.5, -1.5], [1.0, -1.0]])
    got = diagnostics.group_share(a, [0, 2, 0, -1], 3)
    np.testing.assert_allclose(got, [5 / 8, 0, 1 / 8])
    assert diagnostics.top_prompt_share(a) == pytest.approx(3 / 8)
    assert np.all(np.asarray(diagnostics.group_share(0 * a, [0, 1, 2, 0], 3)) == 0)
    assert diagnostics.top_prompt_share(0 * a) == 0


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="one id a prompt"):
        diagnostics.group_share(np.ones((4, 2)), [0, 1], 3)
    for function in (diagnostics.top_prompt_share, diagnostics.zero_variance_share):
        with pytest.raises(ValueError, match="prompts, rollouts"):
            function(np.ones(4))


def test_zero_variance_share():
    rewards = [[0.35] * 3, [0.0, 1.0, 0.0], [NAN, 1.0, NAN], [NAN] * 3]
    assert diagnostics.zero_variance_share(rewards) == 0.75


def test_under_jit_and_vmap():
    a = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    groups = np.array([0, 1, 1])
    every = lambda a: (
        diagnostics.zero_variance_share(a),
        diagnostics.effective_sample_size(a**2),
        diagnostics.group_share(a, groups, 2),
        diagnostics.top_prompt_share(a),
    )
    got = jax.jit(jax.vmap(every))(a)
    chex.assert_trees_all_close(got, jax.tree.map(lambda *x: np.stack(x), *map(every, a)), rtol=1e-5)


def test_ceiling_is_reached_by_one_lucky_prompt():
    scores = np.zeros((6, 4))
    scores[2] = advantages.grpo([[1.0, 0, 0, 0]])[0]
    assert diagnostics.ceiling(6, 4) == pytest.approx(np.max(scores / scores.std(ddof=1)), rel=1e-5)
    assert diagnostics.ceiling(64, 8) == pytest.approx(21.15, abs=0.01)
    for prompts, rollouts in ((64, 1), (0, 8)):
        with pytest.raises(ValueError, match=f"{rollouts} rollouts"):
            diagnostics.ceiling(prompts, rollouts)
