"""The passes of every family against each other: batches laid out in other ways, in other steps, on other devices."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import mesh, models
from fairgrpo_jax.models import decoder, gemma3, layers, qwen2_5_vl, qwen2_vl, qwen3_vl, text
from fairgrpo_jax.models.attention import stored
from fairgrpo_jax.models.inputs import pack
from tests import tiny_models
from tests.tiny_models import assemble, completion_pass, decode_step, golden, in_layout, prompt_pass, rows_of_all_kinds


FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "mistral")
families = pytest.mark.parametrize("family", FAMILIES)
# Compiling gradients and meshes costs seconds: one model with all mechanisms at once here, the families when slow.
gradients = pytest.mark.parametrize(
    "family", ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES)]
)


def everything():
    """Qwen3-VL with what the others have besides: windows here and there, image blocks, gates, norms, biases."""
    tiny = qwen3_vl.tiny()
    assert tiny.vision is not None
    more = dict(window_size=16, full_blocks=(1,), block_attention=True, gated=True)
    text = dict(local=(True, False), window=6, local_rope_theta=100.0, rope_factor=2.0, embedding_scale=2.0)
    text |= dict(qkv_bias=True, sandwich_norms=True, offset_norm=True, attention_scale=0.3, tie_word_embeddings=False)
    return qwen3_vl.tiny(vision=dataclasses.replace(tiny.vision, **more), **text)


def model(family):
    if family == "everything":
        return tiny_models.noisy(everything(), 0.1), everything()
    vlm, _ = golden(family)
    return vlm.params, vlm.config


def ragged_completions():
    rng = np.random.default_rng(3)
    lengths = np.array([[8, 1, 3], [2, 8, 4], [1, 1, 8], [3, 7, 2]])
    return rng.integers(7, tiny_models.VOCABULARY, (4, 3, 8)), lengths


def batch(config, **options):
    return pack(assemble(rows_of_all_kinds(config), config), config, **options)


@families
def test_padding_on_the_other_side_is_the_same_batch(family):
    _, config = model(family)
    left = assemble(rows_of_all_kinds(config), config, side="left")
    jax.tree.map(np.testing.assert_array_equal, pack(left, config), batch(config))


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_more_padding_changes_nothing(family):
    params, config = model(family)
    tight, wide = batch(config), batch(config, length=80, num_patches=192)
    assert wide.tokens.shape == (4, 80) and wide.vision is not None and wide.vision.patches.shape[1] == 192
    (a, kv_a), (b, kv_b) = (prompt_pass(params, config, prompt) for prompt in (tight, wide))
    np.testing.assert_allclose(in_layout(a, tight.valid), in_layout(b, tight.valid), atol=2e-5)
    tokens = jnp.asarray(ragged_completions()[0])
    after = (completion_pass(params, config, prompt, kv, tokens) for prompt, kv in ((tight, kv_a), (wide, kv_b)))
    np.testing.assert_allclose(*after, atol=2e-5)


def test_logits_come_in_the_layout_of_the_inputs():
    vlm, _ = golden("mistral")
    rows = rows_of_all_kinds(vlm.config)
    right, left = (assemble(rows, vlm.config, side) for side in ("right", "left"))
    expected, mask = vlm.logits(right), left["attention_mask"].astype(bool)
    got = vlm.logits(left)
    np.testing.assert_array_equal(got[mask], in_layout(expected, mask))
    assert (got[~mask] == 0).all() and expected.any()


def states_before(prompt, hidden, rest):
    """The states (P, G, T, d) that predict the tokens of completions, from those of their prompts and their own."""
    first = decoder.last_hidden(prompt, hidden)[:, None, None]
    return jnp.concatenate([jnp.broadcast_to(first, rest[:, :, :1].shape), rest[:, :, :-1]], axis=2)


def once(params, config, remat=False):
    """Log-probabilities (P, G, T) with every prompt run once."""
    prompt, tokens = batch(config), jnp.asarray(ragged_completions()[0])
    hidden, kv = decoder.prompt_pass(params, config, prompt, remat=remat)
    rest = decoder.completion_pass(params, config, prompt, kv, tokens, remat=remat)
    return decoder.log_probs(params, config, states_before(prompt, hidden, rest), tokens, temperature=0.7)


def repeated_states(run, params, config):
    """The same states, from 12 rows of prompt and completion through the prompt pass, no padding between them."""
    tokens, lengths = ragged_completions()
    rows = [
        (row + list(completion[:length]), media)
        for (row, media), own, sizes in zip(rows_of_all_kinds(config), tokens.tolist(), lengths, strict=True)
        for completion, length in zip(own, sizes, strict=True)
    ]
    starts = np.repeat([len(row) for row, _ in rows_of_all_kinds(config)], 3)
    hidden, _ = run(params, config, pack(assemble(rows, config), config, length=64))
    before = np.minimum(starts[:, None] - 1 + np.arange(8), 63)
    return jnp.take_along_axis(hidden, jnp.asarray(before)[..., None], axis=1).reshape(*tokens.shape, -1)


def repeated(params, config):
    """The same log-probabilities from repeated prompts."""
    logits = decoder.head(params, config, repeated_states(decoder.prompt_pass, params, config)) / 0.7
    banned = np.isin(np.arange(config.vocab_size), config.banned_ids)
    logits = jnp.where(banned.reshape(1, 1, 1, -1), -jnp.inf, logits)
    tokens = jnp.asarray(ragged_completions()[0])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)[..., 0]


# The quick emitters of conftest.py round twins of a program differently; here such twins are compared to 1e-6.
EMITTERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version__.startswith("0.10.") else {}


@functools.cache
def value_and_gradients(family, way):
    """A weighted sum of log-probabilities, and its gradient, of a way to compute them."""
    params, config = model(family)
    _, lengths = ragged_completions()
    mask = np.arange(8) < lengths[..., None]
    weight = np.random.default_rng(4).normal(size=mask.shape) * mask

    def loss(params):
        return (jnp.where(mask, way(params, config), 0.0) * weight).sum()

    return jax.jit(jax.value_and_grad(loss), compiler_options=EMITTERS)(params)


def assert_leaves_near(got, expected, tolerance):
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        leaf, wanted = np.asarray(leaf), np.asarray(wanted)
        assert np.linalg.norm(wanted) > 0, path  # 1e-6: a bias on keys that turn with nothing has no gradient at all
        assert np.linalg.norm(leaf - wanted) <= tolerance * np.linalg.norm(wanted) + 1e-6, path


@pytest.mark.slow  # test_staged has the same property, in stages
@gradients
def test_a_prompt_run_once_has_the_gradient_of_repeated_prompts(family):
    value, grads = value_and_gradients(family, once)
    expected, wanted_grads = value_and_gradients(family, repeated)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_leaves_near(grads, wanted_grads, 1e-5)


@pytest.mark.slow  # test_staged has it quicker, with and without, against rows that share nothing
@pytest.mark.parametrize("remat", [True, "selective"])
@families
def test_rematerialisation_changes_no_gradient(family, remat):
    value, grads = value_and_gradients(family, once)
    expected, wanted = value_and_gradients(family, functools.partial(once, remat=remat))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_leaves_near(grads, wanted, 1e-5)


@families
def test_repeated_prompts_the_completion_pass_and_decoding_agree(family):
    params, config = model(family)
    prompt, (tokens, lengths) = batch(config), ragged_completions()
    hidden, kv = prompt_pass(params, config, prompt)
    rest = completion_pass(params, config, prompt, kv, jnp.asarray(tokens))
    inside = np.arange(8) < lengths[..., None]
    expected = repeated_states(prompt_pass, params, config)
    np.testing.assert_allclose(states_before(prompt, hidden, rest)[inside], expected[inside], atol=2e-5)
    split, kv = decoder.by_layer(params), layers.unstack(jax.vmap(stored)(*kv))
    caches = decoder.init_caches(config, 4, 3, 8)  # longer than the completions
    for t in range(tokens.shape[2]):
        hidden, caches = decode_step(split, config, prompt, kv, caches, tokens[:, :, t], np.int32(t))
        np.testing.assert_allclose(hidden, rest[:, :, t], atol=2e-5)


def sharded_run(config, spec):
    """Logits of prompts and of completions, on a mesh, from weights that lie where the sharding rules put them."""
    params = tiny_models.fresh(config, jax.random.key(0))
    prompt, tokens = jax.tree.map(jnp.asarray, batch(config)), jnp.asarray(ragged_completions()[0])

    def run(params, prompt, tokens):
        hidden, kv = decoder.prompt_pass(params, config, prompt)
        rest = decoder.completion_pass(params, config, prompt, kv, tokens)
        return decoder.head(params, config, hidden), decoder.head(params, config, rest)

    if spec is None:
        return prompt.valid, jax.jit(run)(params, prompt, tokens)
    devices = mesh.make(spec)
    with jax.set_mesh(devices):
        placed = jax.device_put(params, mesh.shardings(params, devices))
        return prompt.valid, jax.jit(run)(placed, *mesh.put((prompt, tokens), devices))


SHARDED = dict(qwen2_vl=qwen2_vl, qwen2_5_vl=qwen2_5_vl, qwen3_vl=qwen3_vl, gemma3=gemma3)


@functools.cache
def one_device(family):
    return sharded_run(SHARDED[family].tiny(), None)


def assert_mesh_equals(config, spec, expected):
    valid, (prompts, completions) = expected
    _, got = sharded_run(config, spec)
    assert len(got[0].sharding.device_set) == 4
    np.testing.assert_allclose(np.asarray(got[0])[valid], np.asarray(prompts)[valid], atol=1e-5)
    np.testing.assert_allclose(got[1], completions, atol=1e-5)


@pytest.mark.slow  # test_staged has gradients on a mesh, test_rollout samples
def test_a_mesh_equals_one_device():
    assert_mesh_equals(everything(), "2x2", sharded_run(everything(), None))


@pytest.mark.slow
@pytest.mark.parametrize("family", SHARDED)
@pytest.mark.parametrize("spec", ["4x1", "2x2", "1x4"])
def test_every_family_on_every_mesh_equals_one_device(family, spec):
    assert_mesh_equals(SHARDED[family].tiny(), spec, one_device(family))


# What all families share and none changes, on a small text model.

CONFIG = text.tiny("qwen3", num_layers=1, vocab_size=96, hidden_size=32, banned_ids=(3, 4, 95))
PARAMS = tiny_models.fresh(CONFIG, jax.random.key(0))


def test_ids_beyond_the_tokenizer_have_probability_zero():
    config = dataclasses.replace(CONFIG, num_tokens=90)
    params = tiny_models.fresh(config, jax.random.key(0))
    logits = np.asarray(decoder.policy_logits(params, config, jnp.ones((2, 32))))
    assert (logits[:, 90:] <= -1e29).all() and (logits[:, 5:90] > -1e3).all()
    targets = jnp.array([[89, 90]])
    got = np.asarray(decoder.log_probs(params, config, jnp.ones((1, 2, 32)), targets))
    allowed = np.delete(logits[0, :90].astype(np.float64), [3, 4])
    np.testing.assert_allclose(got[0, 0], logits[0, 89] - np.log(np.exp(allowed).sum()), rtol=1e-5)
    assert got[0, 1] < -1e29


def test_banned_ids_have_probability_zero_and_the_rest_sums_to_one():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 32)), jnp.float32)
    every = jnp.broadcast_to(jnp.arange(96)[:, None, None], (96, 2, 3))
    p = jnp.exp(decoder.log_probs(PARAMS, CONFIG, jnp.broadcast_to(hidden, (96, *hidden.shape)), every))
    assert (p[np.array(CONFIG.banned_ids)] == 0).all()
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)


def test_log_probs_in_chunks_over_time_equal_the_whole():
    rng = np.random.default_rng(1)
    hidden = jnp.asarray(rng.normal(size=(2, 2, 11, 32)), jnp.float32)
    targets = jnp.asarray(rng.integers(7, 90, (2, 2, 11)))
    score = functools.partial(decoder.log_probs, PARAMS, CONFIG)
    square = lambda h, chunk: (score(h, targets, temperature=0.5, chunk=chunk) ** 2).sum()
    run = lambda chunk: jax.jit(jax.value_and_grad(square), static_argnums=1)(hidden, chunk)
    logits = decoder.policy_logits(PARAMS, CONFIG, hidden, 0.5)
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(score(hidden, targets, temperature=0.5, chunk=4), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(4), run(128))
    whole = jax.jit(lambda h: score(h, targets, chunk=4)).lower(hidden).as_text()
    assert "2x2x4x96xf32" in whole and "2x2x11x96xf32" not in whole and "2x2x12x96xf32" not in whole


def test_logits_of_a_device_stay_within_half_a_gibibyte():
    """By hand for Qwen's vocabulary: a step of 16 rows takes 9.3 MiB, so 32 steps fit into 512 MiB and 64 do not."""
    assert [decoder.logit_steps(rows, 152_064) for rows in (6, 7, 16, 32, 110, 111, 4096)] == [128, 64, 32, 16, 8, 8, 8]
    assert decoder.logit_steps(4, 1 << 18) == 128 and decoder.logit_steps(4, (1 << 18) + 1) == 64  # 512 MiB exactly


