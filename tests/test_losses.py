"""Policy losses against a plain loop over tokens, and what must not matter."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays

from fairgrpo_jax import losses


RNG = np.random.default_rng(0)
P, G, T = 3, 4, 6
LENGTHS = RNG.integers(1, T + 1, (P, G))
MASK = (np.arange(T) < LENGTHS[..., None]).astype(np.int32)
OLD = np.log(RNG.uniform(0.1, 0.9, (P, G, T))).astype(np.float32)
NEW = (OLD + RNG.normal(0, 0.4, (P, G, T))).astype(np.float32)
ADVANTAGES = RNG.normal(size=(P, G)).astype(np.float32)
WEIGHTS = RNG.uniform(0, 2, (P, G, T)).astype(np.float32)
AGGREGATIONS = {"token": {}, "sequence": {}, "constant": {"max_length": 16}}
KINDS = {
    "clip": {},
    "clip, asymmetric": {"clip_low": 0.1, "clip_high": 0.3},
    "clip, dual": {"dual_clip": 1.1},
    "gspo": {"kind": "gspo", "clip_low": 0.1, "clip_high": 0.05},
    "gspo, dual": {"kind": "gspo", "dual_clip": 1.05},
    "cispo": {"kind": "cispo", "clip_low": 0.3, "clip_high": 0.2},
    "cispo, no lower bound": {"kind": "cispo", "clip_low": 1.0, "clip_high": 0.5},
}


# What a token costs does not depend on how tokens are summed, as ByLoop shows for all pairs: elsewhere each is there.
SUMS = [("clip", "token"), ("clip", "constant"), ("gspo", "sequence"), ("cispo", "token")]
PAIRS = [(kind, "sequence") for kind in KINDS if kind != "gspo"] + SUMS
STATIC = ("kind", "clip_low", "clip_high", "dual_clip", "aggregation", "max_length")
# One program for a choice of options instead of one for every operation.
LOSS = jax.jit(losses.policy_loss, static_argnames=STATIC)
VALUE_AND_GRAD = jax.jit(jax.value_and_grad(losses.policy_loss, has_aux=True), static_argnames=STATIC)


@pytest.fixture(params=AGGREGATIONS)
def aggregation(request):
    return {"aggregation": request.param, **AGGREGATIONS[request.param]}


@pytest.fixture(params=[(kind, "sequence") for kind in KINDS], ids="-".join)
def kind(request):
    return options_of(*request.param)


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    return options_of(*request.param)


def options_of(kind, aggregation) -> dict[str, Any]:
    return {**KINDS[kind], "aggregation": aggregation, **AGGREGATIONS[aggregation]}


def by_loop(
    new, old, advantages, mask, *, kind="clip", clip_low=0.2, clip_high=0.2, dual_clip=None, weights=None,
    aggregation="token", max_length=None, held=None,
):  # fmt: skip
    """The definition, token by token, in float64; ``held`` is the policy inside the stop-gradient of CISPO."""
    held, rows = new if held is None else held, []
    for p, g in np.ndindex(mask.shape[:2]):
        a, row, tokens = float(advantages[p, g]), [], np.flatnonzero(mask[p, g])
        d = np.array([float(new[p, g, t]) - float(old[p, g, t]) for t in tokens])
        if kind == "gspo" and len(d):
            d[:] = d.mean()
        d = np.clip(d, -20, 20)
        for i, t in enumerate(tokens):
            if kind == "cispo":
                ratio = np.exp(np.clip(float(held[p, g, t]) - float(old[p, g, t]), -20, 20))
                value = -min(max(ratio, 1 - clip_low), 1 + clip_high) * a * float(new[p, g, t])
            else:
                ratio = np.exp(d[i])
                value = -min(ratio * a, min(max(ratio, 1 - clip_low), 1 + clip_high) * a)
                if dual_clip is not None and a < 0:
                    value = min(value, -dual_clip * a)
            row.append(value * (1.0 if weights is None else float(weights[p, g, t])))
        rows.append(row)
    if aggregation == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if aggregation == "sequence":
        return np.mean([np.mean(row) for row in rows if row])
    assert max_length is not None
    return np.mean([sum(row) / max_length for row in rows if row])


def by_differences(new, *args, step=1e-6, **options):
    """The gradient of ``by_loop`` at the tokens."""
    gradient = np.zeros(new.shape)
    for place in zip(*np.nonzero(args[2]), strict=True):
        shift = np.zeros(new.shape)
        shift[place] = step
        high, low = (by_loop(new + s, *args, held=new, **options) for s in (shift, -shift))
        gradient[place] = (high - low) / (2 * step)
    return gradient


class ByLoop(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)  # pyright: ignore[reportCallIssue]
    @parameterized.product(kind=list(KINDS), aggregation=list(AGGREGATIONS))
    def test_loss(self, kind, aggregation):
        options, rows = options_of(kind, aggregation), (NEW, OLD, ADVANTAGES, MASK)
        got = self.variant(lambda *a: losses.policy_loss(*a, weights=WEIGHTS, **options)[0])(*rows)
        np.testing.assert_allclose(got, by_loop(*rows, weights=WEIGHTS, **options), rtol=1e-5)


def test_gradient_by_differences(pair):
    """Weighted, against finite differences of the loop; CISPO's weight stands still in them."""
    with jax.enable_x64(True):
        new, old, a, w = (np.float64(x) for x in (NEW, OLD, ADVANTAGES, WEIGHTS))
        got = VALUE_AND_GRAD(new, old, a, MASK, weights=w, **pair)[1]
        assert got.dtype == jnp.float64
    wanted = by_differences(np.float64(NEW), OLD, ADVANTAGES, MASK, weights=WEIGHTS, **pair)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-8)


