"""Write the policy of a training run as a Hugging Face checkpoint folder, its low-rank adapters merged or apart.

transformers and vLLM load the folder; so does ``fairgrpo_jax.models.load``. Images have the pixel budget of the run.
Adapters are written in PEFT's form, to be loaded beside the checkpoint that the run began with.

Example::

    python -m fairgrpo_jax.export outputs/clinic/seed0/fair_grpo --out policy
    python -m fairgrpo_jax.export outputs/RUN --out adapter --form adapter
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fairgrpo_jax import checkpoint, commandline, config as options, models, policy
from fairgrpo_jax.models import lora
from fairgrpo_jax.models.checkpoints import adapters, store


Form = Literal["merged", "adapter", "both"]


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the export."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder of `train`, `sft` or `study`."""
    out: Path
    """Folder to write; new, or without a model in it."""
    step: int | None = None
    """Number of the checkpoint under RUN/checkpoints; default: the last one."""
    form: Form = "merged"
    """A whole checkpoint with the adapters merged; the adapters alone in PEFT's form; or both, the adapters in
    OUT/adapter."""


def export(run: Path, out: Path, *, step: int | None = None, form: Form = "merged") -> int:
    """Writes the policy of a run as a folder; returns the number of the run's checkpoint used.

    Args:
        run: the run folder; the run may still be in progress.
        out: a new folder, or one without a model.
        step: number of the checkpoint; default: the last one.
        form: a whole checkpoint with the adapters merged ("merged"), the adapters alone in PEFT's form ("adapter"), or
            both, the adapters then in ``out / "adapter"``.

    Raises:
        ValueError: if ``run`` is not a run folder, the checkpoint does not exist, ``out`` already holds a model, or
            adapters are asked for that the run does not have or that fit no published weights.
    """
    path = run / "config.json"
    if not path.is_file():
        raise ValueError(f"got {run} without a config.json; wanted a run folder of `python -m fairgrpo_jax.train`")
    config = options.read(path)[0]
    if form != "merged":
        _require_adapters(run, config)
    store.require_free(out)
    with contextlib.closing(checkpoint.manager(run / "checkpoints", read_only=True)) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise ValueError(f"got {run} without a checkpoint; wanted a run that has saved one: let it train on")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise ValueError(f"got step={step}; wanted one of the checkpoints in {run}: {', '.join(map(str, steps))}")
        params = checkpoint.saved_params(checkpoints, step)
    architecture, processor = policy.describe(config.model, config.data)
    vlm = models.VLM(architecture, params, processor, config.model.path)
    if form == "adapter":
        adapters.save(vlm, out)
    else:
        vlm.save(out)
    if form == "both":
        adapters.save(vlm, out / "adapter")
    what = {
        "merged": ", its adapters merged,",
        "adapter": ", its adapters alone,",
        "both": ", its adapters merged and apart,",
    }
    told = what[form] if lora.has(params) else ""
    print(f"checkpoint {step} of {run}{told} is in {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return step


def _require_adapters(run: Path, config: options.Config) -> None:
    """Checks that a run has adapters, and that the weights beside them are those of its checkpoint folder."""
    model, earlier = config.model, config.warmup.run
    if not model.lora_rank:
        raise ValueError(f"got --form adapter for {run}, which trains the weights themselves; wanted --form merged")
    begun = None if earlier is None else options.read(earlier / "config.json")[0].model
    if model.path is None or (begun is not None and not begun.lora_rank):
        made = "random" if model.path is None else f"those that {earlier} has trained"
        raise ValueError(
            f"got --form adapter for {run}, whose other weights are {made} and not published; wanted --form merged"
        )


def main() -> None:
    """Runs the command line."""
    with commandline.one_line_errors():
        arguments = tyro.cli(Arguments, prog="python -m fairgrpo_jax.export", description=__doc__)
        export(arguments.run, arguments.out, step=arguments.step, form=arguments.form)


if __name__ == "__main__":
    main()
