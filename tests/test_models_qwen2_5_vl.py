"""Qwen2.5-VL against golden files made by transformers in torch, and against itself laid out in other ways."""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from fairgrpo_jax import models
from fairgrpo_jax.models import VLM, qwen2_5_vl, weights
from fairgrpo_jax.models.inputs import pack


GOLDEN = pathlib.Path(__file__).parent / "golden"
CASES = ("text", "images", "video", "video_only")

prompt_pass = jax.jit(qwen2_5_vl.prompt_pass, static_argnums=1, static_argnames="remat")
completion_pass = jax.jit(qwen2_5_vl.completion_pass, static_argnums=1, static_argnames="remat")
decode_step = jax.jit(qwen2_5_vl.decode_step, static_argnums=1)


@functools.cache
def golden(seed):
    """The model of a golden file, and its cases as {case: (inputs, expected)}."""
    with np.load(GOLDEN / f"qwen2_5_vl_{seed}.npz") as file:
        arrays = dict(file)
    config = qwen2_5_vl.Config.from_hugging_face(json.loads(str(arrays["config"])))
    part = lambda prefix: {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    vlm = VLM(config, jax.tree.map(jnp.asarray, weights.from_hugging_face(part("weights/"), config)))
    return vlm, {case: (part(f"{case}/inputs/"), part(f"{case}/expected/")) for case in CASES}


def in_layout(values, mask):
    """Right-padded (P, T, ...) in the columns where ``mask`` is true; returns only those rows."""
    return np.concatenate([row[: own.sum()] for row, own in zip(np.asarray(values), mask, strict=True)])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_transformers(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    mask = inputs["attention_mask"].astype(bool)
    logits = vlm.logits(inputs)
    assert logits.shape == expected["logits"].shape
    np.testing.assert_allclose(logits[mask], expected["logits"][mask], atol=2e-4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_rotary_positions_equal_transformers(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    mask = inputs["attention_mask"].astype(bool)
    prompt = pack(inputs, vlm.config)
    np.testing.assert_array_equal(in_layout(prompt.rope, mask), expected["rope"][mask])
    np.testing.assert_array_equal(prompt.rope.max(axis=(1, 2)) + 1, expected["next"])


@pytest.mark.parametrize("case", ["text", "images", "video_only"])
@pytest.mark.parametrize("seed", [0, 1])
def test_greedy_decoding_equals_transformers_up_to_near_ties(seed, case):
    vlm, cases = golden(seed)
    inputs, expected = cases[case]
    prompt = pack(inputs, vlm.config)
    hidden, kv = prompt_pass(vlm.params, vlm.config, prompt)
    params, kv = qwen2_5_vl.unstack(vlm.params, kv)
    steps = expected["greedy"].shape[1]
    caches = qwen2_5_vl.init_caches(vlm.config, len(prompt.tokens), 1, steps)
    hidden, tokens = qwen2_5_vl.last_hidden(prompt, hidden)[:, None], []
    for t in range(steps):
        tokens.append(qwen2_5_vl.head(params, vlm.config, hidden).argmax(-1))
        hidden, caches = decode_step(params, vlm.config, prompt, kv, caches, tokens[-1], t)
    sure = np.cumprod(expected["margin"] > 5e-4, axis=1).astype(bool)
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(np.concatenate(tokens, axis=1)[sure], expected["greedy"][sure])


# The same batch laid out in other ways.  A row is its tokens and its media: (kind, grid, patches) in order.


def words(rng, count):
    return rng.integers(7, 96, count).tolist()


def medium(rng, kind, grid):
    return kind, grid, rng.normal(size=(int(np.prod(grid)), 96)).astype(np.float32)


def tokens_of(kind, grid):
    return [3, *[{"image": 5, "video": 6}[kind]] * (int(np.prod(grid)) // 4), 4]


def rows_of_all_kinds():
    """Four ragged prompts: two images of different size, none, an image, a video after an image."""
    rng = np.random.default_rng(7)
    wide, small, film = (
        medium(rng, "image", (1, 6, 10)),
        medium(rng, "image", (1, 4, 2)),
        medium(rng, "video", (2, 4, 6)),
    )
    return [
        (words(rng, 2) + tokens_of(*wide[:2]) + tokens_of(*small[:2]) + words(rng, 3), [wide, small]),
        (words(rng, 6), []),
        (words(rng, 1) + tokens_of(*small[:2]) + words(rng, 4), [small]),
        (tokens_of(*small[:2]) + tokens_of(*film[:2]) + words(rng, 5), [small, film]),
    ]


def assemble(rows, side="right"):
    """Rows as the inputs of a Hugging Face processor."""
    size = max(len(tokens) for tokens, _ in rows)
    ids, mask = np.zeros((len(rows), size), np.int64), np.zeros((len(rows), size), np.int64)
    for row, (tokens, _) in enumerate(rows):
        own = slice(size - len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, own], mask[row, own] = tokens, 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        media = [one for _, media in rows for one in media if one[0] == kind]
        if media:
            inputs[f"{kind}_grid_thw"] = np.array([grid for _, grid, _ in media])
            inputs[pixels] = np.concatenate([patches for _, _, patches in media])
    return inputs


@pytest.fixture(scope="module")
def model():
    vlm, _ = golden(0)
    return vlm.params, vlm.config


def test_padding_more_or_on_the_other_side_changes_nothing(model):
    params, config = model
    rows = rows_of_all_kinds()
    right, left = assemble(rows), assemble(rows, side="left")
    vlm = VLM(config, params)
    expected = in_layout(vlm.logits(right), right["attention_mask"])
    mask = left["attention_mask"].astype(bool)
    shifted = vlm.logits(left)
    np.testing.assert_array_equal(shifted[mask], expected)
    assert (shifted[~mask] == 0).all()
    wide = pack(left, config, length=mask.shape[1] + 5, num_patches=128)
    assert wide.vision is not None and wide.vision.patches.shape[1] == 128
    assert wide.tokens.shape == (4, mask.shape[1] + 5)
    hidden, _ = prompt_pass(params, config, wide)
    logits = qwen2_5_vl.head(params, config, hidden)
    np.testing.assert_allclose(in_layout(logits, mask), expected, atol=5e-5)


def test_completions_do_not_see_the_padding_of_their_prompt(model):
    params, config = model
    inputs = assemble(rows_of_all_kinds())
    tokens = jnp.asarray(np.random.default_rng(2).integers(7, 96, (4, 2, 3)))
    tight, loose = pack(inputs, config), pack(inputs, config, length=64, num_patches=128)
    a, b = (completion_pass(params, config, p, prompt_pass(params, config, p)[1], tokens) for p in (tight, loose))
    np.testing.assert_allclose(a, b, atol=1e-5)


def ragged_completions(config):
    rng = np.random.default_rng(3)
    return rng.integers(7, 96, (4, 3, 5)), np.array([[5, 1, 3], [2, 5, 4], [1, 1, 5], [3, 4, 2]])


def once(params, config, remat=False):
    """Log-probabilities (P, G, T) with every prompt run once."""
    prompt = pack(assemble(rows_of_all_kinds()), config)
    tokens = jnp.asarray(ragged_completions(config)[0])
    hidden, kv = qwen2_5_vl.prompt_pass(params, config, prompt, remat=remat)
    rest = qwen2_5_vl.completion_pass(params, config, prompt, kv, tokens, remat=remat)
    first = qwen2_5_vl.last_hidden(prompt, hidden)[:, None, None]
    before = jnp.concatenate([jnp.broadcast_to(first, (*tokens.shape[:2], *first.shape[2:])), rest[:, :, :-1]], axis=2)
    return qwen2_5_vl.log_probs(params, config, before, tokens, temperature=0.7)


def repeated(params, config):
    """The same, from 12 rows of prompt and completion through the prompt pass, without padding between them."""
    tokens, lengths = ragged_completions(config)
    rows = [
        (row + list(completion[:length]), media)
        for (row, media), own, sizes in zip(rows_of_all_kinds(), tokens.tolist(), lengths, strict=True)
        for completion, length in zip(own, sizes, strict=True)
    ]
    starts = np.repeat([len(row) for row, _ in rows_of_all_kinds()], 3)
    prompt = pack(assemble(rows), config, length=64)
    hidden, _ = qwen2_5_vl.prompt_pass(params, config, prompt)
    before = np.minimum(starts[:, None] - 1 + np.arange(5), 63)
    picked = jnp.take_along_axis(hidden, jnp.asarray(before)[..., None], axis=1).reshape(*tokens.shape, -1)
    logits = qwen2_5_vl.head(params, config, picked) / 0.7
    logits = jnp.where(np.isin(np.arange(96), [3, 4, 5, 6]).reshape(1, 1, 1, -1), -jnp.inf, logits)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(tokens)[..., None], axis=-1)[..., 0]


@pytest.fixture(scope="module")
def value_and_gradients(model):
    """A weighted sum of log-probabilities, the log-probabilities, and the gradients, of a way to compute them."""
    params, config = model
    _, lengths = ragged_completions(config)
    mask = np.arange(5) < lengths[..., None]
    weight = np.random.default_rng(4).normal(size=mask.shape) * mask

    @functools.cache
    def run(way):
        def loss(params):
            scores = jnp.where(mask, way(params, config), 0.0)
            return (scores * weight).sum(), scores

        fast_to_compile = {"xla_backend_optimization_level": 0}
        graded = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=fast_to_compile)
        (value, scores), grads = graded(params)
        return value, scores, grads

    return run


def assert_leaves_near(got, expected, tolerance):
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        assert jnp.linalg.norm(wanted) > 0, path
        assert jnp.linalg.norm(leaf - wanted) <= tolerance * jnp.linalg.norm(wanted), path


def test_a_prompt_run_once_equals_a_prompt_run_for_every_completion(value_and_gradients):
    value, scores, grads = value_and_gradients(once)
    expected, wanted_scores, wanted_grads = value_and_gradients(repeated)
    np.testing.assert_allclose(scores, wanted_scores, atol=2e-5)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert_leaves_near(grads, wanted_grads, 1e-5)


def test_rematerialisation_changes_no_gradient(value_and_gradients):
    value, _, grads = value_and_gradients(once)
    expected, _, wanted = value_and_gradients(functools.partial(once, remat=True))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_leaves_near(grads, wanted, 1e-5)


def test_decoding_token_by_token_equals_the_completion_pass(model):
    params, config = model
    prompt = pack(assemble(rows_of_all_kinds()), config)
    tokens = jnp.asarray(ragged_completions(config)[0])
    _, kv = prompt_pass(params, config, prompt)
    expected = completion_pass(params, config, prompt, kv, tokens)
    split, kv = qwen2_5_vl.unstack(params, kv)
    caches = qwen2_5_vl.init_caches(config, 4, 3, 8)  # longer than the completions
    for t in range(tokens.shape[2]):
        hidden, caches = decode_step(split, config, prompt, kv, caches, tokens[:, :, t], jnp.int32(t))
        np.testing.assert_allclose(hidden, expected[:, :, t], atol=1e-5)


def test_four_devices_equal_one(model):
    params, config = model
    tokens = jnp.asarray(ragged_completions(config)[0])
    prompt = jax.tree.map(jnp.asarray, pack(assemble(rows_of_all_kinds()), config))

    def run(params, prompt, tokens):
        hidden, kv = qwen2_5_vl.prompt_pass(params, config, prompt)
        rest = qwen2_5_vl.completion_pass(params, config, prompt, kv, tokens)
        return qwen2_5_vl.head(params, config, rest), qwen2_5_vl.last_hidden(prompt, hidden)

    expected = jax.jit(run)(params, prompt, tokens)
    mesh = jax.make_mesh((4, 1), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        rows, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
        got = jax.jit(run)(jax.device_put(params, whole), *jax.device_put((prompt, tokens), rows))
    assert len(got[0].sharding.device_set) == 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), got, expected)


def test_banned_ids_have_probability_zero_and_the_rest_sums_to_one(model):
    params, config = model
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 32)), jnp.float32)
    assert set(config.banned_ids) == {3, 4, 5, 6}
    every = jnp.broadcast_to(jnp.arange(config.vocab_size)[:, None, None], (config.vocab_size, 2, 3))
    p = jnp.exp(
        qwen2_5_vl.log_probs(params, config, jnp.broadcast_to(hidden, (config.vocab_size, *hidden.shape)), every)
    )
    assert (p[np.array(config.banned_ids)] == 0).all()
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)


