"""How an audit is made."""

import dataclasses
from collections.abc import Mapping

from fairgrpo_jax import demographics
from fairgrpo_jax.audit.multiplicity import ADJUSTMENTS
from fairgrpo_jax.demographics import Scheme


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an audit is made.

    Args:
        scheme: attributes and the edges of age groups.
        positive: the class whose rates are wanted by themselves, such as ``"yes"``; it must occur in the labels.
        reference: the group of each attribute that others are compared with, by its name or key; by default the one
            with most patients.
        least: patients; smaller groups are shown, and take no part in gaps, tests and words about the worst.
        level: coverage of the intervals.
        num_resamples: resamples of the patients.
        num_permutations: deals of the patients to groups; more are taken where many tests are adjusted.
        adjust: ``"holm"``, ``"bh"`` or ``"none"``, over all tests of the audit.
        seed: random seed.
    """

    scheme: Scheme = demographics.DEFAULT
    positive: str | None = None
    reference: Mapping[str, str] = dataclasses.field(default_factory=dict)
    least: int = 30
    level: float = 0.95
    num_resamples: int = 1000
    num_permutations: int = 1000
    adjust: str = "holm"
    seed: int = 0

    def __post_init__(self):
        """Checks ranges.

        Raises:
            ValueError: if an option is out of its range.
        """
        if not 0 < self.level < 1 or self.least < 2 or self.num_resamples < 100 or self.num_permutations < 100:
            raise ValueError(
                f"got level={self.level}, least={self.least}, num_resamples={self.num_resamples}, num_permutations="
                f"{self.num_permutations}; wanted 0 < level < 1, at least 2 patients, and at least 100 of the others"
            )
        if self.seed < 0:
            raise ValueError(f"got seed={self.seed}; wanted a seed >= 0")
        if self.adjust not in ADJUSTMENTS:
            raise ValueError(f"got adjust={self.adjust!r}; wanted one of {', '.join(ADJUSTMENTS)}")


DEFAULT = Settings()
