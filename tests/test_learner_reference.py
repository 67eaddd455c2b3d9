"""The reference policy of a run: that with which its reinforcement learning began, after a resume too."""

import dataclasses

import jax
import numpy as np
import pytest

from fairgrpo_jax import answers, config as options, learner, mesh, runs, sft, train
from tests.test_train import SMALL


CONFIG = dataclasses.replace(
    SMALL,
    mesh="2x1",
    steps=2,
    warmup=options.Warmup(steps=2, batch=32, optim=options.Optim(lr=1e-2, warmup_steps=0)),
    update=options.Update(beta=0.04),
    optim=options.Optim(lr=1e-2, warmup_steps=0),
)


def go(config, folder, count):
    """``count`` steps from where the folder stands: their metrics, and what is held at the end."""
    learned = []
    with runs.open_run(config, folder) as run:
        state, start, batches = sft.begin(run)
        first = jax.tree.map(np.array, state.params)
        for step in range(start, start + count):
            batch = next(batches)
            prompt, architecture = mesh.put(batch.prompt, run.mesh), run.encoder.architecture
            rollouts = train.sample(
                answers.sampler(state.params, config.sampling),
                batch.prompt,
                run.key("rollout", step),
                config,
                run.encoder,
                run.mesh,
            )
            sampled = train.score(batch, rollouts, [["?"] * 4] * 8, run.scorer, architecture, state.memory)
            advantage = np.random.default_rng(step).normal(size=(8, 4)).astype(np.float32)
            expected = kl(run, state, prompt, rollouts)
            ready = train.policy_batch(sampled, advantage)
            state, values = train.update(state, ready, config, run.encoder, run.mesh, run.reference)
            learned.append({name: float(value) for name, value in values.items()} | {"expected": expected})
            run.save(run.warmup_steps + step + 1, state, batches)
        held = jax.device_get(run.reference(state.params))
    return learned, first, held


def kl(run, state, prompt, rollouts):
    """The mean k3 estimate to the reference, in NumPy from log-probabilities."""
    score = jax.jit(learner.completion_logprobs, static_argnums=1)
    new, old = (
        score(p, run.encoder.architecture, prompt, rollouts.tokens) for p in (state.params, run.reference(state.params))
    )
    d = (np.asarray(new, np.float64) - np.asarray(old, np.float64))[np.asarray(rollouts.mask)]
    return (np.exp(-d) - 1 + d).mean()


@pytest.mark.slow
def test_the_reference_is_the_first_policy_after_a_resume_too(tmp_path):
    whole, first, held = go(CONFIG, tmp_path / "whole", 2)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype("bfloat16"), b), first, held)
    for row in whole:
        np.testing.assert_allclose(row["policy/kl"], row["expected"], rtol=1e-3, atol=1e-7)
    assert whole[0]["policy/kl"] < 1e-4 < 1e-3 < whole[1]["policy/kl"]  # at first the rounding to bfloat16 alone

    begun, _, _ = go(CONFIG, tmp_path / "parts", 1)
    resumed, second, again = go(CONFIG, tmp_path / "parts", 1)
    assert begun + resumed == whole
    jax.tree.map(np.testing.assert_array_equal, again, held)
    assert (second["embedding"] != first["embedding"]).any()