def test_log_probs_in_chunks_over_time_equal_the_whole(model):
    params, config = model
    rng = np.random.default_rng(1)
    hidden, targets = (
        jnp.asarray(rng.normal(size=(2, 2, 11, 32)), jnp.float32),
        jnp.asarray(rng.integers(7, 96, (2, 2, 11))),
    )
    run = lambda chunk: jax.value_and_grad(
        lambda h: (qwen2_5_vl.log_probs(params, config, h, targets, temperature=0.5, chunk=chunk) ** 2).sum()
    )(hidden)
    logits = qwen2_5_vl.policy_logits(params, config, hidden, 0.5)
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    got = qwen2_5_vl.log_probs(params, config, hidden, targets, temperature=0.5, chunk=4)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(4), run(128))
    whole = jax.jit(lambda h: qwen2_5_vl.log_probs(params, config, h, targets, chunk=4)).lower(hidden).as_text()
    assert "2x2x4x96xf32" in whole and "2x2x11x96xf32" not in whole and "2x2x12x96xf32" not in whole


def test_bfloat16_stays_bfloat16_and_near_float32():
    config = qwen2_5_vl.tiny()
    params = qwen2_5_vl.init(config, jax.random.key(0))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    prompt = pack({"input_ids": np.arange(7, 27).reshape(2, 10)}, config)
    hidden, kv = prompt_pass(low, config, prompt)
    assert {hidden.dtype, kv[0].dtype, kv[1].dtype} == {jnp.dtype("bfloat16")}
    logits, expected = (
        qwen2_5_vl.head(low, config, hidden),
        qwen2_5_vl.head(params, config, prompt_pass(params, config, prompt)[0]),
    )
    assert logits.dtype == jnp.float32
    assert jnp.abs(logits - expected).max() < 0.05 * expected.std() + 0.05


