"""The closing table, by hand; and one patient's way from the raw words to the tables, by every path."""

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fairgrpo_jax import demographics, evaluate, grouping, metrics
from fairgrpo_jax.data import demographics as data_demographics
from fairgrpo_jax.data.record import Record
from fairgrpo_jax.report import groups as audited, results, tables


def printed(table):
    out = io.StringIO()
    Console(file=out, width=120).print(table)
    return out.getvalue()


def cells(table):
    rows = [line for line in printed(table).splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row.strip("│").split("│")] for row in rows]


def row(dataset, sex, age, reward, **attributes) -> dict[str, Any]:
    return {"dataset": dataset, "sex": sex, "age": age, "reward": reward, "exact": reward} | (
        {"attributes": attributes} if attributes else {}
    )


def test_held_out_table_by_hand():
    before = [
        row("cxr", "F", 30.0, 1.0),
        row("cxr", "F", 80.0, 0.0),
        row("cxr", "M", 80.0, 0.0),
        row("cxr", None, None, 1.0),
    ]
    after = [dict(known, exact=reward) for known, reward in zip(before, (1.0, 1.0, 0.0, 0.0), strict=True)]
    assert cells(tables.held_out_table(before, after)) == [
        ["cxr", "all", "4", "0.500", "0.500", "+0.000"],
        ["", "F", "2", "0.500", "1.000", "+0.500"],
        ["", "M *", "1", "0.000", "0.000", "+0.000"],
        ["", "26–50", "1", "1.000", "1.000", "+0.000"],
        ["", ">75", "2", "0.000", "0.500", "+0.500"],
    ]
    assert "dataset" in printed(tables.held_out_table(before, after))


def test_held_out_table_without_demographics_and_without_a_start():
    table = tables.held_out_table([], [row("digits", None, None, 1.0)])
    assert cells(table) == [["digits", "all", "1", "–", "1.000", "–"]]


def test_held_out_table_follows_the_scheme():
    rows = [row("d", "F", 12.0, 1.0, race="Asian"), row("d", "M", 40.0, 0.0, race="Black")]
    found = cells(tables.held_out_table([], rows, scheme=demographics.Scheme(("race", "age"), (18,))))
    assert [line[1] for line in found] == ["all", "Asian", "Black *", "≤18", ">18"]


def test_of_equally_bad_groups_the_first_has_the_star():
    """Which one it was depended on the order of a set, that is on the hash seed of the process."""
    people = [(s, a) for s in "FM" for a in (20.0, 40.0, 60.0, 80.0)]
    found = cells(tables.held_out_table([], [row("d", sex, age, 0.0) for sex, age in people]))
    assert [line[1] for line in found] == ["all", "F *", "M", "≤25", "26–50", "51–75", ">75"]


PEOPLE = (  # sex, age, race: as an owner writes them
    ("female", "040Y", "Asian"),
    ("F", "40.5", "unknown"),
    ("MALE", 65, "White"),
    ("m", "['66Y']", "Asian"),
    ("O", "", "White"),
    ("", 12, "n/a"),
)
GROUPS = {  # (attributes, edges) -> the groups of each of these people, by hand
    (("sex", "age"), (40, 65)): [("F", "≤40"), ("F", "41–65"), ("M", "41–65"), ("M", ">65"), None, (None, "≤40")],
    (("race", "sex"), (25, 50, 75)): [
        *[("Asian", "F"), (None, "F"), ("White", "M"), ("Asian", "M"), ("White", None), None],
    ],
    (("age",), (12,)): [(">12",)] * 4 + [None, ("≤12",)],
}


