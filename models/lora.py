"""Low-rank adapters (LoRA), and which parameters are trained.

A linear map with an adapter holds ``lora_a`` (in, r) and ``lora_b`` (r, out) beside its ``kernel`` (in, out) and
computes ``x kernel + (alpha / r) (x lora_a) lora_b``; ``config.lora_scale`` is alpha / r. Hu et al. 2021, section 4.1.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from fairgrpo_jax import mesh as meshes
from fairgrpo_jax.models.tree import flatten, unflatten


PAIR = ("lora_a", "lora_b")
# Linear maps that run through layers.Linear: in the blocks of decoder and tower, and in the mergers.
INSIDE = ("layers.", "vision.blocks.", "vision.merger.", "vision.deepstack.")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Options of the low-rank adapters.

    Attributes:
        rank: r.
        alpha: an adapter's output is multiplied by alpha / r.
        targets: regular expression searched for in paths such as ``layers/attention/q``, ``layers/mlp/down``,
            ``vision/blocks/qkv`` and ``vision/merger/up``. The default selects all linear maps of the text decoder and
            none of the vision tower.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: str = r"^layers/.*/(q|k|v|o|gate|up|down)$"

    def __post_init__(self):
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"got rank={self.rank}, alpha={self.alpha}; wanted a rank of at least 1 and alpha above 0")
        compiled(self.targets)


def add(vlm: Any, lora: LoRA, key: jax.Array) -> Any:
    """Adds new adapters to a model: ``lora_a`` uniform in ±1/sqrt(in), ``lora_b`` 0, so the output does not change.

    The adapters are float32, whatever the dtype of the kernels, and sharded by the same rules.

    Args:
        vlm: a ``models.VLM`` without adapters.
        lora: the maps that get adapters, and their size.
        key: PRNG key.

    Raises:
        ValueError: if the model already has adapters, or ``targets`` matches no linear map.

    Example:
        >>> from fairgrpo_jax import models
        >>> vlm = models.init(models.qwen2_5_vl.tiny(), jax.random.key(0))
        >>> adapted = add(vlm, LoRA(rank=4, targets="/q$"), jax.random.key(1))
        >>> adapted.params["layers"]["attention"]["q"]["lora_a"].shape, adapted.config.lora_scale
        ((2, 64, 4), 8.0)
    """
    params = add_to(vlm.params, lora, key)
    return dataclasses.replace(vlm, params=params, config=scaled(vlm.config, lora.alpha / lora.rank))


def add_to(params: dict, lora: LoRA, key: jax.Array) -> dict:
    """Adds new adapters to parameters, for use with a :func:`scaled` config; :func:`add` does both."""
    leaves = flatten(params)
    if has(params):
        raise ValueError("got a model that has adapters already; wanted one without: merge them first")
    maps = [path.removesuffix(".kernel") for path in leaves if path.startswith(INSIDE) and path.endswith(".kernel")]
    chosen = [module for module in maps if compiled(lora.targets).search(module.replace(".", "/"))]
    if not chosen:
        known = ", ".join(module.replace(".", "/") for module in maps)
        raise ValueError(f"got LoRA targets {lora.targets!r}, which match no linear map; wanted some of {known}")
    for index, module in enumerate(chosen):
        kernel = leaves[f"{module}.kernel"]
        *stack, inputs, outputs = kernel.shape
        a = jax.random.uniform(jax.random.fold_in(key, index), (*stack, inputs, lora.rank), minval=-1.0, maxval=1.0)
        leaves |= beside(module, kernel, a / inputs**0.5, jnp.zeros((*stack, lora.rank, outputs)))
    return unflatten(leaves)


def scaled(config: Any, scale: float) -> Any:
    """Sets ``lora_scale`` in a config, including its vision tower."""
    vision = config.vision and dataclasses.replace(config.vision, lora_scale=scale)
    return dataclasses.replace(config, lora_scale=scale, vision=vision)


def has(params: dict) -> bool:
    """Whether any linear map has an adapter."""
    return any(path.endswith(PAIR) for path in flatten(params))


def beside(module: str, kernel: jax.Array, a: Any, b: Any) -> dict[str, Any]:
    """An adapter as leaves of ``module``, on the mesh of its kernel if it has one."""
    leaves = {f"{module}.lora_a": a, f"{module}.lora_b": b}
    mesh = getattr(getattr(kernel, "sharding", None), "mesh", None)
    if not isinstance(mesh, Mesh):
        return leaves
    tree = unflatten(leaves)
    return flatten(jax.device_put(tree, meshes.shardings(tree, mesh)))


def merge(vlm: Any) -> Any:
    """Merges a model's adapters into its kernels, in float32 and by layer; a model without adapters is unchanged."""
    leaves = flatten(vlm.params)
    kept = {path: leaf for path, leaf in leaves.items() if not path.endswith(PAIR)}
    for path in kept:
        pair = [leaves.get(path.removesuffix("kernel") + name) for name in PAIR]
        if path.endswith("kernel") and pair[0] is not None:
            kept[path] = _merge(kept[path], *pair, scale=vlm.config.lora_scale)
    return dataclasses.replace(vlm, params=unflatten(kept), config=scaled(vlm.config, 1.0))


