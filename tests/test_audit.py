"""The audit against the authors' numbers, fairlearn, scikit-learn, SciPy and calculation by hand."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, false_positive_rate, selection_rate, true_positive_rate
from hypothesis import given, settings as hypothesis_settings, strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, brier_score_loss, f1_score, precision_score, roc_auc_score

from fairgrpo_jax import audit, metrics
from fairgrpo_jax.audit import calibration, coding, intervals, multiplicity, tallies
from fairgrpo_jax.demographics import Scheme
from fairgrpo_jax.rewards import accuracy


GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text())
QUICK = audit.Settings(num_resamples=100, num_permutations=100, least=2, adjust="bh")


def invented(seed=0, n=300, classes="ABC", per=1, hard="F", loss=0.0):
    """Predictions, labels, attributes and patients; ``loss`` is what women lose."""
    rng = np.random.default_rng(seed)
    who = np.arange(n) // per
    sex = rng.choice(["F", "M", ""], n, p=[0.45, 0.45, 0.1])[who]
    ages = rng.integers(1, 95, n)[who]
    truth = rng.choice(list(classes), n)
    right = rng.random(n) < np.where(sex == hard, 0.75 - loss, 0.75)
    guess: list[Any] = np.where(right, truth, rng.choice([*classes, "Z"], n)).tolist()
    guess[0] = None
    return guess, truth.tolist(), {"sex": sex.tolist(), "age": ages.tolist()}, who.tolist()


def row_of(rows, **wanted):
    (found,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return found


def test_golden():
    people = [dict(re.findall(r"(\w+): (\w+)", text.replace("sex", "gender"))) for text in GOLDEN["demographics"]]
    columns = {name: [person.get(name) for person in people] for name in ("gender", "age")}
    predictions = [accuracy.extract(text) for text in GOLDEN["predictions"]]
    found = audit.examine(predictions, GOLDEN["ground_truths"], columns, datasets=GOLDEN["datasets"], settings=QUICK)[
        "published"
    ]
    wanted = {name.removeprefix("derm/"): value for name, value in GOLDEN["metrics"].items()}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9, rel=0)


VALUES = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "a, b", None]),
        st.sampled_from(["a", "b", "a, b"]),
        st.sampled_from(["F", "M", "unknown"]),
        st.sampled_from([10, 30, 60, 90, None]),
        st.sampled_from(["one", "two"]),
    ),
    min_size=1,
    max_size=40,
)


@hypothesis_settings(max_examples=12)
@given(VALUES)
def test_published_figures_are_those_of_metrics(rows):
    predictions, labels, sex, age, datasets = zip(*rows, strict=True)
    found = audit.examine(predictions, labels, {"sex": sex, "age": age}, datasets=datasets, settings=QUICK)
    people = [{"sex": s, "age": a} for s, a in zip(sex, age, strict=True)]
    wanted = metrics.fairness_report(predictions, labels, people, datasets)
    assert found["published"] == pytest.approx(wanted, abs=1e-12)
    counted = {(row["dataset"], row["attribute"], row["group"]): row["n"] for row in found["groups"] if row["known"]}
    heads = metrics.figures(predictions, labels, people, datasets)
    assert counted == {(row["dataset"], row["attribute"], row["group"]): row["n"] for row in heads}
    for dataset in set(datasets):  # nobody is dropped
        its = [row for row in found["groups"] if row["dataset"] == dataset]
        for attribute in {row["attribute"] for row in its}:
            assert sum(row["n"] for row in its if row["attribute"] == attribute) == datasets.count(dataset)


@hypothesis_settings(max_examples=8)
@given(st.integers(0, 10**6))
def test_groups_gaps_and_ratios_against_fairlearn_and_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    truth, guess, group = rng.integers(0, 2, 60), rng.integers(0, 2, 60), rng.choice(["x", "y", "z"], 60)
    labels, predictions = truth.astype(str).tolist(), guess.astype(str).tolist()
    found = audit.examine(
        predictions,
        labels,
        {"race": group.tolist()},
        settings=audit.Settings(
            positive="1", reference={"race": "x"}, num_resamples=100, num_permutations=100, least=2
        ),
    )
    macro = {"average": "macro", "zero_division": 0}
    scores = {
        "top1": accuracy_score,
        "f1": lambda y, p: f1_score(y, p, labels=sorted(set(y)), **macro),
        "precision": lambda y, p: precision_score(y, p, labels=sorted(set(y)), **macro),
        "selection_rate": selection_rate,
        "true_positive_rate": true_positive_rate,
        "false_positive_rate": false_positive_rate,
    }
    frame = MetricFrame(metrics=scores, y_true=truth, y_pred=guess, sensitive_features=group)
    table: Any = frame.by_group
    wide, low = frame.difference(method="between_groups"), frame.ratio(method="between_groups")
    for name in scores:
        for group_name in table.index:
            row = row_of(found["groups"], attribute="race", name=group_name)["figures"][name]
            value = float(table[name][group_name])
            assert row["value"] == pytest.approx(value, abs=1e-12)
            assert row["low"] <= row["value"] <= row["high"]
            if group_name != "x":
                assert row["difference"][0] == pytest.approx(value - float(table[name]["x"]), abs=1e-12)
        gap = row_of(found["gaps"], attribute="race", figure=name)
        assert gap["gap"] == pytest.approx(wide[name], abs=1e-12)
        if gap["ratio"] is not None:
            assert gap["ratio"] == pytest.approx(low[name], abs=1e-12)
    both = [row_of(found["gaps"], attribute="race", figure=name)["gap"] for name in ("tpr", "fpr", "equalized_odds")]
    assert both[2] == max(both[:2])
    parity = row_of(found["gaps"], attribute="race", figure="demographic_parity")["gap"]
    assert parity == pytest.approx(wide["selection_rate"], abs=1e-12)  # two classes, both have the same gap


def test_intervals_of_shares_differences_and_adjustments():
    for hits, n in ((0, 10), (3, 17), (17, 17), (250, 1000)):
        ends = stats.binomtest(hits, n).proportion_ci(method="wilson")
        assert np.ravel(intervals.wilson(hits / n, n)) == pytest.approx([ends.low, ends.high], abs=1e-12)
    # Newcombe 1998, table II, example (a), method 10: 56/70 and 48/80
    shares = [(hits / n, *np.ravel(intervals.wilson(hits / n, n))) for hits, n in ((56, 70), (48, 80))]
    assert np.array(intervals.difference(*shares)) == pytest.approx([0.2, 0.0524, 0.3339], abs=1e-4)
    # Without events the ratio's interval still has an upper end.
    assert np.array(intervals.ratio((0.0, 0.0, 0.1), (0.5, 0.4, 0.6))) == pytest.approx([0, 0, 0.25])
    p = [0.001, 0.2, 0.03, 0.04, 0.5]
    assert multiplicity.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert multiplicity.holm(p) == pytest.approx([0.005, 0.4, 0.12, 0.12, 0.5])


def test_a_group_without_errors_has_an_interval():
    found = audit.examine(["a"] * 12, ["a"] * 12, {"sex": ["F", "M"] * 6}, settings=QUICK)
    wanted = np.ravel(intervals.wilson(1.0, 6))
    for name in ("top1", "f1", "tpr"):
        figure = row_of(found["groups"], name="F")["figures"][name]
        assert figure["value"] == figure["high"] == 1 and figure["low"] <= wanted[0] + 1e-12


def test_resamples_are_those_of_patients():
    """Mean and covariance of the sums of resampled patients, against their exact moments."""
    predictions, labels, attributes, who = invented(n=400, per=4)
    people, answers = coding.people(attributes, who), coding.answers(predictions, labels)
    (tally,) = tallies.tally(people, [answers])
    own = np.zeros((100, len(people.groups), answers.features.shape[1]))
    for row, patient in enumerate(who):
        added = answers.features[[answers.pair[row]]].toarray()[0]
        own[patient] += np.array([group.cells[people.cell[row]] for group in people.groups])[:, None] * added
    assert tally.observed() == pytest.approx(own.sum(0))
    assert tally.number.sum() == 100 and len(tally.number) < 100
    drawn = np.concatenate([*tally.resampled(4000, 0)])
    assert drawn[..., 0][:, 0].tolist() == [400] * 4000
    assert drawn.mean(0) == pytest.approx(own.sum(0), abs=2)
    exact = 100 * own.reshape(100, -1).var(0)
    assert drawn.reshape(4000, -1).var(0) == pytest.approx(exact, rel=0.15, abs=0.5)


def test_kinds_of_patients_keep_every_record():
    """Many patients of few kinds, and as many kinds as patients: both ways to draw agree."""
    predictions, labels, attributes, who = invented(n=600)
    people, answers = coding.people(attributes, who), coding.answers(predictions, labels)
    (few,) = tallies.tally(people, [answers])
    assert len(few.number) * 8 > few.number.sum() and len(few.number) < 600
    many = coding.people({"sex": attributes["sex"]}, who)
    (tally,) = tallies.tally(many, [answers])
    assert len(tally.number) * 8 < 600
    spread = [np.concatenate([*t.resampled(2000, 1)])[:, :4, 2].std(0) for t in (few, tally)]
    assert spread[0] == pytest.approx(spread[1], rel=0.1)


@pytest.mark.parametrize("per", [1, 5])
def test_dealt_groups_keep_their_sizes_and_the_whole(per):
    predictions, labels, attributes, who = invented(n=500, per=per)
    people, answers = coding.people(attributes, who), coding.answers(predictions, labels)
    places = [place for place, group in enumerate(people.groups) if group.attribute == "sex" and group.known]
    (tally,) = tallies.tally(people, [answers])
    observed = tally.observed()[places]
    dealt = np.concatenate([*tallies.dealt(people, answers, places, 300, 0)])
    assert dealt.shape == (300, 2, answers.features.shape[1])
    assert (dealt.sum(1) == observed.sum(0)).all() and (dealt[:, :, 0] == observed[:, 0]).all()
    mean = observed.sum(0) * (observed[:, [0]] / observed[:, 0].sum())
    assert dealt.mean(0) == pytest.approx(mean, abs=2) and np.ptp(dealt[:, 0, 2]) > 0


def test_patients_are_dealt_with_all_their_records():
    """A hundred patients, five equal answers each: hits of a half vary as 25 times a hypergeometric number."""
    who = np.repeat(np.arange(100), 5)
    people = coding.people({"sex": np.where(who < 50, "F", "M").tolist()}, who.tolist())
    answers = coding.answers(np.where(who % 2, "a", "b").tolist(), ["a"] * 500)
    dealt = np.concatenate([*tallies.dealt(people, answers, [1, 2], 2000, 0)])
    assert dealt[:, 0, 2].var() == pytest.approx(25 * stats.hypergeom(100, 50, 50).var(), rel=0.15)


def test_a_class_without_errors_still_widens_a_mean_over_classes():
    """Twelve of twelve right vary too, as after a flat prior: 13 / (14^2 * 15), beside 1 / 400 of the other class."""
    labels, predictions = ["a"] * 100 + ["b"] * 12, ["a", "b"] * 50 + ["b"] * 12
    figure = audit.examine(predictions, labels, {}, settings=QUICK)["groups"][0]["figures"]["tpr"]
    number = 0.75 * 0.25 / ((1 / 400 + 13 / (14**2 * 15)) / 4)
    wanted = np.ravel(intervals.wilson(0.75, number, stats.t.ppf(0.975, 111)))
    assert [figure["low"], figure["high"]] == pytest.approx(wanted, abs=0.01)


def test_swapped_models_keep_their_sum():
    predictions, labels, attributes, who = invented(n=200, per=2)
    people = coding.people(attributes, who)
    one, other = (coding.answers(said, labels) for said in (predictions, labels))
    here, there = tallies.tally(people, [one, other])
    for a, b in tallies.swapped(here, there, 50, 0):
        hits = a[:, 0, 2] + b[:, 0, 2]
        assert (hits == here.observed()[0, 2] + there.observed()[0, 2]).all()


def test_a_real_gap_is_found_and_chance_is_not():
    chosen = audit.Settings(num_resamples=100, reference={"sex": "M"})
    found = audit.examine(*invented(1, n=1500, loss=0.3)[:3], settings=chosen)
    gap = row_of(found["gaps"], attribute="sex", figure="top1")
    assert gap["p_adjusted"] < 0.05 and gap["worst"] == "F" and gap["gap"] > 3 * gap["expected"]
    assert gap["detectable"] < gap["gap"] and gap["low"] < gap["gap"] < gap["high"]
    women = row_of(found["groups"], attribute="sex", name="F")
    assert women["figures"]["top1"]["difference"][2] < 0 and not women["reference"]
    assert row_of(found["groups"], attribute="sex", name="M")["reference"]
    none = audit.examine(*invented(2, n=1500)[:3], settings=audit.Settings(num_resamples=100))
    assert min(row["p_adjusted"] for row in none["gaps"] if row["p"] is not None) > 0.05
    assert row_of(none["gaps"], attribute="age", figure="top1")["expected"] > 0.01


def test_small_and_unknown_groups_are_shown_and_left_out_of_gaps():
    predictions, labels, attributes, _ = invented(n=100)
    attributes["sex"] = ["F"] * 55 + ["M"] * 30 + ["X"] * 10 + [""] * 5
    found = audit.examine(predictions, labels, {"sex": attributes["sex"]}, settings=audit.Settings(num_resamples=100))
    rows = {row["name"]: row for row in found["groups"]}
    assert [name for name, row in rows.items() if row["small"]] == ["x", "unknown"]
    assert not rows["unknown"]["known"] and rows["unknown"]["figures"]["top1"]["value"] is not None
    gap = row_of(found["gaps"], figure="top1")
    assert gap["compared"] == ["F", "M"] and gap["left_out"] == ["x", "unknown"]
    # One group alone has no gap, and says so.
    alone = audit.examine(predictions, labels, {"sex": ["F"] * 100}, settings=QUICK)["gaps"]
    assert {row["gap"] for row in alone} == {None} and alone[0]["compared"] == ["F"]


def test_free_text_has_no_means_over_classes_with_intervals():
    labels = [f"answer {i}" for i in range(300)]
    found = audit.examine(labels[:150] + ["?"] * 150, labels, {"sex": ["F", "M"] * 150}, settings=QUICK)
    assert found["datasets"][0]["limited"] and set(found["groups"][0]["figures"]) == {"top1", "failures", "similarity"}
    assert found["published"]["all/f1"] == 0.5


def test_calibration_against_scikit_learn():
    rng = np.random.default_rng(0)
    scores = rng.random(400).round(2)
    truth = rng.random(400) < scores
    labels = np.where(truth, "yes", "no").tolist()
    who = (np.arange(400) // 2).tolist()
    chosen = audit.Settings(positive="yes", num_resamples=100, num_permutations=100)
    missing = scores.copy()
    missing[:10] = np.nan
    found = audit.examine(labels, labels, {"sex": ["F", "M"] * 200}, patients=who, scores=missing, settings=chosen)
    row = row_of(found["calibration"], name="all")
    assert row["n"] == 390 and row["unscored"] == 10
    assert row["auroc"][0] == pytest.approx(roc_auc_score(truth[10:], scores[10:]))
    assert row["brier"][0] == pytest.approx(brier_score_loss(truth[10:], scores[10:]))
    assert row["bias"][1] < 0 < row["bias"][2] and row["ece"] < 3 * row["ece_expected"]
    place = np.minimum((scores[10:] * 10).astype(int), 9)
    gaps = [abs(np.sum(scores[10:][place == b]) - np.sum(truth[10:][place == b])) for b in range(10)]
    assert row["ece"] == pytest.approx(sum(gaps) / 390) and sum(part["n"] for part in row["bins"]) == 390
    # The interval of the AUROC is that of a bootstrap over patients.
    draws = []
    for _ in range(400):
        chosen_rows = (2 * rng.integers(0, 200, 200)[:, None] + [0, 1]).reshape(-1)
        draws.append(roc_auc_score(truth[chosen_rows], scores[chosen_rows]))
    area = calibration.auroc(scores, truth, np.arange(400) // 2, 0.95)
    assert area is not None and area[1:] == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.015)
    with pytest.raises(ValueError, match="got the score 1.5; wanted probabilities"):
        audit.examine(["a"], ["a"], {}, scores=[1.5], settings=QUICK)


def test_exchanges_without_a_figure_say_nothing():
    """One positive call each, right and wrong: exchanged or not, the difference is 1, wherever both still have one."""
    labels = ["yes"] * 30 + ["no"] * 30
    old, new = ["yes"] + ["no"] * 59, ["no"] * 59 + ["yes"]
    chosen = audit.Settings(positive="yes", num_resamples=100, num_permutations=200)
    rows = audit.compare({"old": old, "new": new}, labels, {"sex": ["F", "M"] * 30}, settings=chosen)
    row = row_of(rows, name="all", figure="positive_predictive_value")
    assert row["difference"] == -1 and row["p"] == 1


def test_two_models_on_the_same_records():
    old, labels, attributes, who = invented(3, n=600, per=2, loss=0.3)
    better = [label if sex == "F" else said for said, label, sex in zip(old, labels, attributes["sex"], strict=True)]
    rows = audit.compare(
        {"old": old, "new": better, "same": old},
        labels,
        attributes,
        patients=who,
        settings=audit.Settings(num_resamples=200, adjust="bh"),
    )
    women = row_of(rows, model="new", name="F", figure="top1")
    assert women["p_adjusted"] < 0.05 and 0 < women["low"] < women["difference"] < women["high"]
    men = row_of(rows, model="new", name="M", figure="top1")
    assert men["difference"] == 0 and men["p"] is None
    gap = row_of(rows, model="new", attribute="sex", group="gap", figure="top1")
    one, other = (audit.examine(said, labels, attributes, patients=who)["gaps"] for said in (old, better))
    gaps = [row_of(its, attribute="sex", figure="top1")["gap"] for its in (one, other)]
    assert gap["difference"] == pytest.approx(gaps[1] - gaps[0])
    same = [row for row in rows if row["model"] == "same" and row["difference"] is not None]
    assert {row[key] for row in same for key in ("difference", "low", "high")} == {0}  # the same patients are drawn


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"labels": ["a"]}, "got 1 labels, 2 predictions"),
        ({"predictions": [], "labels": [], "attributes": {}}, "at least one"),
        ({"labels": ["a", None]}, r"got no label in rows \[1\]"),
        ({"attributes": {"joint": ["F", "M"]}}, "these names are taken"),
        ({"settings": audit.Settings(positive="z")}, "got positive='z'; wanted one of the labels, such as a, b"),
        ({"settings": audit.Settings(reference={"sex": "X"})}, "got the reference group sex=X; wanted one of F, M"),
        ({"settings": audit.Settings(reference={"race": "X"})}, "wanted an attribute, one of sex"),
    ],
)
def test_errors(change, wanted):
    given: dict[str, Any] = {
        "predictions": ["a", "b"],
        "labels": ["a", "b"],
        "attributes": {"sex": ["F", "M"]},
    } | change
    with pytest.raises(ValueError, match=wanted):
        audit.examine(given.pop("predictions"), given.pop("labels"), given.pop("attributes"), **given)


def test_numbers_are_no_groups():
    with pytest.raises(ValueError, match="bmi has 100 groups, such as 0, 1, 10, 11, 12; wanted at most 60"):
        audit.examine(["a"] * 100, ["a"] * 100, {"bmi": list(range(100))}, settings=QUICK)
    found = audit.examine(
        ["a"] * 100, ["a"] * 100, {"age": list(range(100))}, settings=audit.Settings(Scheme(None, (40,)))
    )
    assert [row["name"] for row in found["groups"]] == ["all", "≤40", ">40"]


@pytest.mark.parametrize("wrong", [{"level": 1.0}, {"least": 1}, {"num_resamples": 5}, {"adjust": "bonferroni"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match="wanted"):
        audit.Settings(**wrong)


def test_no_adjusted_p_value_is_below_that_of_a_smaller_one():
    """Holm: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04, which is raised to the one before it; as p.adjust of R."""
    values = [0.01, 0.04, 0.03, 0.005]
    assert multiplicity.holm(values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert multiplicity.holm([0.6, 0.9]) == [1.0, 1.0]


def test_worst_and_best_groups_are_compared_whichever_they_are():
    """F 0.9 and M 0.5 right with the old model, F 0.7 and M 0.8 with the new one; of misses the most is the worst."""
    labels, sex = ["a"] * 200, ["F"] * 100 + ["M"] * 100

    def said(of_f, of_m):
        return ["a"] * of_f + [None] * (100 - of_f) + ["a"] * of_m + [None] * (100 - of_m)

    rows = audit.compare({"old": said(90, 50), "new": said(70, 80)}, labels, {"sex": sex})
    moved = {(row["group"], row["figure"]): (row["difference"], row["p"] is None) for row in rows}
    for figure, sign in (("top1", 1), ("failures", -1)):
        assert moved["worst", figure] == (pytest.approx(sign * 0.2), True)
        assert moved["best", figure] == (pytest.approx(-sign * 0.1), True)
    assert moved["gap", "top1"] == (pytest.approx(-0.3), False)
