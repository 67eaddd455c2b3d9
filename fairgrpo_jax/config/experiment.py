"""All options of one experiment, and what they must be together."""

import dataclasses
import re
import typing
from typing import Literal

from fairgrpo_jax.config.checks import require, require_finite
from fairgrpo_jax.config.judge import Judge
from fairgrpo_jax.config.rewards import Reward
from fairgrpo_jax.config.sections import (
    Data,
    Draw,
    Evaluation,
    Fairness,
    Model,
    Sampling,
    Update,
)
from fairgrpo_jax.config.stages import Optim, Warmup


Algorithm = Literal[
    "grpo",
    "dr_grpo",
    "rloo",
    "gpg",
    "opo",
    "pass_at_k",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "fair_grpo",
    "fair_grpo_nd",
    "drpo",
    "group_dro",
    "gdpo",
]


BINARY = (("exact",), ("answered",), ("letter",), ("yes_no",))  # rewards of 0 and 1
KEEP = 2  # the latest checkpoints of a run; others are deleted, but for the end of the warm-up


@dataclasses.dataclass(frozen=True)
class Config:
    """One experiment. A run folder belongs to one config: the same config resumes it, a changed one is an error."""

    name: str = "clinic"
    """Name of the preset that this config was made from."""
    algorithm: Algorithm = "fair_grpo"
    """Advantage estimator; fair_grpo and group_dro use explicit groups, fair_grpo_nd and drpo groups found by
    clustering. See docs/advantages.md for when to use which."""
    focus: float = 0.0
    """Exponent of the failure rate by which each prompt's advantages are weighted, with any estimator: 1 learns more
    from prompts whose answers are mostly wrong, 0 is the estimator itself."""
    mesh: str = "1x1"
    """Shape of the device mesh as FSDPxTENSOR, e.g. 4x1; on a CPU the devices are simulated."""
    seed: int = 0
    """Random seed of weights, data order and sampling."""
    steps: int = 300
    """Number of reinforcement learning steps."""
    prompts: int = 64
    """Number of prompts per step; a multiple of the mesh's first axis."""
    rollouts: int = 8
    """Number of completions sampled per prompt."""
    checkpoint_every: int = 50
    """Steps between checkpoints; one is also written on Ctrl-C, on SIGTERM and at the end."""
    data: Data = Data()
    draw: Draw = Draw()
    model: Model = Model()
    warmup: Warmup = Warmup()
    sampling: Sampling = Sampling()
    reward: Reward = Reward()
    judge: Judge = Judge()
    update: Update = Update()
    optim: Optim = Optim()
    fairness: Fairness = Fairness()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self):
        require_finite("", self)
        require(self.focus >= 0, f"focus={self.focus}", "an exponent >= 0")
        require(0 <= self.seed < 2**32, f"seed={self.seed}", "a seed from 0 to 2^32 - 1")
        require(
            re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", self.mesh) is not None,
            f"mesh={self.mesh!r}",
            "FSDPxTENSOR, two positive integers such as 4x1",
        )
        require(
            self.fairness.history != "ring" or self.fairness.capacity >= self.prompts * self.sampling.tries,
            f"fairness.capacity={self.fairness.capacity} with prompts x sampling.tries = "
            f"{self.prompts * self.sampling.tries}",
            "room for all prompts that a step may sample",
        )
        known = typing.get_args(Algorithm)
        require(self.algorithm in known, f"algorithm={self.algorithm!r}", f"one of {', '.join(known)}")
        require(
            0 <= self.steps <= 10**9 and self.prompts > 0,
            f"steps={self.steps}, prompts={self.prompts}",
            "0 to 10^9 steps and at least one prompt",
        )
        require(
            self.rollouts >= 2,
            f"rollouts={self.rollouts}",
            "at least 2, as a rollout is compared with the others of its prompt",
        )
        require(self.checkpoint_every > 0, f"checkpoint_every={self.checkpoint_every}", "at least 1")
        require(
            not self.evaluation.split or not (self.steps or self.warmup.own_steps or self.warmup.epochs),
            f"evaluation.split={self.evaluation.split} with steps={self.steps}, warmup.steps={self.warmup.own_steps}",
            "nothing to be trained: 0 steps of both; in a run the held-out split is answered",
        )
        parts = self.update.parts
        require(
            self.prompts % parts == 0,
            f"prompts={self.prompts} with update.mini_batches x update.accumulation = {parts}",
            f"prompts as a multiple of {parts}",
        )
        require(
            self.sampling.waves == 0 or self.prompts % self.sampling.waves == 0,
            f"prompts={self.prompts} with sampling.waves={self.sampling.waves}",
            f"sampling.waves as a divisor of {self.prompts}, or 0",
        )
        require(
            self.update.chunks == 0 or self.rollouts % self.update.chunks == 0,
            f"rollouts={self.rollouts} with update.chunks={self.update.chunks}",
            f"update.chunks as a divisor of {self.rollouts}, or 0",
        )
        binary, clustered = self.fairness.history == "binary", self.algorithm in ("fair_grpo", "fair_grpo_nd", "drpo")
        punished = self.sampling.truncated == "penalise" and clustered
        require(
            not (binary and clustered) or self.reward.components in BINARY,
            f"reward.components={self.reward.components} with fairness.history=binary, which holds rewards of 0 and 1",
            "--fairness.history ring",
        )
        require(
            not punished or (self.fairness.shift >= 1 and not binary),
            f"sampling.truncated=penalise with algorithm={self.algorithm}, fairness.shift={self.fairness.shift}, "
            f"fairness.history={self.fairness.history}",
            "rewards that are not negative in the statistics: --fairness.shift 1 --fairness.history ring",
        )
        require(
            self.sampling.truncated != "penalise" or self.algorithm != "group_dro",
            "sampling.truncated=penalise with algorithm=group_dro",
            "rewards between 0 and 1: keep or mask truncated completions",
        )
        bounded = {
            "algorithm=group_dro": self.algorithm == "group_dro",
            "data.sampling=fair": self.data.sampling == "fair",
        }
        for name in (name for name, used in bounded.items() if used):
            require(
                self.reward.largest <= 1 + 1e-6,
                f"{name} with rewards up to {self.reward.largest:g} by reward.components="
                f"{' '.join(self.reward.components)}",
                "weights whose sum is at most 1 for every record, 1 being a full success",
            )
        require(
            not binary or self.rollouts <= 16,
            f"rollouts={self.rollouts} with fairness.history='binary' (2^rollouts counts)",
            "at most 16 rollouts, or --fairness.history ring",
        )

    @property
    def media_dtype(self) -> str:
        """Dtype of the patches, which every pass casts to its own: bfloat16 if all passes are."""
        passes = {self.model.compute or self.model.dtype, self.sampling.dtype or self.model.dtype}
        return passes.pop() if len(passes) == 1 else "float32"

    @property
    def cache_dtype(self) -> str:
        """Dtype of the keys and values while sampling."""
        default = self.sampling.dtype or self.model.dtype if self.model.path is None else "bfloat16"
        return self.sampling.cache or default

    @property
    def split_sizes(self) -> dict[str, int]:
        """Sizes of the batches that are split over the first axis of the mesh, by their names in error messages."""
        sizes = {"prompts / (update.mini_batches x update.accumulation)": self.prompts // self.update.parts}
        if self.sampling.waves:
            sizes["prompts / sampling.waves"] = self.prompts // self.sampling.waves
        if self.warmup.own_steps:
            sizes["warmup.batch / warmup.accumulation"] = self.warmup.batch // self.warmup.accumulation
        return sizes | {"evaluation.batch": self.evaluation.batch}
