"""Save and restore a run (Orbax): parameters, the rest of the training state, and what lives on the host.

A checkpoint is written beside its final place and renamed, so ``kill -9`` leaves either the old one or the new one.
Arrays are restored onto the mesh of the resuming run, whatever the mesh of the saving one. Parameters are an item of
their own: another run, or an export, reads them alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


def manager(folder: Path, *, keep: int = 2, always: Sequence[int] = ()) -> ocp.CheckpointManager:
    """The checkpoints of one run: the last ``keep`` of them and the steps in ``always``; others are deleted."""
    policy = checkpoint_managers.AnyPreservationPolicy(
        [checkpoint_managers.LatestN(keep), checkpoint_managers.preservation_policy.CustomSteps(always)]
    )
    options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=False)
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "training": ocp.StandardCheckpointHandler(),
        "host": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(folder.absolute(), item_handlers=handlers, options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, params: Any, training: Any, host: dict) -> None:
    """Saves two pytrees of arrays and a JSON-able dict as ``step``; a checkpoint of that step is kept as it is."""
    if step in checkpoints.all_steps():
        return
    args = ocp.args.Composite(
        params=ocp.args.StandardSave(params), training=ocp.args.StandardSave(training), host=ocp.args.JsonSave(host)
    )
    checkpoints.save(step, args=args, force=True)


def restore(checkpoints: ocp.CheckpointManager, step: int, params: Any, training: Any) -> tuple[Any, Any, dict]:
    """What was saved as ``step``, with the shapes, types and shardings of the two trees given."""
    args = ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(params)),
        training=ocp.args.StandardRestore(_abstract(training)),
        host=ocp.args.JsonRestore(),
    )
    saved = checkpoints.restore(step, args=args)
    return saved["params"], saved["training"], saved["host"]


def restore_params(checkpoints: ocp.CheckpointManager, step: int, params: Any) -> Any:
    """The parameters alone of ``step``, with the shapes, types and shardings of the tree given."""
    args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
    return checkpoints.restore(step, args=args)["params"]


def saved_params(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """The parameters alone of ``step``, as they were saved, in the memory of the host."""
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    saved = checkpoints.item_metadata(step)["params"].tree
    return restore_params(
        checkpoints, step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), saved)
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
