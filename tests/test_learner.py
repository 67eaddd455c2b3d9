"""The updates: exact under padding, accumulation, mesh and mini-batches; and they learn."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairgrpo_jax import config as options, estimators, fairness, learner, mesh
from fairgrpo_jax.models import decoder
from tests import tiny_batch, tiny_models


OPTIM = options.Optim(lr=1e-2, weight_decay=0.0)
LOGPROBS = jax.jit(learner.completion_logprobs, static_argnums=1)
PLAIN = dataclasses.replace(OPTIM, b1=0.0, max_grad_norm=1e9)  # its first moment is the gradient
POLICY = dict(optim=OPTIM, temperature=1.0, steps=10)


def state(params, optim=OPTIM):
    moments = learner.optimizer(optim, 10).init(params)
    copied = jax.tree.map(jnp.copy, params)  # steps donate their state
    return learner.TrainState(copied, moments, jnp.int32(0), estimators.Memory(fairness.init(1, 1, 4)))


@pytest.fixture(scope="module")
def recorded():
    """A rollout batch of 8 prompts x 4 completions of ragged length, with advantages and an older policy.

    Without images: a tower takes as long to compile as the rest.
    """
    return record(tiny_batch.TEXT, tiny_batch.text_prompt)


@pytest.fixture(scope="module")
def with_images():
    return record(tiny_batch.MODEL, tiny_batch.prompt)


def record(architecture, pack):
    rows, rng = tiny_batch.records(8), np.random.default_rng(0)
    tokens, mask = (np.array(x) for x in tiny_batch.completions(rows, rollouts=4))
    for i, j in np.ndindex(8, 4):
        cut = int(rng.integers(2, 8))
        mask[i, j, cut:] = False
        tokens[i, j, cut:] = tiny_batch.MODEL.pad_id
    params, prompt = tiny_batch.params(architecture=architecture), pack(rows)
    logprobs = np.asarray(LOGPROBS(params, architecture, prompt, jnp.asarray(tokens)))
    old = logprobs + 0.3 * rng.standard_normal(logprobs.shape).astype(np.float32)  # ratios on both sides of the clip
    advantages = rng.standard_normal((8, 4)).astype(np.float32)
    batch = jax.device_put(learner.PolicyBatch(prompt, tokens, mask, logprobs, advantages, old))
    return params, batch


def descend(params, batch, *, optim=OPTIM, pieces=1, place=jnp.asarray, **update):
    """One policy step: the state after it, and its metrics."""
    architecture = tiny_batch.TEXT if batch.prompt.vision is None else tiny_batch.MODEL
    more: dict = POLICY | dict(architecture=architecture, optim=optim, update=options.Update(**update))
    return learner.policy_step(state(params, optim), learner.split(jax.device_get(batch), pieces), place=place, **more)


def gradient(params, batch, **update):
    """Gradient of the policy step, read off plain SGD-like moments: the first moment after one step."""
    after, metrics = descend(params, batch, optim=PLAIN, **update)
    moments = [
        m
        for m in jax.tree.leaves(after.moments, is_leaf=lambda x: isinstance(x, optax.ScaleByAdamState))
        if isinstance(m, optax.ScaleByAdamState)
    ]
    return jax.device_get((moments[0].mu, metrics))


def assert_close(a, b, tolerance=1e-5):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance, rtol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_accumulation_one_by_eight_equals_eight_by_one(recorded):
    whole, split = (gradient(*recorded, pieces=n) for n in (1, 8))
    assert_close(whole, split)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_correct_for_the_sampler(recorded, level):
    """By the definition: each token's loss times exp(old - sampler), of the token or of the rollout, at most 1.5."""
    params, batch = recorded
    rng = np.random.default_rng(1)
    sampler = batch.old_logprobs + jnp.asarray(rng.normal(0, 0.3, batch.tokens.shape), jnp.float32)
    batch = dataclasses.replace(batch, sampler_logprobs=sampler)
    apart = np.where(batch.mask, np.asarray(batch.old_logprobs) - np.asarray(sampler), 0)
    raw = np.exp(apart if level == "token" else np.broadcast_to(apart.sum(-1, keepdims=True), apart.shape))
    weights = np.where(batch.mask, np.minimum(raw, 1.5), 0)

    def wanted(params):
        ratio = jnp.exp(LOGPROBS(params, tiny_batch.TEXT, batch.prompt, batch.tokens) - batch.old_logprobs)
        a = batch.advantages[..., None]
        return -(weights * jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a)).sum() / batch.mask.sum()

    got, metrics = gradient(params, batch, importance=level, importance_cap=1.5)
    assert_close(got, jax.grad(wanted)(params))
    tokens = np.asarray(batch.mask).sum()
    assert metrics["weight_mean"] == pytest.approx(weights.sum() / tokens, rel=1e-5)
    assert metrics["weight_capped"] == pytest.approx((raw > 1.5)[batch.mask].mean(), rel=1e-5)


