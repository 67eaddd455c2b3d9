"""Train a medical vision-language model by reinforcement learning and report the results by patient group.

One step, as data:

    records      -> prompts        P questions with images or video, their domain and demographic group
    prompts      -> rollouts       G sampled completions of each, with log-probabilities
    rollouts     -> rewards        (P, G): by default 1 where the boxed answer is right, else 0
    rewards      -> advantages     (P, G), on the whole rollout batch; FairGRPO weighs prompts by their group
    advantages   -> policy         one or several clipped updates

A supervised warm-up (``fairgrpo_jax.sft``) comes first. The policy is evaluated greedily on held-out patients before,
during and after reinforcement learning. The run folder holds ``metrics.jsonl``, checkpoints and ``report.html``; the
same command resumes the run.

Examples:
    python -m fairgrpo_jax.train --mesh 4x1
    python -m fairgrpo_jax.train clinic --algorithm grpo --steps 100
    python -m fairgrpo_jax.train covid_blues --data.root ../shared/covid-blues --mesh 2x1
    python -m fairgrpo_jax.train --list
"""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich

from fairgrpo_jax import (
    answers,
    batches,
    chunking,
    commandline,
    config as options,
    estimators,
    evaluate,
    fairness,
    first_steps,
    hosts,
    learner,
    lengths,
    losses,
    mesh,
    models,
    rewards,
    rollout,
    runs,
    samples,
    scales,
    sft,
    tracking,
)
from fairgrpo_jax.drawn import Kept, Sampled, refill
from fairgrpo_jax.prompts import Prompts
from fairgrpo_jax.step_log import agreement, speed, step_metrics


def train(config: options.Config, workdir: Path | None = None) -> dict[str, float]:
    """Trains to the end, resuming from the run folder; returns the metrics of the last evaluation.

    Args:
        config: the experiment.
        workdir: run folder; default: one under ``outputs/`` named after the config.

    Raises:
        ValueError: for anything wrong with the options, the data or the folder, before long work starts.
        FloatingPointError: if the loss or the gradient is not finite.
    """
    with runs.open_run(config, workdir) as run:
        state, start, prompts = sft.begin(run)
        final = reinforce(run, state, start, prompts)
        if hosts.first():
            show(run)
    return final


def show(run: runs.Run) -> None:
    """Writes the report and prints the table of results; whatever goes wrong here does not fail the run."""
    from fairgrpo_jax import report  # with Matplotlib a third of the start of a command, which needs neither
    from fairgrpo_jax.report import tables

    config = run.config
    title, out = f"{config.name}: {config.algorithm}", run.folder / "report.html"
    try:
        print(f"report: {report.build({config.algorithm: run.folder}, out, title=title)}")
        before, after = (evaluate.read(run.folder, step) for step in (0, config.steps))
        if [row["uid"] for row in before] != [row["uid"] for row in after]:
            raise ValueError(
                f"got {len(before)} answers before and {len(after)} after; wanted the same records in both"
            )
        rich.print(tables.held_out_table(before, after, scheme=config.data.scheme))
    except Exception as error:
        if not isinstance(error, ValueError | OSError):
            traceback.print_exc()
        print(
            f"warning: the run is complete, its report is not ({error}); `python -m fairgrpo_jax.report {run.folder} "
            f"--out {out}` builds it again"
        )


