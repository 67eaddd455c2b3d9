"""Train a medical vision-language model by reinforcement learning, and see for whom it gets better.

One step, as data:

    records      -> prompts        P questions with images or video, their domain and demographic group
    prompts      -> rollouts       G sampled completions of each, with log-probabilities
    rollouts     -> rewards        (P, G): 1 where the boxed answer is right, else 0
    rewards      -> advantages     (P, G), on the whole rollout batch; FairGRPO weighs prompts by their group
    advantages   -> policy         one or several clipped updates

Before it stands a supervised warm-up (``fairgrpo_jax.sft``); before, during and after it the policy is evaluated
greedily on held-out patients.  The run folder gets ``metrics.jsonl``, checkpoints and ``report.html``; the same command
resumes it.

Examples:

    python -m fairgrpo_jax.train --mesh 4x1
    python -m fairgrpo_jax.train clinic --algorithm grpo --steps 100
    python -m fairgrpo_jax.train covid_blues --data.root ../shared/covid-blues --mesh 2x1
    python -m fairgrpo_jax.train --list
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
from PIL import Image

from fairgrpo_jax import (
    advantages,
    commandline,
    config as options,
    diagnostics,
    evaluate,
    fairness,
    learner,
    report,
    rollout,
    runs,
    sft,
    tracking,
)
from fairgrpo_jax.data import media
from fairgrpo_jax.rewards import accuracy


def train(config: options.Config, workdir: Path | None = None) -> dict[str, float]:
    """Trains to the end, resuming what the run folder holds; returns the metrics of the last evaluation.

    Args:
      config: the experiment.
      workdir: run folder; by default one named after the config under ``outputs/``.

    Raises:
      ValueError: for anything wrong with the options, the data or the folder, before long work starts.
      FloatingPointError: when the loss is no longer a number.
    """
    with runs.open_run(config, workdir) as run:
        state, start, batches = sft.begin(run)
        final = reinforce(run, state, start, batches)
        path = report.build(
            {config.algorithm: run.folder}, run.folder / "report.html", title=f"{config.name}: {config.algorithm}"
        )
        before, after = (evaluate.read(run.folder, step) for step in (0, config.steps))
        rich.print(tracking.held_out_table(before, after, age_edges=config.data.age_edges))
        print(f"report: {path}")
    return final


def reinforce(run: runs.Run, state: learner.TrainState, start: int, batches: Any) -> dict[str, float]:
    """THE loop: ``config.steps`` steps of reinforcement learning from step ``start`` on."""
    config, phases = run.config, run.phases
    with tracking.Progress(max(config.steps, 1), config.algorithm, start=start) as progress:
        progress.note("the first evaluation and the first step compile their programs")
        for step in range(start, config.steps + 1):
            if run.stop:
                run.save(run.warmup_steps + step, state, batches)
                raise runs.Interrupted(run, step)
            if step % config.evaluation.every == 0 or step == config.steps:
                progress.phase("evaluation")
                final = evaluate.held_out(run, state.params, step)
            if step == config.steps:
                break
            progress.phase("rollout")
            with phases("data"):
                batch = next(batches)
                prompt = run.put(batch.prompt)
            with phases("rollout"):
                rollouts = jax.block_until_ready(sample(run, state.params, prompt, step))
            with phases("reward"):
                texts = rollout.texts(rollouts, run.tokenizer)
                rewards = score(texts, batch)
            with phases("advantage"):
                advantage, statistics, watched = jax.block_until_ready(
                    estimate(run, rewards, rollouts, batch, state.fairness)
                )
            progress.phase("update")
            with phases("update"):
                state = dataclasses.replace(state, fairness=statistics)
                state, learned = update(run, state, prompt, rollouts, advantage)
            if step % config.evaluation.every == 0:
                save_samples(run, step, batch, texts, rewards, np.asarray(advantage))
            values = describe(run, batch, rollouts, rewards, np.asarray(advantage)) | watched | learned
            values = {name: float(value) for name, value in values.items()} | phases.collect()
            run.log.append("train", step + 1, values)
            runs.require_finite(step + 1, "training", values)
            progress.update(step + 1, values)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                run.save(run.warmup_steps + step + 1, state, batches)
    return final


# ---- rollouts -> rewards -> advantages -> policy ---------------------------------------------------------------------


def sample(run: runs.Run, params: Any, prompt: Any, step: int) -> rollout.RolloutBatch:
    """G completions of each prompt, as one device program."""
    config = run.config
    return rollout.sample(
        params,
        prompt,
        run.key("rollout", step),
        config=run.model,
        num_rollouts=config.rollouts,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
    )


def score(texts: Sequence[Sequence[str]], batch: runs.PromptBatch) -> np.ndarray:
    """Binary rewards (P, G): is the boxed answer the reference answer?"""
    answers = [record.answer for record in batch.records]
    return np.stack([accuracy.exact(row, [answer] * len(row)) for row, answer in zip(texts, answers, strict=True)])


def estimate(
    run: runs.Run,
    rewards: np.ndarray,
    rollouts: rollout.RolloutBatch,
    batch: runs.PromptBatch,
    state: fairness.FairnessState,
) -> tuple:
    """Advantages (P, G) of the whole rollout batch, the new statistics, and the diagnostics of the weights."""
    lengths = np.asarray(rollouts.mask).sum(-1, dtype=np.int32)
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    arrays = jax.device_put((rewards.astype(np.float32), lengths, batch.domains, batch.groups), whole)
    return _estimate(*arrays, state, algorithm=run.config.algorithm, settings=run.config.fairness)


@functools.partial(jax.jit, static_argnames=("algorithm", "settings"))
def _estimate(rewards, lengths, domains, groups, state, *, algorithm: str, settings: options.Fairness):
    """One estimator; FairGRPO is written as its temperatures and one rescaling, so that the weights can be watched."""
    weights = jnp.ones(rewards.shape[0])
    match algorithm:
        case "fair_grpo" | "fair_grpo_nd" | "drpo":
            hidden = algorithm != "fair_grpo"
            weights, _, state = fairness.temperatures(
                rewards,
                domains,
                jnp.full_like(groups, -1) if hidden else groups,
                state,
                statistics=settings.statistics,
                decay=settings.decay,
                clamp="factor" if algorithm == "fair_grpo_nd" else settings.clamp,
                levels=settings.levels,
                size_exponent=settings.size_exponent,
                mean_exponent=settings.mean_exponent,
                max_weight=settings.max_weight,
                k_max=settings.k_max,
                sort_vectors=settings.sort_vectors,
                domain_mean="inverse_size" if hidden else "plain",
            )
            values = fairness.rescale(rewards, weights)
        case "group_dro":
            values, state = fairness.group_dro(rewards, domains, groups, state, step_size=settings.step_size)
        case "opo" | "reinforce_plus_plus" | "reinforce_plus_plus_baseline":
            values = getattr(advantages, algorithm)(rewards, lengths)
        case _:
            values = getattr(advantages, algorithm)(rewards)
    active = jnp.where(advantages.has_signal(rewards), weights, 0.0)
    watched = {
        "fairness/effective_sample_size": diagnostics.effective_sample_size(active),
        "advantage/max_abs": jnp.abs(values).max(),
        "advantage/top_prompt_share": diagnostics.top_prompt_share(values),
        "reward/zero_variance_share": diagnostics.zero_variance_share(rewards),
    }
    return values, state, watched


def update(
    run: runs.Run, state: learner.TrainState, prompt: Any, rollouts: rollout.RolloutBatch, advantage: Any
) -> tuple:
    """``passes`` times over ``mini_batches`` clipped updates; returns the state and the mean metrics."""
    config, spec = run.config, run.config.update
    batch = learner.PolicyBatch(
        prompt=prompt,
        tokens=rollouts.tokens,
        mask=rollouts.mask,
        sampler_logprobs=rollouts.logprobs,
        advantages=jax.device_put(advantage, jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec("fsdp"))),
    )
    temperature = config.sampling.temperature
    updates = spec.passes * spec.mini_batches
    if updates > 1:
        batch = learner.score(state.params, batch, config=run.model, temperature=temperature, remat=spec.remat)
    collected = []
    for index in [*range(spec.mini_batches)] * spec.passes:
        state, metrics = learner.policy_step(
            state,
            batch,
            jax.device_put(np.int32(index)),
            config=run.model,
            update=spec,
            optim=config.optim,
            temperature=temperature,
            steps=config.steps * updates,
            freeze=config.model.freeze,
        )
        collected.append(metrics)
    metrics = jax.device_get(collected)
    means = {name: np.mean([m[name] for m in metrics]) for name in metrics[0]}
    shared = ("loss", "optim/grad_norm")
    return state, {name if name in shared else f"policy/{name}": value for name, value in means.items()}


# ---- what is written down --------------------------------------------------------------------------------------------


def describe(
    run: runs.Run, batch: runs.PromptBatch, rollouts: rollout.RolloutBatch, rewards: np.ndarray, advantage: np.ndarray
) -> dict[str, float]:
    """The step's rewards, lengths, and rewards and |advantage| share of every group that it held."""
    mask = np.asarray(rollouts.mask)
    tokens = np.asarray(rollouts.tokens)
    ended = np.isin(tokens, run.model.eos_ids) & mask
    values = {
        "reward/mean": rewards.mean(),
        "rollout/length": mask.sum(-1).mean(),
        "rollout/truncated_share": 1 - ended.any(-1).mean(),
    }
    total = np.abs(advantage).sum()
    names = [*run.vocabulary.cells, "unlabelled"]
    for domain, group in sorted({*zip(batch.domains.tolist(), batch.groups.tolist(), strict=True)}):
        rows = (batch.domains == domain) & (batch.groups == group)
        cell = f"{run.domains[domain]}/{names[group]}"
        values[f"reward/group/{cell}"] = rewards[rows].mean()
        values[f"advantage/share/{cell}"] = np.abs(advantage[rows]).sum() / total if total else 0.0
    return values


