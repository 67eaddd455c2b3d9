"""For whom does a model fail? The audit of one model's answers, as one dict."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from fairgrpo_jax import metrics
from fairgrpo_jax.audit import calibration, coding, parts
from fairgrpo_jax.audit.multiplicity import ADJUSTMENTS
from fairgrpo_jax.audit.settings import DEFAULT, Settings


def examine(
    predictions: Sequence[str | None],
    labels: Sequence[str],
    attributes: Mapping[str, Sequence[Any]],
    *,
    datasets: Sequence[str] | None = None,
    patients: Sequence[Hashable] | None = None,
    scores: Sequence[float] | np.ndarray | None = None,
    settings: Settings = DEFAULT,
    tests: bool = True,
) -> dict[str, Any]:
    """Audits one model's answers, group by group; no model and no accelerator is needed.

    Args:
        predictions: N answers, one label or several joined by ``", "``; None = no answer, which is never right.
        labels: N reference answers in the same form.
        attributes: N values of each attribute, as ``demographics.group`` reads them. Values that are not known make a
            group of their own, ``"unknown"``, which takes no part in gaps.
        datasets: N names; by default all records are of one.
        patients: N ids, unique within a dataset; by default every record is a separate patient.
        scores: N probabilities: of the positive class if ``settings.positive`` names one, else that the answer given is
            right; NaN = none.
        settings: how the audit is made.
        tests: whether gaps are wanted, with their tests; without them it takes a fraction of the time.

    Returns:
        A dict of

        * ``groups``: rows with ``dataset``, ``attribute``, ``group``, ``name``, ``known``, ``n`` (records),
            ``patients``, ``positives`` if there is a positive class, ``small`` (fewer patients than ``least``),
            ``reference`` (whether it is the one), and ``figures``: for each figure ``value``, ``low``, ``high``, and
            against the reference group ``difference``, ``ratio`` (each a list of value, low, high) and ``detectable``,
            the smallest true difference that is found in four of five samples like this one;
        * ``gaps``: rows with ``dataset``, ``attribute``, ``figure``, ``gap`` (max - min over the groups that are not
            small), its percentile interval ``low``, ``high``, ``std`` (ddof 1), ``ratio`` (min / max), ``worst`` and
            ``best`` group, ``expected`` (the mean gap if groups did not differ), ``p``, ``p_adjusted``,
            ``detectable``, ``compared`` and ``left_out`` (names);
        * ``calibration``: see ``calibration.calibrate``; empty without scores;
        * ``published``: the flat dict of ``metrics.fairness_report``;
        * ``datasets``: ``dataset``, ``n``, ``patients``, ``classes``, ``limited`` (whether classes were too many).

    Raises:
        ValueError: if lengths differ, there are no records, a label is None, the positive class or a reference group
            does not occur, or an attribute has more groups than can be compared.

    The interval of a figure has Wilson's form, with the number of independent records that gives the variance of a
    bootstrap over patients; for a plain share with one record a patient it is Wilson's interval itself. Differences and
    ratios join the intervals of two groups (Newcombe; Zou and Donner). The test of a gap deals patients, each with all
    records, to the groups at random: it asks whether label and answer together are independent of the group. It is
    exact for that; groups that differ in how often they are ill differ in this sense even if the model serves them
    alike.

    >>> found = examine(["a"] * 40 + ["b"] * 40, ["a"] * 80, {"sex": ["F", "M"] * 20 + ["M"] * 40})
    >>> [(row["name"], row["n"], row["figures"]["top1"]["value"]) for row in found["groups"]]
    [('all', 80, 0.5), ('F', 20, 1.0), ('M', 60, 0.3333333333333333)]
    >>> found["groups"][1]["small"], found["gaps"][0]["left_out"]
    (True, ['F'])
    """
    number = len(labels)
    names = ["all"] * number if datasets is None else datasets
    ids: Sequence[Hashable] = range(number) if patients is None else patients
    check(predictions, labels, [*attributes.items(), ("datasets", names), ("patients", ids), ("scores", scores)])
    if settings.positive is not None and not any(settings.positive in metrics.label_set(x) for x in set(labels)):
        known = ", ".join(sorted(set(labels))[:9])
        raise ValueError(f"got positive={settings.positive!r}; wanted one of the labels, such as {known}")
    split = [
        parts.Part(
            str(name),
            coding.people(taken(attributes, its), [ids[i] for i in its], settings.scheme),
            coding.answers([predictions[i] for i in its], [str(labels[i]) for i in its]),
            its,
        )
        for name, its in by_dataset(names)
    ]
    references = parts.references([part.people for part in split], settings)
    number_of_tests = sum(part.tests(settings.positive) for part in split)
    permutations = max(settings.num_permutations, 40 * number_of_tests if settings.adjust == "holm" else 0)
    found: dict[str, Any] = {"datasets": [], "groups": [], "gaps": [], "calibration": []}
    published = list[dict[str, Any]]()
    for part in split:
        found["datasets"].append(part.told())
        drawn = parts.draw(part, settings)
        found["groups"] += parts.groups(part, drawn, references, settings)
        if tests:
            found["gaps"] += parts.gaps(part, drawn, permutations, settings)
        published += part.published()
        if scores is not None:
            its = np.asarray(scores, float)[part.rows]
            found["calibration"] += calibration.calibrate(part, its, settings)
    adjust(found["gaps"], settings.adjust)
    return found | {"published": metrics.report_of(published), "permutations": permutations}


def adjust(rows: Sequence[dict[str, Any]], how: str) -> None:
    """Adds ``p_adjusted`` to rows, over all of them that have a ``p``."""
    tested = [row for row in rows if row["p"] is not None]
    for row, value in zip(tested, ADJUSTMENTS[how]([row["p"] for row in tested]), strict=True):
        row["p_adjusted"] = value


def by_dataset(names: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """The places of the records of each dataset."""
    of, different = coding.numbered(names)
    order = sorted(range(len(different)), key=lambda place: str(different[place]))
    return [(different[place], np.flatnonzero(of == place)) for place in order]


def taken(attributes: Mapping[str, Sequence[Any]], rows: np.ndarray) -> dict[str, list[Any]]:
    """The columns at these places."""
    return {name: [column[i] for i in rows] for name, column in attributes.items()}


def check(predictions: Sequence[str | None], labels: Sequence[str], columns: Sequence[tuple[str, Any]]) -> None:
    """Checks that there is one of everything for each record.

    Raises:
        ValueError: if not, if there are no records, or a label is None.
    """
    lengths = {"labels": len(labels), "predictions": len(predictions)}
    lengths |= {name: len(column) for name, column in columns if column is not None}
    if not len(labels) or len(set(lengths.values())) > 1:
        told = ", ".join(f"{number} {name}" for name, number in lengths.items())
        raise ValueError(f"got {told}; wanted the same number of each, at least one")
    if missing := [row for row, label in enumerate(labels) if label is None]:
        raise ValueError(f"got no label in rows {missing[:5]}; wanted text for every row, empty for no class")
