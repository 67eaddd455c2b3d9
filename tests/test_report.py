import base64
import json
import re
import shutil
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from fairgrpo_jax import advantages, audit, metrics, report
from fairgrpo_jax.report import __main__ as command, groups, plots, results, words
from tests import run_folder
from tests.report_page import Page, numbers


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = {
        "GRPO": run_folder.write(folder / "grpo", gain=0.1, seed=1),
        "FairGRPO": run_folder.write(folder / "fair", algorithm="fair_grpo", gain=0.15, seed=2),
    }
    return runs, report.build(runs, folder / "out" / "report.html", title="A <b>bold</b> title")


@pytest.fixture(scope="module")
def page(two):
    return Page(two[1])


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small run, of which the figures are made but not drawn, as drawing takes all the time."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg/>")
    return tiny(tmp_path / "run")


def tiny(folder, **options):
    return run_folder.write(folder, **{"patients": 30, "steps": 8, "evaluations": 2, "datasets": ("cxr",), **options})


def rows_of(run, step):
    return [json.loads(line) for line in (run / "evals" / f"{step:06d}.jsonl").read_text().splitlines()]


def members(rows, dataset, group):
    def belongs(row):
        age = (
            None
            if row["age"] is None
            else next(n for e, n in ((25, "≤25"), (50, "26–50"), (75, "51–75"), (999, ">75")) if row["age"] <= e)
        )
        return group in ("all", row["sex"], age, f"{row['sex']}, {age}")

    return [row for row in rows if row["dataset"] == dataset and belongs(row)]


# ---- the numbers on the page


@pytest.mark.parametrize(
    "dataset,group", [("cxr", "all"), ("cxr", "F"), ("cxr", ">75"), ("derm", "M, 51–75"), ("digits", "all")]
)
def test_scores_are_those_of_scikit_learn(two, page, dataset, group):
    runs, _ = two
    columns = [rows_of(runs["GRPO"], 0), rows_of(runs["GRPO"], 200), rows_of(runs["FairGRPO"], 200)]
    exact, f1 = page.group(dataset, group, "top1"), page.group(dataset, group, "f1")
    assert len(exact) == len(f1) == 3
    for rows, said_exact, said_f1 in zip(columns, exact, f1, strict=True):
        chosen = members(rows, dataset, group)
        gold, predicted = [row["answer"] for row in chosen], [row["prediction"] for row in chosen]
        expected = f1_score(gold, predicted, labels=sorted(set(gold)), average="macro", zero_division=0)  # type: ignore[arg-type]
        assert said_exact[0] == pytest.approx(
            np.mean([g == p for g, p in zip(gold, predicted, strict=True)]), abs=5.1e-4
        )
        assert said_f1[0] == pytest.approx(expected, abs=5.1e-4)
        assert said_exact[1] <= said_exact[0] <= said_exact[2]
    assert page.sizes(dataset, group) == [len(chosen), len({row["patient"] for row in chosen})]


def test_differences_are_the_second_run_minus_the_first(page):
    for dataset, group in (("cxr", "F"), ("derm", ">75")):
        for score in ("top1", "f1"):
            _, first, second = (values[0] for values in page.group(dataset, group, score))
            (difference,) = page.group(dataset, group, f"{score}-difference")
            assert difference[0] == pytest.approx(second - first, abs=1.1e-3)
            assert difference[1] < difference[0] < difference[2]


