"""Save and restore a run (Orbax): parameters, the rest of the training state, and state on the host.

A checkpoint is written beside its final path and then renamed, so ``kill -9`` leaves either the old one or the new one;
writing goes on in the background while the run trains. Arrays are restored onto the mesh of the resuming run, whatever
the mesh of the saving run. Parameters are a separate item, so that another run or an export can read only them.

Each checkpoint holds a digest of every array, computed on the devices before it is written and again after it is
restored: storage that returns other bytes than were written is noticed, on any mesh and whatever the layout of the
files, and the files need not be read twice. The digest guards against damage, not against intent.
"""

import contextlib
import functools
import json
import logging
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fairgrpo_jax import hosts, mesh
from fairgrpo_jax.config import KEEP


FORMAT = 2  # of the item "host"; 1, which did not say so, has no digests

_ITEMS = {
    "params": ocp.StandardCheckpointHandler,
    "training": ocp.StandardCheckpointHandler,
    "host": ocp.JsonCheckpointHandler,
}


class Damaged(ValueError):
    """A checkpoint that cannot be read, or that does not hold what was saved; names its path and what is wrong."""


def manager(
    folder: Path, *, keep: int = KEEP, always: Sequence[int] = (), read_only: bool = False
) -> ocp.CheckpointManager:
    """Manages the checkpoints of one run: keeps the last ``keep`` and the steps in ``always``, deletes others.

    ``read_only`` is for every process but the one that trains: it neither creates nor removes anything.
    """
    policy = checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(keep), checkpoint_managers.preservation_policy.CustomSteps(always)]
    )
    handlers = {name: handler() for name, handler in _ITEMS.items()}
    _drop_late_callbacks()
    with _errors_only():  # Orbax warns that what was asked to be read-only is
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, read_only=read_only, create=not read_only)
        return ocp.CheckpointManager(folder.absolute(), item_handlers=handlers, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, params: Any, training: Any, host: dict) -> None:
    """Saves two pytrees of arrays and a JSON-able dict as ``step``; an existing checkpoint of that step is kept.

    Returns once the arrays are copied from the devices; ``checkpoints.wait_until_finished()`` waits for the files.

    Raises:
        FloatingPointError: if a parameter or a moment of the optimizer is not finite; nothing is saved.
        OSError: if the checkpoint before this one could not be written.
    """
    if step in checkpoints.all_steps():
        return
    arrays = {"params": params, "training": training}
    found = _seen(arrays)
    spoiled = [name for name, seen in found if not seen.finite and not name.startswith(_MAY_BE_INFINITE)]
    if spoiled:
        raise FloatingPointError(
            f"{spoiled[0]} is not finite after update {step}{_and_others(spoiled)}; it was not saved, the checkpoint "
            "before is sound: lower the learning rate"
        )
    digests = {name: int(seen.digest) for name, seen in found}
    host = {"format": FORMAT, "digests": digests, "state": host}
    args = ocp.args.Composite(
        params=ocp.args.StandardSave(params),
        training=ocp.args.StandardSave(training),
        host=ocp.args.JsonSave(host | {"crc32": _crc32(host)}),
    )
    checkpoints.save(step, args=args, force=True)


def restore(checkpoints: ocp.CheckpointManager, step: int, params: Any, training: Any) -> tuple[Any, Any, dict]:
    """Restores checkpoint ``step`` with the shapes, dtypes and shardings of the two given trees.

    Raises:
        Damaged: if it cannot be read as them, or differs from what was saved.
    """
    like = {"params": params, "training": training}
    arrays, host = _restored(checkpoints, step, like)
    return arrays["params"], arrays["training"], host


def restore_params(checkpoints: ocp.CheckpointManager, step: int, params: Any) -> Any:
    """Restores only the parameters of ``step``, with the shapes, dtypes and shardings of the given tree.

    They are read in the dtype in which they were saved, held against their digests, and converted then.

    Raises:
        Damaged: as ``restore``.
    """
    checkpoints.wait_until_finished()
    try:
        saved = checkpoints.item_metadata(step)["params"].tree
        like = jax.tree.map(lambda x, its: x.update(dtype=its.dtype), _abstract(params), saved)
    except Exception as error:
        raise _damaged(checkpoints, step, error) from error
    found = _restored(checkpoints, step, {"params": like})[0]["params"]
    return jax.tree.map(lambda x, wanted: x.astype(wanted.dtype), found, params)


def saved_params(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """Restores only the parameters of ``step`` as they were saved, in host memory.

    Raises:
        Damaged: as ``restore``.
    """
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    try:
        saved = checkpoints.item_metadata(step)["params"].tree
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), saved)
    except Exception as error:
        raise _damaged(checkpoints, step, error) from error
    return restore_params(checkpoints, step, like)


