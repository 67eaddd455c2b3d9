"""Cost of a rollout and an update in parameters, FLOPs and bytes, computed only from the architecture and sizes.

A FLOP is a multiplication or an addition of a matrix product, 2 m n k for (m, k) x (k, n); norms, activations, softmax
and the optimizer are left out (one to five percent of the work at published sizes). Attention is counted as it is
computed, including masked scores. Figures are for the whole mesh; each device has its share.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from fairgrpo_jax import rollout
from fairgrpo_jax.models import decoder
from fairgrpo_jax.models.remat import Remat


BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shapes of one step.

    Attributes:
        prompts: P, prompts on all devices.
        rollouts: G, rollouts per prompt.
        prompt: Tp, tokens to which prompts are padded.
        completion: T, tokens to which completions are padded; for the cost of a past step, their mean length.
        patches: S, vision patches to which the media of a prompt are padded.
    """

    prompts: int
    rollouts: int
    prompt: int
    completion: float
    patches: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained and recomputed; the fields are options of the same names in ``config.Model``, ``config.Update``.

    Attributes:
        lora_rank: rank of the adapters, which are then the only trained parameters; 0: no adapters.
        lora_targets: regular expression of the linear maps that have an adapter.
        freeze: regular expressions of parameters that are not trained.
        remat: whether the backward pass recomputes the layers, or "selective".
    """

    lora_rank: int = 0
    lora_targets: str = ""
    freeze: Sequence[str] = ()
    remat: Remat = True


@dataclasses.dataclass(frozen=True)
class Flops:
    """FLOPs by purpose."""

    vision: float = 0.0  # the tower, its attention included
    decoder: float = 0.0  # linear maps of the layers
    attention: float = 0.0  # scores and weighted values of the decoder
    head: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all FLOPs."""
        return self.vision + self.decoder + self.attention + self.head

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear maps of one kind: ``count`` of them, each from ``inputs`` to ``outputs``."""

    path: str  # as freeze and lora_targets see it, without /kernel
    group: str  # what its rows are: "patch", "merged", "layer" or "head"
    count: int
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Number of weights in the kernels."""
        return self.count * self.inputs * self.outputs


def linears(architecture: Any) -> Iterator[Linear]:
    """The matrix products of the tower, the decoder and the head (for a tied head, the embedding)."""
    yield from _tower(architecture.vision) if architecture.vision is not None else ()
    size, inner = architecture.hidden_size, architecture.num_heads * architecture.head_dim
    shared, wide = architecture.num_kv_heads * architecture.head_dim, architecture.intermediate_size
    layers, bias = architecture.num_layers, architecture.qkv_bias
    for name, outputs in (("q", inner), ("k", shared), ("v", shared)):
        yield Linear(f"layers/attention/{name}", "layer", layers, size, outputs, bias)
    yield Linear("layers/attention/o", "layer", layers, inner, size)
    for name in ("gate", "up"):
        yield Linear(f"layers/mlp/{name}", "layer", layers, size, wide)
    yield Linear("layers/mlp/down", "layer", layers, wide, size)
    yield Linear("embedding" if architecture.tie_word_embeddings else "head", "head", 1, size, architecture.vocab_size)


def _tower(vision: Any) -> Iterator[Linear]:
    size, wide, merged = vision.hidden_size, vision.intermediate_size, vision.hidden_size * vision.spatial_merge_size**2
    yield Linear("vision/patch", "patch", 1, vision.patch_dim, size, vision.patch_bias)
    for name in ("qkv",) if vision.fused_qkv else ("q", "k", "v"):
        yield Linear(f"vision/blocks/{name}", "patch", vision.depth, size, size * (3 if name == "qkv" else 1), True)
    yield Linear("vision/blocks/proj", "patch", vision.depth, size, size, True)
    for name in ("gate", "up") if vision.gated else ("up",):
        yield Linear(f"vision/blocks/mlp/{name}", "patch", vision.depth, size, wide, True)
    yield Linear("vision/blocks/mlp/down", "patch", vision.depth, wide, size, True)
    if vision.pooled:
        yield Linear("projector", "merged", 1, size, vision.out_hidden_size)
        return
    for name, count in (("merger", 1), ("deepstack", len(vision.deepstack))):
        yield Linear(f"vision/{name}/up", "merged", count, merged, merged, True)
        yield Linear(f"vision/{name}/out", "merged", count, merged, vision.out_hidden_size, True)