@pytest.mark.parametrize("devices,steps", [(None, 8), ("1x1", 8), ("2x1", 16), ("1x2", 8)])
def test_the_chunk_is_chosen_for_the_rows_of_a_device(monkeypatch, devices, steps):
    """Room for 16 steps of two rows of 96 logits; four rows, on one device or two."""
    monkeypatch.setattr(decoder, "LOGITS", 4 * 2 * 16 * 96)
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(rng.normal(size=(2, 2, 40, 32)), jnp.float32)
    targets = jnp.asarray(rng.integers(7, 90, (2, 2, 40)))
    run = lambda h, **chunk: (decoder.log_probs(PARAMS, CONFIG, h, targets, **chunk) ** 2).sum()
    with contextlib.nullcontext() if devices is None else jax.set_mesh(mesh.make(devices)):
        text = jax.jit(run).lower(hidden).as_text()
        chosen = jax.jit(jax.value_and_grad(run))(hidden)
        whole = jax.jit(jax.value_and_grad(functools.partial(run, chunk=40)))(hidden)
    assert f"2x2x{steps}x96xf32" in text and f"2x2x{24 - steps}x96xf32" not in text
    assert "2x2x40x96xf32" not in text
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), chosen, whole)


def test_bfloat16_stays_bfloat16_and_near_float32():
    config = everything()
    params, prompt = tiny_models.fresh(config, jax.random.key(0)), batch(config)
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    hidden, kv = prompt_pass(low, config, prompt)
    assert {hidden.dtype, kv[0].dtype, kv[1].dtype} == {jnp.dtype("bfloat16")}
    logits, expected = (decoder.head(p, config, prompt_pass(p, config, prompt)[0]) for p in (low, params))
    assert logits.dtype == jnp.float32
    assert jnp.abs(logits - expected)[prompt.valid].max() < 0.05 * expected.std() + 0.05