def test_padding_more_or_on_the_other_side_changes_nothing(with_images):
    params, batch = with_images
    rows = tiny_batch.records(8)
    wanted = gradient(params, batch)
    wanted[1].pop("padding_share")
    packed = [
        tiny_batch.models.pack(tiny_batch.inputs(rows, side), tiny_batch.MODEL, length=48, num_patches=64)
        for side in ("left", "right")
    ]
    assert_close(*packed, tolerance=0)
    host = jax.device_get(batch.replace(prompt=None, advantages=None))
    padded = jax.tree.map(lambda x: np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 3)]), host)
    padded.tokens[..., -3:] = 7
    longer = tiny_batch.prompt(rows, length=57, num_patches=80)
    got = gradient(params, padded.replace(prompt=longer, advantages=batch.advantages))
    assert got[1].pop("padding_share") > 0
    assert_close(wanted, got)


def test_prompt_once_equals_the_repeated_form(with_images):
    """Each rollout as one long row of its own, prompt and completion contiguous: the same log-probs and gradients."""
    params, batch = with_images
    rows = tiny_batch.records(8)
    packed = tiny_batch.models.pack(tiny_batch.inputs(rows), tiny_batch.MODEL, length=48, num_patches=64)
    tokens, weight = (
        np.asarray(batch.tokens),
        np.where(np.asarray(batch.mask), 1.0, 0.0) * np.asarray(batch.advantages)[..., None],
    )
    P, G, T = tokens.shape

    def repeated(x):
        return np.repeat(np.asarray(x), G, axis=0)

    sizes = repeated(packed.valid.sum(1))
    long = jax.tree.map(repeated, packed)
    pad = lambda x: np.pad(x, [(0, 0), (0, T)] + [(0, 0)] * (x.ndim - 2))
    fields = {name: pad(getattr(long, name)) for name in ("tokens", "valid", "order", "rope", "feature")}
    for row, n in enumerate(sizes):
        following = fields["rope"][row, :n].max() + 1 + np.arange(T)
        fields["tokens"][row, n : n + T] = tokens.reshape(P * G, T)[row]
        fields["rope"][row, n : n + T] = following[:, None]
        fields["feature"][row, n:] = -1
        fields["valid"][row, n : n + T] = True
        fields["order"][row] = np.cumsum(fields["valid"][row]) - 1
    long = jax.device_put(long.replace(**fields))
    where = jnp.asarray(sizes[:, None] - 1 + np.arange(T))

    def once(params):
        return (learner.completion_logprobs(params, tiny_batch.MODEL, batch.prompt, batch.tokens) * weight).sum()

    def again(params):
        hidden, _ = decoder.prompt_pass(params, tiny_batch.MODEL, long)
        states = jnp.take_along_axis(hidden, where[..., None], axis=1)
        logprobs = decoder.log_probs(params, tiny_batch.MODEL, states, jnp.asarray(tokens.reshape(P * G, T)))
        return (logprobs.reshape(P, G, T) * weight).sum()

    assert_close(jax.jit(jax.value_and_grad(once))(params), jax.jit(jax.value_and_grad(again))(params), tolerance=3e-5)


def test_pieces_may_differ_in_the_size_of_their_prompts(with_images):
    """Each with the padding that it needs; on the host until its turn comes."""
    params, batch = with_images
    wanted = gradient(params, batch)
    first, second = learner.split(jax.device_get(batch), 2)
    longer = tiny_batch.prompt(tiny_batch.records(8), length=57, num_patches=80)
    second = second.replace(prompt=learner.take(jax.device_get(longer), slice(1, None, 2)))
    more: dict = POLICY | dict(architecture=tiny_batch.MODEL, optim=PLAIN, update=options.Update())
    after, metrics = learner.policy_step(state(params, PLAIN), [first, second], **more)
    assert_close(wanted, (after.moments[0].mu, metrics))


@pytest.mark.slow  # test_staged has the same for gradients, test_rollout for samples
def test_replay_on_a_mesh_gives_the_same_loss_and_gradient(with_images):
    params, batch = with_images
    wanted = gradient(params, batch)
    devices = mesh.make("2x2")
    with jax.set_mesh(devices):
        placed = jax.device_put(jax.device_get(params), mesh.shardings(params, devices))
        got = gradient(placed, batch, place=lambda x: mesh.put(x, devices))
    assert_close(wanted, got)


