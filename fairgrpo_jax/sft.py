r"""Supervised warm-up: trains the policy to answer in the right form, before reinforcement learning.

The policy is trained on each record's reference completion, ``<think>finding</think>\boxed{answer}``. The command runs
only this stage; several runs can start from its folder (``--warmup.run DIR``), or ``fairgrpo_jax.train`` can continue
it with the same options.

Example:
    python -m fairgrpo_jax.sft clinic --workdir outputs/warmup
"""

from pathlib import Path
from typing import Any

import jax

from fairgrpo_jax import commandline, config as options, evaluate, hosts, learner, mesh, runs, scales, tracking


def sft(config: options.Config, workdir: Path | None = None) -> dict[str, float]:
    """Runs only the supervised stage, resuming from the last checkpoint; returns the final held-out metrics.

    Raises:
        ValueError: if the folder holds a run that has gone on to reinforcement learning.
    """
    with runs.open_run(config, workdir) as run:
        done = run.checkpoints.latest_step() or 0
        if done > run.warmup_steps:
            raise ValueError(
                f"got a run folder {run.folder} that is {done - run.warmup_steps} updates beyond its warm-up; wanted "
                "fairgrpo_jax.train, which goes on there, or another --workdir"
            )
        state, _, _ = begin(run)
        scales.anchor(run, state.params)
        return evaluate.held_out(run, state.params, 0)


def begin(run: runs.Run) -> tuple[learner.TrainState, int, Any]:
    """Runs the supervised stage; returns the state, step and data from which reinforcement learning starts."""
    config = run.config
    found = run.resume()
    if found is None or found[0] < run.warmup_steps:
        params = warm_up(run, found)
        state = run.with_moments(params, config.optim, config.steps * config.update.per_step)
        prompts = run.prompts()
        run.save(run.warmup_steps, state, prompts)
        return state, 0, prompts
    done, state, place = found
    return state, done - run.warmup_steps, run.prompts(place)


def warm_up(run: runs.Run, found: tuple[int, learner.TrainState, dict] | None) -> Any:
    """Runs the supervised updates, or the rest of them after what ``run.resume`` found; returns the parameters."""
    config, spec = run.config, run.config.warmup
    if found is not None:
        start, state, place = found
    else:
        start, place = 0, {"next_index": 0}
        state = run.with_moments(run.initial_params(), spec.optim, spec.steps)
        run.log.truncate_after(warmup=-1, train=-1, eval=-1)
    if not run.warmup_steps:
        return state.params
    batches = run.stream("warmup", spec.batch, place["next_index"], length=config.sampling.max_new_tokens)
    with tracking.Progress(spec.steps, "warm-up", start=start) as progress:
        progress.note("the first step compiles its program")
        for step in range(start, spec.steps):
            with run.phases("data"):
                batch, tokens, mask = next(batches)
                pieces = learner.split(learner.SupervisedBatch(batch.prompt, tokens, mask), spec.accumulation)
            with run.phases("update"):
                state, metrics = learner.supervised_step(
                    state,
                    pieces,
                    architecture=run.encoder.architecture,
                    optim=spec.optim,
                    steps=spec.steps,
                    remat=config.update.remat,
                    freeze=config.model.freeze,
                    compute=config.model.compute,
                    place=lambda x: mesh.put(x, run.mesh),
                )
                metrics = jax.device_get(metrics)
            values = {name: float(value) for name, value in metrics.items()} | run.phases.collect()
            run.log.append("warmup", step + 1, values)
            runs.require_finite(step + 1, "warm-up", values)
            progress.update(step + 1, values)
            stop = hosts.any_of(bool(run.stop))
            if step + 1 < spec.steps and ((step + 1) % config.checkpoint_every == 0 or stop):
                run.save(step + 1, state, batches)
            if stop and step + 1 < spec.steps:
                raise runs.Interrupted(run, step + 1)
    return state.params


def main() -> None:
    """Runs the command line."""
    commandline.run(sft, prog="python -m fairgrpo_jax.sft", description=__doc__)


if __name__ == "__main__":
    main()