def reinforce(run: runs.Run, state: learner.TrainState, start: int, prompts: Prompts) -> dict[str, float]:
    """The training loop: runs reinforcement learning from step ``start`` to ``config.steps``."""
    config, phases, architecture = run.config, run.phases, run.encoder.architecture
    scales.anchor(run, state.params)
    first = first_steps.FirstSteps(config, tracking.read_metrics(run.log.path))
    with tracking.Progress(max(config.steps, 1), config.algorithm, start=start) as progress:
        progress.note("the first evaluation and the first step compile their programs")
        for step in range(start, config.steps + 1):
            if hosts.any_of(bool(run.stop)):
                run.save(run.warmup_steps + step, state, prompts)
                raise runs.Interrupted(run, step)
            if step % config.evaluation.every == 0 or step == config.steps:
                progress.phase("evaluation")
                final = evaluate.held_out(run, state.params, step)
            if step == config.steps:
                break
            kept, seen, copy = None, [], answers.sampler(state.params, config.sampling)
            for attempt in range(config.sampling.tries):
                progress.phase("rollout")
                with phases("data"):
                    batch = next(prompts) if kept is None else prompts.replace(*kept.lost)
                with phases("rollout"):
                    key = run.key("rollout", step * config.sampling.tries + attempt)
                    asked: Asked = []
                    rollouts = sample(
                        copy, batch.prompt, key, config, run.encoder, run.mesh, listener(run, batch, asked)
                    )
                with phases("reward"):
                    own = learner.take(rollouts, hosts.rows(config.prompts))
                    texts = decoded(asked) if asked else rollout.texts(own, run.tokenizer)
                    seen.append(score(batch, rollouts, texts, run.scorer, architecture, state.memory, asked))
                    require_scores(step + 1, seen, config.reward)
                kept, drawn = refill(kept, seen, by_cell=config.data.sampling == "fair")
                if drawn["rollout/zero_variance"] == 0:
                    break
            assert kept is not None
            require_range(config, step, seen)
            observe(prompts, seen)
            del copy  # frees its memory for the update
            with phases("advantage"):
                advantage, memory, watched = jax.block_until_ready(
                    estimate(kept, seen, state.memory, config, run.scorer, run.mesh)
                )
            progress.phase("update")
            with phases("update"):
                state = dataclasses.replace(state, memory=memory)
                advantage = np.asarray(advantage)
                batch = policy_batch(kept, advantage)
                state, trained = update(state, batch, config, run.encoder, run.mesh, run.reference)
            if hosts.first():
                samples.save(run.folder, step, kept, advantage, config.evaluation, run.encoder, run.scorer)
            values = step_metrics(kept, seen, advantage, run.encoder, run.scorer) | drawn | prompts.watched() | trained
            values |= agreement(watched.pop("clusters", None), seen) | watched | hosts.summed(run.scorer.watched())
            values = {name: float(value) for name, value in values.items()} | phases.collect()
            values |= speed(kept, seen, values, config, run.encoder, run.mesh)
            run.log.append("train", step + 1, values)
            runs.require_finite(step + 1, "training", values)
            progress.update(step + 1, values)
            if told := first.after(step + 1, seen, run.tokenizer):
                run.log.note(run.warmup_steps + step + 1, told)
                progress.note("\n  ".join([f"warning: {told[0]}", *told[1:]]))
            unscored = values["reward/unscored_share"] > config.reward.max_unscored
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps or unscored:
                run.save(run.warmup_steps + step + 1, state, prompts)
            if unscored:
                raise too_few_scores(step + 1, values["reward/unscored_share"], config.reward)
    return final


# ---- rollouts -> rewards -> advantages -> policy ---------------------------------------------------------------------


