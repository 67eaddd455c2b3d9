"""What the log says of a step of reinforcement learning."""

from collections.abc import Mapping

import jax
import numpy as np

from fairgrpo_jax import batches, chunking, config as options, grouping, lengths, rewards
from fairgrpo_jax.drawn import Sampled
from fairgrpo_jax.plan import utilisation


def step_metrics(
    kept: Sampled, seen: list[Sampled], advantage: np.ndarray, encoder: batches.Encoder, scorer: rewards.Scorer
) -> dict[str, np.floating | float]:
    """Rewards and lengths of the step, and for each group its mean reward and its share of |advantage|.

    Rewards are means over the scored completions of all sampled prompts; ``reward/kept_mean`` is the mean over the
    prompts learned from. Groups with completions that were not scored have their share as ``reward/unscored/...``.
    ``rollout/length_best`` and ``length_worst`` are of the completions with the highest and with the lowest reward of
    their prompt, over the prompts whose rewards differ: a loss that divides by length lets the latter grow.
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
    highest, lowest = paid.max(-1, keepdims=True), paid.min(-1, keepdims=True)  # NaN where one is not scored
    for name, extreme in (("best", highest), ("worst", lowest)):
        its = (paid == extreme) & (highest > lowest)
        if its.any():
            values[f"rollout/length_{name}"] = lengths[its].mean()
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
    shares = [lengths.padding(encoder.sizes, part.batch.sizes, parts) for part in seen]
    spent = sum(value for name, value in values.items() if name.startswith("time/"))
    rates = {
        "speed/rollout_tokens_per_s": tokens / max(values["time/rollout"], 1e-9),
        "speed/data_wait_share": values["time/data"] / max(spent, 1e-9),
    } | {f"speed/padding/{name}": share for name, share in zip(lengths.Size._fields, np.mean(shares, 0), strict=True)}
    prompt, patches = kept.batch.sizes.mean(0)
    mfu = utilisation.update_mfu(
        architecture,
        config,
        prompt=int(prompt),
        completion=float(kept.rollouts.mask.sum(-1).mean()),
        patches=int(patches),
        seconds=values["time/update"],
        device_kind=devices.devices.flat[0].device_kind,
        count=devices.size,
    )
    return rates if mfu is None else rates | {"speed/update_mfu": mfu}