def save_samples(
    run: runs.Run, step: int, batch: runs.PromptBatch, texts: Any, rewards: np.ndarray, advantage: np.ndarray
) -> None:
    """Keeps a few prompts of this step for the report: images, completions, rewards and advantages."""
    folder = run.folder / "samples"
    folder.mkdir(exist_ok=True)
    rows = []
    for i, record in enumerate(batch.records[: run.config.evaluation.samples]):
        decoded = media.decode_record(record)
        frames = [*decoded.images, *(frame for clip in decoded.videos for frame in clip.frames)]
        names = [f"samples/{step:06d}-{i}-{j}.png" for j in range(len(frames))]
        for name, frame in zip(names, frames, strict=True):
            Image.fromarray(frame).save(run.folder / name)
        completions = [
            {"text": text, "reward": float(reward), "advantage": float(value)}
            for text, reward, value in zip(texts[i], rewards[i], advantage[i], strict=True)
        ]
        known = {"uid": record.uid, "dataset": record.dataset, "sex": record.sex, "age": record.age}
        asked = {"question": record.question, "answer": record.answer, "images": names}
        rows.append(known | asked | {"completions": completions})
    (folder / f"{step:06d}.json").write_text(json.dumps(rows))


def main() -> None:
    """The command."""
    commandline.run(train, prog="python -m fairgrpo_jax.train", description=__doc__)


if __name__ == "__main__":
    main()
