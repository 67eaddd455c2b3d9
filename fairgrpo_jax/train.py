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
from collections.abc import Mapping, Sequence
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
    demographics,
    diagnostics,
    evaluate,
    fairness,
    learner,
    losses,
    report,
    rollout,
    runs,
    sft,
    tracking,
)
from fairgrpo_jax.data import media
from fairgrpo_jax.plan import cost, devices
from fairgrpo_jax.report import tables
from fairgrpo_jax.rewards import accuracy


REWARDS = {"exact": accuracy.exact, "set_f1": accuracy.set_f1}


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
        scheme = demographics.Scheme(config.data.attributes, config.data.age_edges)
        rich.print(tables.held_out_table(before, after, scheme=scheme))
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
            kept, copy, tokens = None, evaluate.sampler(run, state.params), 0
            for attempt in range(config.sampling.tries):
                progress.phase("rollout")
                with phases("data"):
                    batch = next(batches)
                    prompt = run.put(batch.prompt)
                with phases("rollout"):
                    rollouts = sample(run, copy, prompt, step * config.sampling.tries + attempt)
                tokens += int(rollouts.mask.sum())
                with phases("reward"):
                    texts = rollout.texts(rollouts, run.tokenizer)
                    rewards = score(run, texts, rollouts, batch)
                kept, drawn = refill(kept, Sampled(batch, rollouts, texts, rewards))
                if drawn["rollout/zero_variance"] == 0:
                    break
            assert kept is not None
            del copy  # its memory is the update's
            with phases("advantage"):
                advantage, statistics, watched = jax.block_until_ready(estimate(run, kept, state.fairness))
            progress.phase("update")
            with phases("update"):
                state = dataclasses.replace(state, fairness=statistics)
                state, trained = update(run, state, kept, advantage)
            advantage = np.asarray(advantage)
            if step % config.evaluation.every == 0:
                save_samples(run, step, kept, advantage)
            values = describe(run, kept, advantage) | drawn | watched | trained
            values = {name: float(value) for name, value in values.items()} | phases.collect()
            values |= speed(run, kept, tokens, values)
            run.log.append("train", step + 1, values)
            runs.require_finite(step + 1, "training", values)
            progress.update(step + 1, values)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                run.save(run.warmup_steps + step + 1, state, batches)
    return final


# ---- rollouts -> rewards -> advantages -> policy ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sampled:
    """P prompts with G scored completions each, on the host."""

    batch: runs.PromptBatch
    rollouts: rollout.RolloutBatch  # NumPy leaves (P, G, T)
    texts: list[list[str]]
    rewards: np.ndarray  # (P, G) float32


def sample(run: runs.Run, params: Any, prompt: Any, step: int) -> rollout.RolloutBatch:
    """G completions of each prompt, by one device program, fetched in one transfer."""
    config = run.config
    rollouts = rollout.sample(
        params,
        prompt,
        run.key("rollout", step),
        config=run.model,
        num_rollouts=config.rollouts,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        tensor=config.sampling.weights == "tensor",
    )
    return jax.device_get(rollouts)


def score(
    run: runs.Run, texts: Sequence[Sequence[str]], rollouts: rollout.RolloutBatch, batch: runs.PromptBatch
) -> np.ndarray:
    """Rewards (P, G) of the boxed answers against the reference answers; less for length where wanted."""
    right = REWARDS[run.config.reward.kind]
    rewards = np.stack([right(row, [r.answer] * len(row)) for row, r in zip(texts, batch.records, strict=True)])
    spec = run.config.sampling
    if spec.truncated == "penalise":
        lengths = rollouts.mask.sum(-1)
        penalty = losses.overlong_penalty(lengths, max_length=spec.max_new_tokens, buffer=spec.overlong_buffer)
        rewards = rewards + np.asarray(penalty)
    return rewards.astype(np.float32)


def refill(kept: Sampled | None, new: Sampled) -> tuple[Sampled, dict[str, int]]:
    """Dynamic sampling: of the prompts kept so far and the new ones, those first whose rewards differ; P in all.

    A prompt whose rewards are all equal teaches nothing.  Those that remain for want of better ones are the oldest.
    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), equation 11, which tries without bound.

    Returns:
      The P prompts, and counts for the log: ``rollout/zero_variance`` prompts among them, ``rollout/replaced`` ones.
    """
    count = len(new.rewards)
    both = new if kept is None else _joined(kept, new)
    teaches = np.asarray(advantages.has_signal(both.rewards))
    rows = np.argsort(~teaches, kind="stable")[:count]
    equal, replaced = count - int(teaches[rows].sum()), len(teaches) - count
    return _rows(both, rows), {"rollout/zero_variance": equal, "rollout/replaced": replaced}


def _joined(one: Sampled, other: Sampled) -> Sampled:
    a, b = one.batch, other.batch
    arrays = lambda s: (s.batch.prompt, s.batch.domains, s.batch.groups, s.rollouts, s.rewards)
    prompt, domains, groups, rollouts, rewards = jax.tree.map(
        lambda x, y: np.concatenate([x, y]), arrays(one), arrays(other)
    )
    batch = runs.PromptBatch(prompt, [*a.records, *b.records], domains, groups)
    return Sampled(batch, rollouts, [*one.texts, *other.texts], rewards)


def _rows(sampled: Sampled, rows: np.ndarray) -> Sampled:
    batch = sampled.batch
    prompt, domains, groups, rollouts, rewards = jax.tree.map(
        lambda x: x[rows], (batch.prompt, batch.domains, batch.groups, sampled.rollouts, sampled.rewards)
    )
    batch = runs.PromptBatch(prompt, [batch.records[row] for row in rows], domains, groups)
    return Sampled(batch, rollouts, [sampled.texts[row] for row in rows], rewards)


