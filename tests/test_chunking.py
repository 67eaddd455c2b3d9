"""Into how many parts a step is cut: the figures are the plan's, and the fewest parts that fit are taken."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from fairgrpo_jax import chunking, config as options, models
from fairgrpo_jax.models import text
from fairgrpo_jax.plan import footprint


GIB = 1 << 30
SMALL = options.Config(
    prompts=8,
    rollouts=6,
    data=options.Data(prompt_length=30),
    sampling=options.Sampling(max_new_tokens=20),
    warmup=options.Warmup(steps=0),
)


def shapes(architecture: Any, dtype: Any = jnp.float32) -> Any:
    """Parameters that cost nothing."""
    return jax.eval_shape(lambda key: models.family(architecture).init(architecture, key, dtype), jax.random.key(0))


def in_pieces(config, accumulation, chunks):
    update = dataclasses.replace(config.update, accumulation=accumulation, chunks=chunks)
    return dataclasses.replace(config, update=update)


def in_waves(config, waves):
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, waves=waves))


def needed(architecture, tree, config, phase):
    """Bytes of a phase beside the state, as the plan adds them."""
    layout = chunking.layout(config, architecture)
    both = [*footprint.rollout(architecture, tree, layout), footprint.update(architecture, tree, layout)]
    return sum(footprint.state(tree, layout).values()) + sum(both[phase].values())


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", ["1x1", "2x2"])
def test_the_fewest_pieces_that_fit(compute, mesh):
    """By trying every pair of divisors, at each memory that is just enough for one of them and at a little less."""
    architecture = text.tiny("qwen3", num_layers=3)
    tree, fsdp = shapes(architecture), int(mesh[0])
    config = dataclasses.replace(SMALL, mesh=mesh, model=options.Model(compute=compute))
    pairs = [(a, c) for a in (1, 2, 4, 8) for c in (1, 2, 3, 6) if 8 // a % fsdp == 0]
    wanted = {pair: needed(architecture, tree, in_pieces(config, *pair), 2) for pair in pairs}
    seen = set()
    for memory in sorted(int(need / chunking.SHARE) + more for need in wanted.values() for more in (-9, 9)):
        candidates = [pair for pair, need in wanted.items() if need <= chunking.SHARE * memory]
        fewest = min(candidates or [max(pairs)], key=lambda pair: (pair[0] * pair[1], pair[0]))
        spec = chunking.fit(config, architecture, tree, memory).update
        assert (spec.accumulation, spec.chunks) == fewest, memory
        seen.add(fewest)
    assert len(seen) > 3 and (1, 1) in seen and max(pairs) in seen


@pytest.mark.parametrize("prompt, completion, phase", [(30, 20, 1), (200, 2, 0)])
def test_the_fewest_waves_that_fit(prompt, completion, phase):
    """Whether decoding needs most, or the prompts before it."""
    architecture = text.tiny("qwen3", num_layers=3)
    data, sampling = options.Data(prompt_length=prompt), options.Sampling(max_new_tokens=completion)
    tree, config = shapes(architecture), dataclasses.replace(SMALL, mesh="2x1", data=data, sampling=sampling)
    assert needed(architecture, tree, config, phase) > needed(architecture, tree, config, 1 - phase)
    of = lambda waves: max(needed(architecture, tree, in_waves(config, waves), phase) for phase in (0, 1))
    wanted = {waves: of(waves) for waves in (1, 2, 4)}  # 8 waves would leave a device without a prompt
    assert wanted[1] > wanted[2] > wanted[4]
    count = lambda memory: chunking.fit(config, architecture, tree, int(memory / chunking.SHARE)).sampling.waves
    for waves, need in wanted.items():
        assert count(need + 9) == waves
    assert count(wanted[2] - 9) == 4 == count(1) and count(1 << 40) == 1


def test_what_is_told_stays():
    architecture = text.tiny("qwen3", num_layers=3)
    fit = functools.partial(chunking.fit, architecture=architecture, tree=shapes(architecture), memory=1)
    told = in_waves(in_pieces(SMALL, 2, 3), 4)
    assert fit(told) == told
    assert chunking.told(fit(in_pieces(SMALL, 2, 0))) == "sampling.waves=8, update.accumulation=2, update.chunks=6"
    assert chunking.told(fit(in_pieces(SMALL, 0, 1))) == "sampling.waves=8, update.accumulation=8"
    assert chunking.told(chunking.fit(SMALL, architecture, shapes(architecture), 1 << 40)) == ""
    with pytest.raises(ValueError, match="prompts=8 with sampling.waves=3; wanted sampling.waves as a divisor of 8"):
        in_waves(SMALL, 3)


def test_chunks_that_save_time_are_taken_where_memory_asks_for_none():
    """Of 8 x 6 x 128 tokens: six chunks of 1,024 on a CPU; on an accelerator, whose mesh has the half each, one."""
    architecture, config = text.tiny("qwen3"), dataclasses.replace(SMALL, mesh="2x1")
    config = dataclasses.replace(config, sampling=options.Sampling(max_new_tokens=128))
    fit = functools.partial(chunking.fit, architecture=architecture, tree=shapes(architecture), memory=1 << 40)
    assert fit(config, platform="cpu").update.chunks == 6 and fit(config).update.chunks == 1
    assert fit(in_pieces(config, 4, 0), platform="cpu").update.chunks == 1  # 768 tokens a device, of them 512 at least
    assert fit(in_pieces(config, 4, 2), platform="cpu").update.chunks == 2
    long = dataclasses.replace(config, sampling=options.Sampling(max_new_tokens=4096))
    assert fit(long).update.chunks == 6 and fit(dataclasses.replace(long, mesh="8x1")).update.chunks == 1


def test_no_more_chunks_than_the_plan_asks_for(monkeypatch):
    """24 layers of width 1024 in bfloat16, 64 prompts of 256 tokens with 8 completions of 1024, on 24 GiB."""
    monkeypatch.setattr(chunking, "MOST_CHUNKS", 1)  # none for speed
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
    config = options.Config(
        prompts=64,
        rollouts=8,
        data=options.Data(prompt_length=256),
        sampling=options.Sampling(max_new_tokens=1024),
        model=options.Model(dtype="bfloat16"),
        update=options.Update(accumulation=1),
    )
    tree = shapes(architecture, jnp.bfloat16)
    of = lambda chunks: needed(architecture, tree, in_pieces(config, 1, chunks), 2)
    assert of(2) > 0.9 * 24 * GIB >= of(4)
    assert chunking.fit(config, architecture, tree, 24 * GIB).update.chunks == 4
