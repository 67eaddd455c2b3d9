"""Memory of a device: weights and their gradients, moments and copies exactly, the rest by formula.

Weights, gradients, moments and copies are summed leaf by leaf over the sharding rules. Activations, caches and logits
are formulas of the shapes, for the peak of a phase; a compiler's result differs by its fusion and its order (compared
in docs/plan.md). All figures are bytes per device.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from fairgrpo_jax import mesh as meshes
from fairgrpo_jax.models import attention, decoder, lora
from fairgrpo_jax.plan import cost


WIDE = 4  # bytes per number that is float32 whatever the dtype of the weights: scores, logits, sums of gradients


class Pass(NamedTuple):
    """Tokens that go through a layer together: the queries of the rollouts of each row, and their keys."""

    rows: float
    rollouts: float
    queries: float
    keys: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The layout of a step on a mesh; the fields are options of a run.

    Attributes:
        sizes: sizes of the whole step.
        mesh: numbers of devices along ``fsdp`` and ``tensor``.
        compute: dtype of the activations in the update.
        sampler: dtype of the weights while sampling, a copy in addition to the trained ones.
        cache: dtype of the keys and values while sampling.
        moment: dtype of the first moment of AdamW.
        media: bytes of a packed prompt with its patches.
        text: bytes of a packed prompt without them.
        split: whether the copy stays split along ``tensor``.
        waves: number of parts of the prompts that are sampled one after the other.
        groups: number of parts of a wave whose prompts run one after the other.
        parts: mini-batches times accumulation; P / parts prompts are processed at once in an update.
        chunks: number of chunks of a prompt's rollouts in an update.
        accumulation: number of parts of a mini-batch whose gradients are summed.
        training: which parameters are trained.
        reference: whether a reference policy is kept.
    """

    sizes: cost.Sizes
    mesh: tuple[int, int]
    compute: str
    sampler: str
    cache: str
    moment: str = "float32"
    media: int = 0
    text: int = 0
    split: bool = False
    waves: int = 1
    groups: int = 1
    parts: int = 1
    chunks: int = 1
    accumulation: int = 1
    training: cost.Training = cost.Training()
    reference: bool = False

    @property
    def prompts(self) -> int:
        """Prompts per device."""
        return -(-self.sizes.prompts // self.mesh[0])

    @property
    def sampled(self) -> int:
        """Prompts per device that are sampled at once."""
        return -(-self.prompts // self.waves)

    @property
    def rows(self) -> int:
        """Completions processed at once per device in an update."""
        return -(-self.prompts // self.parts) * -(-self.sizes.rollouts // self.chunks)

    @property
    def across(self) -> int:
        """Number of devices that share the work on a prompt in a rollout."""
        return self.mesh[1] if self.split else 1


def sharded(tree: Any, shape: tuple[int, int], itemsize: int | None = None) -> int:
    """Bytes of a device's share of parameters, or of a tree shaped like them.

    Args:
        tree: arrays or shapes, with the paths of parameters.
        shape: shape of the mesh, (fsdp, tensor).
        itemsize: bytes per number; default: those of the leaves' dtypes.

    Example:
        >>> tree = {"head": {"kernel": jax.ShapeDtypeStruct((8, 6), jnp.bfloat16)}}
        >>> sharded(tree, (1, 1)), sharded(tree, (4, 1)), sharded(tree, (4, 2)), sharded(tree, (3, 2))
        (96, 24, 12, 48)
    """
    mesh: Any = AbstractMesh(shape, meshes.AXES, axis_types=(AxisType.Auto,) * 2)
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(meshes.shardings(tree, mesh)), strict=True)
    return sum(math.prod(where.shard_shape(x.shape)) * (itemsize or jnp.dtype(x.dtype).itemsize) for x, where in pairs)


def state(tree: Any, layout: Layout) -> dict[str, int]:
    """Bytes held permanently: weights, the moments of AdamW, and the reference policy.

    Args:
        tree: the parameters as shapes, from ``policy.shapes``.
        layout: layout of the run.
    """
    trained = lora.trainable(tree, layout.training.freeze)[0]
    copied = layout.reference and not layout.training.lora_rank
    return {
        "weights": sharded(tree, layout.mesh),
        "optimizer moments": sharded(
            trained, layout.mesh, 4 + jnp.dtype(layout.moment).itemsize
        ),  # the second: float32
        "reference policy": sharded(tree, layout.mesh, 2) if copied else 0,
    }


def rollout(architecture: Any, tree: Any, layout: Layout) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a rollout adds to the state, during the prompt pass and during decoding.

    The weights are copied by layer, whole or split along ``tensor``, and kept until the rollouts end. The keys and
    values of a wave's prompts are on the devices until it ends, and the caches, at their full length; the patches only
    of the group of prompts that runs and of the next. If weights are split along ``tensor``, so are heads, activations
    and logits.

    Args:
        architecture: the family's config.
        tree: the parameters as shapes.
        layout: layout of the run.
    """
    sizes, size, prompts = layout.sizes, cost.BYTES[layout.sampler], layout.sampled
    own, tokens, rows = max(sizes.completion - 1, 1), prompts * sizes.prompt, prompts * sizes.rollouts
    heads = math.gcd(architecture.num_kv_heads, layout.across)
    kv = lambda places: int(cost.cache_bytes(architecture, places, layout.cache) / heads)
    group = -(-prompts // layout.groups)
    layer = _layer(architecture, size, Pass(group, 1, sizes.prompt, sizes.prompt))
    held, text = {"weights that sample": copy(tree, layout)}, prompts * layout.text
    first = held | {
        "prompts": text + group * (layout.media - layout.text) * min(layout.groups, 2),
        "prompt keys and values": kv(tokens),
        "working": int(max(_tower(architecture, group, sizes.patches, size), layer) / layout.across),
    }
    row = _layer(architecture, size, Pass(rows, 1, 1, sizes.prompt + own))
    caches = cost.completion_cache_bytes(architecture, int(own), layout.cache) / heads
    decode = held | {
        "prompts": text,
        "prompt keys and values": kv(tokens),
        "rollout keys and values": int(rows * caches),
        "working": int((row + rows * architecture.vocab_size * 3 * WIDE) / layout.across),  # logits, chances, noise
    }
    return first, decode


def copy(tree: Any, layout: Layout) -> int:
    """Bytes of the weights that a device samples with."""
    return sharded(tree, (1, layout.across), cost.BYTES[layout.sampler])


def update(architecture: Any, tree: Any, layout: Layout) -> dict[str, int]:
    """Bytes that an update adds to the state.

    ``kept`` is what the forward pass stores for the backward pass, for the prompts and one chunk of rollouts: the input
    of every layer with ``remat``, with "selective" also the products of linear maps and of attention, otherwise all
    that a layer computes. ``working`` is the largest memory that the head
    (logits of ``decoder.logit_steps``), one layer or one block of the tower needs in the backward pass.

    Args:
        architecture: the family's config.
        tree: the parameters as shapes.
        layout: layout of the run.
    """
    sizes, size, tensor = layout.sizes, cost.BYTES[layout.compute], layout.mesh[1]
    trained = lora.trainable(tree, layout.training.freeze)[0]
    prompts, own = -(-layout.prompts // layout.parts), max(sizes.completion - 1, 0)
    first, rest = prompts * sizes.prompt, layout.rows * own
    whole = Pass(prompts, 1, sizes.prompt, sizes.prompt)
    passes = whole, Pass(prompts, layout.rows / prompts, own, sizes.prompt + own)
    kept = architecture.num_layers * architecture.hidden_size * (first + rest) * size
    if not layout.training.remat:
        kept += architecture.num_layers * sum(_layer(architecture, size, part, kept=True) for part in passes) / tensor
    elif layout.training.remat == "selective":
        attended = architecture.num_heads * architecture.head_dim
        row = _products(architecture, "layer") + architecture.num_layers * attended
        kept += row * (first + rest) * size / tensor
    steps = min(sizes.completion, decoder.logit_steps(layout.rows, architecture.vocab_size))
    logits = layout.rows * steps * architecture.vocab_size * (2 * WIDE + size)
    layers = [_layer(architecture, size, part, backward=True) for part in passes]
    tower = _tower(architecture, prompts, sizes.patches, size, backward=True)
    head, block = architecture.hidden_size * architecture.vocab_size, _numbers(tree["layers"]) / architecture.num_layers
    split = sharded(tree, layout.mesh) < sharded(tree, (1, 1))
    return {
        "gradients": sharded(trained, layout.mesh, WIDE) * min(layout.accumulation, 2),
        "weights in the compute dtype": sharded(tree, layout.mesh, size) if size < _itemsize(tree) else 0,
        "weights gathered": int(split * (head + 2 * block) * size),
        "prompts": prompts * layout.media * min(layout.parts, 2),
        "prompt keys and values": int(2 * cost.cache_bytes(architecture, first, layout.compute)),
        "kept": int(kept + _kept_tower(architecture, tree, prompts, layout, size)),
        "working": int(max(logits, *layers, tower) / tensor),
    }


def _layer(architecture: Any, size: int, part: Pass, *, backward: bool = False, kept: bool = False) -> float:
    """Bytes of the activations of one decoder layer.

    In the backward pass each has its gradient beside it, but for the MLP's hidden ones: beside gate, up and their
    product there is only the product's gradient; those of gate and up take their places.
    """
    heads = architecture.num_heads + architecture.num_kv_heads
    row = (4 * architecture.hidden_size + 2 * heads * architecture.head_dim) * (1 + backward)
    row += (3 + backward) * architecture.intermediate_size
    scores = _scores(architecture.num_heads, size, part, backward=backward, kept=kept)
    return part.rows * part.rollouts * part.queries * row * size + scores


def _tower(
    architecture: Any, prompts: float, each: int, size: int, *, backward: bool = False, kept: bool = False
) -> float:
    """Bytes of the activations of one block of the tower, with attention over the patches of a part or an image."""
    vision = architecture.vision
    if vision is None or not each:
        return 0.0
    each = sum(vision.parts(each)[1:])
    row = 8 * vision.hidden_size * (1 + backward) + ((3 if vision.gated else 2) + backward) * vision.intermediate_size
    keys = vision.unit if vision.image_size else each
    part = Pass(prompts * each / keys, 1, keys, keys)
    scores = _scores(vision.num_heads, size, part, backward=backward, kept=kept)
    return prompts * each * row * size + scores


def _scores(heads: int, size: int, part: Pass, *, backward: bool = False, kept: bool = False) -> float:
    """Bytes of attention scores in float32 and in the dtype of the values, plus their gradient in the backward pass.

    ``attention.choose`` computes them at once only where they are few. Otherwise they are computed for a few prompts, a
    rollout and a block of queries at a time, or inside a kernel, and are not kept for the backward pass. Those of one
    token (decoding) are never cut.
    """
    rows, rollouts, queries, keys = part
    numbers = heads * keys * rows * rollouts * queries
    if queries > 1 and WIDE * numbers > attention.LARGE:
        if kept:
            return 0.0
        block = heads * keys * min(queries, attention.LEAST_QUERIES)
        numbers = min(numbers, max(block, attention.LARGE / WIDE))
    return ((1 + backward) * WIDE + size) * numbers


def _kept_tower(architecture: Any, tree: Any, prompts: float, layout: Layout, size: int) -> float:
    """Bytes that the tower keeps for its backward pass, 0 if it has none; of one in parts, also its wide weights."""
    vision = architecture.vision
    if vision is None:
        return 0.0
    tower = [linear for linear in cost.linears(architecture) if linear.group in ("patch", "merged")]
    if not any(any(cost.trained_linear(linear.path, layout.training)) for linear in tower):
        return 0.0
    count, each, beyond = vision.parts(layout.sizes.patches)
    if layout.training.remat:
        count = 1  # of parts, one is run again and kept at a time
    inputs = vision.depth * vision.hidden_size * prompts * count * (each + beyond) * size
    block = count * _tower(architecture, prompts, layout.sizes.patches, size, kept=True)
    whole = 0 if layout.training.remat else vision.depth * block
    if layout.training.remat == "selective":
        row = _products(architecture, "patch") + vision.depth * vision.hidden_size
        whole = row * prompts * count * (each + beyond) * size
    wide = 0 if vision.parts(layout.sizes.patches)[0] == 1 or size == WIDE else _numbers(tree["vision"]) * WIDE
    return inputs * (1 + len(vision.deepstack)) + whole + wide / layout.mesh[0]


def streamed_again(architecture: Any, tree: Any, layout: Layout) -> int:
    """Bytes of the tower's weights, in three passes, and of their gradients, for every part but the first."""
    if not cost.in_parts(architecture, layout.sizes.patches):
        return 0
    again = architecture.vision.parts(layout.sizes.patches)[0] - 1
    tower = lambda itemsize: sharded({"vision": tree["vision"]}, (1, layout.mesh[1]), itemsize)
    return again * (3 * tower(cost.BYTES[layout.compute]) + tower(WIDE))


def _products(architecture: Any, group: str) -> int:
    """Outputs of a token in all linear maps of the layers (or of a patch in all blocks) that a backward pass needs."""
    maps = [linear for linear in cost.linears(architecture) if linear.group == group]
    return sum(linear.count * linear.outputs for linear in maps if cost.needed(linear, architecture))


def _numbers(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def _itemsize(tree: Any) -> int:
    return jnp.dtype(tree["embedding"].dtype).itemsize
