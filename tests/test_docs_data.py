"""docs/data.md has a section for every dataset, and names what the code knows."""

import pathlib

import pytest

from fairgrpo_jax import config as options, data


PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "data.md").read_text()


@pytest.mark.parametrize("name", [name for name in data.DATASETS if name not in data.MADE])
def test_every_dataset_has_its_section(name):
    assert f"(`{name}`)" in PAGE


def test_options_that_the_page_names_exist():
    names = {word.split(" ")[0] for word in PAGE.split("--data.")[1:]}
    known = set(options.to_dict(options.Data()))
    assert {name.strip("`.,").split("`")[0].replace("-", "_") for name in names} <= known
