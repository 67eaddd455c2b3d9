"""Write the policy of a training run as a Hugging Face checkpoint folder, low-rank adapters merged.

transformers and vLLM load the folder; so does ``fairgrpo_jax.models.load``.

Example::

    python -m fairgrpo_jax.export outputs/clinic/seed0/fair_grpo --out policy
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from fairgrpo_jax import checkpoint, commandline, config as options, models, policy
from fairgrpo_jax.models import lora


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the export."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of `train`, `sft` or `study`."""
    out: Path
    """Folder to write; new, or without a model in it."""
    step: int | None = None
    """Number of the checkpoint under RUN/checkpoints; default: the last one."""


def export(run: Path, out: Path, *, step: int | None = None) -> int:
    """Writes the policy of a run as a checkpoint folder; returns the number of the run's checkpoint used.

    Args:
        run: the run folder; the run may still be in progress.
        out: a new folder, or one without a model.
        step: number of the checkpoint; default: the last one.

    Raises:
        ValueError: if ``run`` is not a run folder, the checkpoint does not exist, or ``out`` already holds a model.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"got {run} without a config.json; wanted a run folder of `python -m fairgrpo_jax.train`")
    config = options.read(path)[0]
    with contextlib.closing(checkpoint.manager(run / "checkpoints", read_only=True)) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise ValueError(f"got {run} without a checkpoint; wanted a run that has saved one: let it train on")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"got step={step}; wanted one of the checkpoints in {run}: {', '.join(map(str, steps))}")
        params = checkpoint.saved_params(checkpoints, step)
    architecture, processor = policy.describe(config.model, config.data)
    models.VLM(architecture, params, processor, config.model.path).save(out)
    merged = ", its adapters merged," if lora.has(params) else ""
    print(f"checkpoint {step} of {run}{merged} is in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return step


def main() -> None:
    """Runs the command line."""
    with commandline.one_line_errors():
        arguments = tyro.cli(Arguments, prog="python -m fairgrpo_jax.export", description=__doc__)
        export(arguments.run, arguments.out, step=arguments.step)


if __name__ == "__main__":
    main()
