"""AdamW of the updates: what weight decay reaches, and its moments in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fairgrpo_jax import config as options, learner
from fairgrpo_jax.models import gemma3, lora, qwen2_5_vl, qwen3_vl, tree


@pytest.mark.parametrize("family", [qwen2_5_vl, qwen3_vl, gemma3], ids=lambda family: family.__name__.split(".")[-1])
def test_weight_decay_spares_norms_and_biases(family):
    """Of a model with adapters, as transformers.Trainer does: all but norms and what is called a bias is decayed."""
    adapted = lambda key: lora.add_to(family.init(family.tiny(), key), lora.LoRA(rank=2), key)
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), jax.eval_shape(adapted, jax.random.key(0)))
    assert sum(path.endswith(lora.PAIR) for path in tree.flatten(params)) > 2
    adam = learner.optimizer(options.Optim(lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.1), 10)
    updates, _ = jax.jit(adam.update)(jax.tree.map(jnp.zeros_like, params), adam.init(params), params)
    for path, update in tree.flatten(updates).items():
        spared = "norm" in path or "bias" in path
        np.testing.assert_allclose(update, 0.0 if spared else -0.01, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_moments_of_bfloat16_parameters_reach_the_gradient(first):
    optim = options.Optim(lr=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.0, first_moment=first)
    params = {"map": {"kernel": jnp.ones((2, 2), jnp.bfloat16)}}
    adam, grads = learner.optimizer(optim, 2000), jax.tree.map(jnp.ones_like, params)
    moments = learner.fresh_moments(params, optim=optim, steps=2000)
    step: Any = jax.jit(lambda moments: adam.update(grads, moments, params))
    for _ in range(2000):
        updates, moments = step(moments)
    np.testing.assert_allclose(moments[0].nu["map"]["kernel"], 1 - 0.999**2000, rtol=1e-3)  # 0.8648
    stuck = 2**-8 / (1 - optim.b1)  # in bfloat16 the mean stops where a step is less than half its last place
    np.testing.assert_allclose(updates["map"]["kernel"], -1e-4, rtol=1e-3 if first == "float32" else stuck)
    assert {x.dtype for x in jax.tree.leaves((moments[0].nu, updates))} == {jnp.dtype("float32")}
    assert moments[0].mu["map"]["kernel"].dtype == first
    moved: Any = optax.apply_updates(params, updates)
    assert moved["map"]["kernel"].dtype == jnp.bfloat16
