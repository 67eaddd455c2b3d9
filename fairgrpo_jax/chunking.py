"""Chooses the number of chunks of each prompt's rollouts with which an update fits into the memory of a device.

The memory estimates are those of the plan (``plan.footprint``), so that a run and its plan agree.
"""

import dataclasses
from typing import Any

import jax

from fairgrpo_jax import config as options
from fairgrpo_jax.models import lora
from fairgrpo_jax.plan import cost, footprint


MEMORY = 16 << 30  # bytes assumed for a device that does not report its memory
SHARE = 0.9  # share of the memory that an update may take by the formulas, since the compiler may need more


def chunk_count(architecture: Any, tree: Any, layout: footprint.Layout, memory: int) -> int:
    """The smallest number of chunks, a divisor of G, with which the update and all else held fits; G if none does.

    Args:
        architecture: the family's config.
        tree: the parameters, as arrays or shapes.
        layout: layout of the run; its ``chunks`` is ignored.
        memory: memory of a device in bytes.

    Returns:
        A number in 1 .. G. It is an estimate; ``update.chunks`` overrides it.
    """
    rollouts = layout.sizes.rollouts
    held = sum(footprint.state(tree, layout).values())

    def fits(count: int) -> bool:
        added = footprint.update(architecture, tree, dataclasses.replace(layout, chunks=count))
        return held + sum(added.values()) <= SHARE * memory

    return next((m for m in range(1, rollouts) if rollouts % m == 0 and fits(m)), rollouts)


def chunks(
    params: Any,
    batch: Any,
    architecture: Any,
    update: options.Update,
    *,
    compute: str | None = None,
    freeze: tuple[str, ...] = (),
) -> int:
    """``update.chunks``, or as many chunks as the memory of this device requires for an update on ``batch``.

    Args:
        params: arrays, shapes or tracers.
        batch: a ``learner.PolicyBatch`` of arrays, shapes or tracers.
        architecture: the family's config.
        update: options of the update.
        compute: dtype of the passes; default: that of the parameters.
        freeze: patterns of parameters that are not trained; see ``lora.trainable``.

    Raises:
        ValueError: if ``update.chunks`` does not divide the number of rollouts.
    """
    P, G, T = batch.tokens.shape
    if update.chunks:
        if G % update.chunks:
            raise ValueError(f"got update.chunks={update.chunks} for {G} rollouts; wanted a divisor of {G}")
        return update.chunks
    mesh = jax.sharding.get_abstract_mesh()
    dtype = compute or jax.tree.leaves(params)[0].dtype.name
    vision = batch.prompt.vision
    layout = footprint.Layout(
        sizes=cost.Sizes(
            prompts=P,
            rollouts=G,
            prompt=batch.prompt.tokens.shape[1],
            completion=T,
            patches=0 if vision is None else vision.patches.shape[1],
        ),
        mesh=(1, 1) if mesh.empty else (mesh.shape["fsdp"], mesh.shape["tensor"]),
        compute=dtype,
        sampler=dtype,
        parts=update.parts,
        accumulation=update.accumulation,
        reference=update.beta > 0,
        training=cost.Training(lora_rank=int(lora.has(params)), freeze=freeze, remat=update.remat),
    )
    stats = jax.local_devices()[0].memory_stats() or {}
    return chunk_count(architecture, params, layout, stats.get("bytes_limit", MEMORY))