def set_aside(checkpoints: ocp.CheckpointManager, step: int) -> Path:
    """Moves a checkpoint out of the way, into ``damaged/`` beside the folder of the checkpoints; returns its path."""
    place = Path(checkpoints.directory)
    folder = place.parent / "damaged"

    def move() -> Path:
        folder.mkdir(exist_ok=True)
        free = next(path for n in range(1 << 20) if not (path := folder / f"{step}{f'-{n}' * bool(n)}").exists())
        (place / str(step)).rename(free)
        return free

    free = hosts.on_first(move)
    checkpoints.reload()
    return free


def _restored(checkpoints: ocp.CheckpointManager, step: int, like: dict[str, Any]) -> tuple[dict, dict]:
    """The items of ``like``, held against their digests, and the state of the host."""
    args = {name: ocp.args.StandardRestore(_abstract(tree)) for name, tree in like.items()}
    checkpoints.wait_until_finished()
    try:
        saved = checkpoints.restore(step, args=ocp.args.Composite(**args, host=ocp.args.JsonRestore()))
    except Exception as error:  # Orbax has many: KeyError, JSON's, TensorStore's, its own
        raise _damaged(checkpoints, step, error) from error
    host, arrays = saved["host"], {name: saved[name] for name in like}
    if "format" not in host:
        print(f"checkpoint {step} is of an earlier version and has no digests: taken as it is", flush=True)
        return arrays, host
    if host["format"] > FORMAT:
        raise ValueError(
            f"got checkpoint {checkpoints.directory / str(step)} of format {host['format']}; wanted at most {FORMAT}: "
            "a newer version of fairgrpo_jax wrote it"
        )
    if host.pop("crc32", None) != _crc32(host):
        raise _damaged(checkpoints, step, "host/metadata is not what was saved")
    found = {name: int(seen.digest) for name, seen in _seen(arrays)}
    other = [name for name in found if host["digests"].get(name) != found[name]]
    if other:
        raise _damaged(checkpoints, step, f"{other[0]} is not what was saved{_and_others(other)}")
    return arrays, host["state"]


def _damaged(checkpoints: ocp.CheckpointManager, step: int, why: Exception | str) -> Exception:
    """The error to raise: ``Damaged``, but for what says nothing about the checkpoint."""
    if isinstance(why, Exception):
        if isinstance(why, MemoryError) or re.search("RESOURCE_EXHAUSTED|PERMISSION_DENIED", str(why)):
            return why
        why = f"{type(why).__name__}: {(str(why).strip() or 'no more is known').splitlines()[0][:200]}"
    return Damaged(f"checkpoint {checkpoints.directory / str(step)} is damaged ({why})")


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(max(level, logging.ERROR))
    try:
        yield
    finally:
        logger.setLevel(level)


@functools.cache
def _drop_late_callbacks() -> None:
    """Silences what TensorStore still calls when reading or writing has failed: Orbax's event loop is closed then."""
    before = sys.unraisablehook
    sys.unraisablehook = lambda seen: None if str(seen.exc_value) == "Event loop is closed" else before(seen)


def _and_others(names: Sequence[str]) -> str:
    return f", nor are {len(names) - 1} others" if len(names) > 1 else ""


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


# ---- digests ---------------------------------------------------------------------------------------------------------

# Statistics of rewards, not numbers that a pass computes with; an empty slot is NaN.
_MAY_BE_INFINITE = ("training/fairness", "training/quantiles")


class _Seen(NamedTuple):
    digest: Any  # uint32
    finite: Any  # bool, whether all numbers are


@jax.jit
def _digests(tree: Any) -> Any:
    return jax.tree.map(lambda x: _Seen(_digest(x), jnp.all(jnp.isfinite(x))), tree)


def _digest(x: jax.Array) -> jax.Array:
    """The sum of the array's words, each mixed and multiplied by an odd number of its place, modulo 2^32.

    Any single word that differs changes it; several do but for about one in 2^32. Mixing is what lets two flipped signs
    count: without it, highest bits cancel. The order of summing is of no consequence, hence neither is the sharding.
    """
    x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    words = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")).astype(jnp.uint32)
    words = (words ^ (words >> 16)) * jnp.uint32(0x7FEB352D)
    words = words ^ (words >> 15)
    place = jnp.uint32(0)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size & 0xFFFFFFFF) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)


def _seen(arrays: Any) -> list[tuple[str, _Seen]]:
    """The results of ``_digests`` by the paths of their arrays, such as ``params/layers/q/kernel``."""
    with mesh.unset():
        seen = jax.device_get(_digests(arrays))
    found = jax.tree_util.tree_leaves_with_path(seen, is_leaf=lambda x: isinstance(x, _Seen))
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), one) for path, one in found]


def _crc32(host: dict) -> int:
    return zlib.crc32(json.dumps(host, sort_keys=True).encode())
