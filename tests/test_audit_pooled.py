"""Several seeds of one method: means and intervals between seeds, and what may not be pooled."""

import csv
import json

import numpy as np
import pytest
from scipy import stats

from fairgrpo_jax.audit import command, pooled
from fairgrpo_jax.audit.records import Records
from fairgrpo_jax.demographics import Scheme
from tests import report_page, run_folder


QUICK = ["--resamples", "100", "--permutations", "100", "--adjust", "none", "--least", "10"]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A study's folders: the same records, three seeds."""
    root = tmp_path_factory.mktemp("study")
    for seed in range(3):
        run_folder.write(root / f"seed{seed}" / "grpo", seed=seed + 1, patients=60, evaluations=1, datasets=("cxr",))
    return [str(root / f"seed{seed}" / "grpo") for seed in range(3)]


def test_means_and_intervals_between_seeds(seeds, tmp_path, capsys):
    command.main([*seeds, "--pool", "--out", str(tmp_path), *QUICK])
    told = capsys.readouterr().out
    assert "mean and interval between 3 seeds" in told and "All seeds answered the same records" in told
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert list(found["models"]) == ["seed0/grpo", "seed1/grpo", "seed2/grpo"] and found["compared"] == []
    by = {(row["attribute"], row["name"], row["figure"]): row for row in found["pooled"]}
    for attribute, name, figure in (("all", "all", "top1"), ("sex", "F", "f1"), ("age", ">75", "tpr")):
        each = [
            row["figures"][figure]["value"]
            for its in found["models"].values()
            for row in its["groups"]
            if (row["attribute"], row["name"]) == (attribute, name)
        ]
        wanted = np.clip(stats.t.interval(0.95, 2, np.mean(each), stats.sem(each)), 0, 1)
        row = by[attribute, name, figure]
        assert list(row["values"].values()) == each and row["mean"] == pytest.approx(np.mean(each), abs=1e-12)
        assert (row["low"], row["high"]) == pytest.approx(tuple(wanted), abs=1e-9)
    gaps = [
        row
        for its in found["models"].values()
        for row in its["gaps"]
        if (row["attribute"], row["figure"]) == ("sex", "top1")
    ]
    pooled_gap = by["sex", "gap", "top1"]
    assert pooled_gap["mean"] == pytest.approx(np.mean([row["gap"] for row in gaps]))
    assert pooled_gap["expected"] == pytest.approx(np.mean([row["expected"] for row in gaps]))
    rows = list(csv.DictReader((tmp_path / "groups.csv").read_text().splitlines()))
    own = [row for row in rows if row["model"] == "all seeds" and (row["group"], row["figure"]) == ("F", "f1")]
    assert [float(row["value"]) for row in own] == pytest.approx([by["sex", "F", "f1"]["mean"]])
    page = report_page.Page(tmp_path / "report.html")
    assert "3 seeds together" in page.text and "sex and age" in str(page.table("seeds"))
    assert "over seeds" in (tmp_path / "model-card.md").read_text()


def invented(**changes) -> Records:
    known = {
        "name": "m", "source": "one.csv", "ids": [str(i) for i in range(60)], "predictions": ["a"] * 60,
        "labels": ["a", "b"] * 30,
        "attributes": {"sex": ["F", "M", "M"] * 20}, "datasets": ["d"] * 60, "patients": None,
    }  # fmt: skip
    return Records(**(known | changes))


@pytest.mark.parametrize(
    "changes, wanted",
    [
        ({"datasets": ["e"] * 60}, "the datasets differ, d and e"),
        ({"attributes": {"race": ["x"] * 60}}, "the attributes differ, sex and race"),
        ({"scheme": Scheme(age_edges=(40,))}, "the age groups differ, 25, 50, 75 and 40"),
        ({"labels": ["a", "b"] * 25 + ["b", "a"] * 5}, "50 records are the same in both, of 60 and 60"),
    ],
)
def test_what_may_not_be_pooled_is_said(changes, wanted):
    with pytest.raises(ValueError, match=wanted):
        pooled.comparable([invented(), invented(source="two.csv", **changes)])


def test_a_clinic_of_its_own_for_each_seed_may_be_pooled():
    (note,) = pooled.comparable([invented(), invented(labels=["b", "a"] * 30)])
    assert "records of its own" in note
    with pytest.raises(ValueError, match="got 1 run to pool"):
        pooled.comparable([invented()])


def test_other_classes_are_other_questions():
    def of(*classes):
        return {"datasets": [{"dataset": "d", "classes": list(classes), "limited": False}], "groups": [], "gaps": []}

    with pytest.raises(ValueError, match="the classes of d differ between seeds, a, b and a, c"):
        pooled.pool({"one": of("a", "b"), "two": of("a", "c")})
