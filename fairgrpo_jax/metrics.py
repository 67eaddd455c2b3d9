"""Figures of a model by patient group, and gaps between groups; in NumPy.

``figures`` returns one row per dataset, attribute and group; ``fairness_report`` a flat dict of the same figures and
the gaps between groups. Intervals and tests: ``fairgrpo_jax.audit``.

Definitions, those of FairGRPO's evaluation (QoQ-Med, arXiv 2506.00711, appendix D, equations 8 to 14):

* Each class is scored one against the rest (TP, FP, FN, TN) over the rows of a subset. precision = TP / (TP + FP),
  recall = sensitivity = tpr = TP / (TP + FN), specificity = TN / (TN + FP), fpr = FP / (FP + TN), fdr = FP / (TP + FP),
  f1 = 2 TP / (2 TP + FP + FN), accuracy = (TP + TN) / all; 0 / 0 is 0.
* A subset's figure is the plain mean over the classes that occur in *its* labels (macro). So ``accuracy`` of a task
with five classes is high by construction; ``top1`` is the share of rows whose label set is predicted exactly,
``similarity`` the mean F1 of the two label sets of a row.
* Gaps compare the groups of one attribute: ``_diff`` is max - min, ``_std`` the sample standard deviation (ddof 1). An
attribute with a single group has no gap, and its gap keys are absent.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fairgrpo_jax import demographics as people
from fairgrpo_jax._labels import label_set as label_set
from fairgrpo_jax.demographics import DEFAULT, JOINT, Scheme


# Figures compared between groups: our name, and the name in the keys of averages and gaps.
COMPARED = {"accuracy": "acc", "f1": "f1", "similarity": "similarity", "tpr": "tpr", "fpr": "fpr", "fdr": "fdr"}
# The authors' logs put "std" before some names and after others; the keys are kept, so that runs can be compared.
ATTRIBUTE_STD = {name: f"std_{name}" if name in ("tpr", "fpr", "fdr") else f"{name}_std" for name in COMPARED.values()}
DATASET_STD = ATTRIBUTE_STD | {"acc": "std_acc"}
HEAD = ("dataset", "attribute", "group", "name")  # the fields of a row that identify its group


def fairness_report(
    predictions: Sequence[str | None],
    labels: Sequence[str],
    demographics: Sequence[Mapping[str, Any]],
    datasets: Sequence[str],
    *,
    scheme: Scheme = DEFAULT,
) -> dict[str, Any]:
    """All figures of one evaluation: ``report_of(figures(...))``.

    Keys (d dataset, a attribute, g group; <m> one of accuracy, f1, similarity, tpr, fpr, fdr, in averages and gaps
    ``acc`` for accuracy):

    * ``d/<m>`` and ``d/precision|recall|sensitivity|specificity|top1|n``: the whole dataset;
    * ``fairness/d/a/g/<m>|top1|n``: one group; ``fairness/d/a/unknown_n``: rows without the attribute;
    * ``fairness/d/a/<m>``, ``<m>_diff``, and ``<m>_std`` or ``std_<m>`` (tpr, fpr, fdr): mean and gaps over the groups;
      ``equalized_odds_diff``, the larger of tpr_diff and fpr_diff; ``worst_f1``, ``best_f1``, and the names of these
      groups, ``worst_group``, ``best_group``;
    * ``fairness/d/avg_<m>``, ``avg_<m>_diff``, ``<m>_std`` (``std_acc``): means over the attributes;
    * ``fairness/d/joint/...``: the same for the cells of all attributes together, such as ``"female, a3"``, over the
      rows where all are known; not part of the averages;
    * ``overall/<m>``, ``<m>_diff``, ``<m>_std``, ``joint_<m>_diff``, ``joint_<m>_std``, ``top1``,
      ``equalized_odds_diff``: means over datasets, of figures of whole datasets and of their gaps; ``worst_group``,
      ``worst_f1``, ``best_group``, ``best_f1`` over all datasets and (single) attributes; ``n``;
    * ``paper/...``: the columns of the paper, from ``overall``: PP = 100 fdr_diff, EOD = 100 tpr_diff (equal
      opportunity, in spite of its name), FPR_Diff = 100 fpr_diff, σF1, ΔF1, σAcc and ΔAcc (x 100), Acc (x 100), F1, and
      the equity-scaled Acc_ES = Acc / (1 + std), F1_ES = F1 / (1 + std).

    Values are floats, except the names of the worst and best groups.

    Args:
        predictions: N answers, extracted from the completions (``rewards.accuracy.extract``): one label or several
            joined by ``", "``; None = no answer, which matches nothing.
        labels: N reference answers in the same form; empty text is the empty set.
        demographics: N mappings attribute -> value. ``age``: years as a number or text, or in DICOM's form (``"053Y"``,
            ``"006M"``), or the name of a group (``"A3"``, ``"51–75"``). ``sex`` or ``gender``: f, female, w, woman, 0,
            0.0 are ``female``, m, male, man, 1, 1.0 are ``male``, in any case. Any other attribute, and any other text,
            is the name of a group. Absent, None, NaN, ``demographics.UNKNOWN``, a negative age: unknown.
        datasets: N dataset names.
        scheme: the attributes to compare and the edges of the age groups, which are named a1, a2, ... from the
            youngest.

    Raises:
        ValueError: if there are no rows, the lengths differ, a label is None, or an attribute is named ``joint`` or
            ``all``.

    Source: FairGRPO (arXiv 2510.19893), table 2, as computed by the authors' evaluation code, whose keys these are
    (there the figures of a whole dataset have the modality as a prefix). Their code always calls the attribute
    ``gender``; here it keeps its name in ``demographics``. top1, equalized odds, joint cells, worst and best are ours.

    >>> report = fairness_report(["A", "B", "A", "A"], ["A", "B", "A", "B"], [{"sex": s} for s in "FFMM"], ["d"] * 4)
    >>> report["fairness/d/sex/female/f1"], round(report["fairness/d/sex/f1_diff"], 4), report["overall/worst_group"]
    (1.0, 0.6667, 'd/sex/male')
    """
    return report_of(figures(predictions, labels, demographics, datasets, scheme=scheme))


def figures(
    predictions: Sequence[str | None],
    labels: Sequence[str],
    demographics: Sequence[Mapping[str, Any]],
    datasets: Sequence[str],
    *,
    scheme: Scheme = DEFAULT,
) -> list[dict[str, Any]]:
    """One row per dataset, attribute and group, with the figures of its records.

    A row holds ``dataset``, ``attribute``, ``group`` (the key: ``"female"``, ``"a2"``), ``name`` (as tables show it:
    ``"F"``, ``"26–50"``), ``n`` and the figures of ``fairness_report``. The first row of a dataset has attribute and
    group ``"all"``; the last ones have attribute ``"joint"``.

    Args:
        predictions: N answers, in the form of ``fairness_report``; so are the other arguments.
        labels: N reference answers.
        demographics: N mappings attribute -> value.
        datasets: N dataset names.
        scheme: the attributes to compare and the edges of the age groups.

    Raises:
        ValueError: as ``fairness_report``.

    >>> rows = figures(["A", "B"], ["A", "A"], [{"age": 30}, {"age": 70}], ["d"] * 2, scheme=Scheme(age_edges=(40, 65)))
    >>> [(row["group"], row["name"], row["top1"]) for row in rows]
    [('all', 'all', 0.5), ('a1', '≤40', 1.0), ('a3', '>65', 0.0)]
    """
    table = _read(predictions, labels, demographics, datasets)
    members = people.members(demographics, datasets, scheme)
    return [head | _figures(table, rows) for head, rows in members]


def report_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Builds the flat dict of ``fairness_report`` from the rows of ``figures``."""
    report: dict[str, Any] = {}
    by_dataset: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in rows:
        found = {name: value for name, value in row.items() if name not in HEAD}
        by_dataset.setdefault(row["dataset"], {}).setdefault(row["attribute"], {})[row["group"]] = found
    for dataset, attributes in by_dataset.items():
        whole = attributes["all"]["all"]
        report |= {f"{dataset}/{name}": value for name, value in whole.items()}
        single = [attribute for attribute in attributes if attribute not in ("all", JOINT)]
        for attribute in (*single, *({JOINT} & attributes.keys())):
            found = _compare(attributes[attribute])
            if attribute != JOINT:
                found["unknown_n"] = whole["n"] - sum(group["n"] for group in attributes[attribute].values())
            report |= {f"fairness/{dataset}/{attribute}/{name}": value for name, value in found.items()}
        report |= _averages(report, dataset, single)
    report |= _overall(report, rows)
    return report | _paper(report)


