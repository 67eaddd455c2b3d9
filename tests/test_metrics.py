"""Fairness metrics against the authors' numbers, scikit-learn, fairlearn and hand calculation."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame
from sklearn.metrics import accuracy_score, f1_score, multilabel_confusion_matrix, precision_score, recall_score

from fairgrpo_jax import demographics, metrics
from fairgrpo_jax.rewards import accuracy


GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
PREDICTIONS = [accuracy.extract(text) for text in GOLDEN["predictions"]]
DEMOGRAPHICS = [dict(re.findall(r"(\w+): (\w+)", text.replace("sex", "gender"))) for text in GOLDEN["demographics"]]


def invented(seed=0, n=300, classes="ABCD", datasets=("one",)):
    rng = np.random.default_rng(seed)
    truth = rng.choice(list(classes), n)
    guess = np.where(rng.random(n) < 0.6, truth, rng.choice([*classes, "Z"], n))
    people = [{"sex": rng.choice(["F", "M"]), "age": float(rng.uniform(0, 95))} for _ in range(n)]
    return guess.tolist(), truth.tolist(), people, rng.choice(datasets, n).tolist()


def test_golden():
    report = metrics.fairness_report(PREDICTIONS, GOLDEN["ground_truths"], DEMOGRAPHICS, GOLDEN["datasets"])
    wanted = {name.removeprefix("derm/"): value for name, value in GOLDEN["metrics"].items()}
    assert {name: report[name] for name in wanted} == pytest.approx(wanted, abs=1e-12, rel=0)


def test_whole_dataset_against_scikit_learn():
    guess, truth, people, datasets = invented()
    report = metrics.fairness_report(guess, truth, people, datasets)
    options = {"labels": sorted(set(truth)), "average": "macro", "zero_division": 0}
    tn, fp, fn, tp = multilabel_confusion_matrix(truth, guess, labels=options["labels"]).reshape(-1, 4).T
    wanted = {
        "precision": precision_score(truth, guess, **options),
        "recall": recall_score(truth, guess, **options),
        "tpr": recall_score(truth, guess, **options),
        "f1": f1_score(truth, guess, **options),
        "fpr": np.mean(fp / (fp + tn)),
        "specificity": np.mean(tn / (fp + tn)),
        "fdr": np.mean(fp / (fp + tp)),
        "accuracy": np.mean((tp + tn) / (tp + tn + fp + fn)),
        "top1": accuracy_score(truth, guess),
        "n": 300,
    }
    assert {name: report[f"one/{name}"] for name in wanted} == pytest.approx(wanted, rel=1e-12)


def macro(score):
    return lambda truth, guess: score(truth, guess, labels=sorted(set(truth)), average="macro", zero_division=0)


def macro_fpr(truth, guess):
    tn, fp, _, _ = multilabel_confusion_matrix(truth, guess, labels=sorted(set(truth))).reshape(-1, 4).T
    return np.mean(fp / (fp + tn))


def test_groups_and_gaps_against_fairlearn():
    guess, truth, people, datasets = invented(1)
    report = metrics.fairness_report(guess, truth, people, datasets)
    ages = np.array([row["age"] for row in people])
    features = {
        "sex": ["female" if row["sex"] == "F" else "male" for row in people],
        "age": [f"a{1 + int(x > 25) + int(x > 50) + int(x > 75)}" for x in ages],
    }
    scores = {"f1": macro(f1_score), "tpr": macro(recall_score), "fpr": macro_fpr, "top1": accuracy_score}
    for attribute, values in features.items():
        frame = MetricFrame(metrics=scores, y_true=truth, y_pred=guess, sensitive_features=values)
        where = f"fairness/one/{attribute}"
        for group, row in frame.by_group.iterrows():
            for name, value in row.items():
                assert report[f"{where}/{group}/{name}"] == pytest.approx(value, rel=1e-12)
            assert report[f"{where}/{group}/n"] == values.count(str(group))
        by_group: Any = frame.by_group
        by_f1 = dict(by_group["f1"])
        gaps = frame.difference(method="between_groups")
        for name in ("f1", "tpr", "fpr"):
            assert report[f"{where}/{name}_diff"] == pytest.approx(gaps[name], rel=1e-12)
        assert report[f"{where}/f1_std"] == pytest.approx(frame.by_group["f1"].std(ddof=1), rel=1e-12)
        assert report[f"{where}/equalized_odds_diff"] == pytest.approx(max(gaps["tpr"], gaps["fpr"]), rel=1e-12)
        assert report[f"{where}/worst_group"] == min(by_f1, key=by_f1.__getitem__)
        assert report[f"{where}/best_f1"] == pytest.approx(frame.by_group["f1"].max(), rel=1e-12)


def test_joint_cells_against_fairlearn():
    guess, truth, people, datasets = invented(2)
    report = metrics.fairness_report(guess, truth, people, datasets)
    cells = [
        f"{'female' if row['sex'] == 'F' else 'male'}, a{1 + np.searchsorted((25, 50, 75), row['age'])}"
        for row in people
    ]
    frame = MetricFrame(metrics=macro(f1_score), y_true=truth, y_pred=guess, sensitive_features=cells)
    assert report["fairness/one/joint/f1_diff"] == pytest.approx(frame.difference(), rel=1e-12)
    assert report["overall/joint_f1_std"] == pytest.approx(frame.by_group.std(ddof=1), rel=1e-12)
    assert report["fairness/one/joint/male, a2/f1"] == pytest.approx(frame.by_group["male, a2"], rel=1e-12)
    assert report["fairness/one/avg_f1_diff"] == pytest.approx(
        (report["fairness/one/sex/f1_diff"] + report["fairness/one/age/f1_diff"]) / 2
    )  # sex and age only


def test_overall_and_paper_columns():
    guess, truth, people, datasets = invented(3, datasets=("one", "two", "three"))
    for row, dataset in zip(people, datasets, strict=True):
        if dataset == "three":
            row.clear()
    report = metrics.fairness_report(guess, truth, people, datasets)
    f1 = [report[f"{d}/f1"] for d in ("one", "two", "three")]
    gaps = {
        short: [np.mean([report[f"fairness/{d}/{a}/{short}"] for a in ("sex", "age")]) for d in ("one", "two")]
        for short in ("fdr_diff", "tpr_diff", "fpr_diff", "f1_diff", "f1_std", "acc_diff", "acc_std")
    }
    acc = np.mean([report[f"{d}/accuracy"] for d in ("one", "two", "three")])
    std_acc, std_f1 = np.mean(gaps["acc_std"]), np.mean(gaps["f1_std"])
    wanted = {
        "PP": 100 * np.mean(gaps["fdr_diff"]),
        "EOD": 100 * np.mean(gaps["tpr_diff"]),
        "FPR_Diff": 100 * np.mean(gaps["fpr_diff"]),
        "σF1": std_f1,
        "ΔF1": np.mean(gaps["f1_diff"]),
        "σAcc": 100 * std_acc,
        "ΔAcc": 100 * np.mean(gaps["acc_diff"]),
        "Acc": 100 * acc,
        "F1": np.mean(f1),
        "Acc_ES": 100 * acc / (1 + std_acc),
        "F1_ES": np.mean(f1) / (1 + std_f1),
    }
    assert {name: report[f"paper/{name}"] for name in wanted} == pytest.approx(wanted, rel=1e-12)
    marginal = {k: v for k, v in report.items() if re.fullmatch(r"fairness/\w+/(sex|age)/\w+/f1", k)}
    assert report["overall/worst_f1"] == min(marginal.values())
    assert f"fairness/{report['overall/worst_group']}/f1" == min(marginal, key=marginal.__getitem__)


def test_equity_scaling_reproduces_rows_of_the_papers_table():
    """F1, its deviation, F1_ES as printed in the paper for three methods."""
    for f1, std, scaled in ((0.2978, 0.0518, 0.2831), (0.3123, 0.0418, 0.2998), (0.3218, 0.0383, 0.3100)):
        report = {"overall/f1": f1, "overall/f1_std": std, "overall/acc": 0.8, "overall/acc_std": 0.1}
        report |= {f"overall/{name}_diff": 0.1 for name in ("fdr", "tpr", "fpr", "f1", "acc")}
        assert metrics._paper(report)["paper/F1_ES"] == pytest.approx(scaled, abs=1e-4)


def test_multi_label_by_hand():
    report = metrics.fairness_report(["A, B", "B", None, ""], ["B, A", "A, B", "A", ""], [{}] * 4, ["d"] * 4)
    # A: TP 1, FN 2, TN 1; B: TP 2, TN 2
    assert report["d/recall"] == pytest.approx((1 / 3 + 1) / 2)
    assert report["d/f1"] == pytest.approx((0.5 + 1) / 2)
    assert report["d/accuracy"] == pytest.approx((2 / 4 + 1) / 2)
    assert report["d/top1"] == 0.5
    assert report["d/similarity"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)


def test_labels_are_those_that_the_reward_compares():
    r"""A box with several labels, each in \text, is right for the reward and for every figure."""
    text, answer = r"\boxed{\text{Edema}, \textbf{Fracture}}", "Fracture, Edema"
    said = accuracy.extract(text)
    report = metrics.fairness_report([said], [answer], [{}], ["d"])
    wanted = accuracy.exact([text], [answer]).item(), accuracy.set_f1([text], [answer]).item()
    assert wanted == (1, 1) == (report["d/top1"], report["d/similarity"])


def test_equalized_odds_takes_the_larger_gap():
    """Women: A, B, C right. Men: labels A A A A B, one A called B: recall (3/4 + 1) / 2, fpr (0 + 1/4) / 2."""
    guess, truth = [*"ABC", *"AAABB"], [*"ABC", *"AAAAB"]
    report = metrics.fairness_report(guess, truth, [{"sex": x} for x in "FFFMMMMM"], ["d"] * 8)
    assert report["fairness/d/sex/tpr_diff"] == report["fairness/d/sex/fpr_diff"] == pytest.approx(1 / 8)
    # Now the women miss C once, by no answer: their recall falls below the men's gap, their fpr stays 0.
    guess, truth = [*"ABC", None, *"AAABB"], [*"ABC", "C", *"AAAAB"]
    report = metrics.fairness_report(guess, truth, [{"sex": x} for x in "FFFFMMMMM"], ["d"] * 9)
    assert report["fairness/d/sex/tpr_diff"] == pytest.approx(7 / 8 - 5 / 6)
    assert report["fairness/d/sex/equalized_odds_diff"] == pytest.approx(1 / 8)


def test_a_class_that_a_resample_has_lost_is_left_out():
    counts = np.array([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # TP, FP, FN: the second class was only predicted
    figures = metrics.macro(counts, 3.0)
    assert figures["f1"] == 1 and figures["fdr"] == 0 and figures["accuracy"] == 1


def test_no_answer_is_never_right():
    report = metrics.fairness_report([None, None], ["", "A"], [{}] * 2, ["d"] * 2)
    assert report["d/top1"] == report["d/similarity"] == report["d/f1"] == 0


@pytest.mark.parametrize(
    "attribute, raw, group",
    [
        *[("sex", x, "female") for x in ("F", "f", "female", "FEMALE", "0.0", 0.0, " Female ")],
        *[("gender", x, "male") for x in ("M", "male", "Male", "1.0", 1)],
        *[("sex", x, None) for x in (None, "", "nan", float("nan"), "unknown", "Unknown", "?", "UNK")],
        ("sex", "Other", "other"),
        *[("age", x, "a1") for x in (0, 25, "25", "25.0", "006M", "012D", "A1")],
        *[("age", x, "a2") for x in (25.5, 26, 50, "036Y")],
        *[("age", x, "a3") for x in (50.1, "75", np.float32(75))],
        *[("age", x, "a4") for x in (75.5, "90", "a4")],
        *[("age", x, None) for x in (-99, "-99.0", "nan", None, "")],
        ("age", "51–75", "a3"),
        ("skin", "III", "III"),
    ],
)
def test_raw_demographics(attribute, raw, group):
    rows = metrics.figures(["A"], ["A"], [{attribute: raw}], ["d"])
    assert [row["group"] for row in rows if row["attribute"] == attribute] == ([] if group is None else [group])


def test_age_groups_follow_the_edges_of_the_scheme():
    """Ages 30, 40 | 41, 65 | 66 with edges 40 and 65, counted by hand; the default would split them elsewhere."""
    people = [{"age": age, "race": "x"} for age in (30, 40, 41, 65, 66)]
    scheme = demographics.Scheme(("age",), (40, 65))
    report = metrics.fairness_report(list("AABAB"), ["A"] * 5, people, ["d"] * 5, scheme=scheme)
    shares = {name: value for name, value in report.items() if name.endswith("/top1") and name.startswith("fairness")}
    assert shares == {"fairness/d/age/a1/top1": 1.0, "fairness/d/age/a2/top1": 0.5, "fairness/d/age/a3/top1": 0.0}


def test_joint_cells_hold_the_attributes_of_the_scheme_in_its_order():
    people = [{"sex": "F", "age": 30, "race": "Asian"}, {"sex": "M", "age": 80, "race": "White, not Hispanic"}]
    rows = metrics.figures(["A"] * 2, ["A"] * 2, people, ["d"] * 2, scheme=demographics.Scheme(("race", "sex")))
    assert [(row["attribute"], row["group"], row["name"]) for row in rows] == [
        ("all", "all", "all"),
        ("race", "Asian", "Asian"),
        ("race", "White, not Hispanic", "White, not Hispanic"),
        ("sex", "female", "F"),
        ("sex", "male", "M"),
        ("joint", "Asian, female", "Asian, F"),
        ("joint", "White, not Hispanic, male", "White, not Hispanic, M"),
    ]


def test_unknown_rows_are_counted_and_one_group_has_no_gap():
    people = [{"sex": "F", "age": 30}, {"sex": None, "age": 40}, {"sex": "F"}]
    report = metrics.fairness_report(["A"] * 3, ["A"] * 3, people, ["d"] * 3)
    assert report["fairness/d/sex/unknown_n"] == 1 and report["fairness/d/age/unknown_n"] == 1
    assert report["fairness/d/sex/female/n"] == 2
    assert not [name for name in report if name.endswith(("_diff", "_std"))] and "paper/PP" not in report


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="2 predictions, 1 labels"):
        metrics.fairness_report(["A", "A"], ["A"], [{}], ["d"])
    with pytest.raises(ValueError, match="at least one"):
        metrics.fairness_report([], [], [], [])
    with pytest.raises(ValueError, match="rows \\[0\\]"):
        metrics.fairness_report(["A"], [None], [{}], ["d"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="joint"):
        metrics.fairness_report(["A"], ["A"], [{"joint": "x"}], ["d"])