def test_tiny_is_small_hashable_and_starts_near_uniform():
    config = qwen2_5_vl.tiny()
    assert hash(config) == hash(qwen2_5_vl.tiny()) and qwen2_5_vl.tiny(tie_word_embeddings=False) != config
    vlm = models.init(config, jax.random.key(0))
    assert 150_000 < sum(leaf.size for leaf in jax.tree.leaves(vlm.params)) < 250_000
    p = jax.nn.softmax(vlm.logits({"input_ids": np.arange(7, 27)[None]}))
    assert p.max() < 0.2


def test_a_config_that_does_not_fit_itself_is_refused():
    with pytest.raises(ValueError, match="mrope_section"):
        qwen2_5_vl.tiny(mrope_section=(1, 1, 1))
    with pytest.raises(ValueError, match="num_kv_heads"):
        qwen2_5_vl.tiny(num_kv_heads=3)
    with pytest.raises(ValueError, match="vision features"):
        qwen2_5_vl.tiny(vision=dataclasses.replace(qwen2_5_vl.tiny().vision, out_hidden_size=32))


def test_flat_configs_of_the_hub_are_read_and_foreign_ones_refused():
    flat = {
        "model_type": "qwen2_5_vl", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 3, "intermediate_size": 80, "vocab_size": 200000, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "eos_token_id": 151645, "bos_token_id": 151643,
        "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652,
        "vision_end_token_id": 151653, "vision_token_id": 151654, "tie_word_embeddings": True,
        "vision_config": {"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 64},
    }  # fmt: skip
    config = qwen2_5_vl.Config.from_hugging_face(flat)
    assert (config.hidden_size, config.num_layers, config.num_kv_heads, config.rope_theta) == (64, 3, 2, 1e6)
    assert config.mrope_section == (2, 3, 3) and config.tie_word_embeddings and config.eos_ids == (151645,)
    assert config.banned_ids == (151652, 151653, 151654, 151655, 151656)
    assert config.vision.window_size == 112 and config.vision.window == 4 and config.vision.tokens_per_second == 4
    with pytest.raises(ValueError, match="hidden_act"):
        qwen2_5_vl.Config.from_hugging_face(flat | {"hidden_act": "gelu"})