class _Table:
    """Label sets of all rows."""

    def __init__(self, predictions: Sequence[str | None], labels: Sequence[str]):
        self.predictions, self.labels = [label_set(p) for p in predictions], [label_set(x) for x in labels]


def _read(
    predictions: Sequence[str | None],
    labels: Sequence[str],
    demographics: Sequence[Mapping[str, Any]],
    datasets: Sequence[str],
) -> _Table:
    lengths = {len(predictions), len(labels), len(demographics), len(datasets)}
    if lengths == {0} or len(lengths) > 1:
        raise ValueError(
            f"got {len(predictions)} predictions, {len(labels)} labels, {len(demographics)} demographics, "
            f"{len(datasets)} datasets; wanted the same number of each, at least one"
        )
    if missing := [i for i, label in enumerate(labels) if label is None]:
        raise ValueError(f"got no label in rows {missing[:5]}; wanted text for every row, empty for no class")
    return _Table(predictions, labels)


def _counts(table: _Table, rows: np.ndarray) -> np.ndarray:
    """TP, FP, FN (rows, classes, 3) of the classes that occur in the labels of these rows."""
    classes = sorted(set().union(*(table.labels[i] for i in rows)), key=str)
    truth = np.array([[c in table.labels[i] for c in classes] for i in rows], bool).reshape(len(rows), len(classes))
    guess = np.array([[c in table.predictions[i] for c in classes] for i in rows], bool).reshape(truth.shape)
    return np.stack([truth & guess, ~truth & guess, truth & ~guess], axis=-1).astype(np.float64)


