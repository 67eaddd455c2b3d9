"""The options of the supervised stage, and of the optimizer of either stage."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from fairgrpo_jax.config.checks import require, require_finite


@dataclasses.dataclass(frozen=True)
class Optim:
    """AdamW with a linear warm-up, then a constant learning rate or a cosine decay to zero."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int = 30
    """Updates over which the learning rate rises from zero; the first update has rate zero, as in transformers."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate schedule after the warm-up."""
    b1: float = 0.9
    """Decay rate of the first moment."""
    first_moment: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which the first moment is kept: bfloat16 saves 2 bytes a parameter, and puts it off by up to
    4 % with b1 = 0.9. The second is float32, since in bfloat16 it would stop far below the square of the gradient."""
    b2: float = 0.999
    """Decay rate of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, applied to matrices only."""
    max_grad_norm: float = 1.0
    """Gradients with a larger global norm are scaled down to this norm."""

    def __post_init__(self):
        require_finite("optim.", self)
        require(self.warmup_steps >= 0, f"optim.warmup_steps={self.warmup_steps}", "a number >= 0")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}={getattr(self, name)}", "0 <= decay < 1")
        require(self.weight_decay >= 0, f"optim.weight_decay={self.weight_decay}", "a decay >= 0")
        require(self.lr > 0, f"optim.lr={self.lr}", "a positive learning rate")
        require(self.max_grad_norm > 0, f"optim.max_grad_norm={self.max_grad_norm}", "a positive norm")


@dataclasses.dataclass(frozen=True)
class Warmup:
    """The supervised stage before reinforcement learning."""

    steps: int = 200
    """Supervised updates; 0 starts from the initial weights."""
    epochs: float | None = None
    """Passes over the records of the split, instead of steps, which are then counted from the records that fit."""
    split: str = "warmup"
    """Split of the dataset that this stage trains on."""
    run: Path | None = None
    """Run folder of an earlier `sft` (or `train`) whose supervised weights are used instead."""
    batch: int = 96
    """Records per update."""
    accumulation: int = 1
    """Number of parts into which the batch is split, their gradients summed; saves memory, changes nothing else."""
    optim: Optim = Optim(lr=2e-3, warmup_steps=20, schedule="cosine")
    """Optimizer of this stage."""

    def __post_init__(self):
        require_finite("warmup.", self)
        require(
            self.steps >= 0 and self.batch > 0,
            f"warmup.steps={self.steps}, warmup.batch={self.batch}",
            "steps >= 0 and a positive batch",
        )
        require(self.epochs is None or self.epochs > 0, f"warmup.epochs={self.epochs}", "a positive number of passes")
        require(
            self.epochs is None or self.steps > 0,
            f"warmup.epochs={self.epochs} with warmup.steps=0",
            "one of them: epochs, or no supervised stage",
        )
        require(
            self.accumulation > 0 and self.batch % self.accumulation == 0,
            f"warmup.batch={self.batch} with warmup.accumulation={self.accumulation}",
            "accumulation as a divisor of the batch",
        )

    @property
    def own_steps(self) -> int:
        """Number of supervised updates that this run does itself."""
        return 0 if self.run else self.steps

    def counted(self, records: int) -> "Warmup":
        """The stage with ``steps`` for its epochs, of so many records; a last batch that is not full counts.

        >>> Warmup(epochs=3, batch=8).counted(20).steps
        8
        """
        if self.epochs is None:
            return self
        return dataclasses.replace(self, steps=math.ceil(self.epochs * records / self.batch))
