"""Chooses in how many parts a step is computed, so that it fits into the memory of a device.

    sampling.waves        parts of the prompts that are sampled one after the other
    update.accumulation   parts of the prompts of an update
    update.chunks         parts of each prompt's rollouts in an update

None of them changes the algorithm. They are the fewest that fit, but for chunks, which also save time: rollouts are
sorted by length, and each chunk is run at a length near its own. Of them there are as many as leave each enough tokens
to keep its device busy. The memory estimates are those of the plan (``plan.footprint``), so that a run and its plan
agree.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from fairgrpo_jax import config as options, hosts, mesh as meshes, models
from fairgrpo_jax.plan import cost, footprint


MEMORY = 16 << 30  # bytes assumed for a device that does not report its memory
# More save next to nothing: of log-normal lengths 1, 4 and 8 chunks compute 2.7, 1.8 and 1.7 times the tokens.
MOST_CHUNKS = 8
# Completion tokens of a device that a chunk has at least: on accelerators so many that their products take ten times as
# long as gathering the weights, on CPUs enough to fill vectors.
LEAST_TOKENS = {"cpu": 512}
LEAST_TOKENS_ELSEWHERE = 16_384
SHARE = 0.9  # share of the memory that a phase may take by the formulas, since the compiler may need more


def memory() -> int:
    """Bytes of a device that JAX may take, the least of all processes."""
    return min(hosts.everyone((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", MEMORY)))


def layout(config: options.Config, architecture: Any) -> footprint.Layout:
    """The input of the formulas for a config, where what is to be chosen (0) counts as one part."""
    waves = max(config.sampling.waves, 1)
    media, text = _bytes(architecture, config.data.prompt_length, config.data.num_patches, config.media_dtype)
    return footprint.Layout(
        sizes=cost.Sizes(
            prompts=config.prompts,
            rollouts=config.rollouts,
            prompt=config.data.prompt_length,
            completion=config.sampling.max_new_tokens,
            patches=config.data.num_patches if architecture.vision is not None else 0,
        ),
        mesh=meshes.parse(config.mesh),
        compute=config.model.compute or config.model.dtype,
        sampler=config.sampling.dtype or config.model.dtype,
        cache=config.cache_dtype,
        moment=config.optim.first_moment,
        media=media,
        text=text,
        split=config.sampling.weights == "tensor",
        waves=waves,
        groups=groups(config.prompts // waves, config),
        parts=config.update.parts,
        chunks=max(config.update.chunks, 1),
        accumulation=max(config.update.accumulation, 1),
        reference=config.update.beta > 0,
        training=cost.Training(
            lora_rank=config.model.lora_rank,
            lora_targets=config.model.lora_targets,
            freeze=config.model.freeze,
            remat=config.update.remat,
        ),
    )


@functools.cache
def _bytes(architecture: Any, length: int, num_patches: int, dtype: str) -> tuple[int, int]:
    """Bytes of a packed prompt, with its patches and without."""
    sizes: Any = dict(prompts=1, length=length, num_patches=num_patches)
    prompt = models.prompt_shapes(architecture, dtype=jnp.dtype(dtype), **sizes)
    size: Any = lambda tree: sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
    return size(prompt), size(dataclasses.replace(prompt, vision=None))


def fit(config: options.Config, architecture: Any, tree: Any, memory: int, platform: str = "gpu") -> options.Config:
    """The config with a number in place of every 0 of the three options: the fewest parts that fit, or the most.

    Args:
        config: options of the run.
        architecture: the family's config.
        tree: the parameters, as arrays or shapes.
        memory: bytes of a device that JAX may take.
        platform: of the devices, "cpu", "gpu" or "tpu".
    """
    held = sum(footprint.state(tree, layout(config, architecture)).values())

    def first(candidates: Iterator[options.Config], phases: Callable[[footprint.Layout], Any]) -> options.Config:
        found = config
        for found in candidates:
            needed = max(sum(phase.values()) for phase in phases(layout(found, architecture)))
            if held + needed <= SHARE * memory:
                break
        return found

    sampling = first(_in_waves(config), lambda layout: footprint.rollout(architecture, tree, layout)).sampling
    update = first(_in_pieces(config), lambda layout: (footprint.update(architecture, tree, layout),)).update
    if not config.update.chunks:
        prompts = config.prompts // update.mini_batches // update.accumulation // meshes.parse(config.mesh)[0]
        tokens = prompts * config.rollouts * config.sampling.max_new_tokens
        update = dataclasses.replace(update, chunks=max(update.chunks, quickest(config.rollouts, tokens, platform)))
    return dataclasses.replace(config, sampling=sampling, update=update)


def quickest(rollouts: int, tokens: int, platform: str) -> int:
    """The most chunks, a divisor of ``rollouts`` up to ``MOST_CHUNKS``, that keep a device busy.

    Args:
        rollouts: completions of each prompt.
        tokens: completion tokens of a device that are updated at once, with padding.
        platform: of the devices, "cpu", "gpu" or "tpu".

    Example:
        >>> quickest(8, 8 * 8 * 64, "cpu"), quickest(8, 8 * 8 * 64, "gpu"), quickest(10, 1 << 20, "gpu")
        (8, 1, 5)
    """
    most = min(MOST_CHUNKS, tokens // LEAST_TOKENS.get(platform, LEAST_TOKENS_ELSEWHERE))
    return max(n for n in range(1, max(most, 1) + 1) if rollouts % n == 0)


def told(config: options.Config) -> str:
    """What is computed in several parts, as options; empty if nothing is."""
    parts = {
        "sampling.waves": config.sampling.waves,
        "update.accumulation": config.update.accumulation,
        "update.chunks": config.update.chunks,
    }
    return ", ".join(f"{name}={count}" for name, count in parts.items() if count > 1)


def groups(count: int, config: options.Config) -> int:
    """In how many groups of like size ``count`` prompts of a step run, at most twice as many as sizes to pad to."""
    most, fsdp = (2 * config.data.buckets if config.data.buckets > 1 else 1), meshes.parse(config.mesh)[0]
    return max(n for n in range(1, min(count, most) + 1) if count % n == 0 and count // n % fsdp == 0)


def _in_waves(config: options.Config) -> Iterator[options.Config]:
    """The numbers of waves that the mesh allows, the fewest first."""
    count, fsdp = config.prompts, meshes.parse(config.mesh)[0]
    fixed = config.sampling.waves
    for waves in [fixed] if fixed else [n for n in range(1, count + 1) if count % n == 0 and count // n % fsdp == 0]:
        yield dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, waves=waves))


def _in_pieces(config: options.Config) -> Iterator[options.Config]:
    """Pairs of ``accumulation`` and ``chunks``, the fewest pieces first, and of as many the fewest parts of prompts."""
    spec, fsdp = config.update, meshes.parse(config.mesh)[0]
    size = config.prompts // spec.mini_batches
    fewest = groups(size, config)
    parts = [n for n in range(fewest, size + 1) if size % n == 0 and size // n % fsdp == 0]
    chunks = [n for n in range(1, config.rollouts + 1) if config.rollouts % n == 0]
    pairs = [(a, c) for a in ([spec.accumulation] if spec.accumulation else parts)
             for c in ([spec.chunks] if spec.chunks else chunks)]  # fmt: skip
    for accumulation, count in sorted(pairs, key=lambda pair: (pair[0] * pair[1], pair[0])):
        yield dataclasses.replace(config, update=dataclasses.replace(spec, accumulation=accumulation, chunks=count))
