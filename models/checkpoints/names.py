"""Maps the Hugging Face tensor names and layouts of every family to our parameter tree and back."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from fairgrpo_jax.models.families import family
from fairgrpo_jax.models.tree import flatten, unflatten


# Our path -> the published name, both without the last part (kernel, weight, bias); "*" is the layer.
_DECODER = {
    "embedding": "embed_tokens",
    "norm": "norm",
    "layers.input_norm": "layers.*.input_layernorm",
    "layers.post_norm": "layers.*.post_attention_layernorm",
    **{f"layers.attention.{part}": f"layers.*.self_attn.{part}_proj" for part in "qkvo"},
    **{f"layers.attention.{part}": f"layers.*.self_attn.{part}" for part in ("q_norm", "k_norm")},
    **{f"layers.mlp.{part}": f"layers.*.mlp.{part}_proj" for part in ("gate", "up", "down")},
}
_GEMMA = _DECODER | {
    "layers.attention_out_norm": "layers.*.post_attention_layernorm",
    "layers.post_norm": "layers.*.pre_feedforward_layernorm",
    "layers.mlp_out_norm": "layers.*.post_feedforward_layernorm",
}
_TOWER = {
    "patch": "patch_embed.proj",
    **{f"blocks.{part}": f"blocks.*.{part}" for part in ("norm1", "norm2")},
    **{f"blocks.{part}": f"blocks.*.attn.{part}" for part in ("qkv", "proj")},
}
_TOWER_2 = _TOWER | {"merger.norm": "merger.ln_q", "merger.up": "merger.mlp.0", "merger.out": "merger.mlp.2"}
_MERGER_3 = {"norm": "norm", "up": "linear_fc1", "out": "linear_fc2"}
_TOWERS = {
    "qwen2_vl": _TOWER_2 | {"blocks.mlp.up": "blocks.*.mlp.fc1", "blocks.mlp.down": "blocks.*.mlp.fc2"},
    "qwen2_5_vl": _TOWER_2 | {f"blocks.mlp.{part}": f"blocks.*.mlp.{part}_proj" for part in ("gate", "up", "down")},
    "qwen3_vl": _TOWER
    | {
        "position": "pos_embed",
        "blocks.mlp.up": "blocks.*.mlp.linear_fc1",
        "blocks.mlp.down": "blocks.*.mlp.linear_fc2",
    }
    | {f"merger.{ours}": f"merger.{theirs}" for ours, theirs in _MERGER_3.items()}
    | {f"deepstack.{ours}": f"deepstack_merger_list.*.{theirs}" for ours, theirs in _MERGER_3.items()},
    "gemma3": {
        "patch": "embeddings.patch_embedding",
        "position": "embeddings.position_embedding",
        "norm": "post_layernorm",
        **{f"blocks.norm{i}": f"encoder.layers.*.layer_norm{i}" for i in (1, 2)},
        **{f"blocks.{part}": f"encoder.layers.*.self_attn.{part}_proj" for part in "qkv"},
        "blocks.proj": "encoder.layers.*.self_attn.out_proj",
        "blocks.mlp.up": "encoder.layers.*.mlp.fc1",
        "blocks.mlp.down": "encoder.layers.*.mlp.fc2",
    },
}
# In some files but used by no model: the pooling head of SigLIP; rotary frequencies, which follow from the config.
_UNUSED = r"^vision_tower\.head\.|.*\.rotary_emb\.inv_freq$"
_PROJECTOR = {
    "projector.kernel": "multi_modal_projector.mm_input_projection_weight",
    "projector.norm": "multi_modal_projector.mm_soft_emb_norm",
}


def _table(decoder: dict, text: str, head: str, family: str = "", tower: str = "", more: dict | None = None) -> dict:
    names = {ours: text + theirs for ours, theirs in decoder.items()} | {"head": head}
    names |= {f"vision.{ours}": tower + theirs for ours, theirs in _TOWERS.get(family, {}).items()}
    return names | (more or {})


# Names as published on the hub, by model_type.
_NAMES = {
    "qwen2_vl": _table(_DECODER, "model.", "lm_head", "qwen2_vl", "visual."),
    "qwen2_5_vl": _table(_DECODER, "model.", "lm_head", "qwen2_5_vl", "visual."),
    "qwen3_vl": _table(_DECODER, "model.language_model.", "lm_head", "qwen3_vl", "model.visual."),
    "gemma3": _table(
        _GEMMA,
        "language_model.model.",
        "language_model.lm_head",
        "gemma3",
        "vision_tower.vision_model.",
        _PROJECTOR,
    ),
    **dict.fromkeys(("qwen2", "qwen3", "mistral", "llama"), _table(_DECODER, "model.", "lm_head")),
}

# Spellings of other releases, mapped to one: transformers 5 names the parts differently in memory than on disk.
_SPELLINGS = (
    (r"^(model\.)?(language_model\.)?lm_head\.", "lm_head."),
    (r"^(model\.language_model\.|language_model\.model\.|model\.)(?=embed_tokens\.|layers\.|norm\.)", "text."),
    (r"^(model\.)?visual\.", "visual."),
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "vision_tower."),
    (r"^(model\.)?multi_modal_projector\.", "multi_modal_projector."),
)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A published tensor and its position in our tree."""

    name: str  # as published on the hub
    shape: tuple[int, ...]  # as published on the hub
    path: str  # of our leaf
    layer: int | None  # index in the leaf's stack, if it has one
    transposed: bool  # a linear kernel, published as (out, in)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        """Converts the tensor, or a slice of its first axis, to our orientation."""
        return tensor.reshape(len(tensor), -1).T if self.transposed else tensor

    def to_published(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_ours`, for the whole tensor."""
        return np.ascontiguousarray(array.T if self.transposed else array).reshape(self.shape)


@functools.lru_cache(maxsize=16)
def slots(config: Any) -> Mapping[str, Sequence[Slot]]:
    """Maps every leaf of the model's tree to the published tensors that it consists of; kept, as tracing takes long."""
    leaves = flatten(jax.eval_shape(lambda: family(config).init(config, jax.random.key(0))))
    return {path: _slots(path, leaf.shape, config) for path, leaf in leaves.items()}


def match(found: Mapping[str, Any], config: Any, same: Callable[[Any, Any], bool]) -> dict[str, str]:
    """Maps the published name of each tensor to its name in a checkpoint.

    Args:
        found: name to an object with a ``shape``; all known spellings are accepted.
        config: the model.
        same: whether two tensors are equal; called if a tied checkpoint repeats the embedding as its head.

    Raises:
        ValueError: naming every missing, unexpected and misshapen tensor.
    """
    wanted = {_canonical(slot.name): slot for part in slots(config).values() for slot in part}
    got: dict[str, str] = {}
    faults = []
    for name in found:
        if re.match(_UNUSED, key := _canonical(name)):
            continue
        if key in got:
            faults.append(f"{name} beside {got[key]}, two spellings of one")
        got[key] = name
    head, embedding = got.get("lm_head.weight"), got.get("text.embed_tokens.weight")
    if head and embedding and "lm_head.weight" not in wanted and same(found[head], found[embedding]):
        del got["lm_head.weight"]
    faults += [f"missing {slot.name} {slot.shape}" for key, slot in wanted.items() if key not in got]
    faults += [f"unexpected {name} {tuple(found[name].shape)}" for key, name in got.items() if key not in wanted]
    faults += [
        f"{name} is {tuple(found[name].shape)}, wanted {wanted[key].shape}"
        for key, name in got.items()
        if key in wanted and tuple(found[name].shape) != wanted[key].shape
    ]
    if faults:
        raise ValueError(
            f"the tensors do not fit the config; is it that of the same checkpoint? {len(faults)} faults:\n  "
            + "\n  ".join(sorted(faults))
        )
    return {slot.name: got[key] for key, slot in wanted.items()}


def from_hugging_face(tensors: Mapping[str, np.ndarray], config: Any) -> dict:
    """Converts the tensors of a checkpoint to our parameter tree.

    Args:
        tensors: name to array, with published names or those of transformers 5 in memory. A tied checkpoint may repeat
            the embedding as ``lm_head.weight``.
        config: the model.

    Returns:
        A nested dict of NumPy arrays in the dtype of the tensors; linear weights transposed to (in, out), layers
        stacked.

    Raises:
        ValueError: naming every missing, unexpected and misshapen tensor.
    """
    names = match(tensors, config, np.array_equal)
    leaves = {}
    for path, parts in slots(config).items():
        arrays = [slot.to_ours(np.asarray(tensors[names[slot.name]])) for slot in parts]
        leaves[path] = np.stack(arrays) if parts[0].layer is not None else arrays[0]
    return unflatten(leaves)


def to_hugging_face(params: dict, config: Any) -> dict[str, np.ndarray]:
    """Converts our parameter tree to the tensors of a checkpoint under their published names.

    The inverse of :func:`from_hugging_face`; a tied head is omitted.
    """
    leaves = flatten(params)
    return {
        slot.name: slot.to_published(np.asarray(leaves[path] if slot.layer is None else leaves[path][slot.layer]))
        for path, parts in slots(config).items()
        for slot in parts
    }


def modules(config: Any) -> dict[str, str]:
    """Maps paths of our linear maps and norms to names of transformers' modules in memory, ``*`` for the layer.

    Example:
        >>> from fairgrpo_jax.models import qwen2_5_vl
        >>> modules(qwen2_5_vl.tiny())["layers.attention.q"]
        'model.language_model.layers.*.self_attn.q_proj'
    """
    text = "model." if config.vision is None else "model.language_model."
    named = {path: _canonical(name + ".").removesuffix(".") for path, name in _NAMES[config.model_type].items()}
    return {
        path: name.replace("text.", text, 1) if name.startswith(("text.", "lm_head")) else f"model.{name}"
        for path, name in named.items()
    }


def canonical_module(name: str) -> str:
    """The canonical spelling of a module name, published or in memory."""
    return _canonical(name + ".").removesuffix(".")


def _slots(path: str, shape: tuple[int, ...], config: Any) -> list[Slot]:
    names = _NAMES[config.model_type]
    module, _, last = path.rpartition(".")
    name = names[path] if path in names else names[module]
    if path not in _PROJECTOR:
        name += ".bias" if last == "bias" else ".weight"
    layers = range(shape[0]) if "*" in name else [None]
    shape = shape[1:] if "*" in name else shape
    transposed = last == "kernel" and path not in _PROJECTOR
    published = tuple(shape[::-1] if transposed else shape)
    if path == "vision.patch.kernel":
        tower = config.vision
        frames = [] if config.model_type == "gemma3" else [tower.temporal_patch_size]
        published = (published[0], tower.in_channels, *frames, tower.patch_size, tower.patch_size)
    return [Slot(name.replace("*", str(layer)), published, path, layer, transposed) for layer in layers]


def _canonical(name: str) -> str:
    """The canonical spelling of a tensor name."""
    for pattern, spelling in _SPELLINGS:
        name, count = re.subn(pattern, spelling, name)
        if count:
            return name
    return name