finite = st.floats(-2, 2, width=32)


@settings(derandomize=True)
@given(
    arrays(np.float32, (P, G, T), elements=st.floats(-30, 0, width=32)),
    arrays(np.float32, (P, G, T), elements=st.floats(-30, 0, width=32)),
    arrays(np.float32, (P, G), elements=finite),
    arrays(np.bool_, (P, G, T)),
    st.sampled_from(list(KINDS)),
)
def test_loss_on_any_values(new, old, advantages, mask, kind):
    """Ratios far out, equal advantages, empty rollouts, masks with holes."""
    mask[0, 0, 0] = True
    with jax.enable_x64(True):
        args = (new.astype(np.float64), old.astype(np.float64), advantages.astype(np.float64), mask)
        got, metrics = jax.tree.map(float, losses.policy_loss(*args, aggregation="sequence", **KINDS[kind]))
    np.testing.assert_allclose(got, by_loop(*args, aggregation="sequence", **KINDS[kind]), rtol=1e-9, atol=1e-12)
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(0 <= metrics[name] <= 1 for name in ("clip_low", "clip_high", "dual_clip"))


def test_on_policy_gradient_is_the_score_function(aggregation):
    """At ratio 1 the gradient is -A times the weight of the token, which the definition gives by hand."""
    gradient = VALUE_AND_GRAD(OLD, OLD, ADVANTAGES, MASK, **aggregation)[1]
    share = {
        "token": 1 / MASK.sum(),
        "sequence": 1 / MASK.sum(-1, keepdims=True) / (P * G),
        "constant": 1 / 16 / (P * G),
    }[aggregation["aggregation"]]
    np.testing.assert_allclose(gradient, -ADVANTAGES[..., None] * MASK * share, rtol=1e-5)


def test_gspo_gradient_by_hand():
    """Two tokens, log-ratios 0.1 and 0.3: s = e^0.2, and each token takes half of -s A."""
    new, old = jnp.array([[-0.4, -0.2, -1.0], [-1.0, -1.0, -1.0]]), jnp.array([[-0.5, -0.5, -1.0], [-1.0, -1.0, -1.0]])
    mask = jnp.array([[1, 1, 0], [0, 0, 0]])
    for clip_high, wanted in ((0.3, -2 * np.exp(0.2) / 2), (0.2, 0.0)):  # e^0.2 = 1.221
        value, gradient = jax.value_and_grad(
            lambda x, high=clip_high: losses.policy_loss(
                x, old, jnp.array([2.0, 9.0]), mask, kind="gspo", clip_high=high, aggregation="sequence"
            )[0]
        )(new)
        np.testing.assert_allclose(value, -2 * min(np.exp(0.2), 1 + clip_high), rtol=1e-6)
        np.testing.assert_allclose(gradient, [[wanted, wanted, 0], [0, 0, 0]], rtol=1e-6)


