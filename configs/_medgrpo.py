"""Shared parts of the runs of MedGRPO (arXiv 2512.06581): supervised on eight video tasks, then reinforced on four.

Known of the paper, second-hand: three epochs of supervision at learning rate 5e-7, then 5,000 steps of GRPO at 5e-7
with 8 completions, clip bounds 0.2 and 0.3 and no KL term, on 8 H100; rewards for grounding in time and space and for
captions of videos and regions, each on the logistic scale (k = 3) of the supervised policy's percentiles; captions by
half similarity, half a judge (GPT-4.1) in five dimensions. Known from the authors' inference code: frames of 6,272 to
37,632 pixels, all that are listed, plain answers without thought, 256 new tokens. In all likelihood their trainer is
EasyR1, of which the advantage, the mean over tokens, weight decay 0.01 and the constant rate are defaults.

Ours, since no source is known: 64 prompts a step, the factor of format (``rewards.medvid.components``), the clip of the
percentiles' range, judge and similarity both on their scales, the share of the tasks (that of the data).
"""

import dataclasses
from pathlib import Path

from fairgrpo_jax.config import Config, Data, Evaluation, Fairness, Model, Optim, Reward, Sampling, Update, Warmup


GROUNDING = ("tag@*/tal,normalised", "tag_form@*/tal,gate", "stg@*/stg,normalised", "stg_form@*/stg,gate")
CAPTIONS = "@*/video_summary@*/region_caption"
# Of tasks that are not reinforced, for the evaluation alone.
WATCHED = ("nap@*/next_action", "sa@*/skill_assessment", "cvs@*/cvs_assessment", "dvc@*/dense_captioning")

# The rows of the paper's ablation: the tasks that are reinforced, and the components of the reward.
METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "full": (
        ("tal", "stg", "video_summary", "region_caption"),
        (*GROUNDING, f"similarity{CAPTIONS}=0.5,normalised", f"judge{CAPTIONS}=0.5,normalised"),
    ),
    "no_normalisation": (
        ("tal", "stg", "video_summary", "region_caption"),
        ("tag@*/tal", "tag_form@*/tal,gate", "stg@*/stg", "stg_form@*/stg,gate")
        + (f"similarity{CAPTIONS}=0.5", f"judge{CAPTIONS}=0.5"),
    ),
    "grounding": (("tal", "stg"), (*GROUNDING, f"similarity{CAPTIONS}")),
    "captions": (
        ("video_summary", "region_caption"),
        ("tag@*/tal", "stg@*/stg", f"similarity{CAPTIONS}=0.5,normalised", f"judge{CAPTIONS}=0.5,normalised"),
    ),
    "captions_without_judge": (
        ("video_summary", "region_caption"),
        ("tag@*/tal", "stg@*/stg", f"similarity{CAPTIONS},normalised"),
    ),
}


def method(config: Config, name: str) -> Config:
    """The config with one of ``METHODS``."""
    tasks, components = METHODS[name]
    scaled = any("normalised" in part for part in components)
    reward = dataclasses.replace(
        config.reward, components=(*components, *WATCHED), scale="supervised" if scaled else "running"
    )
    return dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=tasks), reward=reward)


def paper(name: str, method_: str, *, model: Model, prompt_length: int, num_patches: int) -> Config:
    """A run of the paper with one of ``METHODS``."""
    config = Config(
        name=name,
        algorithm="grpo",
        mesh="8x1",
        steps=5000,
        prompts=64,
        rollouts=8,
        checkpoint_every=100,
        data=Data(
            name="medvidbench",
            plain_answers=True,
            num_frames=0,
            prompt_length=prompt_length,
            num_patches=num_patches,
            min_pixels=6272,
            max_pixels=37632,
            over_length="truncate_media",
            buckets=8,
        ),
        model=model,
        warmup=Warmup(
            epochs=3,
            split="train",
            batch=64,
            accumulation=8,
            optim=Optim(lr=5e-7, warmup_steps=0, schedule="constant"),
        ),
        sampling=Sampling(max_new_tokens=256, dtype="bfloat16"),
        reward=Reward(window=64),
        update=Update(clip_low=0.2, clip_high=0.3, dual_clip=3.0),
        optim=Optim(lr=5e-7, warmup_steps=0, schedule="constant"),
        fairness=Fairness(history="ring"),
        evaluation=Evaluation(every=500, batch=8, records=512),
    )
    return method(config, method_)


def checkpoint(folder: str) -> Model:
    """A published checkpoint, computed in bfloat16."""
    return Model(path=Path(folder), compute="bfloat16")