def finished(run: runs.Run, rollouts: rollout.RolloutBatch) -> np.ndarray:
    """Whether each completion (P, G) ended by itself, rather than at the longest length."""
    return np.any(np.isin(rollouts.tokens, run.model.eos_ids) & rollouts.mask, axis=-1)


def learned(run: runs.Run, rollouts: rollout.RolloutBatch) -> np.ndarray:
    """The tokens (P, G, T) that the loss is made of: all that were sampled, or those of finished completions."""
    if run.config.sampling.truncated != "mask":
        return np.asarray(rollouts.mask)
    return np.asarray(losses.mask_truncated(rollouts.mask, finished(run, rollouts)))


def estimate(run: runs.Run, sampled: Sampled, state: fairness.FairnessState) -> tuple:
    """Advantages (P, G) of the whole rollout batch, the new statistics, and the diagnostics of the weights."""
    lengths = sampled.rollouts.mask.sum(-1, dtype=np.int32)
    whole = jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec())
    arrays = jax.device_put((sampled.rewards, lengths, sampled.batch.domains, sampled.batch.groups), whole)
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
                shift=settings.shift,
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


def update(run: runs.Run, state: learner.TrainState, sampled: Sampled, advantage: Any) -> tuple:
    """``passes`` times over ``mini_batches`` clipped updates; returns the state and the mean metrics."""
    config, spec, rollouts = run.config, run.config.update, sampled.rollouts
    batch = learner.PolicyBatch(
        *run.put((sampled.batch.prompt, rollouts.tokens, learned(run, rollouts), rollouts.logprobs)),
        advantages=jax.device_put(advantage, jax.sharding.NamedSharding(run.mesh, jax.sharding.PartitionSpec("fsdp"))),
    )
    shared: dict = dict(config=run.model, temperature=config.sampling.temperature, compute=config.model.compute)
    updates = spec.passes * spec.mini_batches
    pieces: dict = dict(
        parts=spec.mini_batches * spec.accumulation,
        chunks=learner.chunks(state, batch, run.model, spec, config.model.compute),
    )
    if updates > 1:
        batch = learner.score(state.params, batch, **shared, **pieces)
    if spec.beta:
        batch = learner.score(run.reference(state.params), batch, policy="reference", **shared, **pieces)
    collected = []
    for index in [*range(spec.mini_batches)] * spec.passes:
        state, metrics = learner.policy_step(
            state,
            batch,
            jax.device_put(np.int32(index)),
            **shared,
            update=spec,
            optim=config.optim,
            steps=config.steps * updates,
            freeze=config.model.freeze,
        )
        collected.append(metrics)
    metrics = jax.device_get(collected)
    means = {name: np.mean([m[name] for m in metrics]) for name in metrics[0]}
    plain = ("loss", "optim/grad_norm")
    return state, {name if name in plain else f"policy/{name}": value for name, value in means.items()}


# ---- what is written down --------------------------------------------------------------------------------------------


def describe(run: runs.Run, sampled: Sampled, advantage: np.ndarray) -> dict[str, float]:
    """The step's rewards, lengths, and rewards and |advantage| share of every group that it held."""
    batch, rewards = sampled.batch, sampled.rewards
    values = {
        "reward/mean": rewards.mean(),
        "rollout/length": sampled.rollouts.mask.sum(-1).mean(),
        "rollout/truncated_share": 1 - finished(run, sampled.rollouts).mean(),
    }
    total = np.abs(advantage).sum()
    names = [*run.vocabulary.cells, "unlabelled"]
    for domain, group in sorted({*zip(batch.domains.tolist(), batch.groups.tolist(), strict=True)}):
        rows = (batch.domains == domain) & (batch.groups == group)
        cell = f"{run.domains[domain]}/{names[group]}"
        values[f"reward/group/{cell}"] = rewards[rows].mean()
        values[f"advantage/share/{cell}"] = np.abs(advantage[rows]).sum() / total if total else 0.0
    return values


def speed(run: runs.Run, sampled: Sampled, tokens: int, values: Mapping[str, float]) -> dict[str, float]:
    """Tokens sampled per second, and the update's model FLOPs utilisation (MFU) where the device is known.

    MFU counts the prompts' and completions' own tokens, not their padding, and nothing that is computed twice.
    """
    config, prompt = run.config, sampled.batch.prompt
    told = {"speed/rollout_tokens_per_s": tokens / max(values["time/rollout"], 1e-9)}
    device = devices.known(run.mesh.devices.flat[0].device_kind)
    if device is None:
        return told
    merge = 1 if run.model.vision is None else run.model.vision.spatial_merge_size**2
    sizes = cost.Sizes(
        prompts=config.prompts,
        rollouts=config.rollouts,
        prompt=int(prompt.valid.sum(1).mean()),
        completion=float(sampled.rollouts.mask.sum(-1).mean()),
        patches=int((prompt.feature >= 0).sum(1).mean()) * merge,
    )
    training = cost.Training(
        lora_rank=config.model.lora_rank, lora_targets=config.model.lora_targets, freeze=config.model.freeze
    )
    flops = config.update.passes * cost.update_flops(run.model, sizes, training, recomputed=False).total
    peak = device.flops if (config.model.compute or config.model.dtype) == "bfloat16" else device.flops32
    return told | {"speed/update_mfu": flops / (values["time/update"] * peak * run.mesh.size)}


def save_samples(run: runs.Run, step: int, sampled: Sampled, advantage: np.ndarray) -> None:
    """Keeps a few prompts of this step for the report: images, completions, rewards and advantages."""
    batch, texts, rewards = sampled.batch, sampled.texts, sampled.rewards
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
