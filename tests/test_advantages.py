"""Advantages against hand calculation, an exact restatement (``restated``) and their own symmetries."""

import dataclasses
import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from jax.test_util import check_grads

from fairgrpo_jax import advantages
from tests import restated


NAN = float("nan")
RNG = np.random.default_rng(0)
P, G, K = 4, 5, 2


@dataclasses.dataclass(frozen=True)
class Batch:
    """All that any estimator asks for; ``components`` are the rewards of those that take several."""

    rewards: np.ndarray
    lengths: np.ndarray
    components: np.ndarray
    weights: np.ndarray
    greedy: np.ndarray

    def of_rewards(self, change):
        """The same with ``change`` applied to every reward, of which the last two axes may be prompts and rollouts."""
        components = np.stack([change(self.components[..., k]) for k in range(K)], axis=-1)
        greedy = change(np.repeat(self.greedy[:, None], G, axis=1))[:, 0]
        return dataclasses.replace(self, rewards=change(self.rewards), components=components, greedy=greedy)

    def at(self, prompts, rollouts):
        return Batch(
            self.rewards[prompts][:, rollouts],
            self.lengths[prompts][:, rollouts],
            self.components[prompts][:, rollouts],
            self.weights,
            self.greedy[prompts],
        )


jax.tree_util.register_dataclass(Batch)

# Each is run on ``advantages`` and on ``restated``.
ESTIMATORS = {
    "grpo": lambda m, b: m.grpo(b.rewards),
    "grpo, batch": lambda m, b: m.grpo(b.rewards, scale="batch"),
    "grpo, others": lambda m, b: m.grpo(b.rewards, leave_one_out=True),
    "dr_grpo": lambda m, b: m.dr_grpo(b.rewards),
    "rloo": lambda m, b: m.rloo(b.rewards),
    "gpg": lambda m, b: m.gpg(b.rewards),
    "gpg, signal": lambda m, b: m.gpg(b.rewards, correction="signal"),
    "reinforce_plus_plus": lambda m, b: m.reinforce_plus_plus(b.rewards, b.lengths),
    "reinforce_plus_plus_baseline": lambda m, b: m.reinforce_plus_plus_baseline(b.rewards, b.lengths),
    "opo": lambda m, b: m.opo(b.rewards, b.lengths),
    "remax": lambda m, b: m.remax(b.rewards, b.greedy),
    "pass_at_k": lambda m, b: m.pass_at_k(b.rewards),
    "pass_at_k, raw": lambda m, b: m.pass_at_k(b.rewards, normalize=False),
    "gdpo": lambda m, b: m.gdpo(b.components, b.weights),
    "gdpo, tokens": lambda m, b: m.gdpo(b.components, b.weights, epsilon=1e-6, lengths=b.lengths),
}
# More of the same, which only the restatement is asked about.
OPTIONS = {
    "grpo, ddof 0": lambda m, b: m.grpo(b.rewards, ddof=0, epsilon=1e-4),
    "grpo, batch, ddof 0": lambda m, b: m.grpo(b.rewards, scale="batch", ddof=0, epsilon=0.1),
    "grpo, others, ddof 0": lambda m, b: m.grpo(b.rewards, leave_one_out=True, ddof=0, epsilon=0.1),
    "reinforce_plus_plus, epsilon": lambda m, b: m.reinforce_plus_plus(b.rewards, b.lengths, epsilon=0.1),
    "baseline, epsilon": lambda m, b: m.reinforce_plus_plus_baseline(b.rewards, b.lengths, epsilon=0.1),
    "pass_at_k, epsilon": lambda m, b: m.pass_at_k(b.rewards, epsilon=0.1),
    "gdpo, epsilon": lambda m, b: m.gdpo(b.components, b.weights, epsilon=0.1),
    "gdpo, tokens, epsilon": lambda m, b: m.gdpo(b.components, b.weights, epsilon=0.1, lengths=b.lengths),
}
# What subtracts a mean over all tokens, or compares with the greedy answer, is silent on no prompt by itself.
OF_THE_BATCH = {"reinforce_plus_plus", "reinforce_plus_plus_baseline", "gdpo, tokens", "remax"}
OF_A_PROMPT = [name for name in ESTIMATORS if name not in OF_THE_BATCH]
WITH_LENGTHS = ["reinforce_plus_plus", "reinforce_plus_plus_baseline", "opo", "gdpo, tokens"]
UNSCALED = {"dr_grpo", "rloo", "gpg", "gpg, signal", "opo", "remax", "pass_at_k, raw"}
COMPILED = {name: jax.jit(lambda b, f=f: f(advantages, b)) for name, f in (ESTIMATORS | OPTIONS).items()}


