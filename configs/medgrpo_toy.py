"""MedGRPO's two stages on embedded clips with all eight tasks of MedVidBench; minutes on two CPU cores.

Method: MedGRPO (arXiv 2512.06581): supervision on eight tasks, percentiles of that policy's answers by source and task,
GRPO on four tasks on one scale; ``medgrpo_toy/no_normalisation`` and the other rows of the ablation by their names.
Command: ``python -m fairgrpo_jax.train medgrpo_toy``; with a judge that knows something ``--judge.path DIR``; without
any ``medgrpo_toy/words``.
Hardware: two CPU cores.
Expected: nothing about medicine, and no gain by 20 steps of reinforcement. Half of a caption's reward is by words, half
by a judge of random weights, which is noise: it shows that the parts work together.
"""

import dataclasses
from pathlib import Path

from fairgrpo_jax.config import (
    Config,
    Data,
    Evaluation,
    Fairness,
    Judge,
    Model,
    Optim,
    Reward,
    Sampling,
    Update,
    Warmup,
)
from fairgrpo_jax.configs import _medgrpo


METHODS = ("judge", "words", "no_normalisation", "grounding", "captions_without_judge")


def get_config(method: str = "judge") -> Config:
    """The presets of the paper at the size of a toy; ``words`` is ``full`` with all of a caption's reward by words."""
    config = Config(
        name="medgrpo_toy",
        algorithm="grpo",
        steps=20,
        prompts=32,
        rollouts=8,
        checkpoint_every=20,
        data=Data(name="medvid_toy", plain_answers=True, num_frames=0, prompt_length=128, num_patches=256),
        model=Model(hidden_size=32),
        warmup=Warmup(steps=400, batch=32, optim=Optim(lr=4e-3, warmup_steps=20)),
        sampling=Sampling(max_new_tokens=64),
        reward=Reward(window=64),
        update=Update(clip_low=0.2, clip_high=0.3, dual_clip=3.0),
        optim=Optim(lr=1e-4, warmup_steps=2, schedule="constant"),
        fairness=Fairness(history="ring"),
        evaluation=Evaluation(every=5, batch=64, records=160),
    )
    if method == "judge":
        return _medgrpo.method(dataclasses.replace(config, judge=Judge(path=Path("tiny"), mode="typed")), "full")
    config = _medgrpo.method(config, "full" if method in ("words", "no_normalisation") else method)
    parts = [part.replace("=0.5", "") for part in config.reward.components if not part.startswith("judge")]
    if method == "no_normalisation":
        parts = [part.replace(",normalised", "") for part in parts]
    scale = "running" if method == "no_normalisation" else config.reward.scale
    return dataclasses.replace(config, reward=dataclasses.replace(config.reward, components=tuple(parts), scale=scale))