def sample(
    params: Any,
    prompt: models.Prompt,
    key: jax.Array,
    config: options.Config,
    encoder: batches.Encoder,
    devices: Any,
    heard: Callable[[np.ndarray, rollout.RolloutBatch], None] | None = None,
) -> rollout.RolloutBatch:
    """Samples G completions of each prompt, in ``sampling.waves``.

    Every process has its own rows of the prompts, and gets the completions of all. The prompts of a wave run in groups
    of like size, of which at most two are on the devices, and are decoded together. ``heard`` gets the rows and
    completions of every wave as soon as it has ended.
    """
    count, waves, ladder = config.prompts, max(config.sampling.waves, 1), encoder.sizes
    keys = rollout.row_keys(key, count, config.rollouts)
    sizes, here = hosts.gathered(models.sizes(prompt)), hosts.rows(count)
    parts, found = chunking.groups(count // waves, config), []
    for rows in lengths.in_order(lengths.rung(ladder, sizes), waves):
        groups = [(rows[own], size) for own, size in lengths.groups(ladder, sizes[rows], parts)]
        placed = np.concatenate([own for own, _ in groups])
        drawn = rollout.sample(
            params,
            (
                mesh.put(learner.take(models.cut(prompt, *size), mine(own) - here.start), devices)
                for own, size in groups
            ),
            mesh.put(keys[mine(placed)], devices),
            architecture=encoder.architecture,
            num_rollouts=config.rollouts,
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            tensor=config.sampling.weights == "tensor",
            cache=config.cache_dtype,
            places=ladder[-1].tokens,
        )
        found.append((placed, drawn))
        if heard is not None:
            heard(*found[-1])
    whole = jax.tree.map(lambda *parts: np.empty((count, *parts[0].shape[1:]), parts[0].dtype), *[x for _, x in found])
    for rows, drawn in found:
        for x, part in zip(jax.tree.leaves(whole), jax.tree.leaves(drawn), strict=True):
            x[rows] = part
    return whole


def mine(rows: np.ndarray) -> np.ndarray:
    """Those of ``rows``, of which every process has as many, that are this process's."""
    return rows[hosts.rows(len(rows))]


Asked = list[tuple[np.ndarray, rewards.Started]]  # own rows of a batch, and their scores as far as they are known


def listener(
    run: runs.Run, batch: batches.PromptBatch, asked: Asked
) -> Callable[[np.ndarray, rollout.RolloutBatch], None] | None:
    """Where a judge scores, what asks it about every wave while the next one is sampled; fills ``asked``."""
    if not run.scorer.judged:
        return None

    here = hosts.rows(len(batch.records))

    def heard(rows: np.ndarray, drawn: rollout.RolloutBatch) -> None:
        own = np.flatnonzero((rows >= here.start) & (rows < here.stop))
        drawn, rows = learner.take(drawn, own), rows[own]
        texts, records = rollout.texts(drawn, run.tokenizer), [batch.records[row] for row in rows]
        given = answers.completed(drawn, texts, records, run.encoder.architecture.eos_ids)
        asked.append((rows - here.start, run.scorer.start(given)))

    return heard


def decoded(asked: Asked) -> list[list[str]]:
    """The texts of this process's prompts, whose waves were all ``asked`` about, in the order of the batch."""
    texts = {row: said for rows, part in asked for row, said in zip(rows.tolist(), part.answers.texts, strict=True)}
    return [[*texts[row]] for row in range(len(texts))]


def score(
    batch: batches.PromptBatch,
    rollouts: rollout.RolloutBatch,
    texts: list[list[str]],
    scorer: rewards.Scorer,
    architecture: Any,
    memory: estimators.Memory,
    asked: Sequence[tuple[np.ndarray, rewards.Started]] = (),
) -> Sampled:
    """Computes the rewards of the completions and the loss mask.

    Every process scores its own rows, of which ``texts`` are, and gets the texts and scores of all; ``asked`` are those
    that a judge scores already.
    """
    here = hosts.rows(len(batch.records))
    given = answers.completed(learner.take(rollouts, here), texts, batch.records[here], architecture.eos_ids)
    scores = scorer.finish(asked, memory.quantiles) if asked else scorer(given, memory.quantiles)
    scores, finished = hosts.gathered((scores, given.finished))
    texts = [own for part in hosts.everyone(texts) for own in part]
    learned = np.asarray(rollouts.mask)
    if scorer.sampling.truncated == "mask":
        learned = np.asarray(losses.mask_truncated(rollouts.mask, finished))
    return Sampled(batch, rollouts, texts, scores, finished, learned)


def require_scores(step: int, seen: list[Sampled], reward: options.Reward) -> None:
    """Stops a run in which nothing is scored any more, as when a judge is down.

    Raises:
        ValueError: if no completion of the step has a score.
    """
    if all(np.isnan(part.rewards).all() for part in seen):
        count = sum(part.rewards.size for part in seen)
        raise ValueError(
            f"got no score by {' '.join(reward.components)} for any of the {count} completions of step {step}; wanted "
            "scores: mend what scores, and the same command goes on after the last checkpoint"
        )


def too_few_scores(step: int, share: float, reward: options.Reward) -> ValueError:
    """The error that stops a run after a step of which too much was not scored."""
    return ValueError(
        f"got {share:.0%} of the completions of step {step} without a score by {' '.join(reward.components)}; wanted "
        f"at most reward.max_unscored={reward.max_unscored:.0%}: the step is saved, see reward/unscored in "
        "metrics.jsonl; mend what scores, and the same command goes on"
    )


def require_range(config: options.Config, step: int, seen: list[Sampled]) -> None:
    """Checks that the rewards of a step are what the estimator and fair sampling are defined for.

    Raises:
        ValueError: with the rewards, and what to change.
    """
    low, high = -np.inf, np.inf
    if config.algorithm in fairness.FAMILY:
        low = -config.fairness.shift
    if config.algorithm == "group_dro":
        low, high = 0.0, 1.0
    if config.data.sampling == "fair":
        high = 1.0
    rewards = np.concatenate([part.rewards.ravel() for part in seen])
    scored = rewards[~np.isnan(rewards)]
    if scored.size and (scored.min() < low - 1e-6 or scored.max() > high + 1e-6):
        raise ValueError(
            f"got rewards from {scored.min():g} to {scored.max():g} in step {step}, with algorithm={config.algorithm}, "
            f"data.sampling={config.data.sampling}, fairness.shift={config.fairness.shift:g}; wanted rewards from "
            f"{low:g} to {high:g}: scale the components of reward.components"
        )


def observe(prompts: Prompts, seen: list[Sampled]) -> None:
    """Tells the sampler of prompts how all those of the step were answered, also those thrown away."""
    parts = zip(*((part.rewards, part.batch.domains, part.batch.groups) for part in seen), strict=True)
    scores, domains, groups = (np.concatenate(part) for part in parts)
    prompts.observe(np.minimum(scores, 1), domains, groups)  # weights such as .7, .2 and .1 sum to a little more


def estimate(
    kept: Kept,
    seen: list[Sampled],
    memory: estimators.Memory,
    config: options.Config,
    scorer: rewards.Scorer,
    devices: jax.sharding.Mesh,
) -> tuple[jax.Array, estimators.Memory, dict[str, jax.Array]]:
    """Computes advantages (P, G) of the whole rollout batch, the next memory, and diagnostics of the weights."""
    room = (config.sampling.tries - len(seen)) * len(kept.rows)  # pads to one shape, one program; NaN is not counted
    compared, domains, groups = (
        np.concatenate([*parts, np.full((room, *parts[0].shape[1:]), fill, parts[0].dtype)])
        for parts, fill in (
            ([part.compared for part in seen], np.nan),
            ([part.batch.domains for part in seen], 0),
            ([part.batch.groups for part in seen], -1),
        )
    )
    scored = estimators.Scored(
        compared,
        domains,
        groups,
        kept.rows.astype(np.int32),
        kept.learned.sum(-1, dtype=np.int32),
        scorer.summands(kept.scores) if config.algorithm == "gdpo" else None,
    )
    scored = jax.device_put(scored, mesh.whole(devices))
    advantage, memory, watched = _estimate(
        scored,
        memory,
        algorithm=config.algorithm,
        focus=config.focus,
        settings=config.fairness,
        weights=scorer.weights,
    )
    quantiles = scorer.observe(memory.quantiles, [(part.scores, part.batch.records) for part in seen])
    return advantage, memory._replace(quantiles=jax.device_put(quantiles, mesh.whole(devices))), watched


@functools.partial(jax.jit, static_argnames=("algorithm", "focus", "settings", "weights"))
def _estimate(
    scored: estimators.Scored,
    memory: estimators.Memory,
    *,
    algorithm: str,
    focus: float,
    settings: options.Fairness,
    weights: tuple[float, ...],
) -> tuple[jax.Array, estimators.Memory, dict[str, jax.Array]]:
    return estimators.estimate(
        algorithm, scored, memory, focus=focus, step_size=settings.step_size, weights=weights, **settings.weighing
    )


def policy_batch(sampled: Sampled, advantage: np.ndarray) -> learner.PolicyBatch:
    """The input of the update, on the host: the rows of this process."""
    rollouts, here = sampled.rollouts, hosts.rows(len(advantage))
    arrays = rollouts.tokens[here], sampled.learned[here], rollouts.logprobs[here]
    return learner.PolicyBatch(sampled.batch.prompt, *arrays, advantages=advantage[here])


def micro_batches(
    batch: learner.PolicyBatch, config: options.Config, ladder: Sequence[lengths.Size]
) -> list[list[learner.PolicyBatch]]:
    """The micro-batches of each mini-batch, prompts of like size together, without padding that they do not need."""
    sizes, parts = hosts.gathered(models.sizes(batch.prompt)), max(config.update.accumulation, 1)
    cut = {size: dataclasses.replace(batch, prompt=models.cut(batch.prompt, *size)) for size in ladder}
    each = learner.split(hosts.by_process(len(sizes)).T, config.update.mini_batches)
    start = hosts.rows(len(sizes)).start
    return [
        [learner.take(cut[size], mine(rows[own]) - start) for own, size in lengths.groups(ladder, sizes[rows], parts)]
        for rows in (part.T.reshape(-1) for part in each)
    ]


def update(
    state: learner.TrainState,
    batch: learner.PolicyBatch,
    config: options.Config,
    encoder: batches.Encoder,
    devices: jax.sharding.Mesh,
    reference: Callable[[Any], Any],
) -> tuple[learner.TrainState, dict[str, np.floating]]:
    """Runs ``passes`` x ``mini_batches`` clipped updates; returns the state and the mean metrics.

    Args:
        state: donated.
        batch: the whole rollout batch, on the host; of several processes, the rows of this one.
        config: options of the run.
        encoder: of the run: the model's architecture, and the sizes to which prompts are padded.
        devices: the mesh.
        reference: function from the parameters to those of the reference policy of the KL term (``update.beta``).
    """
    spec = config.update
    shared: dict = dict(
        architecture=encoder.architecture,
        temperature=config.sampling.temperature,
        compute=config.model.compute,
        place=lambda x: mesh.put(x, devices),
    )
    mini_batches = micro_batches(batch, config, encoder.sizes)
    scores: list[tuple[Any, Any]] = [("old", state.params)] if spec.per_step > 1 else []
    scores += [("reference", reference(state.params))] if spec.beta else []
    for name, params in scores:
        score = functools.partial(learner.with_logprobs, params, policy=name, chunks=max(spec.chunks, 1), **shared)
        mini_batches = [[score(piece) for piece in pieces] for pieces in mini_batches]
    del scores
    collected = []
    for pieces in mini_batches * spec.passes:
        state, metrics = learner.policy_step(
            state,
            pieces,
            **shared,
            update=spec,
            optim=config.optim,
            steps=config.steps * spec.per_step,
            freeze=config.model.freeze,
        )
        collected.append(metrics)
    metrics = jax.device_get(collected)
    means = {name: np.mean([m[name] for m in metrics]) for name in metrics[0]}
    plain = ("loss", "optim/grad_norm")
    return state, {name if name in plain else f"policy/{name}": value for name, value in means.items()}


def main() -> None:
    """Runs the command line."""
    commandline.run(train, prog="python -m fairgrpo_jax.train", description=__doc__)


if __name__ == "__main__":
    main()
