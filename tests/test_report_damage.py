"""The report of a folder in which files are damaged or foreign, and what its page may load."""

import re

import pandas as pd
import pytest

from fairgrpo_jax import report
from fairgrpo_jax.report import plots
from tests.test_report import built, tiny


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small run, of which the figures are made but not drawn, as drawing takes all the time."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg/>")
    return tiny(tmp_path / "run")


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "evals/000000.jsonl", "samples/000008.parquet", "evals/000008.jsonl"]
)
@pytest.mark.parametrize("damage", [half, lambda path: path.write_bytes(b'{"a": 1}\n[]\n')], ids=["cut", "foreign"])
def test_what_is_damaged_is_left_out_by_name(small, tmp_path, name, damage):
    path = small / name
    if name == "metrics.jsonl" and damage is half:  # a last line that is cut is no damage
        path.write_text("{\n" + path.read_text())
    else:
        damage(path)
    made = built(small, tmp_path)
    assert f"{path.name} in {path.parent.name}/ is damaged and left out" in made.text


def test_a_damaged_image_is_told(small, tmp_path):
    half(next((small / "samples").glob("*.png")))
    assert "1 image file(s) missing or damaged" in built(small, tmp_path).text


def test_images_come_from_the_folder_of_the_samples_alone(small, tmp_path):
    path = max((small / "samples").glob("*.parquet"))
    (tmp_path / "secret.png").write_bytes(next((small / "samples").glob("*.png")).read_bytes())
    table = pd.read_parquet(path)
    table["images"] = [["../secret.png", str(tmp_path / "secret.png")]] * len(table)
    table.to_parquet(path)
    assert built(small, tmp_path).text.count("2 image file(s) missing or damaged") == 2


def test_nothing_is_loaded_from_outside(small, tmp_path):
    page = (report.build({"run": small}, tmp_path / "r.html", title="t")).read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page[:300])
    assert policy is not None and policy[1].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert page.count("<script") == 1 and not re.search(r'(src|href)="(?!data:|#)', page)
