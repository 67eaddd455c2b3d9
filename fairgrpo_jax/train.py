"""Train a medical vision-language model by reinforcement learning and report the results by patient group.

One step, as data:

    records      -> prompts        P questions with images or video, their domain and demographic group
    prompts      -> rollouts       G sampled completions of each, with log-probabilities
    rollouts     -> rewards        (P, G): 1 where the boxed answer is right, else 0
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

import collections
import dataclasses
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich

from fairgrpo_jax import (
    advantages,
    answers,
    batches,
    chunking,
    commandline,
    config as options,
    estimators,
    evaluate,
    first_steps,
    grouping,
    learner,
    lengths,
    losses,
    mesh,
    models,
    report,
    rewards,
    rollout,
    runs,
    samples,
    sft,
    tracking,
)
from fairgrpo_jax.plan import utilisation
from fairgrpo_jax.prompts import Prompts
from fairgrpo_jax.report import tables


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
        show(run)
    return final


def show(run: runs.Run) -> None:
    """Writes the report and prints the table of results; whatever goes wrong here does not fail the run."""
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
    first = first_steps.FirstSteps(config, tracking.read_metrics(run.log.path))
    with tracking.Progress(max(config.steps, 1), config.algorithm, start=start) as progress:
        progress.note("the first evaluation and the first step compile their programs")
        for step in range(start, config.steps + 1):
            if run.stop:
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
                    texts = rollout.texts(rollouts, run.tokenizer)
                    seen.append(score(batch, rollouts, texts, run.scorer, architecture, state.memory, asked))
                    require_scores(step + 1, seen, config.reward)
                kept, drawn = refill(kept, seen, by_cell=config.data.sampling == "fair")
                if drawn["rollout/zero_variance"] == 0:
                    break
            assert kept is not None
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
            if step % config.evaluation.every == 0:
                shown = kept.batch.records[: config.evaluation.samples]
                samples.save(run.folder, step, shown, kept.texts, kept.rewards, advantage)
            values = step_metrics(kept, seen, advantage, run.encoder, run.scorer) | drawn | prompts.watched() | trained
            values |= agreement(watched.pop("clusters", None), seen) | watched | run.scorer.watched()
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


@dataclasses.dataclass(frozen=True)
class Sampled:
    """P prompts with G scored completions each, on the host."""

    batch: batches.PromptBatch
    rollouts: rollout.RolloutBatch  # NumPy leaves (P, G, T)
    texts: list[list[str]]
    scores: rewards.Scores
    finished: np.ndarray  # (P, G) bool, whether the completion ended by itself, not at the length limit
    learned: np.ndarray  # (P, G, T) bool, the loss mask: every sampled token, or only those of completions that ended

    @property
    def rewards(self) -> np.ndarray:
        """Rewards (P, G) float32, NaN = not scored."""
        return self.scores.rewards

    @property
    def compared(self) -> np.ndarray:
        """Rewards (P, G) for the advantages: also NaN where the completion is excluded from learning."""
        return np.where(self.learned.any(-1), self.rewards, np.float32(np.nan))

    def join(self, other: "Sampled") -> "Sampled":
        """Concatenates the prompts of both, these first."""
        pairs = self._arrays(), other._arrays()
        rollouts, scores, finished, learned = jax.tree.map(lambda x, y: np.concatenate([x, y]), *pairs)
        return Sampled(self.batch.join(other.batch), rollouts, [*self.texts, *other.texts], scores, finished, learned)

    def take(self, rows: np.ndarray) -> "Sampled":
        """Selects the prompts of ``rows``, in that order."""
        rollouts, scores, finished, learned = jax.tree.map(lambda x: x[rows], self._arrays())
        return Sampled(self.batch.take(rows), rollouts, [self.texts[row] for row in rows], scores, finished, learned)

    def _arrays(self) -> tuple:
        return self.rollouts, self.scores, self.finished, self.learned


@dataclasses.dataclass(frozen=True)
class Kept(Sampled):
    """The P prompts that a step learns from."""

    rows: np.ndarray  # (P,) int, their indices among all prompts sampled for the step

    @property
    def lost(self) -> tuple[np.ndarray, np.ndarray]:
        """Domains and groups of the prompts whose rewards are all equal."""
        equal = ~np.asarray(advantages.has_signal(self.compared))
        return self.batch.domains[equal], self.batch.groups[equal]


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

    The prompts of a wave run in groups of like size, of which at most two are on the devices, and are decoded together.
    ``heard`` gets the rows and completions of every wave as soon as it has ended.
    """
    count, waves, ladder = config.prompts, max(config.sampling.waves, 1), encoder.sizes
    keys = rollout.row_keys(key, count, config.rollouts)
    sizes = models.sizes(prompt)
    order = np.argsort(lengths.rung(ladder, sizes), kind="stable")
    parts = chunking.groups(count // waves, config)
    found = []
    for rows in np.split(order, waves):
        groups = [(rows[own], size) for own, size in lengths.groups(ladder, sizes[rows], parts)]
        drawn = rollout.sample(
            params,
            (mesh.put(learner.take(models.cut(prompt, *size), own), devices) for own, size in groups),
            mesh.put(keys[np.concatenate([own for own, _ in groups])], devices),
            architecture=encoder.architecture,
            num_rollouts=config.rollouts,
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            top_p=config.sampling.top_p,
            tensor=config.sampling.weights == "tensor",
            cache=config.cache_dtype,
            places=ladder[-1].tokens,
        )
        found.append((np.concatenate([own for own, _ in groups]), drawn))
        if heard is not None:
            heard(*found[-1])
    whole = jax.tree.map(lambda *parts: np.empty((count, *parts[0].shape[1:]), parts[0].dtype), *[x for _, x in found])
    for rows, drawn in found:
        for x, part in zip(jax.tree.leaves(whole), jax.tree.leaves(drawn), strict=True):
            x[rows] = part
    return whole


Asked = list[tuple[np.ndarray, rewards.Started]]  # rows of a batch, and their scores as far as they are known


def listener(
    run: runs.Run, batch: batches.PromptBatch, asked: Asked
) -> Callable[[np.ndarray, rollout.RolloutBatch], None] | None:
    """Where a judge scores, what asks it about every wave while the next one is sampled; fills ``asked``."""
    if not run.scorer.judged:
        return None

    def heard(rows: np.ndarray, drawn: rollout.RolloutBatch) -> None:
        texts, records = rollout.texts(drawn, run.tokenizer), [batch.records[row] for row in rows]
        given = answers.completed(drawn, texts, records, run.encoder.architecture.eos_ids)
        asked.append((rows, run.scorer.start(given)))

    return heard


def score(
    batch: batches.PromptBatch,
    rollouts: rollout.RolloutBatch,
    texts: list[list[str]],
    scorer: rewards.Scorer,
    architecture: Any,
    memory: estimators.Memory,
    asked: Sequence[tuple[np.ndarray, rewards.Started]] = (),
) -> Sampled:
    """Computes the rewards of the completions and the loss mask; ``asked`` are those that a judge scores already."""
    given = answers.completed(rollouts, texts, batch.records, architecture.eos_ids)
    learned = np.asarray(rollouts.mask)
    if scorer.sampling.truncated == "mask":
        learned = np.asarray(losses.mask_truncated(rollouts.mask, given.finished))
    scores = scorer.finish(asked, memory.quantiles) if asked else scorer(given, memory.quantiles)
    return Sampled(batch, rollouts, texts, scores, given.finished, learned)


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


def observe(prompts: Prompts, seen: list[Sampled]) -> None:
    """Tells the sampler of prompts how all those of the step were answered, also those thrown away."""
    parts = zip(*((part.rewards, part.batch.domains, part.batch.groups) for part in seen), strict=True)
    prompts.observe(*(np.concatenate(part) for part in parts))


def refill(kept: Kept | None, seen: list[Sampled], *, by_cell: bool = False) -> tuple[Kept, dict[str, int]]:
    """Dynamic sampling: chooses P of the prompts kept so far and the newest, preferring those whose rewards differ.

    A prompt whose rewards are all equal has no signal. If fewer than P prompts have a signal, the oldest of the others
    fill the batch.
    Source: Yu et al. 2025, DAPO (arXiv 2503.14476), equation 11, which has no limit on the tries.

    Args:
        kept: result of the previous call in the same step.
        seen: all batches of the step, the newest last.
        by_cell: a lost prompt is replaced only by one of its own demographic cell, so that the shares of the cells stay
            as they were drawn.

    Returns:
        The P prompts, and two counts for the log: ``rollout/zero_variance``, prompts without signal among them, and
        ``rollout/replaced``, prompts replaced.
    """
    new = seen[-1]
    count = len(new.rewards)
    both = new if kept is None else Sampled.join(kept, new)
    places = np.arange(count) + sum(len(part.rewards) for part in seen[:-1])
    places = places if kept is None else np.concatenate([kept.rows, places])
    teaches = np.asarray(advantages.has_signal(both.compared))
    rows = np.argsort(~teaches, kind="stable")
    if by_cell:
        rows = rows[_within(both.batch, rows, seen[0].batch)]
    rows = rows[:count]
    equal, replaced = count - int(teaches[rows].sum()), len(teaches) - count
    found = Sampled.take(both, rows)
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(Sampled)}
    return Kept(**fields, rows=places[rows]), {"rollout/zero_variance": equal, "rollout/replaced": replaced}