def random_batch(rng=RNG, dtype: Any = np.float32):
    """Distinct rewards, multiples of 2^-10: an offset of 4096 keeps all their digits."""
    values = rng.permutation(1024)[: P * G].reshape(P, G) / 1024
    components = rng.permutation(1024)[: P * G * K].reshape(P, G, K) / 1024
    lengths = rng.integers(1, 50, (P, G))
    return Batch(
        values.astype(dtype), lengths, components.astype(dtype), np.array([1.0, 0.5], dtype), values[:, 0].astype(dtype)
    )


BATCH = random_batch()


def run(name, batch):
    return np.asarray(COMPILED[name](batch))


def on_rewards(name, batch):
    """The estimator as a function of its rewards alone."""
    field = "components" if name.startswith("gdpo") else "rewards"
    function = lambda x: ESTIMATORS[name](advantages, dataclasses.replace(batch, **{field: x}))
    return function, jnp.asarray(getattr(batch, field))


@pytest.fixture(params=ESTIMATORS)
def name(request):
    return request.param


HALF = 0.5**0.5
BY_HAND = {
    # mean 1/4, variance (3/16 + 9/16) / 3 = 1/4, deviation 1/2
    "z-score": (lambda: advantages.grpo([[1.0, 0, 0, 0]], epsilon=0.0), [[1.5, -0.5, -0.5, -0.5]]),
    "epsilon": (lambda: advantages.grpo([[1.0, 0, 0, 0]], epsilon=0.5), [[0.75, -0.25, -0.25, -0.25]]),
    # all rewards: mean 7/4, squares 9/16 + 49/16 + 2 * 25/16 = 27/4, over 3: deviation 3/2
    "batch": (lambda: advantages.grpo([[1.0, 0], [3, 3]], scale="batch", epsilon=0.0), [[1 / 3, -1 / 3], [0, 0]]),
    # the others of 0 are 1 and 3: mean 2, deviation sqrt(2); of 1: 3/2, 3 / sqrt(2); of 3: 1/2, 1 / sqrt(2)
    "others": (
        lambda: advantages.grpo([[0.0, 1, 3]], leave_one_out=True, epsilon=0.0),
        [[-2 * HALF, -0.5 * 2 * HALF / 3, 2.5 * 2 * HALF]],
    ),
    "rloo": (lambda: advantages.rloo([[0.0, 1, 3]]), [[-2, -0.5, 2.5]]),
    "gpg, 4 scored, 3 not 0": (lambda: advantages.gpg([[1.0, 0], [2, 2]]), [[2 / 3, -2 / 3], [0, 0]]),
    "gpg, 5 scored, 2 with signal": (
        lambda: advantages.gpg([[1.0, 0, NAN], [2, 2, 2]], correction="signal"),
        [[1.25, -1.25, 0], [0, 0, 0]],
    ),
    # 4 tokens 1, 0, 0, 0
    "tokens": (lambda: advantages.reinforce_plus_plus([[1.0, 0]], [[1, 3]]), [[1.5, -0.5]]),
    # 8 tokens: 1/2, 3 of -1/2, 4 of 0; mean -1/8, squares 25/64 + 27/64 + 4/64 = 7/8, over 7: deviation sqrt(1/8)
    "tokens, baseline": (
        lambda: advantages.reinforce_plus_plus_baseline([[1.0, 0], [1, 1]], [[1, 3], [2, 2]]),
        [[1.25 * 2**0.5, -0.75 * 2**0.5], [0.25 * 2**0.5, 0.25 * 2**0.5]],
    ),
    "opo": (lambda: advantages.opo([[1.0, 0, 5]], [[1, 3, 0]]), [[0.75, -0.25, 0]]),
    "remax": (lambda: advantages.remax([[1.0, 0], [1, 1]], [0.25, NAN]), [[0.75, -0.25], [0, 0]]),
    # mean 2, variance 2/3
    "pass_at_k": (lambda: advantages.pass_at_k([[1.0, 2, 3, 2]]), [[0, 0, 1.5**0.5, 0]]),
    "pass_at_k, negative": (lambda: advantages.pass_at_k([[-3.0, -1, NAN]], normalize=False), [[0, 2, 0]]),
    # components 1 / sqrt(2) and -1 / sqrt(2), times 2 and 1: squares 2 + 2 + 1/2 + 1/2, over 3
    "gdpo": (
        lambda: advantages.gdpo([[[1.0, 7], [0, 7]], [[3, 10], [3, 30]]], [2.0, 1.0], epsilon=0.0),
        np.array([[2, -2], [-1, 1]]) * HALF / (5 / 3) ** 0.5,
    ),
    # 8 tokens, in units of 1 / sqrt(2): 1, 3 of -1, 2 of 1, 2 of -1; mean -1/4, squares 4.6875 + 2.8125, over 7
    "gdpo, tokens": (
        lambda: advantages.gdpo(
            [[[1.0, 7], [0, 7]], [[3, 30], [3, 10]]], [1.0, 1.0], epsilon=0.0, lengths=[[1, 3], [2, 2]]
        ),
        np.array([[1.25, -0.75], [1.25, -0.75]]) / (7.5 / 7) ** 0.5,
    ),
}


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case):
    got, wanted = BY_HAND[case]
    np.testing.assert_allclose(jax.jit(got)(), wanted, rtol=1e-5, atol=1e-6)


