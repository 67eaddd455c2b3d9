"""The blocks of the text decoder by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.models import layers


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
