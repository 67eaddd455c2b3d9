"""The device mesh and the table of sharding rules.

A mesh has two axes: ``fsdp`` splits the prompts of a batch and, between uses, the weights; ``tensor`` splits the
matrices of a layer. ``4x1`` is four devices along ``fsdp``. On a CPU the devices are simulated, so any mesh runs
anywhere; on GPUs and TPUs the mesh uses the real devices.
"""

import contextlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P


AXES = ("fsdp", "tensor")
MOST_SIMULATED = 1024  # a hundred thousand take minutes to start

# The first match wins; a layer's leading stack axis is never split, nor an axis that the mesh does not divide.
RULES = (
    (r"(^|/)(q|k|v|qkv|gate|up|patch|head)/kernel$", P("fsdp", "tensor")),
    (r"(^|/)(o|proj|down|out)/kernel$", P("tensor", "fsdp")),
    (r"(^|/)(q|k|v|qkv|gate|up)/lora_a$", P("fsdp", None)),
    (r"(^|/)(q|k|v|qkv|gate|up)/lora_b$", P(None, "tensor")),
    (r"(^|/)(o|proj|down|out)/lora_a$", P("tensor", None)),
    (r"(^|/)(o|proj|down|out)/lora_b$", P(None, "fsdp")),
    (r"(^|/)embedding$", P("tensor", "fsdp")),
    (r"", P()),
)


def parse(spec: str) -> tuple[int, int]:
    """Parses ``"4x1"`` as ``(4, 1)``.

    Raises:
        ValueError: if ``spec`` is not two positive integers joined by ``x``.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", spec)
    if not match:
        raise ValueError(f"got mesh={spec!r}; wanted FSDPxTENSOR, two positive integers such as 4x1")
    return int(match[1]), int(match[2])


def simulate(spec: str, processes: int = 1) -> None:
    """Requests this process's share of as many simulated CPU devices as the mesh needs; call it before JAX's backend.

    GPUs and TPUs are not affected. Once a backend runs (in a notebook, say), or with more than ``MOST_SIMULATED``
    devices, the call has no effect, and ``make`` reports too few devices.
    """
    fsdp, tensor = parse(spec)
    if fsdp * tensor <= MOST_SIMULATED:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(fsdp * tensor // processes, 1))


def make(spec: str) -> Mesh:
    """The mesh of the first ``fsdp * tensor`` devices; with several processes, of all devices.

    The devices of a process are neighbours along ``fsdp``, and none shares prompts with another.

    Raises:
        ValueError: if there are fewer devices, or, with several processes, more, or ``tensor`` crosses processes.
    """
    shape, processes = parse(spec), jax.process_count()
    wanted = shape[0] * shape[1]
    devices = jax.devices()
    if len(devices) < wanted:
        raise ValueError(
            f"got mesh={spec}, {wanted} devices, with {len(devices)} of {devices[0].platform} at hand; wanted a mesh "
            f"that fits, e.g. {len(devices)}x1 (on a CPU, call fairgrpo_jax.mesh.simulate before anything uses JAX)"
        )
    if processes > 1 and (len(devices) > wanted or shape[0] % processes):
        fitting = len(devices) // shape[1] if not len(devices) % shape[1] else len(devices)
        raise ValueError(
            f"got mesh={spec}, {wanted} devices, with {len(devices)} in {processes} processes; wanted all of them, and "
            f"a first number that {processes} divides, so that tensor stays within a process, e.g. "
            f"{fitting}x{len(devices) // fitting}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[:wanted])


def unset() -> contextlib.AbstractContextManager:
    """A context that hides the mesh of an outer ``jax.set_mesh``, so that programs may run on single devices."""
    return jax.set_mesh(Mesh(np.empty((), dtype=object), ()))


def require_divisible(sizes: Mapping[str, int], fsdp: int, tensor: int = 1) -> None:
    """Checks that the first axis of the mesh divides all batch sizes; the second axis may have any size.

    Raises:
        ValueError: naming the option and the nearest larger size that fits.
    """
    for name, count in sizes.items():
        if count % fsdp:
            nearest = -(-count // fsdp) * fsdp
            raise ValueError(
                f"got {name}={count} on a mesh with {fsdp} devices along fsdp; wanted a multiple of {fsdp}, "
                f"e.g. {nearest}"
            )


def whole(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, P())


def of_rows(x: Any) -> P:
    """The spec of an array whose first axis, if it has one, is split along ``fsdp``."""
    return P("fsdp") if x.ndim else P()


def constrain(x: jax.Array) -> jax.Array:
    """Keeps axis 0 (prompts) of an activation on mesh axis ``fsdp``; without a mesh, returns ``x``."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, P("fsdp"))


