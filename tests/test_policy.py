"""A new policy: no two of its random parts are drawn with one key."""

import itertools

import jax
import numpy as np
import pytest
from jax.core import Tracer

from fairgrpo_jax import config as options, policy
from fairgrpo_jax.models import gemma3, qwen3_vl, vision
from fairgrpo_jax.models.tree import flatten


def test_adapters_do_not_repeat_the_weights_that_they_adapt():
    """Values of one key come in one order, whatever their scale and distribution."""
    model = options.Model(hidden_size=32, lora_rank=4, lora_targets=".")
    devices = jax.make_mesh((1, 1), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    leaves = flatten(policy.initial(model, policy.small(model), jax.random.key(0), mesh=devices))
    orders = {
        path: tuple(np.argsort(np.asarray(leaf).ravel()[:32]).tolist())
        for path, leaf in leaves.items()
        if np.ptp(leaf) > 0
    }
    assert any(path.endswith("lora_a") for path in orders) and "embedding" in orders
    for one, other in itertools.combinations(orders, 2):
        assert orders[one] != orders[other], (one, other)


@pytest.mark.parametrize("family", [qwen3_vl, gemma3], ids=lambda family: family.__name__.split(".")[-1])
def test_the_parts_of_a_tower_have_keys_of_their_own(monkeypatch, family):
    keys, normal, stack = [], jax.random.normal, vision.stack

    def drawn(key, *args, **named):
        if not isinstance(key, Tracer):
            keys.append(key)
        return normal(key, *args, **named)

    def stacked(block, config, key, depth):
        keys.extend([key, *jax.random.split(key, depth)])  # of all blocks together, and of each
        return stack(block, config, key, depth)

    monkeypatch.setattr(jax.random, "normal", drawn)
    monkeypatch.setattr(vision, "stack", stacked)
    config = family.tiny().vision
    assert config.num_positions and vision.init(config, jax.random.key(0)).keys() >= {"vision"}
    words = [tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys]
    assert len(words) >= 4 and len(set(words)) == len(words)
