"""The rows of one dataset: its groups with their figures and intervals, and the gaps between them with their tests."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from fairgrpo_jax.audit import figures, intervals, tallies
from fairgrpo_jax.audit.coding import Answers, Group, People
from fairgrpo_jax.audit.settings import Settings


MOST_CLASSES = 200  # with more, as with free text, means over classes say little and get no intervals
POWER = 0.8


@dataclasses.dataclass(frozen=True)
class Part:
    """The records of one dataset.

    Attributes:
        name: of the dataset.
        people: who is in which group.
        answers: what was answered.
        rows: places of the records in the input.
    """

    name: str
    people: People
    answers: Answers
    rows: np.ndarray

    @property
    def limited(self) -> bool:
        """Whether there are too many classes for intervals of means over classes."""
        return len(self.answers.classes) > MOST_CLASSES

    @property
    def short(self) -> Answers:
        """The answers, without classes where they are too many."""
        return self.answers.short() if self.limited else self.answers

    def tests(self, positive: str | None) -> int:
        """The number of gaps that are tested, at most."""
        known = {*figures.names(self.short.classes, positive), *(figures.GAPS if self.short.classes else ())}
        return len(known & {*figures.tested(positive)}) * len(self.people.attributes)

    def told(self) -> dict[str, Any]:
        """What the dataset holds."""
        found = {"dataset": self.name, "n": len(self.rows), "patients": int(self.people.patient.max()) + 1}
        return found | {"classes": list(self.answers.classes[:MOST_CLASSES]), "limited": self.limited}

    def published(self) -> list[dict[str, Any]]:
        """The rows of ``metrics.figures``."""
        found = []
        for group in self.people.groups:
            if group.known:
                pairs = np.bincount(self.answers.pair[group.cells[self.people.cell]], minlength=self.pairs)
                values = figures.values(pairs @ self.answers.features, self.answers.classes)
                values["n"] = pairs.sum()
                head = {"dataset": self.name, "attribute": group.attribute, "group": group.key, "name": group.name}
                kept = {name: float(value) for name, value in values.items() if name != "failures"}
                found.append(head | kept)
        return found

    @property
    def pairs(self) -> int:
        """The number of different pairs of prediction and label."""
        return self.answers.features.shape[0]

    def patients(self) -> np.ndarray:
        """Patients of each group."""
        cell, patient = self.people.cell, self.people.patient
        return np.array([np.count_nonzero(np.bincount(patient[g.cells[cell]])) for g in self.people.groups])


class Drawn(NamedTuple):
    """Figures as observed and under resampling of the patients.

    Attributes:
        sums: (groups, features) as observed.
        patients: (groups,).
        compared: the places of the groups that are compared, by attribute.
        values: (groups,) of each figure.
        variance: (groups,) of each figure between resamples.
        gaps: (resamples,) of each attribute and figure.
    """

    sums: np.ndarray
    patients: np.ndarray
    compared: dict[str, list[int]]
    values: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    gaps: dict[str, dict[str, np.ndarray]]


def draw(part: Part, settings: Settings) -> Drawn:
    """Resamples the patients of a dataset."""
    answers, patients = part.short, part.patients()
    (tally,) = tallies.tally(part.people, [answers])
    compared = {name: compared_in(part.people.groups, name, patients, settings) for name in part.people.attributes}
    names = figures.names(answers.classes, settings.positive)
    drawn = {name: list[np.ndarray]() for name in names}
    gaps = {attribute: list[dict[str, np.ndarray]]() for attribute in compared}
    for block in tally.resampled(settings.num_resamples, settings.seed):
        found = figures.values(block, answers.classes, settings.positive)
        for name in names:
            drawn[name].append(found[name])
        for attribute, places in compared.items():
            if len(places) > 1:
                gaps[attribute].append(figures.gaps(block[:, places], answers.classes, settings.positive))
    sums = tally.observed()
    return Drawn(
        sums,
        patients,
        compared,
        figures.values(sums, answers.classes, settings.positive),
        {name: variance(np.concatenate(blocks), patients) for name, blocks in drawn.items()},
        {
            key: {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
            for key, blocks in gaps.items()
            if blocks
        },
    )


def compared_in(groups: Sequence[Group], attribute: str, patients: np.ndarray, settings: Settings) -> list[int]:
    """The places of the groups of an attribute that are known and not small."""
    return [
        place
        for place, group in enumerate(groups)
        if group.attribute == attribute and group.known and patients[place] >= settings.least
    ]


def variance(draws: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The variance (groups,) of resamples (resamples, groups), freed of its bias; 0 where there is none."""
    known = np.isfinite(draws)
    count = np.maximum(known.sum(0), 1)
    centred = np.where(known, draws - np.where(known, draws, 0).sum(0) / count, 0)
    return (centred**2).sum(0) / np.maximum(count - 1, 1) * patients / np.maximum(patients - 1, 1)


