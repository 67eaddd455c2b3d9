"""Low-rank adapters in PEFT's format: ``adapter_config.json`` and ``adapter_model.safetensors``."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairgrpo_jax.models import families, lora
from fairgrpo_jax.models.checkpoints import names, tensorfile
from fairgrpo_jax.models.checkpoints.processor import read_json
from fairgrpo_jax.models.checkpoints.tensorfile import Tensor
from fairgrpo_jax.models.tree import flatten, unflatten


SETTINGS, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Pairs = dict[str, dict[str, Tensor]]  # A (r, in) and B (out, r) by transformers' module name in memory
# Options of this format that our adapters do not support, with their neutral values.
COMPUTED: dict[str, tuple] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "modules_to_save": (None, []),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
}
# Values of ``init_lora_weights`` with which PEFT changes the base weights when it creates an adapter.
CHANGES_BASE = r"(pissa(_niter_\d+)?|olora|corda|loftq|lora_ga)"


def save(vlm: Any, folder: Path | str) -> None:
    """Writes the adapters of a model for PEFT and vLLM, to be loaded with the checkpoint that the model came from.

    Args:
        vlm: a ``models.VLM`` with adapters.
        folder: a new folder, or one without an adapter.

    Raises:
        ValueError: if the model has no adapters, or the folder already holds one.
    """
    folder, leaves = Path(folder), flatten(vlm.params)
    adapted = [path.removesuffix(".lora_a") for path in leaves if path.endswith(".lora_a")]
    if not adapted:
        raise ValueError("got a model without adapters; wanted one from lora.add: save the whole model with vlm.save")
    if (folder / SETTINGS).exists():
        raise ValueError(f"got {folder}, which holds an adapter already; wanted a new folder")
    published, tensors, ranks = names.modules(vlm.config), {}, {}
    for path in adapted:
        pair = [np.asarray(leaves[f"{path}.{name}"], np.float32) for name in lora.PAIR]
        for layer in range(len(pair[0])) if "*" in published[path] else [None]:
            name = published[path].replace("*", str(layer))
            ranks[name] = pair[0].shape[-1]
            for letter, part in zip("AB", pair, strict=True):
                matrix = part if layer is None else part[layer]
                tensors[f"{PREFIX}{name}.lora_{letter}.weight"] = np.ascontiguousarray(matrix.T)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
    tensorfile.write(folder / TENSORS, shapes, tensors.values())
    settings = _settings(ranks, vlm.config.lora_scale) | {
        "base_model_name_or_path": str(vlm.source.resolve()) if vlm.source else ""
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _settings(ranks: Mapping[str, int], scale: float) -> dict[str, Any]:
    """The content of ``adapter_config.json``: the most common rank as the default, others by name."""
    usual = max(set(ranks.values()), key=[*ranks.values()].count)
    other = {name: rank for name, rank in ranks.items() if rank != usual}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": usual,
        "lora_alpha": scale * usual,
        "rank_pattern": other,
        "alpha_pattern": {name: scale * rank for name, rank in other.items()},
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def describe(folder: Path | str, config: Any) -> lora.LoRA:
    """The options with which ``lora.add`` makes room for the adapters of a folder in PEFT's format; reads no weights.

    Args:
        folder: as in ``load``.
        config: the config of the model that they were made for.

    Returns:
        The largest rank, the scale of the first adapter as alpha, and the linear maps as a regular expression.

    Raises:
        ValueError: as in ``load``.
    """
    tree = jax.eval_shape(lambda key: families.family(config).init(config, key, np.float32), jax.random.key(0))
    scale, pairs = _read(Path(folder), config, flatten(tree))
    rank = max(pair["A"].shape[0] for pair in pairs.values())
    held = {re.sub(r"\.\d+\.", ".*.", name) for name in pairs}
    found = [path for path, name in names.modules(config).items() if name in held]
    paths = "|".join(re.escape(path.replace(".", "/")) for path in found)
    return lora.LoRA(rank, scale * rank, f"^({paths})$")


def load(vlm: Any, folder: Path | str, *, rank: int | None = None) -> Any:
    """Loads the adapters of a folder in PEFT's format into a model.

    Maps that have an adapter only in some layers, or one of smaller rank there, are filled up with zeros. All adapters
    are converted to the scale of the first one; differences in scale go into ``lora_b``.

    Args:
        vlm: a ``models.VLM`` without adapters.
        folder: folder with ``adapter_config.json`` and ``adapter_model.safetensors``.
        rank: rank to which smaller ones are filled up; default: the largest of each map.

    Raises:
        ValueError: if a file is missing or broken, uses unsupported options, or holds tensors that do not fit; all
            misfits are named in one error.
    """
    folder, leaves = Path(folder), flatten(vlm.params)
    if lora.has(vlm.params):
        raise ValueError("got a model that has adapters already; wanted one without: merge them first")
    scale, pairs = _read(folder, vlm.config, leaves)
    settings = read_json(folder / SETTINGS)
    for path, name in names.modules(vlm.config).items():
        kernel = leaves.get(f"{path}.kernel")
        stack = kernel.shape[0] if kernel is not None and "*" in name else None
        mine = [pairs.get(name.replace("*", str(layer))) for layer in range(stack or 1)]
        if kernel is None or not any(mine):
            continue
        wide = rank or max(pair["A"].shape[0] for pair in mine if pair)
        a = np.zeros((len(mine), kernel.shape[-2], wide), np.float32)
        b = np.zeros((len(mine), wide, kernel.shape[-1]), np.float32)
        for layer, pair in enumerate(mine):
            if pair:
                own = pair["A"].shape[0]
                ratio = _scale(settings, name.replace("*", str(layer)), own) / scale
                a[layer, :, :own] = pair["A"].read().T
                b[layer, :own] = ratio * pair["B"].read().astype(np.float32).T
        a, b = (jnp.asarray(x if stack else x[0]) for x in (a, b))
        leaves |= lora.beside(path, kernel, a, b)
    return dataclasses.replace(vlm, params=unflatten(leaves), config=lora.scaled(vlm.config, scale))


def _read(folder: Path, config: Any, leaves: Mapping[str, Any]) -> tuple[float, Pairs]:
    """The scale of the first adapter and the tensors of all, after checking that they can be computed here."""
    settings = read_json(folder / SETTINGS)
    wrong = {name: settings[name] for name, known in COMPUTED.items() if settings.get(name, known[0]) not in known}
    if wrong:
        wanted = {name: COMPUTED[name][0] for name in wrong}
        raise ValueError(f"got {folder / SETTINGS} with {wrong}; wanted {wanted}, which alone is computed here")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and re.fullmatch(CHANGES_BASE, start.lower()):
        raise ValueError(
            f"got {folder / SETTINGS} with init_lora_weights={start!r}, which changed the base weights; wanted an "
            "adapter of the published weights: convert it with PEFT, "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if not (folder / TENSORS).exists():
        raise ValueError(f"got {folder} without {TENSORS}; wanted an adapter in safetensors: pickles are never read")
    pairs = _pairs(folder, config, leaves)
    return _scale(settings, next(iter(pairs)), next(iter(pairs.values()))["A"].shape[0]), pairs


def _pairs(folder: Path, config: Any, leaves: Mapping[str, Any]) -> Pairs:
    """The tensors A (r, in) and B (out, r) by transformers' module name in memory, after checking that they fit."""
    known = {}
    for path, name in names.modules(config).items():
        kernel = leaves.get(f"{path}.kernel") if path.startswith(lora.INSIDE) else None
        if kernel is not None:
            for layer in range(kernel.shape[0] if "*" in name else 1):
                module = name.replace("*", str(layer))
                known[names.canonical_module(module)] = (module, kernel.shape[-2:])
    pairs, faults = {}, []
    for name, tensor in tensorfile.header(folder / TENSORS).items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.*)\.lora_([AB])(?:\.default)?\.weight", name)
        module = names.canonical_module(match[1]) if match else None
        if match is None or module not in known or len(tensor.shape) != 2:
            faults.append(f"unexpected {name} {tensor.shape}")
            continue
        mine, (inputs, outputs) = known[module]
        pairs.setdefault(mine, {})[match[2]] = tensor
        axis, size = (1, inputs) if match[2] == "A" else (0, outputs)
        if tensor.shape[axis] != size:
            faults.append(f"{name} is {tensor.shape}, wanted {size} along axis {axis}")
    for name, pair in pairs.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            faults.append(f"{name} has no pair of A (r, in) and B (out, r)")
    if faults or not pairs:
        listed = "\n  ".join(sorted(faults))
        raise ValueError(f"got {folder / TENSORS}, which does not fit the model; {len(faults)} faults:\n  {listed}")
    return pairs


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """The scale of one map, alpha / r, or alpha / sqrt(r) if the adapter is rank-stabilised."""
    patterns = settings.get("alpha_pattern") or {}
    alpha = next(
        (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)), settings["lora_alpha"]
    )
    return alpha / (rank**0.5 if settings.get("use_rslora") else rank)