def test_cispo_stops_no_token():
    """Ratios 0.5, 1, 4 at either sign of A: the gradient is minus the bounded ratio times A, and never 0."""
    new = jnp.log(jnp.array([[0.5, 1.0, 4.0]]))
    for a in (2.0, -2.0):
        for low, wanted in ((0.2, [0.8, 1.0, 1.3]), (1.0, [0.5, 1.0, 1.3])):
            gradient = jax.grad(
                lambda x, a=a, low=low: losses.policy_loss(
                    x, 0 * new, jnp.array([a]), jnp.ones((1, 3)), kind="cispo", clip_low=low, clip_high=0.3
                )[0]
            )(new)
            np.testing.assert_allclose(gradient[0], -a * np.array(wanted) / 3, rtol=1e-6)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_garbage_behind_the_mask_touches_nothing(kind, garbage):
    mask = MASK.copy()
    mask[1, 2] = 0
    dirty_advantages = np.where(mask.any(-1), ADVANTAGES, np.float32(garbage))

    (clean, metrics), gradient = VALUE_AND_GRAD(NEW, OLD, ADVANTAGES, mask, weights=WEIGHTS, **kind)
    outside = np.float32(garbage)
    new, old, weights = (np.where(mask, x, y) for x, y in ((NEW, outside), (OLD, -outside), (WEIGHTS, outside)))
    (dirty, dirty_metrics), dirty_gradient = VALUE_AND_GRAD(new, old, dirty_advantages, mask, weights=weights, **kind)
    assert clean == dirty and jax.tree.map(float, metrics) == jax.tree.map(float, dirty_metrics)
    np.testing.assert_array_equal(gradient, dirty_gradient)
    assert np.all(np.asarray(dirty_gradient)[mask == 0] == 0)


@pytest.mark.parametrize("kind, aggregation", SUMS)
def test_micro_batches_add_up(kind, aggregation):
    pair = options_of(kind, aggregation)

    def value_and_grad(*rows, **options):
        (value, _), gradient = VALUE_AND_GRAD(*rows[:4], weights=rows[4], **options)
        return value, gradient

    rows = (NEW, OLD, ADVANTAGES, MASK, WEIGHTS)
    whole, gradient = value_and_grad(*rows, **pair)
    total = sum(losses.denominator(MASK[p], pair["aggregation"]) for p in range(P))
    parts = [value_and_grad(*(x[p] for x in rows), normalizer=total, **pair) for p in range(P)]
    np.testing.assert_allclose(sum(value for value, _ in parts), whole, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.stack([g for _, g in parts]), gradient, rtol=1e-5, atol=1e-8)


def test_padding_rollouts_and_tokens_change_nothing(pair):
    wide = ((0, 1), (0, 0), (0, 3))
    new, old, mask, weights = (np.pad(x, wide) for x in (NEW, OLD, MASK, WEIGHTS))
    got, metrics = LOSS(new, old, np.pad(ADVANTAGES, ((0, 1), (0, 0))), mask, weights=weights, **pair)
    wanted, wanted_metrics = LOSS(NEW, OLD, ADVANTAGES, MASK, weights=WEIGHTS, **pair)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-5)


def test_nothing_to_learn_from_is_zero(pair):
    loss, metrics = LOSS(NEW, OLD, ADVANTAGES, 0 * MASK, weights=WEIGHTS, **pair)
    assert loss == 0 and all(value == 0 for value in metrics.values())


def test_no_gradient_to_advantages_old_policy_and_weights(kind):
    function = lambda o, a, w: losses.policy_loss(NEW, o, a, MASK, weights=w, **kind)[0]
    gradients = jax.jit(jax.grad(function, (0, 1, 2)))(OLD, ADVANTAGES, WEIGHTS)
    assert all(np.all(np.asarray(g) == 0) for g in gradients)


