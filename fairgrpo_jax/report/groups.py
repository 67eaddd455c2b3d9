"""What the report says of groups of patients: the figures, gaps and tests of ``fairgrpo_jax.audit``, run by run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fairgrpo_jax import audit
from fairgrpo_jax.audit import intervals, runs
from fairgrpo_jax.demographics import DEFAULT, JOINT, Scheme
from fairgrpo_jax.report.results import Series


SETTINGS = audit.Settings()
FIGURES = ("top1", "f1")
Pair = tuple[int, int]  # positions of two series: the later one, and what is subtracted
# The fairness measures: name, description, key of metrics.fairness_report, format.
MEASURES = (
    ("PP", "predictive parity: gap of the false discovery rate, × 100", "paper/PP", ".1f"),
    ("EOD", "equal opportunity: gap of the true positive rate, × 100", "paper/EOD", ".1f"),
    ("FPR_Diff", "gap of the false positive rate, × 100", "paper/FPR_Diff", ".1f"),
    ("equalized odds", "the larger gap of both rates, × 100", "overall/equalized_odds_diff", ".1f"),
    ("σF1", "standard deviation of F1 between groups", "paper/σF1", ".3f"),
    ("ΔF1", "gap of F1", "paper/ΔF1", ".3f"),
    ("σAcc", "standard deviation of Acc between groups, × 100", "paper/σAcc", ".1f"),
    ("ΔAcc", "gap of Acc, × 100", "paper/ΔAcc", ".1f"),
    ("Acc", "accuracy of each class against the rest, mean over classes, × 100", "paper/Acc", ".1f"),
    ("F1", "macro F1", "paper/F1", ".3f"),
    ("Acc_ES", "Acc / (1 + its standard deviation)", "paper/Acc_ES", ".1f"),
    ("F1_ES", "F1 / (1 + σF1)", "paper/F1_ES", ".3f"),
    ("joint σF1", "standard deviation of F1 between joint groups", "overall/joint_f1_std", ".3f"),
    ("worst F1", "lowest F1 of a group by one attribute, of all datasets", "overall/worst_f1", ".3f"),
    ("worst group", "the group that has it", "overall/worst_group", ".3f"),
    ("best F1", "highest F1 of a group", "overall/best_f1", ".3f"),
    ("best group", "the group that has it", "overall/best_group", ".3f"),
)


class Estimate(NamedTuple):
    """A figure, a gap or a difference, with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float
    p: float | None = None  # adjusted; None if it was not tested
    expected: float = math.nan  # of a gap: its mean if the groups did not differ

    @property
    def clear(self) -> bool:
        """Whether chance does not explain it."""
        return self.p is not None and self.p <= 1 - SETTINGS.level


NOTHING = Estimate(math.nan, math.nan, math.nan)


class Group(NamedTuple):
    """A group of patients in a dataset."""

    attribute: str
    name: str
    records: int
    patients: int
    small: bool  # too few patients to be compared
    known: bool
    values: dict[str, list[Estimate]]  # by figure, one per series
    differences: dict[str, list[Estimate]]  # by figure, one per pair


class Gap(NamedTuple):
    """The gap between the groups of an attribute."""

    attribute: str
    values: dict[str, list[Estimate]]
    differences: dict[str, list[Estimate]]
    ends: dict[str, list[tuple[str | None, str | None]]]  # by figure and series: names of the worst and the best group


class Dataset(NamedTuple):
    """The held-out records of one dataset."""

    name: str
    records: int
    patients: int
    groups: list[Group]  # everybody first, then attribute by attribute, joint groups last
    gaps: dict[str, Gap]  # by attribute; empty without tests
    figures: list[str]  # those of ``FIGURES`` that there are

    @property
    def attributes(self) -> list[str]:
        """The single attributes that are known for some record."""
        return [name for name in dict.fromkeys(g.attribute for g in self.groups) if name not in ("all", JOINT)]

    def of(self, *attributes: str) -> list[Group]:
        """The groups of these attributes."""
        return [group for group in self.groups if group.attribute in attributes]