def estimates(
    sums: np.ndarray,
    values: Mapping[str, np.ndarray],
    spread: Mapping[str, np.ndarray],
    patients: np.ndarray,
    classes: Sequence[str],
    settings: Settings,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each figure its value and interval, (3, groups), and the number of independent records behind it, (groups,).

    See ``examine`` for the method.
    """
    records = sums[:, figures.N]
    dilution = patients / np.maximum(records, 1)
    behind = figures.support(sums, classes, settings.positive, dilution)
    z, t = intervals.quantile(settings.level), special.stdtrit(np.maximum(patients - 1, 1), (1 + settings.level) / 2)
    found = {}
    for name, variance in spread.items():
        support, unseen = behind[name]
        plain = (patients == records) & (name in figures.SHARES)
        number = np.where(plain, support, intervals.effective(values[name], variance + unseen, support))
        low, high = intervals.wilson(values[name], number, np.where(plain, z, t))
        found[name] = (np.stack([values[name], low, high]), number)
    return found


def references(people: Sequence[People], settings: Settings) -> dict[str, str]:
    """The key of the group of each attribute that the settings name.

    Raises:
        ValueError: if there is no such attribute or group.
    """
    found = {}
    for attribute, name in settings.reference.items():
        groups = [group for its in people for group in its.groups if group.attribute == attribute and group.known]
        keys = [group.key for group in groups if name in (group.name, group.key)]
        if not keys:
            there = ", ".join(dict.fromkeys(group.name for group in groups))
            known = ", ".join(dict.fromkeys(name for its in people for name in its.attributes))
            raise ValueError(
                f"got the reference group {attribute}={name}; wanted "
                + (f"one of {there}" if there else f"an attribute, one of {known or 'none'}")
            )
        found[attribute] = keys[0]
    return found


def groups(part: Part, drawn: Drawn, reference: Mapping[str, str], settings: Settings) -> list[dict[str, Any]]:
    """One row a group; see ``examine``."""
    classes = part.short.classes
    found = estimates(drawn.sums, drawn.values, drawn.variance, drawn.patients, classes, settings)
    standing = {name: _standing(part.people, name, drawn.patients, reference) for name in part.people.attributes}
    against = [standing.get(group.attribute) for group in part.people.groups]
    told = {name: _told(ends, number, against) for name, (ends, number) in found.items()}
    rows = []
    for place, group in enumerate(part.people.groups):
        row: dict[str, Any] = {"dataset": part.name, "attribute": group.attribute, "group": group.key}
        row |= {"name": group.name, "known": group.known, "n": int(drawn.sums[place, figures.N])}
        row |= {"patients": int(drawn.patients[place]), "small": bool(drawn.patients[place] < settings.least)}
        row["reference"] = against[place] == place
        if settings.positive in classes:
            counts = figures.by_class(drawn.sums)[place, list(classes).index(str(settings.positive))]
            row["positives"] = int(counts[0] + counts[2])
        rows.append(row | {"figures": {name: cells[place] for name, cells in told.items()}})
    return rows


def _standing(people: People, attribute: str, patients: np.ndarray, named: Mapping[str, str]) -> int | None:
    """The place of an attribute's reference group."""
    its = [i for i, group in enumerate(people.groups) if group.attribute == attribute and group.known]
    chosen = [i for i in its if people.groups[i].key == named.get(attribute)]
    if attribute in named:
        return chosen[0] if chosen else None
    return max(its, key=lambda i: patients[i], default=None)


def _told(ends: np.ndarray, number: np.ndarray, against: Sequence[int | None]) -> list[dict[str, Any]]:
    """A figure of each group, with its comparison with the reference group."""
    base = np.array([place if other is None else other for place, other in enumerate(against)])
    pairs = {"difference": intervals.difference, "ratio": intervals.ratio}
    compared = {name: np.stack(compare(ends, ends[:, base])) for name, compare in pairs.items()}
    known = (number > 0) & (number[base] > 0) & np.isfinite(ends[0] + ends[0, base])
    a, b = np.where(known, number, 1), np.where(known, number[base], 1)
    middle = np.clip((ends[0] * a + ends[0, base] * b) / (a + b), 0.05, 0.95)
    step = intervals.quantile(0.95) + intervals.quantile(2 * POWER - 1)
    detectable = step * np.sqrt(middle * (1 - middle) * (1 / a + 1 / b))
    rows = []
    for place, other in enumerate(against):
        row: dict[str, Any] = dict(zip(("value", "low", "high"), map(finite, ends[:, place]), strict=True))
        apart = other is not None and other != place and bool(known[place])
        row |= {name: [finite(x) for x in cells[:, place]] if apart else None for name, cells in compared.items()}
        rows.append(row | {"detectable": finite(detectable[place]) if apart else None})
    return rows


def gaps(part: Part, drawn: Drawn, permutations: int, settings: Settings) -> list[dict[str, Any]]:
    """One row for each attribute and figure; see ``examine``."""
    rows = []
    answers = part.short
    for attribute, places in drawn.compared.items():
        its = [group for group in part.people.groups if group.attribute == attribute]
        names = [part.people.groups[place].name for place in places]
        head = {"dataset": part.name, "attribute": attribute}
        tail = {"compared": names, "left_out": [group.name for group in its if group.name not in names]}
        if len(places) < 2:
            rows += [head | _no_gap(name) | tail for name in figures.names(answers.classes, settings.positive)]
            continue
        observed = figures.gaps(drawn.sums[places], answers.classes, settings.positive)
        blocks = tallies.dealt(part.people, answers, places, permutations, settings.seed)
        dealt = [figures.gaps(block, answers.classes, settings.positive) for block in blocks]
        for name, gap in observed.items():
            null = np.concatenate([block[name] for block in dealt])
            values = drawn.values[name][places] if name in drawn.values else np.array([np.nan])
            largest = np.sort(drawn.variance[name][places])[-2:].sum() if name in drawn.variance else np.nan
            row = head | _gap(name, float(gap), drawn.gaps[attribute][name], null, float(largest), settings)
            rows.append(row | _extremes(name, values, names) | tail)
    return rows


def _no_gap(name: str) -> dict[str, Any]:
    keys = ("gap", "low", "high", "std", "ratio", "worst", "best", "expected", "p", "p_adjusted", "detectable")
    return {"figure": name} | dict.fromkeys(keys)


def _gap(
    name: str, gap: float, draws: np.ndarray, null: np.ndarray, variance: float, settings: Settings
) -> dict[str, Any]:
    """A gap with its interval, and what it would be without differences."""
    tails = [(1 - settings.level) / 2, (1 + settings.level) / 2]
    draws, null = draws[np.isfinite(draws)], null[np.isfinite(null)]
    low, high = np.quantile(draws, tails) if len(draws) else (np.nan, np.nan)
    tested = (
        name in figures.tested(settings.positive) and np.isfinite(gap) and len(null) > 0 and float(np.ptp(null)) > 0
    )
    p = float((1 + np.sum(null >= gap - 1e-12)) / (1 + len(null))) if tested else None
    edge = float(np.quantile(null, settings.level)) if len(null) else np.nan
    return {
        "figure": name,
        "gap": finite(gap),
        "low": finite(low),
        "high": finite(high),
        "expected": finite(null.mean()) if len(null) else None,
        "p": p,
        "p_adjusted": None,
        "detectable": finite(edge + intervals.quantile(2 * POWER - 1) * np.sqrt(variance)),
    }


def _extremes(name: str, values: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The groups at both ends, the ratio of their figures, and the deviation between groups."""
    known = np.isfinite(values)
    if known.sum() < 2:
        return {"std": None, "ratio": None, "worst": None, "best": None}
    low, high = int(np.nanargmin(values)), int(np.nanargmax(values))
    worst, best = (high, low) if figures.FIGURES[name].better < 0 else (low, high)
    ratio = float(values[low] / values[high]) if values[high] > 0 else None
    if values[low] == values[high]:
        return {"std": 0.0, "ratio": ratio, "worst": None, "best": None}
    return {
        "std": float(np.std(values[known], ddof=1)),
        "ratio": ratio,
        "worst": names[worst],
        "best": names[best],
    }


def finite(value: Any) -> float | None:
    """A number for JSON; None for one that is not finite."""
    return float(value) if np.isfinite(value) else None
