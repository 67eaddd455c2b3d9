"""Into how many chunks an update is cut: the figures are the plan's, and the fewest chunks that fit are taken."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import chunking, config as options, learner, models
from fairgrpo_jax.models import text
from fairgrpo_jax.plan import cost, footprint
from tests import tiny_batch


GIB = 1 << 30


def shapes(architecture: Any, dtype: Any = jnp.float32) -> Any:
    """Parameters that cost nothing."""
    return jax.eval_shape(lambda key: models.family(architecture).init(architecture, key, dtype), jax.random.key(0))


def needed(architecture: Any, tree: Any, layout: footprint.Layout, chunks: int) -> int:
    """Bytes of an update with so many chunks, as the plan adds them."""
    cut = dataclasses.replace(layout, chunks=chunks)
    return sum((footprint.state(tree, cut) | footprint.update(architecture, tree, cut)).values())


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [(1, 1), (2, 2)])
def test_the_fewest_chunks_that_fit(compute, mesh):
    """By trying every divisor at every memory."""
    architecture = text.tiny("qwen3", num_layers=3)
    tree = shapes(architecture)
    sizes = cost.Sizes(prompts=4, rollouts=12, prompt=30, completion=20, patches=0)
    layout = footprint.Layout(sizes=sizes, mesh=mesh, compute=compute, sampler=compute)
    wanted = {m: needed(architecture, tree, layout, m) for m in (1, 2, 3, 4, 6, 12)}
    assert sorted(wanted.values(), reverse=True) == list(wanted.values())
    seen = set()
    for memory in range(wanted[12] // 2, 2 * wanted[1], (wanted[1] - wanted[12]) // 40):
        fitting = [m for m, need in wanted.items() if need <= chunking.SHARE * memory]
        got = chunking.chunk_count(architecture, tree, layout, memory)
        assert got == (fitting[0] if fitting else 12), memory
        seen.add(got)
    assert seen == set(wanted)


def test_no_more_chunks_than_the_plan_asks_for():
    """24 layers of width 1024 in bfloat16, 64 prompts of 256 tokens with 8 completions of 1024, on 24 GiB."""
    architecture = text.tiny(
        "qwen3",
        num_layers=24,
        hidden_size=1024,
        num_heads=16,
        num_kv_heads=8,
        head_dim=64,
        intermediate_size=2816,
        vocab_size=32_000,
    )
    sizes = cost.Sizes(prompts=64, rollouts=8, prompt=256, completion=1024, patches=0)
    layout = footprint.Layout(sizes=sizes, mesh=(1, 1), compute="bfloat16", sampler="bfloat16")
    tree = shapes(architecture, jnp.bfloat16)
    assert needed(architecture, tree, layout, 2) > 0.9 * 24 * GIB >= needed(architecture, tree, layout, 4)
    assert chunking.chunk_count(architecture, tree, layout, 24 * GIB) == 4


def test_memory_decides_the_number_of_chunks_unless_told(monkeypatch):
    architecture = tiny_batch.MODEL
    tree, prompt = shapes(architecture), tiny_batch.prompt(tiny_batch.records(4))
    tokens = jnp.zeros((4, 4, 20), jnp.int32)
    batch = learner.PolicyBatch(prompt, tokens, tokens > 0, tokens * 0.0, jnp.zeros((4, 4)))
    count = lambda **update: chunking.chunks(tree, batch, architecture, options.Update(**update))
    assert count() == 1 and count(chunks=2) == 2
    with pytest.raises(ValueError, match="update.chunks=3 for 4 rollouts; wanted a divisor of 4"):
        count(chunks=3)
    sizes = cost.Sizes(prompts=4, rollouts=4, prompt=prompt.tokens.shape[1], completion=20, patches=64)
    layout = footprint.Layout(sizes=sizes, mesh=(1, 1), compute="float32", sampler="float32")
    monkeypatch.setattr(chunking, "MEMORY", int(needed(architecture, tree, layout, 2) / chunking.SHARE) + 8)
    assert count() == 2 and count(accumulation=4) == 1
    monkeypatch.setattr(chunking, "MEMORY", 1)
    assert count() == 4