class Held(NamedTuple):
    """What is said of the records that all series have."""

    pairs: list[Pair]
    datasets: list[Dataset]
    whole: Dataset | None  # all datasets as one, without groups; None without records
    published: list[dict[str, Any]]  # the figures of ``metrics.fairness_report`` in each series
    shifts: dict[tuple[Pair, str, str, str, str], Estimate]  # by pair, dataset, attribute, group and figure

    def at(self, pair: Pair) -> int:
        """The place of a pair among the differences."""
        return self.pairs.index(pair)


def common(columns: Sequence[Series]) -> list[str]:
    """The records that all series have, with the same reference answer."""
    first, *others = [column.rows for column in columns] or [{}]
    told = ("dataset", "answer")
    return sorted(
        uid
        for uid, row in first.items()
        if all(uid in other and all(other[uid][name] == row[name] for name in told) for other in others)
    )


def held(
    columns: Sequence[Series], scheme: Scheme = DEFAULT, pairs: Sequence[Pair] = (), *, tests: bool = True
) -> Held:
    """Audits every series, and the differences of pairs of them, on the records that all have.

    Args:
        columns: evaluations.
        scheme: the groups to distinguish.
        pairs: of series to compare.
        tests: whether gaps are wanted, with their tests.
    """
    uids, pairs = common(columns), list(dict.fromkeys(pairs))
    if not uids:
        return Held(pairs, [], None, [], {})
    rows = [[column.rows[uid] for uid in uids] for column in columns]
    names = [row["dataset"] for row in rows[0]]
    patients = [(row["dataset"], str(row["patient"])) for row in rows[0]]
    people = runs.attributes(rows[0], scheme)
    said = [[row["prediction"] or None for row in one] for one in rows]
    labels = [str(row["answer"]) for row in rows[0]]
    settings = audit.Settings(scheme=scheme)
    found, whole = (
        [
            audit.examine(one, labels, its, datasets=of, patients=patients, settings=settings, tests=tests)
            for one in said
        ]
        for of, its in ((names, people), (None, {}))
    )
    shifts = {}
    for of, its in ((names, people), (None, {})):
        for old in dict.fromkeys(old for _, old in pairs):
            models = {str(place): said[place] for place in (old, *(new for new, other in pairs if other == old))}
            compared = audit.compare(models, labels, its, datasets=of, patients=patients, settings=settings)
            for row in compared:
                key = (row["dataset"] if of else "", row["attribute"], row["group"], row["figure"])
                shifts[(int(row["model"]), old), *key] = _estimate(row, "difference")
    return Held(
        pairs,
        [_dataset(place, found, pairs, shifts) for place in range(len(found[0]["datasets"]))],
        _dataset(0, whole, pairs, shifts, name=""),
        [_published(one) for one in found],
        shifts,
    )


def _dataset(
    place: int,
    found: Sequence[Mapping[str, Any]],
    pairs: Sequence[Pair],
    shifts: Mapping[Any, Estimate],
    name: str | None = None,
) -> Dataset:
    head = found[0]["datasets"][place]
    key = head["dataset"] if name is None else name
    rows = [[row for row in one["groups"] if row["dataset"] == head["dataset"]] for one in found]
    figures = [figure for figure in FIGURES if figure in rows[0][0]["figures"]]

    def moved(attribute: str, group: str) -> dict[str, list[Estimate]]:
        return {f: [shifts.get((pair, key, attribute, group, f), NOTHING) for pair in pairs] for f in figures}

    groups = [
        Group(
            row["attribute"],
            row["name"],
            row["n"],
            row["patients"],
            row["small"],
            row["known"],
            {f: [_estimate(same["figures"][f], "value") for same in its] for f in figures},
            moved(row["attribute"], row["group"]),
        )
        for row, its in zip(rows[0], zip(*rows, strict=True), strict=True)
    ]
    tested = [[row for row in one["gaps"] if row["dataset"] == head["dataset"]] for one in found]
    gaps = {}
    for attribute in dict.fromkeys(row["attribute"] for row in tested[0]):
        its = {
            f: [next(r for r in one if (r["attribute"], r["figure"]) == (attribute, f)) for one in tested]
            for f in figures
        }
        values = {f: [_estimate(row, "gap") for row in own] for f, own in its.items()}
        ends = {f: [(row["worst"], row["best"]) for row in own] for f, own in its.items()}
        gaps[attribute] = Gap(attribute, values, moved(attribute, "gap"), ends)
    return Dataset(key, head["n"], head["patients"], groups, gaps, figures)


