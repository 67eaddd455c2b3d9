"""The estimators of ``advantages`` over again, from their formulas: loops over rollouts, exact fractions, one root.

Every mean and variance is a ratio of integers here, so nothing rounds and nothing cancels; the signatures are those of
the functions restated. Rewards are float64 with NaN = not scored.
"""

import math
from fractions import Fraction

import numpy as np


def grpo(rewards, *, epsilon=1e-6, ddof=1, leave_one_out=False, scale="prompt"):
    result, whole = np.zeros(np.shape(rewards)), list(scored(rewards).values())
    for p, i, r, prompt in rollouts(rewards):
        others = without(prompt, i)
        values = whole if scale == "batch" else list(others.values() if leave_one_out else prompt.values())
        baseline = mean(others.values() if leave_one_out else prompt.values())
        if leave_one_out and not others:
            continue
        std = deviation(values, ddof)
        if r != baseline:
            result[p, i] = float(r - baseline) / (1 if leave_one_out and std == 0 else std + epsilon)
    return result


def dr_grpo(rewards):
    return compared(rewards, lambda i, prompt: mean(prompt.values()))


def rloo(rewards):
    return compared(rewards, lambda i, prompt: mean(without(prompt, i).values()) if len(prompt) > 1 else prompt[i])


def gpg(rewards, *, correction="rewards"):
    everything = list(rollouts(rewards))
    if correction == "rewards":
        useful = [r for _, _, r, _ in everything if r != 0]
    else:
        useful = [r for _, _, r, prompt in everything if len(set(prompt.values())) > 1]
    return dr_grpo(rewards) * (len(everything) / max(len(useful), 1))


def opo(rewards, lengths):
    result = np.zeros(np.shape(rewards))
    for p, i, r, prompt in rollouts(with_tokens(rewards, lengths)):
        result[p, i] = float(r - mean(repeated(prompt, lengths[p])))
    return result


def reinforce_plus_plus(rewards, lengths, *, epsilon=1e-8):
    return whitened({(p, i): r for p, i, r, _ in rollouts(with_tokens(rewards, lengths))}, lengths, epsilon)


def reinforce_plus_plus_baseline(rewards, lengths, *, epsilon=1e-8):
    kept = rollouts(with_tokens(rewards, lengths))
    return whitened({(p, i): r - mean(prompt.values()) for p, i, r, prompt in kept}, lengths, epsilon)


def remax(rewards, greedy_rewards):
    result = np.asarray(rewards) - np.asarray(greedy_rewards)[:, None]
    return np.where(np.isnan(result), 0, result)


def pass_at_k(rewards, *, epsilon=1e-6, normalize=True):
    result = np.zeros(np.shape(rewards))
    for p, i, r, prompt in rollouts(rewards):
        others = without(prompt, i).values()
        if others and r > max(others):
            result[p, i] = float(r - max(others)) / (deviation(prompt.values()) + epsilon if normalize else 1)
    return result


def gdpo(component_rewards, weights, *, epsilon=1e-4, lengths=None):
    c = np.array(component_rewards)
    if lengths is not None:
        c[lengths == 0] = np.nan
    kept = [place for place in np.ndindex(c.shape[:2]) if not np.isnan(c[place]).all()]
    parts = [weight * grpo(c[:, :, k], epsilon=epsilon) for k, weight in enumerate(weights)]
    sums = {place: Fraction(float(sum(part[place] for part in parts))) for place in kept}
    if lengths is not None:
        return whitened(sums, lengths, 1e-8)
    result = np.zeros(c.shape[:2])
    for place in kept:
        result[place] = float(sums[place] - mean(sums.values())) / (deviation(sums.values()) + epsilon)
    return result


def scored(rewards):
    return {place: Fraction(float(r)) for place, r in np.ndenumerate(rewards) if not np.isnan(r)}


def rollouts(rewards):
    """Prompt, rollout, reward and all rewards of the prompt by rollout, of every scored rollout."""
    for p, row in enumerate(rewards):
        prompt = {i: r for (i,), r in scored(row).items()}
        for i, r in prompt.items():
            yield p, i, r, prompt


def compared(rewards, baseline):
    result = np.zeros(np.shape(rewards))
    for p, i, r, prompt in rollouts(rewards):
        result[p, i] = float(r - baseline(i, prompt))
    return result


def without(prompt, i):
    return {j: r for j, r in prompt.items() if j != i}


def with_tokens(rewards, lengths):
    return np.where(np.asarray(lengths) > 0, rewards, np.nan)


def whitened(values, lengths, epsilon):
    """One entry a token, and then the mean and the deviation of a plain list."""
    tokens = repeated(values, lengths)
    centre, std = mean(tokens), math.hypot(deviation(tokens), math.sqrt(epsilon))
    result = np.zeros(np.shape(lengths))
    for place, value in values.items():
        result[place] = float(value - centre) / std
    return result


def repeated(values, lengths):
    return [value for place, value in values.items() for _ in range(lengths[place])]


def mean(values):
    values = list(values)
    return sum(values, Fraction(0)) / max(len(values), 1)


def deviation(values, ddof=1):
    values = list(values)
    centre = mean(values)
    return math.sqrt(sum((v - centre) ** 2 for v in values) / max(len(values) - ddof, 1))


def inertia_of(x, labels, weights):
    """Weighted sum of squared distances to the clusters' means; label -1 counts for nothing."""
    total = 0.0
    for label in set(labels.tolist()) - {-1}:
        inside = labels == label
        mean = np.average(x[inside], axis=0, weights=weights[inside])
        total += np.sum(weights[inside, None] * (x[inside] - mean) ** 2)
    return total