def test_interval_of_a_difference_is_that_of_the_paired_bootstrap(tmp_path):
    """One record a patient: compared with scipy's bootstrap of the mean of the paired differences."""
    rng = np.random.default_rng(3)
    rows = [
        {"uid": str(i), "dataset": "d", "patient": str(i), "sex": None, "age": None, "answer": "A"} for i in range(150)
    ]
    right = [rng.random(150) < 0.6, rng.random(150) < 0.75]
    columns = [
        results.Series(
            str(s),
            s,
            False,
            {row["uid"]: row | {"prediction": "A" if hit else "B"} for row, hit in zip(rows, hits, strict=True)},
        )
        for s, hits in enumerate(right)
    ]
    found = moved(columns)
    paired = right[1].astype(float) - right[0]
    expected = stats.bootstrap((paired,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(5))
    assert found.value == pytest.approx(paired.mean(), abs=1e-12)
    assert found.low == pytest.approx(expected.confidence_interval.low, abs=0.012)
    assert found.high == pytest.approx(expected.confidence_interval.high, abs=0.012)
    # Where the runs agree on all but five patients, the difference is known far better than either score.
    changed = {str(i): rows[i] | {"prediction": "A" if not right[0][i] else "B"} for i in range(5)}
    close = [columns[0], columns[0]._replace(rows=columns[0].rows | changed)]
    own = groups.held(close).datasets[0].groups[0].values["top1"][0]
    width = [e.high - e.low for e in (moved(close), own)]
    assert 0 < width[0] < 0.6 * width[1]


def moved(columns, figure="top1"):
    """The second series minus the first, everybody in the only dataset."""
    return groups.held(columns, pairs=[(1, 0)]).datasets[0].groups[0].differences[figure][0]


def repeated(rows, times):
    return {f"{row['uid']}#{k}": row | {"uid": f"{row['uid']}#{k}"} for row in rows for k in range(times)}


def test_patients_are_drawn_and_not_records(small):
    """Copies of a patient's records carry no information, so no interval may shrink."""
    rows = [row for row in rows_of(small, 8) if row["uid"].endswith("-0")]
    other = [row for row in rows_of(small, 0) if row["uid"].endswith("-0")]
    once, often = (
        groups.held(
            [results.Series("a", 0, True, repeated(other, k)), results.Series("b", 0, False, repeated(rows, k))],
            pairs=[(1, 0)],
        )
        for k in (1, 9)
    )
    for one, nine in zip(once.datasets[0].groups, often.datasets[0].groups, strict=True):
        a, b = (its.differences["f1"][0] for its in (one, nine))
        assert a.value == pytest.approx(b.value, abs=1e-12)
        np.testing.assert_allclose(a[1:3], b[1:3], atol=0.05)  # the same patients are not drawn
        assert (one.patients, 9 * one.records) == (nine.patients, nine.records)


def test_groups_and_gaps_are_those_of_the_audit(two, page):
    rows = sorted(rows_of(two[0]["GRPO"], 200), key=lambda row: row["uid"])
    found = audit.examine(
        [row["prediction"] or None for row in rows],
        [row["answer"] for row in rows],
        {name: [row[name] for row in rows] for name in ("sex", "age")},
        datasets=[row["dataset"] for row in rows],
        patients=[row["patient"] for row in rows],
    )
    by_group = {(g["dataset"], g["attribute"], g["name"]): g["figures"] for g in found["groups"]}
    for attribute, name in (("sex", "F"), ("age", ">75"), ("joint", "M, 26–50")):
        for figure, cells in by_group["cxr", attribute, name].items():
            if figure in ("top1", "f1"):
                wanted = [cells[k] for k in ("value", "low", "high")]
                assert page.group("cxr", name, figure)[1] == pytest.approx(wanted, abs=5.1e-4)
    gap = next(g for g in found["gaps"] if (g["dataset"], g["attribute"], g["figure"]) == ("cxr", "sex", "f1"))
    told = ("gap", "low", "high", "expected", "p_adjusted")
    assert page.gap("cxr", "sex", "f1")[1] == pytest.approx([gap[k] for k in told], abs=5.1e-4)


def test_unknown_is_a_group_and_small_ones_are_told(tmp_path):
    rows = evaluation({("F", 30.0): 0.9, (None, 30.0): 0.2}, patients=40) | evaluation({("M", 30.0): 0.5}, patients=10)
    (table,) = groups.held([results.Series("x", 0, False, rows)]).datasets
    found = {g.name: (g.known, g.small, g.records) for g in table.of("sex")}
    assert found == {"F": (True, False, 40), "M": (True, True, 10), "unknown": (False, False, 40)}
    assert table.gaps["sex"].values["top1"][0].p is None  # one group is left to compare


def test_fairness_columns_are_those_of_the_metrics_module(two, page):
    rows = rows_of(two[0]["FairGRPO"], 200)
    expected = metrics.fairness_report(
        [row["prediction"] or None for row in rows],
        [row["answer"] for row in rows],
        [{"sex": row["sex"], "age": row["age"]} for row in rows],
        [row["dataset"] for row in rows],
    )
    said = {row[0]: row for row in page.table("fairness")}
    assert said["measure"][2:] == ["before", "GRPO", "FairGRPO"]
    for name in ("PP", "EOD", "FPR_Diff", "σAcc", "ΔAcc", "Acc", "Acc_ES"):
        assert float(said[name][4]) == pytest.approx(expected[f"paper/{name}"], abs=0.051)
    for name in ("σF1", "ΔF1", "F1", "F1_ES"):
        assert float(said[name][4]) == pytest.approx(expected[f"paper/{name}"], abs=5.1e-4)
    assert float(said["equalized odds"][4]) == pytest.approx(100 * expected["overall/equalized_odds_diff"], abs=0.051)
    assert float(said["joint σF1"][4]) == pytest.approx(expected["overall/joint_f1_std"], abs=5.1e-4)
    assert said["worst group"][4].endswith(">75")


def test_headline_agrees_with_hand_calculation(two, page):
    said = {row[0]: row[1:] for row in page.table("headline")}
    columns = [rows_of(two[0]["GRPO"], 0), rows_of(two[0]["GRPO"], 200), rows_of(two[0]["FairGRPO"], 200)]
    shares = [np.mean([row["prediction"] == row["answer"] for row in rows]) for rows in columns]
    np.testing.assert_allclose(
        [numbers(text)[0] for text in said["exactly right, all records"][:3]], shares, atol=5.1e-4
    )
    f1 = np.mean([page.group(dataset, "all", "f1")[2][0] for dataset in ("cxr", "derm", "digits")])
    assert numbers(said["F1, mean over datasets"][2])[0] == pytest.approx(f1, abs=1.1e-3)


def test_joint_groups_by_hand():
    """Four cells with 90, 90, 90 and 40 % right; then 90 % in all, so that the gap closes and nobody loses."""
    columns = [
        results.Series("a", None, True, evaluation(BEFORE)),
        results.Series("b", 0, False, evaluation(BEFORE | {("M", 60.0): 0.9})),
    ]
    found = groups.held(columns, pairs=[(1, 0)])
    named = {name: (values, moved) for name, values, moved in groups.headline(found, [(1, 0)])}
    values, ((gap, *_),) = named["gap of F1 between joint groups"]
    assert [one.value for one in values] == pytest.approx([0.5, 0.0], abs=0.03) and gap == pytest.approx(-0.5, abs=0.03)
    assert 0 < values[0].expected < 0.2  # of four groups of 100, if they did not differ
    assert named["F1 of the worst joint group"][1][0].low > 0.3
    assert named["F1 of the best joint group"][1][0].value == pytest.approx(0, abs=1e-12)


def test_worst_and_best_groups_are_marked(page):
    (rows,) = [rows for known, rows in page.tables if known.get("data-dataset") == "cxr"]
    values = {
        known["data-group"]: cells[5][1]
        for known, cells in rows
        if known.get("data-group") in ("26–50", "51–75", ">75")
    }
    assert values.pop(">75").strip()[0].isdigit()  # 26 patients are not compared
    marks = {group: text.strip()[0] for group, text in values.items()}
    ranked = sorted(values, key=lambda group: numbers(values[group])[0])
    assert [marks[group] for group in ranked] == ["▼", "▲"]


def test_times_by_hand(two, page):
    logged = [json.loads(line) for line in (two[0]["GRPO"] / "metrics.jsonl").read_text().splitlines()]
    seconds = [row["time/rollout"] for row in logged if row["kind"] == "train"]
    total = sum(row["time/step"] for row in logged if row["kind"] == "train")
    said = next(row for row in page.table("times") if row[0] == "rollout")
    assert float(said[1]) == pytest.approx(1000 * np.median(seconds), abs=0.051)
    assert float(said[2]) == pytest.approx(sum(seconds), abs=0.051)
    assert numbers(said[3])[0] == round(100 * sum(seconds) / total)


# ---- the words


def evaluation(right, *, dataset="d", patients=100):
    """Series in which the named groups have the given share of right answers; groups: F and M at age 30 and 60."""
    rows = {}
    for (sex, age), share in right.items():
        for i in range(patients):
            answer = "AB"[i % 2]
            hit = (i // 2) < share * patients / 2
            uid = f"{dataset}/{sex}{age}-{i}"
            known = {"uid": uid, "dataset": dataset, "patient": uid, "sex": sex, "age": age, "answer": answer}
            rows[uid] = known | {"prediction": answer if hit else "BA"[i % 2]}
    return rows


BEFORE = {("F", 30.0): 0.9, ("F", 60.0): 0.9, ("M", 30.0): 0.9, ("M", 60.0): 0.4}


def said(after, patients=100):
    columns = [
        results.Series("before", None, True, evaluation(BEFORE, patients=patients)),
        results.Series("after", 0, False, evaluation(BEFORE | after, patients=patients)),
    ]
    return words.summary(columns, groups.held(columns, pairs=words.since(columns)))[0][1]


def test_levelling_down_is_called_so():
    text = said({("F", 30.0): 0.5, ("F", 60.0): 0.5, ("M", 30.0): 0.5})
    assert "levelling down" in text and "Exactly right −30.0 points" in text and "clearly lower." in text
    assert "clearly lower in 4 (d F, d M, d 26–50 and d 51–75)" in text


def test_a_gain_of_the_worst_group_is_called_so():
    text = said({("M", 60.0): 0.9})
    assert "as the worst groups gained" in text and "Exactly right +12.5 points" in text
    assert "clearly higher in 2 (d M and d 51–75), no more than chance explains in 2." in text


def test_a_small_difference_makes_no_claim():
    text = said({("F", 30.0): 0.92})
    assert "that may be chance" in text and "clearly" not in text


def test_a_score_that_no_resample_changes_has_an_interval_all_the_same():
    rows = evaluation({("F", 30.0): 1.0}, patients=20)
    rows = {uid: row | {"patient": str(int(uid.split("-")[1]) // 2)} for uid, row in rows.items()}
    everybody = groups.held([results.Series("x", 0, False, rows)]).datasets[0].groups[0]
    for value, low, high, *_ in (everybody.values["top1"][0], everybody.values["f1"][0]):
        assert value == high == 1 and 0.5 < low < 0.9


def test_no_change_is_no_change():
    assert "Exactly right +0.0 points (95 % interval +0.0 to +0.0) of 400 records of 400 patients: that" in said({})


def test_cautions_always_and_for_few_patients(page, small, tmp_path):
    assert "one seed" in page.text and "raised the worst groups" in " ".join(page.text.split())
    assert "too few patients for" not in page.text
    few = Page(report.build({"run": small}, tmp_path / "few.html", title="few"))
    assert "cxr (30 patients): too few patients for any claim" in few.text


# ---- the page itself


def test_the_page_needs_nothing_else(two, page):
    assert page.addresses and all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"link", "iframe", "object", "embed"} & set(page.tags) and page.tags.count("script") == 1
    assert "url(" not in page.source and "@import" not in page.source
    assert len(page.source.encode()) < 5_000_000
    anchors = {address[1:] for address in page.addresses if address.startswith("#")}
    assert anchors == set(re.findall(r'id="([^"]+)"', page.source))


def test_what_a_model_says_is_text_and_not_markup(page):
    assert "<script>alert('x')</script>" in page.text and page.source.count("<script") == 1
    assert "A <b>bold</b> title" in page.text and "b" not in page.tags


def test_figures_are_drawn_and_described(page):
    images = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page.source)
    drawn = {alt: base64.b64decode(data).decode() for data, alt in images}
    assert len(drawn) == 8  # curves, groups, ceilings, health, shares, and one forest for each of three datasets
    for svg in drawn.values():
        assert svg.startswith("<?xml") and plots.COLOURS[0].lower() in svg and plots.COLOURS[1].lower() in svg
    assert "Training reward" in drawn["Reward and loss over the steps"]
    assert "digits · unlabelled" in drawn["Mean share of the absolute advantage by group"]


def test_what_was_drawn_is_shown_for_runs_that_drew_by_group(tmp_path):
    folder = tiny(tmp_path / "fair")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["kind"] == "train":
            row |= {"drawn/ratio/cxr/F, >75": 4.0, "drawn/ratio/digits/unlabelled": 0.5, "reward/group/cxr/F, >75": 0.1}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = Page(report.build({"natural": tiny(tmp_path / "run"), "fair": folder}, tmp_path / "x.html", title="x"))
    (image,) = re.findall(r'base64,([^"]+)" alt="How often each group was drawn[^"]*, fair"', page.source)
    svg = base64.b64decode(image).decode()
    assert all(word in svg for word in ("cxr", "digits", "F, &gt;75", "unlabelled", "mean reward"))
    assert "Who was drawn" in page.text


def test_differing_options_are_shown_first_and_shaded(page):
    (rows, _) = [rows for known, rows in page.tables if known.get("class") == "options"]
    shown = {cells[0][1]: ([text for _, text in cells[1:]], known.get("class")) for known, cells in rows[1:]}
    assert shown["algorithm"] == (["grpo", "fair_grpo"], "differs")
    assert shown["optim.lr"] == (["0.0001", "0.0001"], None)
    assert "optim.b1" not in shown and "optim.b1" in page.text


def test_equal_completions_are_told_once(page):
    shown = [row for row in page.table("completions") if row[0].startswith("<think>")]
    assert ["<think>focal</think>\\boxed{Nodule}", "Nodule", "4", "12", "right", "1.00", "+1.00"] in shown
    assert ["<think>focal</think>\\boxed{Normal}", "Normal", "3", "12", "wrong", "0.00", "−1.00"] in shown


def test_the_same_files_give_the_same_page(tmp_path):
    run = tiny(tmp_path / "run")
    once, again = (report.build({"run": run}, tmp_path / name, title="t") for name in ("once.html", "again.html"))
    assert once.read_bytes() == again.read_bytes()


def test_the_ceiling_is_what_one_lucky_rollout_gives():
    lucky = np.zeros((64, 8), np.float32)
    lucky[0, 0] = 1
    assert report._ceiling({"algorithm": "grpo", "prompts": 64, "rollouts": 8}) == pytest.approx(
        float(np.abs(advantages.grpo(lucky, epsilon=0.0)).max()), rel=1e-5
    )
    centred = lucky - lucky.mean(1, keepdims=True)
    assert report._ceiling({"algorithm": "fair_grpo", "prompts": 64, "rollouts": 8}) == pytest.approx(
        float((centred / centred.std(ddof=1)).max()), rel=1e-5
    )
    assert report._ceiling({"algorithm": "rloo", "prompts": 64, "rollouts": 8}) is None
    assert report._ceiling({}) is None


def test_running_mean_by_hand():
    np.testing.assert_allclose(plots.running_mean(np.array([1.0, 2, 6, np.nan, 8])), [1.5, 3, 4, 7, 8])
    assert len(plots.running_mean(np.array([]))) == 0


def test_age_edges_of_the_run_are_used(small, tmp_path):
    config = json.loads((small / "config.json").read_text())
    config["data"]["age_edges"] = [60]
    (small / "config.json").write_text(json.dumps(config))
    made = Page(report.build({"run": small}, tmp_path / "r.html", title="t"))
    young = [row for row in rows_of(small, 8) if row["dataset"] == "cxr" and row["age"] <= 60]
    assert made.sizes("cxr", "≤60")[0] == len(young) and "26–50" not in made.text


# ---- runs that are not complete


def built(folder, out, **runs):
    return Page(report.build(runs or {"run": folder}, out / "report.html", title="t"))


def test_a_single_run_compares_its_end_with_its_start(small, tmp_path):
    made = built(small, tmp_path)
    before, after = (values[0] for values in made.group("cxr", "all", "top1"))
    assert made.group("cxr", "all", "top1-difference")[0][0] == pytest.approx(after - before, abs=1.1e-3)
    assert "after − before" in made.text


def test_without_evaluations(small, tmp_path):
    shutil.rmtree(small / "evals")
    made = built(small, tmp_path)
    assert "There is no held-out evaluation yet" in made.text and "There is no held-out evaluation to show" in made.text
    assert "Where the time went" in made.text


def test_with_the_first_evaluation_only(small, tmp_path):
    for file in (small / "evals").iterdir():
        if file.stem != "000000":
            file.unlink()
    made = built(small, tmp_path)
    assert "one held-out evaluation, at step 0" in made.text and "no change to speak of" in made.text
    assert len(made.group("cxr", "all", "top1")) == 1 and made.group("cxr", "all", "top1-difference") == []


def test_with_a_config_only(small, tmp_path):
    for piece in ("evals", "samples"):
        shutil.rmtree(small / piece)
    (small / "metrics.jsonl").unlink()
    made = built(small, tmp_path)
    for words_ in ("no reinforcement-learning steps yet", "Nothing has been logged yet", "No completions were kept"):
        assert words_ in made.text


def test_without_a_config(small, tmp_path):
    (small / "config.json").unlink()
    assert "config.json is missing" in built(small, tmp_path).text


def test_an_interrupted_run(small, tmp_path):
    lines = (small / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] == "warmup" or json.loads(line)["step"] <= 5]
    (small / "metrics.jsonl").write_text("\n".join(kept) + '\n{"kind": "tra')
    (small / "evals" / "000008.jsonl").unlink()
    text = built(small, tmp_path).text
    assert "stands at step 5 of 8" in text and "last held-out evaluation is of step 4, the last step is 5" in text


def test_a_lost_image_is_told(small, tmp_path):
    next((small / "samples").glob("*.png")).unlink()
    assert "1 image file(s) missing" in built(small, tmp_path).text


def test_runs_with_other_records_are_compared_on_the_common_ones(two, small, tmp_path):
    made = built(small, tmp_path, large=two[0]["GRPO"], small=small)
    common = {row["uid"] for row in rows_of(small, 8)}
    assert f"use the {len(common)} that are common to all" in made.text
    assert made.sizes("cxr", "all")[0] == len([uid for uid in common if uid.startswith("cxr/")])


def test_runs_with_no_common_record(small, tmp_path):
    other = tiny(tmp_path / "other")
    for file in (other / "evals").iterdir():
        file.write_text(file.read_text().replace('"uid": "', '"uid": "x'))
    made = built(small, tmp_path, one=small, other=other)
    assert "No held-out record has been evaluated in all runs" in made.text


def test_runs_that_start_apart_each_show_their_start(small, tmp_path):
    other = tiny(tmp_path / "other", seed=4)
    run_folder.write_evaluation(other, 0, run_folder.people(30, ("cxr",)), share=0.2, rng_seed=99)
    made = built(small, tmp_path, one=small, other=other)
    heads = next(row for row in made.table("headline"))
    assert heads[1:] == ["one, before", "one", "other, before", "other", "other − one"]


@pytest.mark.parametrize("runs", [0, 7])
def test_too_few_or_too_many_runs(small, tmp_path, runs):
    with pytest.raises(ValueError, match=f"got {runs} runs; wanted 1 to 6"):
        report.build({str(i): small for i in range(runs)}, tmp_path / "r.html", title="t")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(ValueError, match=f"{folder.name} is no run folder.*--workdir"):
            report.build({"run": folder}, tmp_path / "r.html", title="t")
    assert not (tmp_path / "r.html").exists()


def test_the_command(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report", str(small), "--out", str(tmp_path / "c.html")])
    command.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "c.html")
    assert "<h1>run</h1>" in (tmp_path / "c.html").read_text()
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none"), "--out", str(tmp_path / "d.html")])
    with pytest.raises(SystemExit, match="error: .*no run folder"):
        command.main()
    monkeypatch.setattr(sys, "argv", ["report", str(small), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is a folder; wanted the name of an HTML file"):
        command.main()