# Multiples of 10^-3 tie often and never so nearly that the fractions and the floats could disagree about it.
reward = st.one_of(st.sampled_from([0.0, 1.0, 0.35, NAN]), st.integers(-1000, 1000).map(lambda i: i / 1000))
scale = st.integers(-6, 6).map(lambda i: 10.0**i)
batches = st.builds(
    lambda rewards, lengths, components, weights, greedy, a, b: Batch(
        a * rewards, lengths, components * np.array([a, b]), weights, a * greedy
    ),
    arrays(np.float64, (P, G), elements=reward),
    arrays(np.int64, (P, G), elements=st.integers(0, 50)),
    arrays(np.float64, (P, G, K), elements=reward),
    arrays(np.float64, K, elements=st.integers(-4, 4).map(lambda i: i / 2)),
    arrays(np.float64, P, elements=reward),
    scale,
    scale,
)


@settings(derandomize=True, database=None)
@given(batch=batches)
def check_against_restatement(name, batch):
    wanted = (ESTIMATORS | OPTIONS)[name](restated, batch)
    np.testing.assert_allclose(run(name, batch), wanted, rtol=1e-9, atol=1e-9 * max(np.abs(wanted).max(), 1e-9))


@pytest.mark.parametrize("name", [*ESTIMATORS, *OPTIONS])
def test_restated(name):
    with jax.enable_x64(True):
        check_against_restatement(name)


class EveryWay(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.parameters(*ESTIMATORS)
    def test_float32(self, name):
        got = self.variant(lambda b: ESTIMATORS[name](advantages, b))(BATCH)
        assert got.dtype == "float32"
        wide = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, BATCH)
        np.testing.assert_allclose(got, ESTIMATORS[name](restated, wide), rtol=2e-5, atol=2e-6)