def _estimate(row: Mapping[str, Any], name: str) -> Estimate:
    value, low, high, expected = (
        math.nan if x is None else x for x in (row[name], row["low"], row["high"], row.get("expected"))
    )
    return Estimate(value, low, high, row.get("p_adjusted"), expected)


def _published(found: Mapping[str, Any]) -> dict[str, Any]:
    """The published figures, with the worst and best groups named as in tables, and gaps of rates in hundredths."""
    report = dict(found["published"])
    names = {"/".join((g["dataset"], g["attribute"], g["group"])): g for g in found["groups"]}
    for key in ("overall/worst_group", "overall/best_group"):
        if report.get(key) in names:
            group = names[report[key]]
            report[key] = "/".join((group["dataset"], group["attribute"], group["name"]))
    if "overall/equalized_odds_diff" in report:
        report["overall/equalized_odds_diff"] *= 100
    return report


def measures(found: Held) -> list[tuple[str, str, str, list[float | str]]]:
    """Rows (name, description, format, value in each series) of the published fairness measures."""
    return [
        (name, meaning, form, [report[key] for report in found.published])
        for name, meaning, key, form in MEASURES
        if found.published and key in found.published[0]
    ]


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates from different patients, such as those of several datasets, with its interval.

    >>> mean([Estimate(0.2, 0.1, 0.3), Estimate(0.4, 0.3, 0.5)])[0]
    0.30000000000000004
    """
    value, low, high = intervals.mean(np.array([one[:3] for one in estimates]).T)
    return Estimate(float(value), float(low), float(high))


def joint(found: Held, pair: Pair) -> tuple[Estimate, Estimate, Estimate] | None:
    """By how much the gap of F1 between joint groups, its worst and its best group differ, means over datasets."""
    moved = {
        group: [
            shift
            for (one, dataset, attribute, name, figure), shift in found.shifts.items()
            if (one, attribute, name, figure) == (pair, JOINT, group, "f1") and dataset and math.isfinite(shift.value)
        ]
        for group in ("gap", "worst", "best")
    }
    if not moved["gap"]:
        return None
    return mean(moved["gap"]), mean(moved["worst"]), mean(moved["best"])


def headline(found: Held, pairs: Sequence[Pair]) -> list[tuple[str, list[Estimate], list[Estimate]]]:
    """The main numbers: name, one estimate per series, one per pair."""
    if found.whole is None:
        return []
    everybody = found.whole.groups[0]
    moved = [everybody.differences["top1"][found.at(pair)] for pair in pairs]
    rows = [("exactly right, all records", everybody.values["top1"], moved)]
    scored = [table.groups[0] for table in found.datasets if "f1" in table.figures]
    if scored:
        values = [mean([own.values["f1"][place] for own in scored]) for place in range(len(found.published))]
        moved = [mean([own.differences["f1"][found.at(pair)] for own in scored]) for pair in pairs]
        rows.append(("F1, mean over datasets", values, moved))
    cells = [
        (gap, [group for group in table.of(JOINT) if group.known and not group.small])
        for table in found.datasets
        if "f1" in table.figures and (gap := table.gaps.get(JOINT)) and math.isfinite(gap.values["f1"][0].value)
    ]
    if not cells:
        return rows
    moved = [joint(found, pair) or (NOTHING,) * 3 for pair in pairs]
    gaps, worst, best = list[Estimate](), list[Estimate](), list[Estimate]()
    for series in range(len(found.published)):
        own = [gap.values["f1"][series] for gap, _ in cells]
        gaps.append(mean(own)._replace(expected=float(np.mean([one.expected for one in own]))))
        scores = [[group.values["f1"][series] for group in compared] for _, compared in cells]
        worst.append(mean([min(its, key=_value) for its in scores]))
        best.append(mean([max(its, key=_value) for its in scores]))
    named = {"gap of F1 between joint groups": gaps, "F1 of the worst joint group": worst}
    named["F1 of the best joint group"] = best
    return rows + [(name, values, [one[i] for one in moved]) for i, (name, values) in enumerate(named.items())]


def _value(one: Estimate) -> float:
    return one.value