def by_head(x: Any, sizes: Mapping[str, int], *, tensor: bool) -> P:
    """The spec of keys or values (P, K, ...): prompts along ``fsdp``, heads along ``tensor`` if they divide."""
    return P("fsdp", "tensor" if tensor and x.shape[1] % sizes["tensor"] == 0 else None)


def constrain_heads(tree: Any, *, tensor: bool) -> Any:
    """Inside jit: constrains keys and values as ``by_head`` says; without a mesh, returns the tree."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, by_head(x, mesh.shape, tensor=tensor)), tree)


def gather(tree: Any, *, tensor: bool = False) -> Any:
    """Inside jit: gathers parameters along ``fsdp`` onto every device; without a mesh, returns the tree.

    With ``tensor`` they stay split along that axis by the rules; otherwise every device gets them whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    sizes = dict(mesh.shape) if tensor else {}
    return jax.tree.map_with_path(
        lambda path, x: jax.lax.with_sharding_constraint(x, _without_fsdp(_spec(path, x.shape, mesh.shape), sizes)),
        tree,
    )


def whole_rows(table: jax.Array) -> jax.Array:
    """Inside jit: gathers the columns of a table and leaves its rows split; without a mesh, returns the table."""
    if jax.sharding.get_abstract_mesh().empty:
        return table
    return jax.lax.with_sharding_constraint(table, P(P.UNCONSTRAINED, None))


def keep_sharded(tree: Any) -> Any:
    """Inside jit: constrains parameters, or a tree shaped like them, to the sharding rules."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map_with_path(
        lambda path, x: jax.lax.with_sharding_constraint(x, _spec(path, x.shape, mesh.shape)), tree
    )


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The ``NamedSharding`` of every leaf of a tree of parameters or optimizer moments, by the rules."""
    return jax.tree.map_with_path(lambda path, x: NamedSharding(mesh, _spec(path, x.shape, mesh.shape)), tree)


def gathered(tree: Any, mesh: Mesh, *, tensor: bool = False) -> Any:
    """The ``NamedSharding`` of every leaf of the result of ``gather``."""
    sizes = dict(mesh.shape) if tensor else {}
    whole = lambda where: NamedSharding(mesh, _without_fsdp(where.spec, sizes))
    return jax.tree.map(whole, shardings(tree, mesh))


def put(batch: Any, mesh: Mesh) -> Any:
    """Moves host arrays to the devices, with axis 0 split along ``fsdp``; of several processes, each has its rows."""
    sharding = NamedSharding(mesh, P("fsdp"))
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda x: _put_own(x, sharding), batch)


def _put_own(x: Any, sharding: NamedSharding) -> jax.Array:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put_own(jax.random.key_data(x), sharding))
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))


def fetch(tree: Any) -> Any:
    """The inverse of ``put``: host arrays of this process's rows, all rows with one process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(_fetch_own, tree)


def _fetch_own(x: jax.Array) -> np.ndarray:
    if x.is_fully_replicated:
        return np.asarray(x)
    parts = {(shard.index[0].start or 0): shard.data for shard in x.addressable_shards}  # one of each row
    return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])


def _spec(path: tuple, shape: tuple[int, ...], sizes: Any) -> P:
    name = "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
    rule = next(spec for pattern, spec in RULES if re.search(pattern, name))
    if len(rule) > len(shape):
        return P()
    padded = (None,) * (len(shape) - len(rule)) + tuple(rule)
    return P(*(axis if axis and size % sizes[axis] == 0 else None for axis, size in zip(padded, shape, strict=True)))


def _without_fsdp(spec: P, sizes: Any) -> P:
    return P(*(axis if axis != "fsdp" and axis in sizes else None for axis in spec))
