"""AdamW of the updates: what weight decay reaches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fairgrpo_jax import config as options, learner
from fairgrpo_jax.models import gemma3, lora, qwen2_5_vl, qwen3_vl, tree


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("family", [qwen2_5_vl, qwen3_vl, gemma3], ids=lambda family: family.__name__.split(".")[-1])
def test_weight_decay_spares_norms_and_biases(family, adapted):
    # The convention of transformers.Trainer: all is decayed but the parameters of norms and what is called a bias.
    shapes = jax.eval_shape(lambda key: family.init(family.tiny(), key), jax.random.key(0))
    params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
    if adapted:
        params = jax.tree.map(np.ones_like, lora.add_to(params, lora.LoRA(rank=2), jax.random.key(0)))
    adam = learner.optimizer(options.Optim(lr=0.1, warmup_steps=0, schedule="constant", weight_decay=0.1), 10)
    updates, _ = jax.jit(adam.update)(jax.tree.map(jnp.zeros_like, params), adam.init(params), params)
    for path, update in tree.flatten(updates).items():
        spared = "norm" in path or "bias" in path
        np.testing.assert_allclose(update, 0.0 if spared else -0.01, rtol=1e-6, err_msg=path)