def test_vmap_is_a_loop(name):
    batches = [random_batch() for _ in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    got = jax.jit(jax.vmap(lambda b: ESTIMATORS[name](advantages, b)))(stacked)
    np.testing.assert_allclose(got, np.stack([run(name, b) for b in batches]), rtol=1e-5, atol=1e-6)


def test_permuting_rollouts_and_prompts_permutes(name):
    prompts, rollouts = RNG.permutation(P), RNG.permutation(G)
    got = run(name, BATCH.at(prompts, rollouts))
    np.testing.assert_allclose(got, run(name, BATCH)[prompts][:, rollouts], rtol=1e-5, atol=1e-6)


def test_an_offset_changes_nothing_and_costs_no_precision(name):
    got, wanted = run(name, BATCH.of_rewards(lambda r: r + 4096)), run(name, BATCH)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_an_offset_changes_gpg_where_it_counts_rewards_of_zero():
    binary = BATCH.of_rewards(np.round)
    got, wanted = run("gpg", binary.of_rewards(lambda r: r + 1)), run("gpg", binary) * binary.rewards.mean()
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_an_offset_of_one_prompt_matters_only_without_a_baseline(name):
    offset = np.arange(P, dtype=np.float32)[:, None]
    got, wanted = run(name, BATCH.of_rewards(lambda r: r + offset)), run(name, BATCH)
    if name == "reinforce_plus_plus":
        assert np.abs(got - wanted).max() > 0.5
    elif name == "grpo, batch":
        assert np.all(np.abs(got) < np.abs(wanted))  # a wider batch, the same prompts
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_scale_of_the_reward(name):
    """Either gone or kept, but for an epsilon of 1e-4 or less beside deviations of 0.3."""
    got, wanted = run(name, BATCH.of_rewards(lambda r: 8 * r)), run(name, BATCH)
    np.testing.assert_allclose(got, wanted * (8 if name in UNSCALED else 1), rtol=1e-3, atol=1e-4)


def test_the_scale_of_one_prompt_is_gone_only_where_its_own_deviation_is(name):
    factor = np.array([4, 1, 1, 1], np.float32)[:, None]
    got, wanted = run(name, BATCH.of_rewards(lambda r: r * factor)), run(name, BATCH)
    if name in UNSCALED:
        np.testing.assert_allclose(got, wanted * factor, rtol=1e-4, atol=1e-4)
    elif name in ("grpo, batch", "reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        assert np.all(np.abs(got - wanted).max(axis=1) > 0.1)  # one prompt's scale reaches all others
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3)


def test_the_opposite_reward_gives_the_opposite_advantage(name):
    got, wanted = run(name, BATCH.of_rewards(lambda r: -r)), -run(name, BATCH)
    if name.startswith("pass_at_k"):
        assert np.all((got > 0).sum(axis=1) == 1) and not np.any((got > 0) & (wanted < 0))
    else:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_moments(name):
    """What sums to zero in a prompt, over its tokens, over the batch; and what has variance 1."""
    a, tokens = run(name, BATCH), BATCH.lengths
    if name == "opo":
        np.testing.assert_allclose((tokens * a).sum(axis=1), 0, atol=1e-4)
    elif name in WITH_LENGTHS:
        np.testing.assert_allclose((tokens * a).sum(), 0, atol=1e-3)
        np.testing.assert_allclose((tokens * a**2).sum() / (tokens.sum() - 1), 1, rtol=1e-3)
    elif name not in ("pass_at_k", "pass_at_k, raw", "remax", "grpo, others"):
        np.testing.assert_allclose(a.sum(axis=1), 0, atol=1e-5)
    if name == "gdpo":
        np.testing.assert_allclose(a.std(ddof=1), 1, rtol=1e-3)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.35, 0.1, 1e6])
def test_a_batch_of_equal_rewards_gives_exactly_zero(name, value):
    got = run(name, BATCH.of_rewards(lambda r: np.full_like(r, value)))
    assert np.all(got == 0)
    if name == "remax":
        equal = BATCH.of_rewards(lambda r: np.full_like(r, value))
        assert np.all(run(name, dataclasses.replace(equal, greedy=equal.greedy - 1)) == 1)


@pytest.mark.parametrize("name", OF_A_PROMPT)
def test_a_prompt_without_signal_gets_exactly_zero(name):
    def without_signal(r):
        r = np.array(r)
        r[0], r[1], r[2] = 0.35, [NAN, NAN, 0.35, NAN, NAN], NAN
        return r

    got = run(name, BATCH.of_rewards(without_signal))
    assert np.all(got[:3] == 0) and np.any(got[3] != 0)