def parameters(architecture: Any) -> dict[str, int]:
    """Number of parameters in ``vision``, ``embedding``, ``layers``, ``head`` and ``norm``, without adapters.

    Example:
        >>> from fairgrpo_jax.models import text
        >>> parameters(text.tiny("qwen2"))
        {'vision': 0, 'embedding': 32768, 'layers': 61952, 'head': 0, 'norm': 64}
    """
    size, vision, layers = architecture.hidden_size, architecture.vision, architecture.num_layers
    counts: dict[str, int] = dict.fromkeys(("vision", "embedding", "layers", "head", "norm"), 0)
    for linear in linears(architecture):
        part = linear.path.split("/")[0].replace("projector", "vision")
        counts[part] += linear.weights + linear.bias * linear.count * linear.outputs
    counts["embedding"] = size * architecture.vocab_size
    counts["norm"] = size
    counts["layers"] += layers * size * (4 if architecture.sandwich_norms else 2)
    counts["layers"] += layers * 2 * architecture.head_dim * architecture.qk_norm
    if vision is None:
        return counts
    pair, merge = 1 if vision.norm == "rms" else 2, vision.spatial_merge_size**2
    counts["vision"] += pair * vision.hidden_size * 2 * vision.depth + vision.num_positions * vision.hidden_size
    if vision.pooled:
        counts["vision"] += (2 + 1) * vision.hidden_size
    else:
        counts["vision"] += pair * vision.hidden_size * (1 + merge * len(vision.deepstack))
    return counts


def trained_linear(path: str, training: Training) -> tuple[bool, bool]:
    """Whether the kernel of a linear map is trained, and whether it has a trained adapter."""
    kept = lambda name: not any(re.search(pattern, f"{path}/{name}") for pattern in training.freeze)
    if not training.lora_rank:
        return kept("kernel") if path != "embedding" else not any(re.search(p, path) for p in training.freeze), False
    return False, _adapted(path, training) and kept("lora_a")


def _adapted(path: str, training: Training) -> bool:
    inside = path.startswith(("layers/", "vision/blocks/", "vision/merger/", "vision/deepstack/"))
    return bool(training.lora_rank) and inside and re.search(training.lora_targets, path) is not None


# ---- FLOPs -----------------------------------------------------------------------------------------------------------


def rollout_flops(architecture: Any, sizes: Sizes, training: Training = Training()) -> tuple[Flops, Flops]:
    """FLOPs of the prompt pass and of decoding for one rollout batch, P prompts with G completions each.

    Prompt pass: every linear map on P Tp tokens (P S patches in the tower), scores of Tp x Tp, and the head on the
    first token. Decoding: T - 1 steps of P G tokens, each of which attends to the Tp positions of its prompt and to its
    caches, including empty places, as the program does (``cache_lengths``); the head at every step.

    Args:
        architecture: the family's config.
        sizes: sizes of the rollout batch.
        training: determines which maps have adapters; its other fields are not used.

    Returns:
        The FLOPs of the prompt pass and of decoding.

    Example:
        >>> from fairgrpo_jax.models import text
        >>> first, decode = rollout_flops(text.tiny("qwen2"), Sizes(prompts=2, rollouts=4, prompt=8, completion=5))
        >>> int(first.decoder) == 2 * 2 * 8 * 61440, int(decode.head) == 2 * 2 * 4 * 4 * 32768
        (True, True)
    """
    forward = lambda linear, rows: 2 * rows * _numbers(linear, training)
    prompt = _sum(architecture, forward, patch=_patches(architecture, sizes), layer=sizes.prompts * sizes.prompt)
    rows, steps = sizes.prompts * sizes.rollouts, max(sizes.completion - 1, 0)
    prompt += _sum(architecture, forward, head=rows)
    prompt += Flops(_tower_scores(architecture, sizes), 0, _scores(architecture, sizes.prompts * sizes.prompt**2))
    decode = _sum(architecture, forward, layer=rows * steps, head=rows * steps)
    lengths = cache_lengths(int(sizes.completion))
    own = sum(lengths.count(size) * sum(decoder.cache_sizes(architecture, size)) for size in set(lengths))
    pairs = rows * (steps * sizes.prompt + own / architecture.num_layers)
    return prompt, decode + Flops(attention=_scores(architecture, pairs))


