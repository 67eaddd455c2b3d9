"""The options of the reward: its components, how they are brought to one scale, and what happens without a score."""

import dataclasses
import re
from pathlib import Path
from typing import Literal

from fairgrpo_jax.config.checks import require, require_finite


FLAGS = ("normalised", "gate", "messages")
FORM = "NAME[@WHERE ...][=WEIGHT][,normalised][,gate][,messages]"


@dataclasses.dataclass(frozen=True)
class Component:
    """One part of a reward; as text ``NAME[@WHERE ...][=WEIGHT][,FLAG ...]``, such as ``judge@*/video_summary=0.5``.

    Attributes:
        name: one of ``rewards.NAMES``, or a function of yours as ``package.module:function``.
        only: the records that it applies to: ``DATASET``, ``DATASET/TASK`` or ``*/TASK``; none for all.
        weight: its factor in the sum.
        normalised: whether its score passes through the logistic function of its dataset and task
            (``normalization.logistic``).
        gate: whether the sum is multiplied by it, after normalisation, instead of adding it.
        messages: whether a function of yours gets prompts and completions as lists of messages instead of text.

    Raises:
        ValueError: for a weight that is not a positive number; for a gate with a weight or normalisation, which would
            not leave 0 as it is.

    >>> Component.parse("judge@NurViD/TAG@*/STG=0.5,normalised")
    Component(name='judge', only=('NurViD/TAG', '*/STG'), weight=0.5, normalised=True, gate=False, messages=False)
    >>> str(Component("parsed", gate=True))
    'parsed,gate'
    """

    name: str
    only: tuple[str, ...] = ()
    weight: float = 1.0
    normalised: bool = False
    gate: bool = False
    messages: bool = False

    def __post_init__(self):
        require(0 < self.weight < float("inf"), f"{self.name}={self.weight}", "a weight above 0")
        plain = self.weight == 1 and not self.normalised
        require(not self.gate or plain, f"{self}", "a gate without weight and normalisation, which let a 0 be 0")

    def __str__(self) -> str:
        where = "".join(f"@{place}" for place in self.only)
        weight = "" if self.weight == 1 else f"={self.weight:g}"
        return f"{self.name}{where}{weight}" + "".join(f",{flag}" for flag in FLAGS if getattr(self, flag))

    @classmethod
    def parse(cls, text: str) -> "Component":
        """Reads the text form.

        Raises:
            ValueError: if it is another text.
        """
        whole, *flags = text.split(",")
        match = re.fullmatch(r"([^@=,\s]+)((?:@[^@=,\s]+)*)(?:=([^@=,\s]+))?", whole)
        known = match is not None and set(flags) <= set(FLAGS) and len(set(flags)) == len(flags)
        require(known, f"reward.components {text!r}", FORM)
        assert match is not None
        try:
            weight = float(match[3] or 1)
        except ValueError:
            raise ValueError(f"got reward.components {text!r}; wanted a number behind =") from None
        only = tuple(match[2].split("@")[1:])
        return cls(match[1], only, weight, **dict.fromkeys(flags, True))

    def applies(self, dataset: str, task: str) -> bool:
        """Whether it applies to records of a dataset and task.

        >>> Component.parse("judge@*/STG").applies("NurViD", "STG"), Component("exact").applies("NurViD", "")
        (True, True)
        """
        return not self.only or bool({dataset, f"{dataset}/{task}", f"*/{task}"} & set(self.only))


@dataclasses.dataclass(frozen=True)
class Reward:
    """The reward of a completion: a weighted sum of components, times the gates."""

    components: tuple[str, ...] = ("exact",)
    """Parts of the reward as NAME@WHERE=WEIGHT,normalised,gate, where all but the name may be left out, e.g. exact
    think_box=0.5 judge@*/TASK,normalised: WHERE is DATASET, DATASET/TASK or */TASK; "normalised" puts the component on
    the scale of its dataset and task; a gate multiplies the sum. NAME is built in (see docs/rewards.md)
    or package.module:function, your own in the signature of TRL or verl, with ",messages" for TRL's chat form."""
    percentiles: Path | None = None
    """Table of percentiles for "normalised" (normalization.PercentileTable as JSON); default: percentiles of the run's
    own latest scores, kept in the checkpoint."""
    scale: Literal["running", "supervised"] = "running"
    """Without a table: percentiles that follow the run's latest scores, or those of the policy after the supervised
    stage, taken once from its answers to training records, kept in percentiles.json and fixed, as in MedGRPO."""
    window: int = 1024
    """Without a table: number of scores of each dataset, task and component that percentiles are taken from."""
    steepness: float = 3.0
    """k of the logistic function of "normalised" components."""
    min_iqr: float = 0.01
    """Smallest interquartile range of "normalised" components, in their unit."""
    similarity: Path | None = None
    """Folder of the sentence encoder of the component similarity, such as all-MiniLM-L6-v2, as sentence-transformers
    publishes it; default: none, words are compared."""
    length: int = 512
    """Tokens at which the length rewards ecr and cwr reach their maximum."""
    max_unscored: float = 0.5
    """Largest share of a step's completions without a score (NaN), e.g. because a judge did not answer; above it the
    run saves and stops. A step without any score stops it at once."""

    def __post_init__(self):
        require_finite("reward.", self)
        require(0 <= self.max_unscored <= 1, f"reward.max_unscored={self.max_unscored}", "a share, 0 to 1")
        require(self.window > 0, f"reward.window={self.window}", "at least one score")
        require(self.length > 0, f"reward.length={self.length}", "at least one token")
        require(self.steepness > 0, f"reward.steepness={self.steepness}", "a positive number")
        require(self.min_iqr > 0, f"reward.min_iqr={self.min_iqr}", "a positive range")
        require(
            self.scale == "running" or self.percentiles is None,
            f"reward.scale={self.scale} with reward.percentiles={self.percentiles}",
            "one of them",
        )
        parts = self.parts
        require(
            self.scale == "running" or any(part.normalised for part in parts),
            f"reward.scale={self.scale} with reward.components={' '.join(self.components)}",
            "a component that is brought to the scale: NAME,normalised",
        )
        names = [part.name for part in parts]
        require(len(set(names)) == len(names), f"reward.components={self.components}", "each component once")
        require(
            any(not part.gate for part in parts),
            f"reward.components={self.components}",
            "at least one component that is no gate",
        )

    @property
    def largest(self) -> float:
        """The largest reward that a record can have, if no component gives more than 1, as those built in do not.

        >>> Reward(("exact", "think_box=0.5", "tag@*/tal")).largest
        2.5
        """
        places = {place for part in self.parts for place in part.only}
        datasets = {"", *(place.partition("/")[0] for place in places)}
        tasks = {"", *(place.partition("/")[2] for place in places)}
        adding = [part for part in self.parts if not part.gate]
        return max(
            sum(part.weight for part in adding if part.applies(dataset, task)) for dataset in datasets for task in tasks
        )

    @property
    def parts(self) -> tuple[Component, ...]:
        """The components."""
        return tuple(map(Component.parse, self.components))