@pytest.mark.parametrize("name", ["reinforce_plus_plus_baseline", "gdpo, tokens"])
def test_a_prompt_without_signal_gets_minus_the_token_mean(name):
    def without_signal(r):
        r = np.array(r)
        r[0] = 0.35
        return r

    got = run(name, BATCH.of_rewards(without_signal))
    assert np.all(got[0] == got[0, 0]) and got[0, 0] != 0
    centre = lambda a: a - a.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(centre(got)[0], 0, atol=1e-6)
    np.testing.assert_allclose((BATCH.lengths * got).sum(), 0, atol=1e-3)


def test_nan_is_as_if_the_rollout_were_absent(name):
    def hide(r):
        r = np.array(r)
        r[:, 2] = NAN
        return r

    got = run(name, dataclasses.replace(BATCH.of_rewards(hide), greedy=BATCH.greedy))
    assert np.all(got[:, 2] == 0)
    kept = [0, 1, 3, 4]
    wanted = run(name, BATCH.at(np.arange(P), kept))
    np.testing.assert_allclose(got[:, kept], wanted, rtol=1e-5, atol=1e-6)


def test_gdpo_leaves_out_a_component_that_is_not_scored():
    components = BATCH.components.copy()
    components[1, 2, 0] = components[0, :, 1] = NAN
    got = run("gdpo", dataclasses.replace(BATCH, components=components))
    scores = np.stack([run("grpo", dataclasses.replace(BATCH, rewards=components[..., k])) for k in range(K)], axis=-1)
    sums = scores @ np.array([1.0, 0.5])
    np.testing.assert_allclose(got, sums / sums.std(ddof=1), rtol=2e-3)
    assert got[1, 2] == pytest.approx(0.5 * scores[1, 2, 1] / sums.std(ddof=1), rel=2e-3)


@pytest.mark.parametrize("name", WITH_LENGTHS)
@pytest.mark.parametrize("garbage", [NAN, 1e6])
def test_a_rollout_without_tokens_influences_nobody(name, garbage):
    lengths = BATCH.lengths.copy()
    lengths[:, 1] = lengths[2, 3] = 0
    none = dataclasses.replace(BATCH, lengths=lengths)
    got = run(name, none.of_rewards(lambda r: np.where(lengths == 0, np.float32(garbage), r)))
    np.testing.assert_array_equal(got, run(name, none))
    assert np.all(got[lengths == 0] == 0) and np.all(got[lengths > 0] != 0)


@pytest.mark.parametrize("name", WITH_LENGTHS)
def test_more_tokens_than_int32_counts(name):
    """All lengths times 2^26: the same weights, and Bessel's correction gone."""
    few = dataclasses.replace(BATCH, lengths=BATCH.lengths * 2**10)
    many = dataclasses.replace(BATCH, lengths=BATCH.lengths * 2**25)
    assert many.lengths.sum() > 2**31
    np.testing.assert_allclose(run(name, many), run(name, few), rtol=1e-4, atol=1e-6)


def test_seven_against_one_does_not_explode_without_the_one():
    got = jax.jit(lambda r: advantages.grpo(r, leave_one_out=True))(np.array([[0.35] * 7 + [0.9]], np.float32))
    others_std = np.std([0.35] * 6 + [0.9], ddof=1)
    np.testing.assert_allclose(got[0, 7], 0.55, rtol=1e-5)  # the others are equal: not divided
    np.testing.assert_allclose(got[0, :7], -(0.55 / 7) / (others_std + 1e-6), rtol=1e-5)


def test_a_single_rollout(name):
    """No comparison in the prompt: 0, unless the batch or the greedy answer is what it is compared with."""
    batch = BATCH.at(np.arange(P), [0])
    got = run(name, dataclasses.replace(batch, greedy=batch.greedy - 1))
    assert np.any(got != 0) == (name in ("reinforce_plus_plus", "remax"))


def test_dtypes(name):
    result = lambda dtype: jax.eval_shape(lambda: ESTIMATORS[name](advantages, random_batch(dtype=dtype))).dtype
    assert {result(dtype) for dtype in (jnp.bfloat16, np.float16, np.int32, np.bool_)} == {np.dtype("float32")}
    with jax.enable_x64(True):
        assert result(np.float64) == "float64"
        assert {result(dtype) for dtype in (jnp.bfloat16, np.float32, np.int32)} == {np.dtype("float32")}


