"""The groups that a report shows are those of the run's config: any attribute, any age edges."""

import json

from fairgrpo_jax import demographics, report
from fairgrpo_jax.audit.runs import scheme_of
from fairgrpo_jax.report import groups, plots, results, words
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
    joint = [f"{race}, {sex}" for race in races for sex in "FM"]
    wanted = ["all", *races, "unknown", "F", "M", *joint, "unknown"]
    assert [known["data-group"] for known, _ in table if "data-group" in known] == wanted
    for group in (name for name in wanted[1:] if name != "unknown"):
        count = sum(
            group in (r["attributes"]["race"], r["sex"], f"{r['attributes']['race']}, {r['sex']}") for r in rows
        )
        assert page.sizes("cxr", group)[0] == count > 0
    assert "race and sex" in page.text and "≤40" not in page.text and "sex and age" not in page.text
    assert [axis.get_title() for axis in drawn[1].axes] == [*races, "F", "M"]


def test_the_summary_counts_the_groups_of_the_scheme(tmp_path):
    run, _ = written(tmp_path / "run", ["age", "race", "sex"], [40, 65])
    loaded = results.load("run", run)
    scheme = scheme_of(loaded.config)
    assert scheme == demographics.Scheme(("age", "race", "sex"), (40, 65))
    columns = results.series([loaded])
    found = groups.held(columns, scheme, words.since(columns))
    assert found.datasets[0].attributes == ["age", "race", "sex"]
    large = [g for g in found.datasets[0].of("age", "race", "sex") if g.patients >= 30]
    text = words.summary(columns, found)[0][1]
    small = len(found.datasets[0].of("age", "race", "sex")) - len(large)
    assert not large and text.endswith(f"{small} of the groups by age, by race and by sex have too few patients.")
