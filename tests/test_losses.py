"""Policy losses against a plain loop over tokens, and what must not matter."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fairgrpo_jax import losses


RNG = np.random.default_rng(0)
P, G, T = 3, 4, 6
LENGTHS = RNG.integers(1, T + 1, (P, G))
MASK = (np.arange(T) < LENGTHS[..., None]).astype(np.int32)
OLD = np.log(RNG.uniform(0.1, 0.9, (P, G, T))).astype(np.float32)
NEW = (OLD + RNG.normal(0, 0.4, (P, G, T))).astype(np.float32)
ADVANTAGES = RNG.normal(size=(P, G)).astype(np.float32)
AGGREGATIONS = {"token": {}, "sequence": {}, "constant": {"max_length": 16}}


@pytest.fixture(params=AGGREGATIONS)
def aggregation(request):
    return {"aggregation": request.param, **AGGREGATIONS[request.param]}


def by_loop(new, old, advantages, mask, low=0.2, high=0.2, dual=None, aggregation="token", max_length=None):
    """The definition, token by token."""
    rows = []
    for p in range(P):
        for g in range(G):
            a, row = float(advantages[p, g]), []
            for t in np.flatnonzero(mask[p, g]):
                ratio = np.exp(float(new[p, g, t]) - float(old[p, g, t]))
                gain = min(ratio * a, min(max(ratio, 1 - low), 1 + high) * a)
                row.append(-max(gain, dual * a) if dual is not None and a < 0 else -gain)
            rows.append(row)
    if aggregation == "token":
        return sum(map(sum, rows)) / sum(map(len, rows))
    if aggregation == "sequence":
        return np.mean([np.mean(row) for row in rows])
    assert max_length is not None
    return np.mean([sum(row) / max_length for row in rows])


def test_examples_in_docstrings():
    assert doctest.testmod(losses).failed == 0


@pytest.mark.parametrize("options", [{}, {"low": 0.1, "high": 0.3}, {"dual": 1.1}])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_loss_by_loop(aggregation, options, transform):
    names = {"low": "clip_low", "high": "clip_high", "dual": "dual_clip"}
    ours = {names[k]: v for k, v in options.items()}
    got = transform(lambda *a: losses.policy_loss(*a, **ours, **aggregation)[0])(NEW, OLD, ADVANTAGES, MASK)
    np.testing.assert_allclose(got, by_loop(NEW, OLD, ADVANTAGES, MASK, **options, **aggregation), rtol=1e-5)


def test_on_policy_gradient_is_the_score_function(aggregation):
    """At ratio 1 the gradient is -A times the weight of the token, which the definition gives by hand."""
    gradient = jax.grad(lambda x: losses.policy_loss(x, OLD, ADVANTAGES, MASK, **aggregation)[0])(jnp.asarray(OLD))
    share = {
        "token": 1 / MASK.sum(),
        "sequence": 1 / MASK.sum(-1, keepdims=True) / (P * G),
        "constant": 1 / 16 / (P * G),
    }[aggregation["aggregation"]]
    np.testing.assert_allclose(gradient, -ADVANTAGES[..., None] * MASK * share, rtol=1e-5)


def test_gradient_numerically(aggregation):
    with jax.enable_x64(True):
        new, old, a = (jnp.asarray(x, jnp.float64) for x in (NEW, OLD, ADVANTAGES))
        check_grads(lambda x: losses.policy_loss(x, old, a, MASK, **aggregation)[0], (new,), order=1, modes=["rev"])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
def test_garbage_behind_the_mask_touches_nothing(aggregation, garbage):
    value_and_grad = jax.value_and_grad(lambda x, o: losses.policy_loss(x, o, ADVANTAGES, MASK, **aggregation)[0])
    clean = value_and_grad(jnp.asarray(NEW), OLD)
    new, old = np.where(MASK, NEW, garbage), np.where(MASK, OLD, -garbage)
    dirty = value_and_grad(jnp.asarray(new), old)
    np.testing.assert_array_equal(clean[0], dirty[0])
    np.testing.assert_array_equal(clean[1], dirty[1])
    assert np.all(np.asarray(dirty[1])[MASK == 0] == 0)
    metrics = [losses.policy_loss(x, o, ADVANTAGES, MASK, **aggregation)[1] for x, o in ((NEW, OLD), (new, old))]
    assert jax.tree.map(float, metrics[0]) == jax.tree.map(float, metrics[1])


def test_micro_batches_add_up(aggregation):
    whole, gradient = jax.value_and_grad(lambda x: losses.policy_loss(x, OLD, ADVANTAGES, MASK, **aggregation)[0])(
        jnp.asarray(NEW)
    )
    total = sum(losses.denominator(MASK[p], aggregation["aggregation"]) for p in range(P))
    parts = [
        jax.value_and_grad(
            lambda x, p=p: losses.policy_loss(x, OLD[p], ADVANTAGES[p], MASK[p], normalizer=total, **aggregation)[0]
        )(jnp.asarray(NEW[p]))
        for p in range(P)
    ]
    np.testing.assert_allclose(sum(value for value, _ in parts), whole, rtol=1e-5)
    np.testing.assert_allclose(np.stack([g for _, g in parts]), gradient, rtol=1e-5, atol=1e-8)


def test_padding_rollouts_and_tokens_change_nothing(aggregation):
    wide = ((0, 1), (0, 0), (0, 3))
    new, old, mask = (np.pad(x, wide) for x in (NEW, OLD, MASK))
    got, metrics = losses.policy_loss(new, old, np.pad(ADVANTAGES, ((0, 1), (0, 0))), mask, **aggregation)
    wanted, wanted_metrics = losses.policy_loss(NEW, OLD, ADVANTAGES, MASK, **aggregation)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], wanted_metrics[name], rtol=1e-6)


def test_nothing_to_learn_from_is_zero(aggregation):
    loss, metrics = losses.policy_loss(NEW, OLD, ADVANTAGES, 0 * MASK, **aggregation)
    assert loss == 0 and all(value == 0 for value in metrics.values())


def test_no_gradient_to_advantages_and_old_policy():
    gradients = jax.grad(lambda o, a: losses.policy_loss(NEW, o, a, MASK)[0], (0, 1))(OLD, ADVANTAGES)
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
        ({"kind": "gspo"}, "kind='gspo'"),
        ({"clip_low": 1.5}, "clip_low=1.5"),
        ({"clip_high": -0.1}, "clip_high=-0.1"),
        ({"dual_clip": 1.0}, "dual_clip=1.0"),
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
    with pytest.raises(ValueError, match="estimator='k4'"):
        losses.kl(NEW, OLD, estimator="k4")  # pyright: ignore[reportArgumentType]
