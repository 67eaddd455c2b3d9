"""Ages that are told as bands: a group where the edges leave them whole, refused by name where an edge cuts one."""

import json

import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax import config as options, demographics as people, sources
from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.check import check
from fairgrpo_jax.data.datasets import jsonl


@pytest.mark.parametrize(
    "raw, band",
    [
        *((f"60{dash}69", (60, 69)) for dash in ("-", "–", "—", " - ", " to ")),
        *((f"60-69{unit}", (60, 69)) for unit in (" years", "y", " yrs", " Years old")),
        *(("<18", (0, 17)), ("<= 25", (0, 25)), ("≤25", (0, 25)), ("0-0", (0, 0))),
        *(("90+", (90, np.inf)), (">89", (90, np.inf)), (">=90", (90, np.inf)), ("≥ 90", (90, np.inf))),
        *(("(60, 70]", (61, 70)), ("[60, 70)", (60, 69)), ("[60,70]", (60, 70)), ("(17.999, 25.0]", (18, 25))),
        *(
            (raw, None)
            for raw in ("61", 61, 61.5, "053Y", "63 years", None, "", "old", "2001-02-03", "60-", "-60", [61])
        ),
    ],
)
def test_bands(raw, band):
    assert people.age_band(raw) == band


@pytest.mark.parametrize("raw", ["69-60", "60-140", "140+", "<0", "(60, 60]"])
def test_bands_that_are_none(raw):
    with pytest.raises(ValueError, match="age is .*wanted a band of years"):
        people.age_band(raw)


def test_the_names_of_bins_are_bands_of_the_same_bin():
    for edges in ((25, 50, 75), (40, 65), (60,)):
        for name in people.age_names(edges):
            band = people.age_band(name)
            assert band and not people.is_cut(band, edges) and people.age_name(people.within(band), edges) == name


def test_bands_of_pandas_lie_in_the_bins_that_have_its_edges():
    """Whole years, cut by pandas and by us."""
    years = np.arange(1, 130)
    for year, interval in zip(years, pd.cut(years, [0, 25, 50, 75, 130]), strict=True):
        band = people.age_band(str(interval))
        assert band and band[0] <= year <= band[1] and not people.is_cut(band)
        assert people.age_name(people.within(band)) == people.age_name(float(year))


def folder(path, *ages):
    for split in ("train", "test"):
        rows = [{"prompt": "?", "answer": "a", "patient": f"{split}{i}", "age": age} for i, age in enumerate(ages)]
        (path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_band_is_a_group_and_is_kept(tmp_path):
    source = jsonl.load(folder(tmp_path, "60–69", "90+", "<18", 61, None), split="train")
    assert [r.age for r in source] == [64.5, 90.0, 8.5, 61.0, None]
    assert [r.extra.get("age_told") for r in source] == ["60–69", "90+", "<18", None, None]
    groups = [demographics.attributes(r, names=("age", "age_told")) for r in source]
    assert [g["age"] for g in groups] == ["51–75", ">75", "≤25", "51–75", None]
    assert [g["age_told"] for g in groups] == ["60–69", "90+", "<18", None, None]
    assert [demographics.attributes(r, edges=(65,))["age"] for r in source] == [None, ">65", "≤65", "≤65", None]
    assert any("ages that are bands: 60–69 (1), 90+ (1), <18 (1)" in note for note in source.notes)


def test_a_run_refuses_edges_that_cut_a_band(tmp_path):
    root = folder(tmp_path, "40-49", "50-59", "90+", 50)
    config = options.Data(name="jsonl", root=root)
    with pytest.raises(ValueError) as raised:
        sources.load(options.Config(data=config))
    text = str(raised.value)
    name = f"{tmp_path.name}/train-2"
    assert "data.age_edges 25, 50, 75, which cut 50-59: 2 records" in text and name in text and "40-49" not in text
    assert "wanted edges from 49, 59, or the bands as groups: --data.attributes age_told" in text
    mended = (
        options.Data(name="jsonl", root=root, age_edges=(49, 59)),
        options.Data(name="jsonl", root=root, attributes=("sex", "age_told")),
        options.Data(name="jsonl", root=root, age_edges=(89,)),
    )
    for config in mended:
        found = sources.load(options.Config(data=config))
        assert len(found["train"]) == 4
    with pytest.raises(ValueError, match="data.age_edges 95, which cut 90\\+"):
        sources.load(options.Config(data=options.Data(name="jsonl", root=root, age_edges=(95,))))


def test_check_shows_a_band_that_is_cut_as_unknown(tmp_path):
    report = check("jsonl", folder(tmp_path, "50-59", "60-69"))
    assert report.wrong == []
    (line,) = [line for line in report.lines if line.startswith("(open question)")]
    assert line.split()[-2:] == ["2", "2"]


def test_bad_bands_are_refused_by_line_and_a_column_of_that_name_must_agree(tmp_path):
    with pytest.raises(ValueError, match="line 2: age is '69-60'; wanted a band"):
        jsonl.load(folder(tmp_path, "60-69", "69-60"), split="train")
    row = {"prompt": "?", "answer": "a", "age": "60-69", "age_told": "old"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match="line 1: the column age_told differs from the age 60-69"):
        jsonl.load(tmp_path, split="train")
    (tmp_path / "train.jsonl").write_text(json.dumps(row | {"age": 61}))
    (record,) = jsonl.load(tmp_path, split="train")
    assert record.extra == {"age_told": "old"} and demographics.band(record) is None
    (tmp_path / "train.jsonl").write_text(json.dumps(row | {"age": 61, "age_told": "40-70"}))
    (record,) = jsonl.load(tmp_path, split="train")  # the age itself is known
    assert demographics.band(record) is None and demographics.attributes(record)["age"] == "51–75"
