"""Save and restore a run (Orbax): parameters, the rest of the training state, and state on the host.

A checkpoint is written beside its final path and then renamed, so ``kill -9`` leaves either the old one or the new one.
Arrays are restored onto the mesh of the resuming run, whatever the mesh of the saving run. Parameters are a separate
item, so that another run or an export can read only them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


def manager(folder: Path, *, keep: int = 2, always: Sequence[int] = ()) -> ocp.CheckpointManager:
    """Manages the checkpoints of one run: keeps the last ``keep`` and the steps in ``always``, deletes others."""
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
    """Saves two pytrees of arrays and a JSON-able dict as ``step``; an existing checkpoint of that step is kept."""
    if step in checkpoints.all_steps():
        return
    args = ocp.args.Composite(
        params=ocp.args.StandardSave(params), training=ocp.args.StandardSave(training), host=ocp.args.JsonSave(host)
    )
    checkpoints.save(step, args=args, force=True)


def restore(checkpoints: ocp.CheckpointManager, step: int, params: Any, training: Any) -> tuple[Any, Any, dict]:
    """Restores checkpoint ``step`` with the shapes, dtypes and shardings of the two given trees."""
    args = ocp.args.Composite(
        params=ocp.args.StandardRestore(_abstract(params)),
        training=ocp.args.StandardRestore(_abstract(training)),
        host=ocp.args.JsonRestore(),
    )
    saved = checkpoints.restore(step, args=args)
    return saved["params"], saved["training"], saved["host"]


def restore_params(checkpoints: ocp.CheckpointManager, step: int, params: Any) -> Any:
    """Restores only the parameters of ``step``, with the shapes, dtypes and shardings of the given tree."""
    args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
    return checkpoints.restore(step, args=args)["params"]


def saved_params(checkpoints: ocp.CheckpointManager, step: int) -> Any:
    """Restores only the parameters of ``step`` as they were saved, in host memory."""
    host = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    saved = checkpoints.item_metadata(step)["params"].tree
    return restore_params(
        checkpoints, step, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=host), saved)
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
