"""Gradients in stages against rows of prompt and completion that share nothing, whatever the parts and chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import learner, mesh, staged
from fairgrpo_jax.models import decoder, lora
from fairgrpo_jax.models.inputs import pack
from tests import compiled_text, tiny_models
from tests.test_models_decoder import assert_leaves_near, batch, families, model
from tests.tiny_models import assemble, rows_of_all_kinds


LENGTHS = np.array([[20, 1, 3, 7], [2, 18, 4, 20], [1, 1, 12, 2], [9, 7, 20, 16]])
TOKENS = np.random.default_rng(3).integers(7, tiny_models.VOCABULARY, (4, 4, 20))
MASK = np.arange(20) < LENGTHS[..., None]
TEMPERATURE = 0.7
# Parts, chunks, remat: one plan with every mechanism of a model at once, the others with windows alone.
# The former has the same test on a mesh.
PLANS = [
    ("mistral", 1, 1, False),
    pytest.param("everything", 2, 2, True, marks=pytest.mark.slow),
    ("mistral", 1, 4, "selective"),
]


@pytest.fixture(autouse=True, scope="module")
def two_lengths():
    """Completions of 20 tokens are run at 16 or 20."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staged, "STEP", 16)
        yield


def rollouts(seed=4):
    """Completions of ragged length with the weight of every log-probability in the loss."""
    weight = np.random.default_rng(seed).normal(size=MASK.shape).astype(np.float32)
    arrays = dict(tokens=TOKENS.astype(np.int32), mask=MASK, weight=weight, row=np.arange(16.0).reshape(4, 4))
    return arrays


def weighted(logprobs, part):
    """The sum of weighted log-probabilities; as metrics, means over tokens of two things that differ by rollout."""
    mask = part["mask"]
    tokens = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, part["row"][..., None], 0.0).sum() / tokens
    biggest = jnp.where(mask, part["weight"], -9.0).max()
    return (jnp.where(mask, logprobs, 0.0) * part["weight"]).sum(), dict(tokens=mask.sum(), row=mean, ratio_max=biggest)


@functools.partial(jax.jit, static_argnames="plan")
def program(trained, frozen, prompt, rollouts, plan, sums=None):
    return staged.gradients(weighted, trained, frozen, prompt, rollouts, plan, sums)


def in_stages(trained, frozen, prompt, rollouts, plan, parts=1):
    """The gradient summed over parts of the prompts, and the metrics of all."""
    sums, found = None, []
    if parts > 1:  # one program for all parts
        sums = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), trained)
    for piece in learner.split((prompt, rollouts), parts):
        sums, metrics = program(trained, frozen, *piece, plan, sums)
        found.append(metrics)
    return sums, staged.combined(found)


def plan(config, chunks=1, remat=False):
    return staged.Plan(config, chunks, TEMPERATURE, remat)


@functools.partial(jax.jit, static_argnames="config")
def repeated(params, frozen, config, weight):
    """The same loss and gradient from 16 rows of a prompt and one completion, no padding between them."""
    rows = [
        (row + completion[:length], media)
        for (row, media), own, sizes in zip(rows_of_all_kinds(config), TOKENS.tolist(), LENGTHS, strict=True)
        for completion, length in zip(own, sizes, strict=True)
    ]
    starts = np.repeat([len(row) for row, _ in rows_of_all_kinds(config)], 4)
    prompt = pack(assemble(rows, config), config)
    before = np.minimum(starts[:, None] - 1 + np.arange(20), prompt.tokens.shape[1] - 1)[..., None]

    def loss(params):
        params = lora.join(params, frozen)
        hidden, _ = decoder.prompt_pass(params, config, prompt)
        states = jnp.take_along_axis(hidden, jnp.asarray(before), axis=1).reshape(4, 4, 20, -1)
        banned = np.isin(np.arange(config.vocab_size), config.banned_ids).reshape(1, 1, 1, -1)
        logits = jnp.where(banned, -jnp.inf, decoder.head(params, config, states) / TEMPERATURE)
        logprobs = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(TOKENS)[..., None], axis=-1)[..., 0]
        return (jnp.where(MASK, logprobs, 0.0) * weight).sum()

    return jax.value_and_grad(loss)(params)


@functools.cache
def reference(family):
    params, config = model(family)
    return repeated(params, {}, config, rollouts()["weight"])


def assert_same_as_rows(family, parts, chunks, remat):
    params, config = model(family)
    value, wanted = reference(family)
    grads, metrics = in_stages(params, {}, batch(config), rollouts(), plan(config, chunks, remat), parts)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_leaves_near(grads, wanted, 1e-5)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    row, weight = (np.asarray(rollouts()[name]) for name in ("row", "weight"))
    assert metrics["tokens"] == LENGTHS.sum()
    np.testing.assert_allclose(metrics["row"], (row * LENGTHS).sum() / LENGTHS.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio_max"], weight[MASK].max())
    return metrics


@pytest.mark.parametrize("family, parts, chunks, remat", PLANS)
def test_stages_have_the_loss_and_gradient_of_rows_that_share_nothing(family, parts, chunks, remat):
    """Windows, image blocks, DeepStack, M-RoPE, gates, norms and biases at once; ragged on both sides."""
    metrics = assert_same_as_rows(family, parts, chunks, remat)
    computed = 4 * 4 * 20  # tokens in full; below, the sorted chunks (1 or 2 columns of 4 rollouts) at 16 or 20
    if chunks == 2:  # parts are the prompts 0, 2 and 1, 3; shorter halves (1 3 1 1), (2 4 7 9), longer ones up to 20
        computed = 2 * 2 * (16 + 20) + 2 * 2 * (16 + 20)
    if chunks == 4:  # columns of the sorted lengths: (1 2 1 7) (3 4 1 9) (7 18 2 16) (20 20 12 20)
        computed = 4 * (16 + 16 + 20 + 20)
    np.testing.assert_allclose(metrics["padding_share"], 1 - LENGTHS.sum() / computed, rtol=1e-6)


@pytest.mark.slow
@families
def test_stages_of_every_family(family):
    assert_same_as_rows(family, 2, 4, False)


def adapted(family):
    """A model with adapters that change what it computes, in decoder and tower."""
    params, config = model(family)
    params = lora.add_to(params, lora.LoRA(rank=3, alpha=6.0, targets="/(q|v|down|qkv)$"), jax.random.key(1))
    trained, frozen = lora.trainable(params)
    rng = np.random.default_rng(2)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), trained)
    return noisy, frozen, lora.scaled(config, 2.0)


