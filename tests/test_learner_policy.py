"""The options of the policy step: chunks, KL to a reference, the dtype of the passes, and one program for all."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairgrpo_jax import config as options, estimators, fairness, learner, losses, mesh, staged
from fairgrpo_jax.models import lora, text
from fairgrpo_jax.models.inputs import pack
from tests.test_models_decoder import assert_leaves_near
from tests.tiny_models import noisy


MODEL = text.tiny("mistral", num_layers=2, hidden_size=32, vocab_size=96)
OPTIM = options.Optim(lr=1e-2, warmup_steps=0, schedule="constant", weight_decay=0.0, b1=0.0, max_grad_norm=1e9)
LENGTHS = np.array([[20, 1, 3, 7], [2, 18, 4, 20], [1, 1, 12, 2], [9, 7, 20, 16]])
MASK = np.arange(20) < LENGTHS[..., None]
UNCLIPPED: dict = dict(clip_low=1.0, clip_high=1e9)
LOGPROBS = jax.jit(learner.completion_logprobs, static_argnums=1)


@pytest.fixture(scope="module")
def params():
    return noisy(MODEL, 0.1)


@pytest.fixture(scope="module")
def batch(params):
    """Four ragged prompts with four ragged completions each; an older policy beyond both clips, and a reference."""
    rng = np.random.default_rng(1)
    ids, valid = rng.integers(7, 96, (4, 12)), np.arange(12) < np.array([[12], [5], [1], [8]])
    prompt = jax.device_put(pack({"input_ids": ids, "attention_mask": valid}, MODEL))
    tokens = jnp.asarray(rng.integers(7, 96, MASK.shape), jnp.int32)
    logprobs = LOGPROBS(params, MODEL, prompt, tokens)
    near = lambda scale: logprobs + jnp.asarray(scale * rng.normal(size=MASK.shape), jnp.float32)
    advantages = jnp.asarray(rng.normal(size=(4, 4)), jnp.float32)
    return learner.PolicyBatch(prompt, tokens, jnp.asarray(MASK), logprobs, advantages, near(0.3), near(0.5))


def state(params):
    copied = jax.tree.map(jnp.copy, params)  # steps donate their state
    statistics = estimators.Memory(fairness.init(1, 1, 4, history=None))
    return learner.TrainState(copied, learner.fresh_moments(params, optim=OPTIM, steps=10), jnp.int32(0), statistics)


def settings(compute=None, **update) -> dict[str, Any]:
    spec = options.Update(**update)
    return dict(architecture=MODEL, update=spec, optim=OPTIM, temperature=1.0, steps=10, compute=compute)


def descend(now, batch, compute=None, **update):
    pieces = learner.split(jax.device_get(batch), update.get("accumulation", 1))  # on the host, as in a run
    return learner.policy_step(now, pieces, **settings(compute, **update))


def step(params, *args, **kwargs):
    return descend(state(params), *args, **kwargs)


def gradient(*args, **kwargs):
    """The gradient, which without momentum is the first moment after one step; and the metrics."""
    after, metrics = step(*args, **kwargs)
    return optax.tree.get(after.moments, "mu"), dict(metrics)


@pytest.mark.parametrize(
    "kind, aggregation, more",
    [
        ("clip", "token", dict(dual_clip=1.5)),
        # test_losses has all kinds and sums, in parts too
        pytest.param("gspo", "sequence", dict(clip_low=0.05, clip_high=0.05), marks=pytest.mark.slow),
        pytest.param("cispo", "constant", dict(), marks=pytest.mark.slow),
    ],
)
def test_chunks_and_accumulation_change_neither_gradient_nor_metrics(params, batch, kind, aggregation, more):
    """Against one call of the loss on all log-probabilities at once, differentiated through both passes."""

    def whole(params):
        logprobs = learner.completion_logprobs(params, MODEL, batch.prompt, batch.tokens)
        length = 20 if aggregation == "constant" else None
        limits = dict(clip_low=0.2, clip_high=0.2) | more
        shared: dict = dict(kind=kind, aggregation=aggregation, max_length=length)
        return losses.policy_loss(logprobs, batch.old_logprobs, batch.advantages, batch.mask, **shared, **limits)

    (value, wanted), grads = jax.jit(jax.value_and_grad(whole, has_aux=True))(params)
    apart = np.abs(batch.old_logprobs - batch.sampler_logprobs)[np.asarray(batch.mask)].mean()
    wanted = dict(wanted) | {"loss": value, "kl_old": wanted["kl"], "mismatch": apart}
    for chunks, accumulation in ((4, 1), (2, 2)):
        spec = dict(kind=kind, aggregation=aggregation, chunks=chunks, accumulation=accumulation, **more)
        got, metrics = gradient(params, batch, **spec)
        assert_leaves_near(got, grads, 1e-5)
        assert metrics.keys() == wanted.keys() - {"kl"} | {"optim/grad_norm", "padding_share"}
        for name in metrics.keys() & wanted.keys():
            np.testing.assert_allclose(metrics[name], wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert wanted["clip_low"] > 0 and wanted["clip_high"] > 0


def numbers(estimator, d):
    """The estimate and its derivative, token by token."""
    if estimator == "k1":
        return d, 1.0
    return (d * d / 2, d) if estimator == "k2" else (np.exp(-d) - 1 + d, 1 - np.exp(-d))


@pytest.mark.parametrize(
    "estimator, aggregation",
    [
        ("k3", "sequence"),
        pytest.param("k1", "token", marks=pytest.mark.slow),
        pytest.param("k2", "constant", marks=pytest.mark.slow),
    ],
)
def test_kl_to_the_reference_by_hand(params, batch, estimator, aggregation):
    """Value and derivative of every token written out, pulled back through the log-probabilities."""
    logprobs, pull = jax.vjp(jax.jit(lambda p: LOGPROBS(p, MODEL, batch.prompt, batch.tokens)), params)
    reference, advantages = np.asarray(batch.reference_logprobs, np.float64), np.asarray(batch.advantages)
    loss, mean, slope = 0.0, 0.0, np.zeros(MASK.shape, np.float32)
    for i, j in np.ndindex(4, 4):
        share = {"token": 1 / LENGTHS.sum(), "sequence": 1 / LENGTHS[i, j] / 16, "constant": 1 / 20 / 16}[aggregation]
        for t in range(LENGTHS[i, j]):
            value, derivative = numbers(estimator, float(logprobs[i, j, t]) - reference[i, j, t])
            loss += share * (0.04 * value - advantages[i, j])  # the ratio to itself is 1
            slope[i, j, t] = share * (0.04 * derivative - advantages[i, j])
            mean += value / LENGTHS.sum()
    spec = dict(beta=0.04, kl_estimator=estimator, aggregation=aggregation, chunks=2, accumulation=2)
    grads, metrics = gradient(params, batch.replace(old_logprobs=None), **spec)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], mean, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_old"], 0.0, atol=1e-7)
    assert_leaves_near(grads, pull(jnp.asarray(slope))[0], 1e-5)


def test_scores_of_the_reference_are_its_log_probabilities(params, batch):
    other = jax.tree.map(lambda x: 0.9 * x, params)
    blank = batch.replace(reference_logprobs=None)
    got = learner.with_logprobs(other, blank, architecture=MODEL, temperature=1.0, chunks=2, policy="reference")
    wanted = LOGPROBS(other, MODEL, batch.prompt, batch.tokens)
    np.testing.assert_allclose(got.reference_logprobs, np.where(MASK, wanted, 0), atol=1e-5)
    np.testing.assert_array_equal(got.old_logprobs, batch.old_logprobs)


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_the_reference_is_a_bfloat16_copy_that_survives_updates(params, batch, dtype):
    now = state(jax.tree.map(lambda x: x.astype(dtype), params))
    wanted = jax.tree.map(lambda x: np.array(x.astype(jnp.bfloat16)), now.params)
    held = learner.reference(now.params)
    after, _ = descend(now, batch, **UNCLIPPED)
    jax.tree.map(np.testing.assert_array_equal, held, wanted)
    assert now.params["embedding"].is_deleted() and (after.params["embedding"] != held["embedding"]).any()


def test_the_reference_of_adapters_is_the_model_without_them_not_a_copy(params):
    adapted = lora.add_to(params, lora.LoRA(rank=2), jax.random.key(0))
    held = learner.reference(adapted)
    assert jax.tree.structure(held) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(held), jax.tree.leaves(params), strict=True))


def test_the_reference_lies_where_the_parameters_lie(params):
    devices = mesh.make("2x2")
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        for x, y in zip(jax.tree.leaves(learner.reference(placed)), jax.tree.leaves(placed), strict=True):
            assert x.dtype == jnp.bfloat16 and x.sharding.is_equivalent_to(y.sharding, x.ndim)


@pytest.mark.parametrize(
    "update, changes, message",
    [
        (dict(beta=0.1), dict(reference_logprobs=None), "beta=0.1 without reference_logprobs; wanted them"),
        (dict(chunks=3), dict(), "chunks=3 for 4 rollouts; wanted a divisor of 4"),
    ],
)
def test_options_that_do_not_fit_the_batch_are_refused(params, batch, update, changes, message):
    with pytest.raises(ValueError, match=message):
        step(params, batch.replace(**changes), **update)


def test_options_that_do_not_fit_each_other_are_refused():
    for make, message in (
        (lambda: options.Update(chunks=-1), "update.chunks=-1; wanted at least 1"),
        (lambda: options.Update(beta=-0.1), "update.beta=-0.1; wanted a weight >= 0"),
        (lambda: options.Config(rollouts=8, update=options.Update(chunks=3)), "update.chunks as a divisor of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_compute_in_bfloat16_keeps_weights_and_gradients_in_float32(params, batch):
    low = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params)
    rounded = jax.tree.map(lambda x: x.astype(np.float32), low)
    exact, _ = gradient(params, batch, **UNCLIPPED)
    fine, _ = gradient(rounded, batch, **UNCLIPPED)
    mixed, _ = gradient(params, batch, "bfloat16", **UNCLIPPED)
    half, _ = gradient(low, batch, **UNCLIPPED)
    _, metrics = gradient(params, batch.replace(old_logprobs=None), "bfloat16", **UNCLIPPED)
    exact, fine, mixed, half = jax.device_get((exact, fine, mixed, half))
    assert {x.dtype for x in jax.tree.leaves((exact, mixed, half))} == {jnp.dtype("float32")}
    jax.tree.map(lambda *x: np.testing.assert_array_equal(*(y.astype(jnp.bfloat16) for y in x)), mixed, half)
    norm = lambda *trees: np.sqrt(sum(np.square(x).sum() for tree in trees for x in jax.tree.leaves(tree)))
    far = [norm(jax.tree.map(np.subtract, mixed, x)) / norm(exact) for x in (exact, fine)]
    assert 1e-3 < far[1] <= far[0] < 0.1 and 1e-4 < metrics["mismatch"] < 0.1, far


def test_updates_finer_than_bfloat16_are_kept_where_only_the_passes_are_in_bfloat16(params, batch):
    first, mask = batch.tokens[:, :1], batch.mask[:, :1]
    pieces = [learner.SupervisedBatch(batch.prompt, first, mask)]
    more: dict = dict(architecture=MODEL, optim=dataclasses.replace(OPTIM, lr=1e-5), steps=10)
    after, metrics = learner.supervised_step(state(params), pieces, compute="bfloat16", **more)
    wanted = -batch.sampler_logprobs[:, :1][mask].mean()
    assert metrics["loss"] != wanted
    np.testing.assert_allclose(metrics["loss"], wanted, rtol=5e-3)
    change = np.asarray(after.params["embedding"] - params["embedding"])
    assert after.params["embedding"].dtype == jnp.float32
    np.testing.assert_allclose(np.abs(change[np.abs(change) > 0]).max(), 1e-5, rtol=0.05)  # Adam's first step
    scored = learner.with_logprobs(params, batch, architecture=MODEL, temperature=1.0, compute="bfloat16")
    assert 1e-4 < np.abs(scored.old_logprobs - batch.sampler_logprobs)[MASK].mean() < 0.1


def test_batches_of_all_lengths_go_through_one_program(params, batch, monkeypatch):
    monkeypatch.setattr(staged, "STEP", 16)
    program: Any = learner.policy_gradient
    program.clear_cache()
    seconds = np.sort(LENGTHS, axis=1)[:, 1]
    for longest in (1, 5, 16, 17, 20):
        short = batch.replace(mask=batch.mask & (jnp.arange(20) < longest).reshape(1, 1, 20))
        metrics = step(params, short, chunks=2, remat=False)[1]
        assert metrics["tokens"] == np.minimum(LENGTHS, longest).sum()
        halves = [16 if min(length, longest) <= 16 else 20 for length in (seconds.max(), 20)]
        np.testing.assert_allclose(metrics["padding_share"], 1 - metrics["tokens"] / (8 * sum(halves)), rtol=1e-6)
    assert program._cache_size() == 1
    program.clear_cache()


def test_buffers_are_donated(params, batch):
    now = state(params)
    size = lambda *trees: sum(x.nbytes for x in jax.tree.leaves(trees))
    aliased: Any = lambda lowered: lowered.compile().memory_analysis().alias_size_in_bytes
    update: dict = dict(plan=staged.Plan(MODEL), update=options.Update())
    sums, metrics = learner.policy_gradient(now.params, None, batch, jnp.float32(9.0), **update)
    assert aliased(learner.policy_gradient.lower(now.params, sums, batch, jnp.float32(9.0), **update)) >= size(sums)
    assert aliased(learner.descend.lower(now, (sums, [metrics]), OPTIM, 10, ())) >= size(now.params, now.moments)