def test_clipping_stops_the_gradient_on_one_side_only():
    ratio = np.log(np.array([[0.5, 1.0, 2.0]], np.float32))
    for advantage, wanted in ((1.0, [True, True, False]), (-1.0, [False, True, True])):
        a = jnp.array([advantage])
        gradient = jax.grad(lambda x, a=a: losses.policy_loss(x, 0 * x, a, jnp.ones((1, 3)))[0])(jnp.asarray(ratio))
        assert (np.asarray(gradient)[0] != 0).tolist() == wanted


def test_metrics_by_hand():
    new, old = np.log(np.array([[[0.1, 0.5, 0.9], [0.2, 0.9, 0.5]]])), np.log(np.full((1, 2, 3), 0.5))
    mask = np.array([[[1, 1, 1], [1, 1, 0]]])
    _, metrics = losses.policy_loss(new, old, np.array([[1.0, -1.0]]), mask, dual_clip=1.5)
    ratios = np.array([0.2, 1.0, 1.8, 0.4, 1.8])
    wanted = {
        "clip_low": 1 / 5,
        "clip_high": 1 / 5,
        "dual_clip": 1 / 5,
        "ratio_mean": ratios.mean(),
        "ratio_max": 1.8,
        "kl": np.mean(ratios - 1 - np.log(ratios)),
        "tokens": 5,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["clip", "gspo"])
def test_weights_of_rollouts_are_those_of_their_tokens(name):
    kind = options_of(name, "sequence")
    of_rollouts = WEIGHTS[..., 0]
    of_tokens = np.repeat(of_rollouts[..., None], T, axis=2)
    got = [LOSS(NEW, OLD, ADVANTAGES, MASK, weights=w, **kind) for w in (of_rollouts, of_tokens)]
    np.testing.assert_array_equal(got[0][0], got[1][0])
    np.testing.assert_allclose(got[0][0], by_loop(NEW, OLD, ADVANTAGES, MASK, weights=of_tokens, **kind), rtol=1e-5)
    even = np.ones((P, G), np.float32)
    ones, none = (LOSS(NEW, OLD, ADVANTAGES, MASK, weights=w, **kind) for w in (even, None))
    assert jax.tree.map(float, ones) == jax.tree.map(float, none)