def test_gradients(name):
    """Numerically; twice where the map bends. (``chex.assert_numerical_grads`` would not see a stopped gradient.)"""
    with jax.enable_x64(True):
        function, x = on_rewards(name, random_batch(np.random.default_rng(1), np.float64))
        check_grads(jax.jit(function), (x,), order=1, atol=1e-5, rtol=1e-5)
        if name in ("grpo", "reinforce_plus_plus"):
            check_grads(jax.jit(function), (x,), order=2, modes=("rev",), atol=1e-3, rtol=1e-3)


def test_gradients_are_finite_and_zero_where_the_advantage_is_zero_by_equality(name):
    def awkward(r):
        r = np.array(r)
        r[0], r[1], r[2] = 0.35, [NAN, 0.5, 0.5, NAN, 0.5], [1.0, 1.0, 0.0, 1e-30, -1e-30]
        return r

    function, x = on_rewards(name, BATCH.of_rewards(awkward))
    derivative = jax.jit(jax.jacrev(function))
    jacobian = np.asarray(derivative(x))
    assert np.all(np.isfinite(jacobian))
    assert np.any(jacobian[3] != 0)
    if name in OF_A_PROMPT:
        assert np.all(jacobian[:2] == 0)
    jacobian = np.asarray(derivative(jnp.full_like(x, 0.35)))
    assert np.all(np.isfinite(jacobian)) and (name == "remax" or np.all(jacobian == 0))


def test_remax_differentiates_the_greedy_reward():
    gradient = jax.grad(lambda b: jnp.sum(advantages.remax(BATCH.rewards, b)))(jnp.asarray(BATCH.greedy).at[1].set(NAN))
    np.testing.assert_array_equal(gradient, [-G, 0, -G, -G])


def test_has_signal():
    rewards = [[0.35] * 3, [0.0, 1.0, 0.0], [NAN, 1.0, NAN], [NAN] * 3]
    assert advantages.has_signal(rewards).tolist() == [False, True, False, False]


ONES = np.ones((P, G), np.int32)
REFUSED = {
    "got ddof=2": lambda: advantages.grpo(BATCH.rewards, ddof=2),
    "got scale='group'": lambda: advantages.grpo(BATCH.rewards, scale="group"),  # pyright: ignore[reportArgumentType]
    "wanted one of the two": lambda: advantages.grpo(BATCH.rewards, scale="batch", leave_one_out=True),
    "got correction='paper'": lambda: advantages.gpg(BATCH.rewards, correction="paper"),  # pyright: ignore[reportArgumentType]
    "got lengths from -1": lambda: advantages.opo(BATCH.rewards, -ONES),
    "of float32": lambda: advantages.reinforce_plus_plus(BATCH.rewards, np.ones((P, G), np.float32)),
    r"got lengths \(4, 1\)": lambda: advantages.reinforce_plus_plus_baseline(BATCH.rewards, ONES[:, :1]),
    r"got lengths \(5, 4\)": lambda: advantages.gdpo(BATCH.components, BATCH.weights, lengths=ONES.T),
    "one a component": lambda: advantages.gdpo(BATCH.components, np.ones(K + 1)),
    "one a prompt": lambda: advantages.remax(BATCH.rewards, np.ones((P, 1))),
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_input_is_refused(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_wrong_rank_is_refused(name):
    """Rewards without prompts, and one level too deep."""
    for change in (lambda x: x[0], lambda x: x[None]):
        wrong = dataclasses.replace(BATCH, rewards=change(BATCH.rewards), components=change(BATCH.components))
        with pytest.raises(ValueError, match="prompts, rollouts"):
            ESTIMATORS[name](advantages, wrong)


def test_negative_lengths_pass_under_jit_where_nobody_can_look():
    assert jax.jit(advantages.opo)(BATCH.rewards, -ONES).shape == (P, G)


def test_the_pure_core_imports_nothing_heavy():
    code = (
        "import sys, fairgrpo_jax.fairness, fairgrpo_jax.losses, fairgrpo_jax.metrics, fairgrpo_jax.rewards.accuracy; "
        "print(sorted({'flax', 'transformers', 'torch', 'sklearn', 'optax', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