def test_end_token_is_in_the_loss(recorded):
    """With only end tokens unmasked, the gradient is not zero: a policy can learn when to stop."""
    params, batch = recorded
    ends = jnp.isin(batch.tokens, jnp.array(tiny_batch.MODEL.eos_ids)) & batch.mask
    assert ends.any()
    grads, metrics = gradient(params, batch.replace(mask=ends))
    assert metrics["tokens"] == ends.sum() and metrics["optim/grad_norm"] > 0


def test_masked_tokens_are_not_in_the_loss(recorded):
    params, batch = recorded
    loud = jnp.where(batch.mask, batch.old_logprobs, 1e9)
    assert_close(gradient(params, batch), gradient(params, batch.replace(old_logprobs=loud)))


def test_one_update_needs_no_old_logprobs(recorded):
    params, batch = recorded
    scored = learner.with_logprobs(
        params, batch.replace(old_logprobs=None), architecture=tiny_batch.TEXT, temperature=1.0
    )
    assert_close(gradient(params, batch.replace(old_logprobs=None))[0], gradient(params, scored)[0])


def test_mismatch_sees_a_sampler_that_disagrees(recorded):
    params, batch = recorded
    older = jnp.where(batch.mask, jnp.abs(batch.old_logprobs - batch.sampler_logprobs), 0.0).sum() / batch.mask.sum()
    assert older > 1e-3  # the policy has moved since, which is no fault of the sampler's
    np.testing.assert_allclose(gradient(params, batch)[1]["mismatch"], older, rtol=1e-4)
    batch = batch.replace(old_logprobs=None)
    assert gradient(params, batch)[1]["mismatch"] < 1e-5
    off = batch.replace(sampler_logprobs=batch.sampler_logprobs - 0.25)
    np.testing.assert_allclose(gradient(params, off)[1]["mismatch"], 0.25, rtol=1e-4)


def test_supervised_loss_falls_to_its_floor_on_one_repeated_batch():
    rows = tiny_batch.records(6)
    tokens, mask = tiny_batch.completions(rows)
    optim = options.Optim(lr=1e-2, weight_decay=0.0)
    now, prompt = state(tiny_models.noisy(tiny_batch.MODEL, 0.1), optim), tiny_batch.prompt(rows)
    losses = []
    for _ in range(60):
        now, metrics = learner.supervised_step(
            now, [learner.SupervisedBatch(prompt, tokens, mask)], architecture=tiny_batch.MODEL, optim=optim, steps=60
        )
        losses.append(float(metrics["loss"]))
    assert losses[0] > 3 and losses[-1] < 0.02, losses  # distinct images, distinct answers: the floor is zero


def test_gradients_are_clipped_to_the_norm(recorded):
    params, batch = recorded
    optim = dataclasses.replace(OPTIM, b1=0.0, max_grad_norm=1e-3)
    after, metrics = descend(params, batch, optim=optim)
    norm = np.sqrt(sum(float((x**2).sum()) for x in jax.tree.leaves(after.moments[0].mu)))
    assert metrics["optim/grad_norm"] > 1e-2
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-2)


def test_schedules():
    params = {"w": jnp.ones((2, 2))}
    for schedule, last in (("constant", 1.0), ("cosine", 0.5 * (1 + np.cos(np.pi * 7 / 8)))):
        optim = options.from_dict(dict(lr=1.0, warmup_steps=2, schedule=schedule, weight_decay=0.0), options.Optim)
        tx: Any = learner.optimizer(optim, 10)
        moments, rates = tx.init(params), []
        for _ in range(10):
            updates, moments = tx.update({"w": jnp.ones((2, 2))}, moments, params)
            rates.append(-float(updates["w"][0, 0]))  # Adam of a constant gradient moves by the learning rate
        np.testing.assert_allclose(rates[:3], [0.0, 0.5, 1.0], atol=1e-4)
        np.testing.assert_allclose(rates[-1], last, atol=1e-3)


@pytest.mark.parametrize(
    "steps, warmup, wanted",
    [
        (8, 4, [0, 1 / 4, 2 / 4, 3 / 4, *(0.5 * (1 + np.cos(np.pi * t / 4)) for t in range(4))]),
        (20, 30, [t / 19 for t in range(20)]),  # a warm-up of more than all updates ends with the last one
        (1, 30, [1.0]),  # and the only update of a run is not lost
    ],
)
def test_rates_by_the_formula_of_transformers(steps, warmup, wanted):
    """get_cosine_schedule_with_warmup: t / warmup, then half a cosine; the first update has rate 0."""
    schedule = learner.schedule(options.Optim(lr=1.0, warmup_steps=warmup), steps)
    rates: Any = [schedule(t) for t in range(steps)]
    np.testing.assert_allclose(rates, wanted, atol=1e-6)
