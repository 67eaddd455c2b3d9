"""Weights of Qwen2.5-VL checkpoints: Hugging Face's tensor names and layouts to our parameter tree, and back."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fairgrpo_jax.models import qwen2_5_vl


# A path in our tree -> the name in a published checkpoint; "*" is the layer.
_TEXT = {
    "embedding": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.kernel": "lm_head.weight",
    "layers.input_norm.weight": "model.layers.*.input_layernorm.weight",
    "layers.post_norm.weight": "model.layers.*.post_attention_layernorm.weight",
    "layers.attention.o.kernel": "model.layers.*.self_attn.o_proj.weight",
    **{f"layers.attention.{part}.kernel": f"model.layers.*.self_attn.{part}_proj.weight" for part in "qkv"},
    **{f"layers.attention.{part}.bias": f"model.layers.*.self_attn.{part}_proj.bias" for part in "qkv"},
    **{f"layers.mlp.{part}.kernel": f"model.layers.*.mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
}
_VISION = {
    "vision.patch.kernel": "visual.patch_embed.proj.weight",
    "vision.blocks.norm1.weight": "visual.blocks.*.norm1.weight",
    "vision.blocks.norm2.weight": "visual.blocks.*.norm2.weight",
    "vision.blocks.qkv.kernel": "visual.blocks.*.attn.qkv.weight",
    "vision.blocks.qkv.bias": "visual.blocks.*.attn.qkv.bias",
    "vision.blocks.proj.kernel": "visual.blocks.*.attn.proj.weight",
    "vision.blocks.proj.bias": "visual.blocks.*.attn.proj.bias",
    **{
        f"vision.blocks.mlp.{part}.kernel": f"visual.blocks.*.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    },
    **{f"vision.blocks.mlp.{part}.bias": f"visual.blocks.*.mlp.{part}_proj.bias" for part in ("gate", "up", "down")},
    "vision.merger.norm.weight": "visual.merger.ln_q.weight",
    "vision.merger.up.kernel": "visual.merger.mlp.0.weight",
    "vision.merger.up.bias": "visual.merger.mlp.0.bias",
    "vision.merger.out.kernel": "visual.merger.mlp.2.weight",
    "vision.merger.out.bias": "visual.merger.mlp.2.bias",
}
_NAMES = _TEXT | _VISION


def from_hugging_face(tensors: Mapping[str, np.ndarray], config: qwen2_5_vl.Config) -> dict:
    """Our parameter tree from the tensors of a checkpoint.

    Args:
        tensors: name to array, as published (``model.layers...``, ``visual...``) or as transformers 5 holds them in
            memory (``model.language_model.layers...``, ``model.visual...``).  A tied checkpoint may repeat the
            embedding as ``lm_head.weight``.
        config: the model.

    Returns:
        Nested dict of NumPy arrays in the dtype of the tensors; linear weights transposed to (in, out), layers stacked.

    Raises:
        ValueError: naming every missing, unexpected and misshaped tensor.
    """
    tensors = {_published(name): np.asarray(tensor) for name, tensor in tensors.items()}
    if config.tie_word_embeddings and np.array_equal(
        tensors.get("lm_head.weight", ()), tensors.get("model.embed_tokens.weight", ())
    ):
        del tensors["lm_head.weight"]
    shapes = _shapes(config)
    wanted = {
        name: shape for path, leaf in shapes.items() for name, shape in _tensors(path, leaf.shape, config).items()
    }
    _check(tensors, wanted)
    params: dict[str, Any] = {}
    for path in shapes:
        names = _tensors(path, shapes[path].shape, config)
        parts = [_to_ours(path, tensors[name]) for name in names]
        *folders, leaf = path.split(".")
        node = params
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = np.stack(parts) if "*" in _NAMES[path] else parts[0]
    return params


def to_hugging_face(params: dict, config: qwen2_5_vl.Config) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint, under their published names, from our parameter tree.

    The inverse of :func:`from_hugging_face`; a tied head is left out.
    """
    tensors = {}
    for path, leaf in _flatten(params).items():
        leaf = np.asarray(leaf)
        names = _tensors(path, leaf.shape, config)
        layers = leaf if "*" in _NAMES[path] else leaf[None]
        for (name, shape), layer in zip(names.items(), layers, strict=True):
            tensors[name] = np.ascontiguousarray(layer.T if path.endswith("kernel") else layer).reshape(shape)
    return tensors


def _published(name: str) -> str:
    """The published spelling of a tensor name."""
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    return name.replace("model.language_model.", "model.", 1)


def _to_ours(path: str, tensor: np.ndarray) -> np.ndarray:
    return tensor.reshape(len(tensor), -1).T if path.endswith("kernel") else tensor


def _tensors(path: str, shape: tuple[int, ...], config: qwen2_5_vl.Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that make up one leaf of our tree."""
    name = _NAMES[path]
    names = [name.replace("*", str(layer)) for layer in range(shape[0])] if "*" in name else [name]
    shape = shape[1:] if "*" in name else shape
    if path.endswith("kernel"):
        shape = shape[::-1]
    if path == "vision.patch.kernel":
        tower = config.vision
        shape = (shape[0], tower.in_channels, tower.temporal_patch_size, tower.patch_size, tower.patch_size)
    return dict.fromkeys(names, tuple(shape))


def _shapes(config: qwen2_5_vl.Config) -> dict[str, Any]:
    return _flatten(jax.eval_shape(lambda: qwen2_5_vl.init(config, jax.random.key(0))))


def _flatten(tree: dict) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def _check(tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in tensors]
    faults += [f"unexpected {name} {tensors[name].shape}" for name in tensors if name not in wanted]
    faults += [
        f"{name} is {tensors[name].shape}, wanted {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if faults:
        raise ValueError(
            f"the tensors do not fit the config; is it that of the same checkpoint? {len(faults)} faults:\n  "
            + "\n  ".join(sorted(faults))
        )