@pytest.mark.parametrize("family", SHARDED)
def test_tiny_is_small_and_hashable(family):
    config = SHARDED[family].tiny()
    assert hash(config) == hash(SHARDED[family].tiny()) and SHARDED[family].tiny(tie_word_embeddings=False) != config
    assert models.family(config) is SHARDED[family] and models.FAMILIES[config.model_type] is SHARDED[family]
    sizes = jax.tree.map(np.size, jax.eval_shape(lambda: decoder.init(config, jax.random.key(0))))
    assert 100_000 < sum(jax.tree.leaves(sizes)) < 350_000


def test_a_fresh_model_is_near_uniform():
    params = tiny_models.fresh(everything(), jax.random.key(0))
    hidden, _ = prompt_pass(params, everything(), batch(everything()))
    assert jax.nn.softmax(decoder.head(params, everything(), hidden)).max() < 0.2


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mrope_section=(1, 1, 1)), "mrope_section"),
        (dict(num_kv_heads=3), "num_kv_heads"),
        (dict(hidden_size=32), "vision features"),
        (dict(activation="relu"), "activation='relu'"),
        (dict(local=(True,)), "local flags"),
        (dict(local=(True, False)), "window"),
    ],
)
def test_a_config_that_does_not_fit_itself_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        qwen2_5_vl.tiny(**changes)