@pytest.mark.parametrize("kind, clip_high", [("gspo", 0), ("cispo", 2 / 5)])
def test_metrics_of_other_kinds_by_hand(kind, clip_high):
    """Two rollouts with A < 0: GSPO clips the whole first one, below; CISPO bounds single weights on either side."""
    ratios, mask = np.array([[[0.5, 0.6, 0.4], [1.8, 0.9, 1.7]]]), np.array([[[1, 1, 1], [1, 0, 1]]])
    _, metrics = losses.policy_loss(
        np.log(ratios), 0 * ratios, -np.ones((1, 2)), mask, kind=kind, clip_low=0.3, clip_high=0.2
    )
    tokens = np.array([0.5, 0.6, 0.4, 1.8, 1.7])
    used = np.repeat([0.12 ** (1 / 3), 3.06 ** (1 / 2)], [3, 2]) if kind == "gspo" else tokens
    wanted = {
        "clip_low": 3 / 5,
        "clip_high": clip_high,
        "dual_clip": 0,
        "ratio_mean": used.mean(),
        "ratio_max": used.max(),
        "kl": np.mean(tokens - 1 - np.log(tokens)),
        "tokens": 5,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("name", ["clip, dual", "gspo", "cispo"])
def test_vmap_is_a_loop(name):
    kind = options_of(name, "sequence")
    got = jax.vmap(lambda *a: LOSS(*a[:4], weights=a[4], **kind))(NEW, OLD, ADVANTAGES, MASK, WEIGHTS)
    wanted = [LOSS(NEW[p], OLD[p], ADVANTAGES[p], MASK[p], weights=WEIGHTS[p], **kind) for p in range(P)]
    wanted = jax.tree.map(lambda *leaves: np.stack(leaves), *wanted)
    chex.assert_trees_all_close(jax.tree.map(np.asarray, got), wanted, rtol=1e-5)


def test_far_off_policy_stays_finite():
    new, old = np.zeros((1, 2), np.float32), np.array([[-500.0, 500.0]], np.float32)
    for a in (1.0, -1.0):
        value, gradient = jax.value_and_grad(lambda x, a=a: losses.policy_loss(x, old, np.array([a]), new + 1)[0])(new)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_bfloat16_is_summed_in_float32():
    new, old, advantages = (jnp.asarray(x, jnp.bfloat16) for x in (NEW, OLD, ADVANTAGES))
    loss, _ = losses.policy_loss(new, old, advantages, MASK)
    assert loss.dtype == "float32"


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators(estimator):
    """Exact expectation over a small vocabulary: k1 and k3 are unbiased, k2 has the right gradient."""
    logits, other = jnp.asarray(RNG.normal(size=5)), jax.nn.log_softmax(jnp.asarray(RNG.normal(size=5)))
    policy = jax.nn.log_softmax(logits)
    exact = jnp.sum(jnp.exp(policy) * (policy - other))
    values = losses.kl(policy, other, estimator=estimator)
    if estimator != "k2":
        np.testing.assert_allclose(jnp.sum(jnp.exp(policy) * values), exact, rtol=1e-5)
    if estimator != "k1":
        assert np.all(np.asarray(values) >= 0)
    if estimator == "k2":
        np.testing.assert_allclose(values, 0.5 * (policy - other) ** 2, rtol=1e-6)
        samples = jax.lax.stop_gradient(jnp.exp(policy))
        as_loss = jax.grad(lambda x: jnp.sum(samples * losses.kl(jax.nn.log_softmax(x), other, estimator="k2")))
        truth = jax.grad(lambda x: jnp.sum(jnp.exp(jax.nn.log_softmax(x)) * (jax.nn.log_softmax(x) - other)))
        np.testing.assert_allclose(as_loss(logits), truth(logits), atol=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_mask(estimator):
    new, reference = np.where(MASK, NEW, np.nan), np.where(MASK, OLD, np.inf)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(losses.kl(x, reference, estimator=estimator, mask=MASK)))(
        jnp.asarray(new)
    )
    wanted = np.sum(np.asarray(losses.kl(NEW, OLD, estimator=estimator)) * MASK)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    assert np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient)[MASK == 0] == 0)
    assert np.all(np.asarray(jax.grad(lambda o: jnp.sum(losses.kl(NEW, o, estimator=estimator)))(OLD)) == 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kind": "ppo"}, "kind='ppo'"),
        ({"clip_low": 1.5}, "clip_low=1.5"),
        ({"clip_high": -0.1}, "clip_high=-0.1"),
        ({"dual_clip": 1.0}, "dual_clip=1.0"),
        ({"dual_clip": 3.0, "kind": "cispo"}, "dual_clip=3.0 with kind='cispo'"),
        ({"weights": np.ones(P)}, r"weights \(3,\)"),
        ({"aggregation": "mean", "normalizer": 4.0}, "aggregation='mean'"),
        ({"aggregation": "mean"}, "aggregation='mean'"),
        ({"aggregation": "constant"}, "max_length=None"),
        ({"max_length": 4}, "max_length=4"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        losses.policy_loss(NEW, OLD, ADVANTAGES, MASK, **options)


def test_bad_shapes_are_refused():
    with pytest.raises(ValueError, match="wanted"):
        losses.policy_loss(NEW, OLD, ADVANTAGES[:, :1], MASK)
    with pytest.raises(ValueError, match="wanted"):
        losses.policy_loss(NEW, OLD[:1], ADVANTAGES, MASK)
    with pytest.raises(ValueError, match="equal shapes"):
        losses.kl(NEW, OLD[:1])
    with pytest.raises(ValueError, match="equal shapes"):
        losses.kl(NEW, OLD, old_logprobs=OLD[..., 0])
    with pytest.raises(ValueError, match="estimator='k4'"):
        losses.kl(NEW, OLD, estimator="k4")  # pyright: ignore[reportArgumentType]