def update_flops(
    architecture: Any,
    sizes: Sizes,
    training: Training = Training(),
    *,
    rows: int | None = None,
    recomputed: bool = True,
) -> Flops:
    """FLOPs of the gradient of one rollout batch, with each prompt run once for its G completions.

    A linear map costs one product forward, one for the gradient of its input if anything before it is trained, and one
    for that of its kernel if the kernel is trained. Tokens: P (Tp + G (T - 1)); the head: P G T, in whole chunks of
    ``decoder.logit_steps``.

    Args:
        architecture: the family's config.
        sizes: sizes of the rollout batch, all mini-batches and micro-batches together.
        training: what is trained.
        rows: completions processed at once per device; default: all P G.
        recomputed: whether to count recomputation in the backward pass (layers with ``remat``, of which only attention
            if it is selective, as where no kernel computes it; the head always) and the head's padding, as for hardware
            utilisation; without them the result is that for model utilisation (MFU).

    Example:
        >>> from fairgrpo_jax.models import text
        >>> sizes = Sizes(prompts=2, rollouts=4, prompt=8, completion=5)
        >>> flops = update_flops(text.tiny("qwen2"), sizes, recomputed=False)
        >>> int(flops.decoder) == 6 * 2 * (8 + 4 * 4) * 61440
        True
    """
    tower = any(
        any(trained_linear(linear.path, training))
        for linear in linears(architecture)
        if linear.group in ("patch", "merged")
    )

    parted = training.remat and in_parts(architecture, sizes.patches)

    def cost(linear: Linear, rows: float) -> float:
        kernel, adapter = trained_linear(linear.path, training)
        numbers, small = linear.weights, _adapter(linear, training)
        total = numbers + small
        if linear.group in ("patch", "merged") and not tower:
            return 2 * rows * total
        inner = 0 if linear.path == "vision/patch" else total
        again = _again(linear, architecture, training) if recomputed else 0
        if recomputed and parted and linear.group in ("patch", "merged"):
            again += total
        return 2 * rows * (total + again + inner + kernel * numbers + adapter * small)

    first, rest = sizes.prompts * sizes.prompt, sizes.prompts * sizes.rollouts * max(sizes.completion - 1, 0)
    flops = _sum(
        architecture,
        cost,
        patch=_patches(architecture, sizes) if recomputed else sizes.prompts * sizes.patches,
        layer=first + rest,
        head=sizes.prompts * sizes.rollouts * (_scored(architecture, sizes, rows) if recomputed else sizes.completion),
    )
    own = max(sizes.completion - 1, 0)
    pairs = first * sizes.prompt + rest * (sizes.prompt + own)
    times = 4 if training.remat and recomputed else 3
    vision = _tower_scores(architecture, sizes) * (times + (parted and recomputed) if tower else 1)
    return flops + Flops(vision=vision, attention=times * _scores(architecture, pairs))


def score_flops(architecture: Any, sizes: Sizes, training: Training = Training(), *, rows: int | None = None) -> Flops:
    """FLOPs of the log-probabilities of one rollout batch without a gradient: the forward pass of an update."""
    own = max(sizes.completion - 1, 0)
    first, rest = sizes.prompts * sizes.prompt, sizes.prompts * sizes.rollouts * own
    head = sizes.prompts * sizes.rollouts * _scored(architecture, sizes, rows)
    flops = _sum(
        architecture,
        lambda linear, rows: 2 * rows * _numbers(linear, training),
        patch=_patches(architecture, sizes),
        layer=first + rest,
        head=head,
    )
    scores = _scores(architecture, first * sizes.prompt + rest * (sizes.prompt + own))
    return flops + Flops(vision=_tower_scores(architecture, sizes), attention=scores)


