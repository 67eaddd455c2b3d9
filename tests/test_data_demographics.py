"""The spellings the owners of the datasets use, each with its reading."""

import math

import numpy as np
import pytest

from fairgrpo_jax import demographics as people, grouping
from fairgrpo_jax.data import demographics
from fairgrpo_jax.data.record import Record


@pytest.mark.parametrize(
    "raw,years",
    [
        (53, 53.0),
        ("53.0", 53.0),
        ("053Y", 53.0),
        ("['36Y']", 36.0),
        (["36Y"], 36.0),
        ("006M", 0.5),
        ("012D", 12 / 365.25),
        ("052W", 52 * 7 / 365.25),
        (" 45 ", 45.0),
        ("90", 90.0),
        (0, 0.0),
        ("25.5", 25.5),
        ("['053Y']", 53.0),
        ("053y", 53.0),
        ("0.0027", 0.0027),
        ("90+", 90.0),
        ("90 +", 90.0),
        (">=90", 90.0),
        ("≥ 90", 90.0),
        (">89", 90.0),
        ("63 years", 63.0),
        ("61 yrs.", 61.0),
        ("1 year old", 1.0),
        ("6 Months", 0.5),
        ("12 days", 12 / 365.25),
        ("45yo", 45.0),
        ("", None),
        (None, None),
        (math.nan, None),
        ("nan", None),
        ("unknown", None),
        (-99, None),
        ("-99.0", None),
    ],
)
def test_age(raw, years):
    assert demographics.age(raw) == pytest.approx(years)


@pytest.mark.parametrize(
    "raw", ["old", -1, 131, "['36Y', '37Y']", "[36", "inf", "36X", "60-69", "<18", "140+", "6 moons", 999]
)
def test_an_age_nobody_can_read_is_an_error(raw):
    with pytest.raises(ValueError, match="age is"):
        demographics.age(raw)


@pytest.mark.parametrize("raw", ["1950-03-01", "1950-3-1T00:00", "01.03.1950", "3/1/50"])
def test_a_date_of_birth_is_no_age(raw):
    with pytest.raises(ValueError, match="a date; wanted years when the picture was taken: subtract a date of birth"):
        demographics.age(raw)


@pytest.mark.parametrize(
    "raw,sex",
    [(raw, "F") for raw in ("F", "f", "Female", "FEMALE", " female ")]
    + [(raw, "M") for raw in ("M", "m", "Male", "MALE", "male")]
    + [(raw, None) for raw in ("", None, math.nan, "Unknown", "unknown", "O", "None")],
)
def test_sex(raw, sex):
    assert demographics.sex(raw) == sex


def test_codes_for_sex_are_read_only_where_the_dataset_explains_them():
    codes = {"0.0": "F", "1.0": "M", "-99": None}
    assert [demographics.sex(raw, codes=codes) for raw in ("0.0", 1.0, -99, "male")] == ["F", "M", None, "M"]
    with pytest.raises(ValueError, match="codes="):
        demographics.sex("1.0")


def test_age_bins_include_their_upper_edge():
    ages = [0, 25, 25.5, 26, 50, 50.1, 75, 75.5, 76, 90, None]
    bins = ["≤25", "≤25", "26–50", "26–50", "26–50", "51–75", "51–75", ">75", ">75", ">75", None]
    assert [demographics.age_name(age) for age in ages] == bins
    assert [demographics.age_name(age, edges=(60.0,)) for age in (60, 61)] == ["≤60", ">60"]


@pytest.mark.parametrize("edges", [(25, 50, 75), (40, 65), (18,), (0.5, 17.5, 60.0)])
def test_every_age_has_the_name_of_its_bin(edges):
    names = people.age_names(edges)
    assert len(set(names)) == len(edges) + 1
    beside = [edge + by for edge in edges for by in (-0.25, 0, 0.25, 0.5, 1)]
    for years in np.concatenate([np.random.default_rng(0).uniform(0, 120, 200), beside]):
        place = sum(years > edge for edge in edges)  # an edge belongs to the bin below it
        assert people.age_name(years, edges) == names[place] == names[people.age_bins([years], edges)[0]]
        assert demographics.age_name(years, edges=edges) == names[place]


@pytest.mark.parametrize("word", sorted(people.UNKNOWN))
def test_an_unknown_word_is_unknown_to_everybody(word):
    assert demographics.sex(word) is None and demographics.age(word.upper()) is None
    for attribute in ("sex", "age", "race"):
        assert people.group(attribute, word) is None
    record = Record("d/1", "d", "", (), "?", "x", (), "p", None, None, {"race": word}, "train")
    assert demographics.attributes(record, names=("race",)) == {"race": None}


def test_groups_by_further_attributes():
    extra = {"race": "Asian", "skin_type": "", "income": " unknown "}
    record = Record("d/1", "d", "", (), "?", "x", (), "p", "F", 25.5, extra, "train")
    assert demographics.attributes(record) == {"sex": "F", "age": "26–50"}
    names = ("race", "sex", "skin_type", "income", "insurance")
    assert list(demographics.attributes(record, names=names).items()) == [
        ("race", "Asian"),
        ("sex", "F"),
        ("skin_type", None),
        ("income", None),
        ("insurance", None),
    ]
    assert demographics.attributes(record, edges=(60,), names=("age",)) == {"age": "≤60"}
    rows = [demographics.attributes(record, names=names), demographics.attributes(record, names=names[2:])]
    vocabulary = grouping.vocabulary([rows[0]])
    assert grouping.explicit_groups(rows[:1], vocabulary).tolist() == [0]
    assert grouping.explicit_groups(rows[1:], vocabulary).tolist() == [-1]
