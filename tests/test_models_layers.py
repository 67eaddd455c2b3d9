"""The one attention against jax.nn's with the prompt repeated for every rollout, and the blocks by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax.models import layers


P, G, T, TP, N, K, H = 3, 2, 4, 5, 4, 2, 8


def arrays():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, prompt_kv = draw(P, G, T, N, H), (draw(P, TP, K, H), draw(P, TP, K, H))
    return q, prompt_kv, (draw(P, G, T, K, H), draw(P, G, T, K, H))


VALID = np.arange(TP) < np.array([5, 2, 3])[:, None]
CAUSAL = np.tril(np.ones((T, T), bool))


def reference(q, prompt_kv, own_kv):
    """Prompt and own keys side by side, the prompt copied for every rollout."""
    k, v = (
        jnp.concatenate([jnp.broadcast_to(shared[:, None], (P, G, TP, K, H)), own], axis=2).reshape(P * G, TP + T, K, H)
        for shared, own in zip(prompt_kv, own_kv, strict=True)
    )
    seen = np.concatenate([np.broadcast_to(VALID[:, None], (P, T, TP)), np.broadcast_to(CAUSAL, (P, T, T))], axis=2)
    mask = np.repeat(seen, G, axis=0)[:, None]
    return jax.nn.dot_product_attention(q.reshape(P * G, T, N, H), k, v, mask=mask).reshape(P, G, T, N * H)


def ours(q, prompt_kv, own_kv):
    return layers.attend(q, prompt_kv, own_kv, jnp.asarray(VALID)[:, None], jnp.asarray(CAUSAL))


def test_attention_to_shared_prompt_and_own_tokens_is_one_softmax():
    np.testing.assert_allclose(ours(*arrays()), reference(*arrays()), atol=1e-6)


def test_its_gradient_is_that_of_one_softmax():
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(P, G, T, N * H)), jnp.float32)
    got, expected = (jax.grad(lambda a, f=f: (f(*a) * weight).sum())(arrays()) for f in (ours, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), got, expected)


def test_without_a_prompt_every_row_has_a_mask_of_its_own():
    q, prompt_kv, _ = arrays()
    kv = prompt_kv[0][:, None, :T], prompt_kv[1][:, None, :T]
    mask = CAUSAL & VALID[:, None, :T]
    got = layers.attend(q[:, :1], None, kv, None, jnp.asarray(mask))
    expected = jax.nn.dot_product_attention(q[:, 0], kv[0][:, 0], kv[1][:, 0], mask=mask[:, None])
    np.testing.assert_allclose(got[:, 0], expected.reshape(P, T, N * H), atol=1e-6)


def test_large_scores_neither_overflow_nor_lose_the_smaller_block():
    one = jnp.ones((1, 1, 1, 1, 4))
    prompt, own = (100 * one[:, 0], 3 * one[:, 0]), (100 * one, one)
    mask = jnp.ones((1, 1, 1), bool)
    np.testing.assert_allclose(layers.attend(100 * one, prompt, own, mask, mask[0]), 2)
    np.testing.assert_allclose(layers.attend(100 * one, prompt, own, ~mask, mask[0]), 1)
    np.testing.assert_allclose(layers.attend(100 * one, prompt, own, mask, ~mask[0]), 3)
    assert jnp.isfinite(layers.attend(100 * one, prompt, own, ~mask, ~mask[0])).all()


def test_rotation_turns_the_two_halves_against_each_other():
    x = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 1, 4)  # pairs (1, 3) and (2, 4)
    angle = jnp.asarray([np.pi / 2, np.pi]).reshape(1, 1, 1, 2)
    turned = layers.rotate(x, (jnp.cos(angle), jnp.sin(angle)))
    np.testing.assert_allclose(turned.ravel(), [-3, -2, 1, -4], atol=1e-6)


def test_rms_norm_by_hand():
    x = jnp.asarray([[3.0, 4.0]])
    np.testing.assert_allclose(
        layers.rms_norm(x, jnp.asarray([1.0, 2.0]), 0.5), [[3 / 13**0.5, 8 / 13**0.5]], rtol=1e-6
    )


def test_rms_norm_with_an_offset_multiplies_in_float32():
    x = jnp.asarray([[3.0, 4.0]], jnp.bfloat16)
    weight = jnp.asarray([0.0, 1 / 128], jnp.bfloat16)  # 1 + 1/128 needs more digits than the weight has
    got = layers.rms_norm(x, weight, 0.5, offset=True)
    wanted = jnp.asarray([[3 / 13**0.5, 4 / 13**0.5 * (1 + 1 / 128)]]).astype(jnp.bfloat16)
    np.testing.assert_array_equal(got, wanted)
    assert got.dtype == jnp.bfloat16


def test_layer_norm_by_hand():
    got = layers.layer_norm(jnp.asarray([[1.0, 5.0]]), jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, 0.0]), 5.0)
    np.testing.assert_allclose(got, [[-2 / 3 + 0.5, 4 / 3]], rtol=1e-6)


def test_activations_have_their_published_names():
    x = jnp.asarray([1.5])
    by_hand = dict(
        silu=1.5 / (1 + np.exp(-1.5)),
        quick_gelu=1.5 / (1 + np.exp(-1.702 * 1.5)),
        gelu=1.5 * 0.9331928,  # the normal distribution function at 1.5
        gelu_pytorch_tanh=0.75 * (1 + np.tanh((2 / np.pi) ** 0.5 * (1.5 + 0.044715 * 1.5**3))),
    )
    assert by_hand.keys() == layers.ACTIVATIONS.keys()
    for name, wanted in by_hand.items():
        np.testing.assert_allclose(layers.ACTIVATIONS[name](x), [wanted], rtol=1e-6)


class Config:
    initializer_range, hidden_size, intermediate_size, lora_scale, gated, activation = 0.1, 4, 6, 2.0, True, "silu"


def mlp(config, rngs):
    return layers.MLP(config, bias=True, rngs=rngs)


def test_stacked_blocks_differ_and_come_apart_again():
    weights = layers.stack(mlp, Config, jax.random.key(0), 3)
    assert weights["gate"]["kernel"].shape == (3, 4, 6) and weights["down"]["bias"].shape == (3, 4)
    first, second, _ = layers.unstack(weights)
    assert not np.array_equal(first["gate"]["kernel"], second["gate"]["kernel"])
    x = jnp.ones((2, 4))
    wanted = (jax.nn.silu(x @ second["gate"]["kernel"]) * (x @ second["up"]["kernel"])) @ second["down"]["kernel"]
    np.testing.assert_allclose(layers.bind(mlp, Config, second)(x), wanted, rtol=1e-6)


def test_weights_with_an_adapter_bring_it_along():
    rng = np.random.default_rng(0)
    weights, x = layers.create(mlp, Config, jax.random.key(0)), jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)
    a, b = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32), jnp.asarray(rng.normal(size=(3, 6)), jnp.float32)
    adapted = weights | {"up": weights["up"] | {"lora_a": a, "lora_b": b}}
    merged = weights | {"up": weights["up"] | {"kernel": weights["up"]["kernel"] + 2.0 * a @ b}}
    got, wanted, plain = (layers.bind(mlp, Config, these)(x) for these in (adapted, merged, weights))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert not np.allclose(got, plain, rtol=1e-2)


def test_attention_scales_its_scores_as_told():
    q, prompt_kv, own_kv = arrays()
    masks = jnp.asarray(VALID)[:, None], jnp.asarray(CAUSAL)
    doubled = layers.attend(2 * q, prompt_kv, own_kv, *masks, scale=0.25)
    np.testing.assert_allclose(doubled, layers.attend(q, prompt_kv, own_kv, *masks, scale=0.5), rtol=1e-5)
    np.testing.assert_allclose(ours(q, prompt_kv, own_kv), layers.attend(q, prompt_kv, own_kv, *masks, scale=8**-0.5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_keeps_the_dtype(dtype):
    assert ours(*jax.tree.map(lambda a: a.astype(dtype), arrays())).dtype == dtype