def macro(counts: np.ndarray, n: np.ndarray | float) -> dict[str, np.ndarray]:
    """Figures from summed counts of records; classes that occur in no label are excluded.

    Args:
        counts: (..., classes, 3) TP, FP and FN of each class.
        n: (...) records.

    Returns:
        The figures of ``fairness_report``, each (...), but top1 and similarity.

    >>> float(macro(np.array([[1, 0, 1], [2, 1, 0]]), 4.0)["tpr"])
    0.75
    """
    tp, fp, fn = np.moveaxis(counts, -1, 0)
    total = np.broadcast_to(np.asarray(n, np.float64)[..., None], tp.shape)
    tn = total - tp - fp - fn
    active = tp + fn > 0

    def mean(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        return _ratio(np.sum(np.where(active, _ratio(numerator, denominator), 0), -1), np.sum(active, -1))

    recall = mean(tp, tp + fn)
    return {
        "precision": mean(tp, tp + fp),
        "recall": recall,
        "sensitivity": recall,
        "specificity": mean(tn, tn + fp),
        "f1": mean(2 * tp, 2 * tp + fp + fn),
        "accuracy": mean(tp + tn, total),
        "tpr": recall,
        "fpr": mean(fp, fp + tn),
        "fdr": mean(fp, tp + fp),
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(np.shape(numerator)), where=denominator > 0)


def _figures(table: _Table, rows: np.ndarray) -> dict[str, float]:
    """Figures of one subset."""
    pairs = [(table.predictions[i], table.labels[i]) for i in rows]
    figures = {name: float(value) for name, value in macro(_counts(table, rows).sum(0), float(len(rows))).items()}
    figures["top1"] = float(np.mean([p == y for p, y in pairs]))
    figures["similarity"] = float(np.mean([1.0 if p == y else 2 * len(p & y) / (len(p) + len(y)) for p, y in pairs]))
    figures["n"] = float(len(rows))
    return figures


def _compare(groups: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Figures of each group, their means, and the gaps between groups."""
    kept = (*COMPARED, "top1", "n")
    found: dict[str, Any] = {f"{g}/{name}": figures[name] for g, figures in groups.items() for name in kept}
    for name, short in COMPARED.items():
        values = [figures[name] for figures in groups.values()]
        found[short] = float(np.mean(values))
        if len(values) > 1:
            found[f"{short}_diff"] = max(values) - min(values)
            found[ATTRIBUTE_STD[short]] = float(np.std(values, ddof=1))
    if len(groups) > 1:
        found["equalized_odds_diff"] = max(float(found["tpr_diff"]), float(found["fpr_diff"]))
    return found | _extremes({group: figures["f1"] for group, figures in groups.items()})


def _extremes(f1: dict[str, float]) -> dict[str, Any]:
    if not f1:
        return {}
    worst, best = min(f1, key=f1.__getitem__), max(f1, key=f1.__getitem__)
    return {"worst_group": worst, "worst_f1": f1[worst], "best_group": best, "best_f1": f1[best]}


def _averages(report: Mapping[str, Any], dataset: str, attributes: list[str]) -> dict[str, float]:
    """Means over those attributes of a dataset that have the figure."""
    found = {}
    for short in COMPARED.values():
        names = {f"avg_{short}": short, f"avg_{short}_diff": f"{short}_diff", DATASET_STD[short]: ATTRIBUTE_STD[short]}
        names["avg_equalized_odds_diff"] = "equalized_odds_diff"
        for name, source in names.items():
            found[f"fairness/{dataset}/{name}"] = _mean(
                report, [f"fairness/{dataset}/{a}/{source}" for a in attributes]
            )
    return {name: value for name, value in found.items() if not math.isnan(value)}


def _overall(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over datasets with equal weights."""
    sources = {"top1": "{d}/top1", "equalized_odds_diff": "fairness/{d}/avg_equalized_odds_diff"}
    for name, short in COMPARED.items():
        sources[short] = f"{{d}}/{name}"
        sources[f"{short}_diff"] = f"fairness/{{d}}/avg_{short}_diff"
        sources[f"{short}_std"] = f"fairness/{{d}}/{DATASET_STD[short]}"
        sources[f"joint_{short}_diff"] = f"fairness/{{d}}/{JOINT}/{short}_diff"
        sources[f"joint_{short}_std"] = f"fairness/{{d}}/{JOINT}/{ATTRIBUTE_STD[short]}"
    found: dict[str, Any] = {}
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    for name, source in sources.items():
        value = _mean(report, [source.format(d=dataset) for dataset in datasets])
        if not math.isnan(value):
            found[f"overall/{name}"] = value
    f1 = {"/".join(row[name] for name in HEAD[:3]): row["f1"] for row in rows if row["attribute"] not in ("all", JOINT)}
    found |= {f"overall/{name}": value for name, value in _extremes(f1).items()}
    return found | {"overall/n": sum(row["n"] for row in rows if row["attribute"] == "all")}


def _mean(report: Mapping[str, Any], keys: list[str]) -> float:
    values = [float(report[key]) for key in keys if key in report]
    return float(np.mean(values)) if values else math.nan


def _paper(report: Mapping[str, Any]) -> dict[str, float]:
    """The paper's columns; those of gaps only if some dataset has two groups."""
    get: Callable[[str], float] = lambda name: float(report[f"overall/{name}"])
    columns = {"Acc": 100 * get("acc"), "F1": get("f1")}
    if "overall/f1_std" in report:
        columns |= {
            "PP": 100 * get("fdr_diff"),
            "EOD": 100 * get("tpr_diff"),
            "FPR_Diff": 100 * get("fpr_diff"),
            "σF1": get("f1_std"),
            "ΔF1": get("f1_diff"),
            "σAcc": 100 * get("acc_std"),
            "ΔAcc": 100 * get("acc_diff"),
            "Acc_ES": 100 * get("acc") / (1 + get("acc_std")),
            "F1_ES": get("f1") / (1 + get("f1_std")),
        }
    return {f"paper/{name}": value for name, value in columns.items()}