def _scored(architecture: Any, sizes: Sizes, rows: int | None) -> float:
    """Number of steps for which logits are computed: whole chunks, if there is more than one."""
    chunk = decoder.logit_steps(rows or sizes.prompts * sizes.rollouts, architecture.vocab_size)
    return sizes.completion if sizes.completion <= chunk else -(-sizes.completion // chunk) * chunk


def _sum(architecture: Any, cost: Any, *, patch: float = 0, layer: float = 0, head: float = 0) -> Flops:
    """Sums ``cost(linear, rows)`` over all maps."""
    merge = architecture.vision.spatial_merge_size**2 if architecture.vision is not None else 1
    rows = {"patch": patch, "merged": patch / merge, "layer": layer, "head": head}
    by: dict[str, float] = dict.fromkeys(rows, 0.0)
    for linear in linears(architecture):
        by[linear.group] += cost(linear, rows[linear.group])
    return Flops(vision=by["patch"] + by["merged"], decoder=by["layer"], head=by["head"])


def _numbers(linear: Linear, training: Training) -> int:
    return linear.weights + _adapter(linear, training)


def _adapter(linear: Linear, training: Training) -> int:
    if not _adapted(linear.path, training):
        return 0
    return linear.count * training.lora_rank * (linear.inputs + linear.outputs)


def needed(linear: Linear, architecture: Any) -> bool:
    """Whether the backward pass of a layer or block needs the map's output: not that of the last, which is only added.

    False for maps outside of layers and blocks.
    """
    inside = linear.path.startswith(("layers/", "vision/blocks/"))
    last = linear.path.endswith("/down") and not (linear.group == "layer" and architecture.sandwich_norms)
    return inside and not last


def _again(linear: Linear, architecture: Any, training: Training) -> int:
    """Number of a map's weights whose products the backward pass computes a second time."""
    if linear.group == "head" or (training.remat is True and needed(linear, architecture)):
        return _numbers(linear, training)
    narrow = training.remat == "selective" and trained_linear(linear.path, training)[1]  # the first half of an adapter
    return linear.count * training.lora_rank * linear.inputs if narrow else 0


def _scores(architecture: Any, pairs: float) -> float:
    """Forward FLOPs of attention: two products per pair of query and key, head and layer."""
    return 4 * architecture.num_layers * architecture.num_heads * architecture.head_dim * pairs


def in_parts(architecture: Any, patches: int) -> bool:
    """Whether the tower runs part by part, each of which an update runs once more than its blocks."""
    return architecture.vision is not None and architecture.vision.parts(patches)[0] > 1


def _patches(architecture: Any, sizes: Sizes) -> int:
    """Patches that run through the tower."""
    return 0 if architecture.vision is None else sizes.prompts * architecture.vision.rows(sizes.patches)


def _tower_scores(architecture: Any, sizes: Sizes) -> float:
    vision = architecture.vision
    if vision is None:
        return 0.0
    _, size, beyond = vision.parts(sizes.patches)
    row = vision.unit if vision.image_size else size + beyond
    windowed = vision.depth - len(vision.full_blocks) if vision.window else 0
    beside = (
        3 * (vision.window * vision.spatial_merge_size) ** 2
    )  # keys that a query of a windowed block is compared with
    pairs = _patches(architecture, sizes) * ((vision.depth - windowed) * row + windowed * beside)
    return 4 * vision.hidden_size * pairs


# ---- bytes -----------------------------------------------------------------------------------------------------------


def cache_bytes(architecture: Any, places: float, dtype: str) -> float:
    """Bytes of the keys and values of all layers for this number of tokens.

    Example:
        >>> from fairgrpo_jax.models import text
        >>> cache_bytes(text.tiny("qwen2"), 1, "bfloat16") == 2 * 2 * 2 * 2 * 16
        True
    """
    return 2 * architecture.num_layers * architecture.num_kv_heads * architecture.head_dim * places * BYTES[dtype]


def completion_cache_bytes(architecture: Any, size: int, dtype: str) -> float:
    """Bytes of the caches of all layers for one completion of ``size`` tokens; local layers keep their window.

    Example:
        >>> from fairgrpo_jax.models import text
        >>> completion_cache_bytes(text.tiny("qwen2"), 3, "bfloat16") == cache_bytes(text.tiny("qwen2"), 3, "bfloat16")
        True
    """
    places = sum(decoder.cache_sizes(architecture, size)) / architecture.num_layers
    return cache_bytes(architecture, places, dtype)


def cache_lengths(completion: int) -> list[int]:
    """Number of tokens of the caches at each of the T - 1 steps of decoding, if no completion ends early.

    Example:
        >>> cache_lengths(600)[254:258], cache_lengths(600)[-1], len(cache_lengths(600))
        ([256, 256, 512, 512], 599, 599)
    """
    size, lengths = rollout.FIRST, []
    for t in range(1, completion):
        size = 2 * size if t > size else size
        lengths.append(min(size, completion - 1))
    return lengths


def decode_bytes(architecture: Any, sizes: Sizes, dtype: str, cache: str, devices: int = 1, waves: int = 1) -> float:
    """Bytes that one device must read to decode all completions at full length.

    At every step it reads layers and head once, the keys and values of each prompt once for all its rollouts, and those
    of the rollouts as far as there are caches.

    Args:
        architecture: the family's config.
        sizes: sizes of the whole rollout batch.
        dtype: dtype of the weights.
        cache: dtype of the caches.
        devices: number of devices along the mesh's first axis, which share the prompts; each has all weights.
        waves: number of parts of the prompts that are decoded one after the other.
    """
    counts, steps = parameters(architecture), max(int(sizes.completion) - 1, 0)
    head = counts["embedding"] if architecture.tie_word_embeddings else counts["head"]
    prompts = sizes.prompts / devices
    lengths = cache_lengths(int(sizes.completion))
    own = sum(lengths.count(size) * completion_cache_bytes(architecture, size, cache) for size in set(lengths))
    return (
        waves * steps * (counts["layers"] + head) * BYTES[dtype]
        + prompts * steps * cache_bytes(architecture, sizes.prompt, cache)
        + prompts * sizes.rollouts * own
    )