@pytest.mark.slow  # test_models_lora compares the gradients of adapters
@pytest.mark.parametrize("family", ["mistral", "everything"])
def test_adapters_get_the_gradient_of_rows_that_share_nothing(family):
    trained, frozen, config = adapted(family)
    value, wanted = repeated(trained, frozen, config, rollouts()["weight"])
    grads, metrics = in_stages(trained, frozen, batch(config), rollouts(), plan(config, 2, True))
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_leaves_near(grads, wanted, 1e-5)


def relative(got, wanted):
    got, wanted = ([np.asarray(x, np.float32) for x in jax.tree.leaves(tree)] for tree in (got, wanted))
    gap = sum(((a - b) ** 2).sum() for a, b in zip(got, wanted, strict=True))
    return (gap / sum((x**2).sum() for x in wanted)) ** 0.5


@pytest.mark.slow  # test_learner_policy computes in bfloat16, too
@pytest.mark.parametrize("family", ["mistral", "everything"])
def test_bfloat16_is_as_near_to_float32_as_rows_that_share_nothing(family):
    params, config = model(family)
    low = jax.tree.map(lambda x: np.asarray(x).astype(jnp.bfloat16), params)
    params = jax.tree.map(lambda x: x.astype(np.float32), low)
    errors = []
    for seed in range(4):
        weight = rollouts(seed)["weight"]
        _, wanted = repeated(params, {}, config, weight)
        _, rows = repeated(low, {}, config, weight)
        mine, _ = in_stages(low, {}, batch(config), rollouts(seed), plan(config, 2, True), parts=2)
        errors.append((relative(mine, wanted), relative(rows, wanted)))
        assert {leaf.dtype for leaf in jax.tree.leaves(mine)} == {jnp.dtype("float32")}
    ours, theirs = np.mean(errors, axis=0)
    assert ours <= 1.02 * theirs < 0.1, errors


def on_mesh(spec):
    """The compiled program on a mesh, and what it returns."""
    params, config = model("everything")
    devices = mesh.make(spec)
    with jax.set_mesh(devices):
        placed = jax.device_put(jax.device_get(params), mesh.shardings(params, devices))
        prompt, arrays = mesh.put(jax.device_get((batch(config), rollouts())), devices)
        compiled = program.lower(placed, {}, prompt, arrays, plan(config, 2, True)).compile()
        grads, metrics = compiled(placed, {}, prompt, arrays)
        return compiled, grads, staged.combined([metrics])


@pytest.mark.parametrize("spec", ["4x1", pytest.param("2x2", marks=pytest.mark.slow)])
def test_a_mesh_changes_nothing_and_prompts_stay_on_their_devices(spec):
    compiled, grads, metrics = on_mesh(spec)
    value, wanted = reference("everything")
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    assert_leaves_near(grads, wanted, 1e-5)
    params, _ = model("everything")
    placed = mesh.shardings(params, mesh.make(spec))
    for leaf, place in zip(jax.tree.leaves(grads), jax.tree.leaves(placed), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim), (leaf.shape, leaf.sharding, place)
    if spec == "4x1":
        assert not compiled_text.strange(compiled.as_text(), params)


def test_scores_come_back_in_the_order_of_the_rollouts():
    params, config = model("mistral")
    prompt, arrays = jax.tree.map(jnp.asarray, batch(config)), rollouts()
    run = jax.jit(staged.logprobs, static_argnums=3)
    whole = plan(config)
    ends = jax.jit(staged.prompt_ends, static_argnums=2)(params, prompt, whole)
    wanted = jax.jit(staged.completion_logprobs, static_argnums=4)(params, prompt, ends, arrays["tokens"], whole)
    ends_only = np.arange(20) == LENGTHS[..., None] - 1  # a token stands where it stands, however few are counted
    for mask, chunks in ((MASK, 1), (ends_only, 4)):
        got = run(params, prompt, arrays | {"mask": jnp.asarray(mask)}, plan(config, chunks))
        np.testing.assert_allclose(got, np.where(mask, wanted, 0.0), atol=1e-5)


@pytest.mark.parametrize(
    "length, sizes",
    [(1024, (256, 512, 768, 1024)), (1000, (256, 512, 768, 1000)), (150, (64, 128, 150)), (64, (64,)), (1, (1,))],
)
def test_ladder(length, sizes, monkeypatch):
    monkeypatch.setattr(staged, "STEP", 64)
    assert staged.ladder(length) == sizes