def _within(batch: batches.PromptBatch, rows: np.ndarray, drawn: batches.PromptBatch) -> np.ndarray:
    """Whether each of ``rows`` is among the first of its cell, as many as were ``drawn`` from it."""
    room = collections.Counter(drawn.cells)
    taken: collections.Counter[tuple[int, int]] = collections.Counter()
    first, cells = [], batch.cells
    for cell in (cells[row] for row in rows):
        first.append(taken[cell] < room[cell])
        taken[cell] += 1
    return np.array(first)


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
    """The input of the update, on the host."""
    rollouts = sampled.rollouts
    return learner.PolicyBatch(
        sampled.batch.prompt, rollouts.tokens, sampled.learned, rollouts.logprobs, advantages=advantage
    )


def micro_batches(
    batch: learner.PolicyBatch, config: options.Config, ladder: Sequence[lengths.Size]
) -> list[list[learner.PolicyBatch]]:
    """The micro-batches of each mini-batch, prompts of like size together, without padding that they do not need."""
    sizes, parts = models.sizes(batch.prompt), max(config.update.accumulation, 1)
    cut = {size: dataclasses.replace(batch, prompt=models.cut(batch.prompt, *size)) for size in ladder}
    each = learner.split(np.arange(len(sizes)), config.update.mini_batches)
    return [
        [learner.take(cut[size], rows[own]) for own, size in lengths.groups(ladder, sizes[rows], parts)]
        for rows in each
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
        batch: the whole rollout batch, on the host.
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


# ---- what is written down --------------------------------------------------------------------------------------------


def step_metrics(
    kept: Sampled, seen: list[Sampled], advantage: np.ndarray, encoder: batches.Encoder, scorer: rewards.Scorer
) -> dict[str, np.floating | float]:
    """Rewards and lengths of the step, and for each group its mean reward and its share of |advantage|.

    Rewards are means over the scored completions of all sampled prompts; ``reward/kept_mean`` is the mean over the
    prompts learned from. Groups with completions that were not scored have their share as ``reward/unscored/...``.
    """
    paid, domains, groups, lengths, finished = (
        np.concatenate(parts)
        for parts in zip(
            *((s.rewards, s.batch.domains, s.batch.groups, s.rollouts.mask.sum(-1), s.finished) for s in seen),
            strict=True,
        )
    )
    values = {
        "reward/mean": _mean(paid),
        "reward/unscored_share": np.isnan(paid).mean(),
        "rollout/length": lengths.mean(),
        "rollout/truncated_share": 1 - finished.mean(),
        "rollout/running_share": lengths.sum() / sum(s.rollouts.steps.sum() * s.rewards.shape[1] for s in seen),
    }
    if len(seen) > 1:
        values["reward/kept_mean"] = _mean(kept.rewards)
    total = np.abs(advantage).sum()
    names = [*encoder.vocabulary.cells, "unlabelled"]
    scores = jax.tree.map(lambda *parts: np.concatenate(parts), *(s.scores for s in seen))
    values |= rewards.figures(scorer, scores, domains, groups, (encoder.domains, names))
    for domain, group in sorted({*zip(domains.tolist(), groups.tolist(), strict=True)}):
        its = (kept.batch.domains == domain) & (kept.batch.groups == group)
        cell = f"{encoder.domains[domain]}/{names[group]}"
        scored = paid[(domains == domain) & (groups == group)]
        values[f"reward/group/{cell}"] = _mean(scored)
        if np.isnan(scored).any():
            values[f"reward/unscored/{cell}"] = np.isnan(scored).mean()
        values[f"advantage/share/{cell}"] = np.abs(advantage[its]).sum() / total if total else 0.0
    return values


def agreement(clusters: jax.Array | None, seen: list[Sampled]) -> dict[str, float]:
    """How well the groups that an estimator found agree with the patients' own; see ``grouping.agreement``.

    Within each dataset, averaged by the number of prompts; a dataset with one group, or without demographics, has no
    say.
    """
    if clusters is None:
        return {}
    domains, groups = (np.concatenate([getattr(s.batch, name) for s in seen]) for name in ("domains", "groups"))
    found = []
    for domain in np.unique(domains):
        its = domains == domain
        if len(np.unique(groups[its & (groups >= 0)])) > 1:
            found.append(grouping.agreement(np.asarray(clusters)[: len(domains)][its], groups[its]))
    total = sum(each["n"] for each in found)
    return {f"clusters/{name}": sum(each["n"] * each[name] for each in found) / total if total else np.nan
            for name in ("ari", "nmi")}  # fmt: skip


def _mean(rewards: np.ndarray) -> np.floating | float:
    """Mean of the scored rewards; NaN if there are none."""
    scored = rewards[~np.isnan(rewards)]
    return scored.mean() if scored.size else np.nan


def speed(
    kept: Sampled,
    seen: list[Sampled],
    values: Mapping[str, float],
    config: options.Config,
    encoder: batches.Encoder,
    devices: jax.sharding.Mesh,
) -> dict[str, float]:
    """Tokens sampled per second, shares of waiting and padding, and the utilisation of the update if it can be known.

    The devices' waiting for data is a share of the step's time; padding, of the tokens and patches of sampled prompts.
    Utilisation needs the peak rate of the device.
    """
    architecture, tokens = encoder.architecture, sum(int(part.rollouts.mask.sum()) for part in seen)
    waves = max(config.sampling.waves, 1)
    parts = waves * chunking.groups(config.prompts // waves, config)
    shares = [lengths.padding(encoder.sizes, models.sizes(part.batch.prompt), parts) for part in seen]
    spent = sum(value for name, value in values.items() if name.startswith("time/"))
    rates = {
        "speed/rollout_tokens_per_s": tokens / max(values["time/rollout"], 1e-9),
        "speed/data_wait_share": values["time/data"] / max(spent, 1e-9),
    } | {f"speed/padding/{name}": share for name, share in zip(lengths.Size._fields, np.mean(shares, 0), strict=True)}
    prompt = kept.batch.prompt
    merge = 1 if architecture.vision is None else architecture.vision.spatial_merge_size**2
    mfu = utilisation.update_mfu(
        architecture,
        config,
        prompt=int(prompt.valid.sum(1).mean()),
        completion=float(kept.rollouts.mask.sum(-1).mean()),
        patches=int((prompt.feature >= 0).sum(1).mean()) * merge,
        seconds=values["time/update"],
        device_kind=devices.devices.flat[0].device_kind,
        count=devices.size,
    )
    return rates if mfu is None else rates | {"speed/update_mfu": mfu}


def main() -> None:
    """Runs the command line."""
    commandline.run(train, prog="python -m fairgrpo_jax.train", description=__doc__)


if __name__ == "__main__":
    main()