@pytest.mark.parametrize("attributes,edges", GROUPS)
def test_every_path_puts_a_patient_in_the_same_groups(attributes, edges):
    """Raw words -> record -> training; record -> evals -> figures, log, report, closing table."""
    wanted, scheme = GROUPS[attributes, edges], demographics.Scheme(attributes, edges)
    told: list[Any] = [
        (data_demographics.sex(sex), data_demographics.age(age), {"race": race}) for sex, age, race in PEOPLE
    ]
    records = [Record("d/1", "d", "", (), "?", "x", (), "p", sex, age, extra, "train") for sex, age, extra in told]
    groups = [data_demographics.attributes(record, edges=edges, names=attributes) for record in records]
    assert groups == [dict(zip(attributes, g or [None] * len(attributes), strict=True)) for g in wanted]

    # Training: the unknown part of a cell is "?".
    vocabulary = grouping.vocabulary(groups, attributes)
    ids = grouping.explicit_groups(groups, vocabulary)
    trained = [None if i < 0 else vocabulary.cells[i] for i in ids]
    assert trained == [None if g is None else ", ".join(part or "?" for part in g) for g in wanted]

    # Everything else reads the rows of an evaluation, in which a record is right if its place is even.
    rows: list[dict[str, Any]] = [
        row("d", record.sex, record.age, float(i % 2 == 0), **({"race": group["race"]} if "race" in group else {}))
        | {"uid": str(i), "patient": str(i), "answer": "A", "prediction": "BA"[i % 2 == 0]}
        for i, (record, group) in enumerate(zip(records, groups, strict=True))
    ]
    hits: dict[tuple[str, str], list[float]] = {("all", "all"): [float(r["reward"]) for r in rows]}
    for group, r in zip(wanted, rows, strict=True):
        for attribute, name in zip(attributes, group or (), strict=False):
            if name is not None:
                hits.setdefault((attribute, name), []).append(r["reward"])
        if group and None not in group and len(group) > 1:
            hits.setdefault(("joint", ", ".join(group)), []).append(r["reward"])
    shares = {group: (len(values), np.mean(values)) for group, values in hits.items()}
    people = [{"sex": r["sex"], "age": r["age"]} | r.get("attributes", {}) for r in rows]
    answers = [r["prediction"] for r in rows], ["A"] * len(rows), people, ["d"] * len(rows)

    found = metrics.figures(*answers, scheme=scheme)
    assert {(f["attribute"], f["name"]): (f["n"], f["top1"]) for f in found} == shares
    keys = {name for name in metrics.fairness_report(*answers, scheme=scheme) if name.endswith("/top1")} - {"d/top1"}
    assert keys - {"overall/top1"} == {
        f"fairness/d/{f['attribute']}/{f['group']}/top1"
        for f in metrics.figures(*answers, scheme=scheme)
        if f["attribute"] != "all"
    }
    (table,) = audited.held([results.Series("x", 0, False, {r["uid"]: r for r in rows})], scheme).datasets
    known = [g for g in table.groups if g.known]
    assert {(g.attribute, g.name): (g.records, g.values["top1"][0].value) for g in known} == shares
    closing = cells(tables.held_out_table([], rows, scheme=scheme))
    single = [(name, count, share) for (attribute, name), (count, share) in shares.items() if attribute != "joint"]
    assert sorted((line[1].removesuffix(" *"), int(line[2]), line[4]) for line in closing) == sorted(
        (name, count, f"{share:.3f}") for name, count, share in single
    )
    assert [line[1].removesuffix(" *") for line in closing] == [g.name for g in known if g.attribute != "joint"]


def test_the_log_takes_the_extremes_of_large_groups_of_the_scheme():
    """Twenty of 40 years, all right, and twenty of 41, half right: by edge 40 two groups, by the default edges one."""
    rows: Any = [
        row("d", "F", 40.0 + (i >= 20), 1.0) | {"answer": "A", "prediction": "A" if i < 30 else "B"} for i in range(40)
    ] + [row("d", "M", 90.0, 0.0) | {"answer": "A", "prediction": "B"}]  # too few to be the worst
    found = evaluate.summary(rows, demographics.Scheme(("age",), (40, 65)))
    assert found["best_f1"] == 1.0 and found["worst_f1"] == pytest.approx(2 / 3)
    assert evaluate.summary(rows)["worst_f1"] == evaluate.summary(rows)["best_f1"] == pytest.approx(6 / 7)