@functools.partial(jax.jit, static_argnames="scale")
def _merge(kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float) -> jax.Array:
    if kernel.ndim == 2:
        return merged(kernel, a, b, scale=scale)
    return jax.lax.map(lambda parts: merged(*parts, scale=scale), (kernel, a, b))


def merged(kernel: jax.Array, a: jax.Array, b: jax.Array, *, scale: float) -> jax.Array:
    """``kernel + scale * a b`` for one linear map, computed in float32."""
    delta = scale * jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)


def trainable(params: dict, freeze: Sequence[str] = ()) -> tuple[dict, dict]:
    """Splits the parameters into those that are trained and the rest.

    If there are adapters, only these are trained, otherwise all parameters; those that match ``freeze`` are excluded.

    Args:
        params: nested dict of parameters.
        freeze: regular expressions searched for in paths such as ``vision/blocks/qkv/kernel``.

    Returns:
        Two nested dicts, which :func:`join` merges again.

    Raises:
        ValueError: if an expression matches no path, or nothing is left to train.

    Example:
        >>> trained, frozen = trainable({"vision": {"norm": 1}, "head": 2}, ["^vision/"])
        >>> trained, frozen, join(trained, frozen)
        ({'head': 2}, {'vision': {'norm': 1}}, {'head': 2, 'vision': {'norm': 1}})
    """
    leaves = flatten(params)
    names = {path: path.replace(".", "/") for path in leaves}
    if idle := [pattern for pattern in freeze if not any(map(compiled(pattern).search, names.values()))]:
        raise ValueError(
            f"got freeze={idle}, which match no parameter; wanted paths such as {', '.join(names.values())}"
        )
    adapted = has(params)
    chosen = [
        path
        for path, name in names.items()
        if path.endswith(PAIR) >= adapted and not any(compiled(pattern).search(name) for pattern in freeze)
    ]
    if not chosen:
        raise ValueError(f"got freeze={[*freeze]}, which leaves nothing to train; wanted fewer or narrower expressions")
    rest = [path for path in leaves if path not in set(chosen)]
    trained, frozen = (unflatten({path: leaves[path] for path in paths}) for paths in (chosen, rest))
    return trained, frozen


def join(trained: Any, frozen: Any) -> dict:
    """The inverse of :func:`trainable`."""
    return unflatten(flatten(trained) | flatten(frozen))


def compiled(pattern: str) -> re.Pattern:
    """Compiles a regular expression.

    Raises:
        ValueError: if it is invalid.
    """
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"got {pattern!r} ({error}); wanted a regular expression") from error
