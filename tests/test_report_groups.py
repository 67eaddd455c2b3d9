"""The groups that a report shows are those of the run's config: any attribute, any age edges."""

import json
import warnings

import numpy as np
import pytest

from fairgrpo_jax import demographics, report
from fairgrpo_jax.report import plots, results, words
from tests import run_folder
from tests.report_page import Page


def written(folder, attributes, age_edges):
    """A small run whose patients also have a race, in turn."""
    run = run_folder.write(folder, patients=40, steps=8, evaluations=2, datasets=("cxr",))
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"attributes": attributes, "age_edges": age_edges}
    (run / "config.json").write_text(json.dumps(config))
    for file in (run / "evals").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows:
            row["attributes"] = {"race": (None, "Asian", "White, not Hispanic")[int(row["patient"]) % 3]}
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run, rows


def test_every_attribute_of_the_run_reaches_the_report(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_svg", lambda figure: drawn.append(figure) or "<svg/>")
    run, rows = written(tmp_path / "run", ["race", "sex"], [40, 65])
    page = Page(report.build({"run": run}, tmp_path / "r.html", title="t"))
    (table,) = [lines for known, lines in page.tables if known.get("data-dataset") == "cxr"]
    races = ["Asian", "White, not Hispanic"]
    wanted = ["all", *races, "F", "M", *(f"{race}, {sex}" for race in races for sex in "FM")]
    assert [known["data-group"] for known, _ in table if "data-group" in known] == wanted
    for group in wanted[1:]:
        count = sum(
            group in (r["attributes"]["race"], r["sex"], f"{r['attributes']['race']}, {r['sex']}") for r in rows
        )
        assert page.sizes("cxr", group)[0] == count > 0
    assert "race and sex" in page.text and "≤40" not in page.text and "sex and age" not in page.text
    assert [axis.get_title() for axis in drawn[1].axes] == [*races, "F", "M"]


def test_the_summary_counts_the_groups_of_the_scheme(tmp_path):
    run, _ = written(tmp_path / "run", ["age", "race", "sex"], [40, 65])
    loaded = results.load("run", run)
    assert results.scheme(loaded.config) == demographics.Scheme(("age", "race", "sex"), (40, 65))
    columns = results.series([loaded])
    tables = results.datasets(columns, scheme=results.scheme(loaded.config), replicates=50)
    assert tables[0].attributes == ["age", "race", "sex"]
    assert "F1 of the 7 groups by age, by race and by sex:" in words.summary(columns, tables)[0][1]


def test_draws_without_any_joint_group_are_left_out_silently():
    """Two patients of 42 have groups, so that one draw in eight has neither of them."""
    rows = {}
    for i in range(42):
        sex = {0: "F", 1: "M"}.get(i)
        known = {"uid": f"{i}", "dataset": "d", "patient": f"{i}", "sex": sex, "age": 30.0 if sex else None}
        rows[f"{i}"] = known | {"answer": "A", "prediction": "A"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = results.joint(results.datasets([results.Series("x", 0, False, rows)], replicates=400))
    assert found is not None and found.worst[0, 0] == found.best[0, 0] == 1
    missing = np.isnan(found.worst[0, 1:])
    assert missing.mean() == pytest.approx((40 / 42) ** 42, abs=0.06)
    np.testing.assert_array_equal(missing, np.isnan(found.best[0, 1:]))
