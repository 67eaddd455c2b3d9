"""The completions and the components in a report: what the page holds, and what its script shows of it."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fairgrpo_jax import report, tracking
from fairgrpo_jax.report import plots
from tests import run_folder
from tests.test_report import built, tiny
from tests.test_report_damage import half


EVIL = (
    "</script><script>alert(1)</script>",
    "</td></tr></table><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x=\'',
    "{{ 7 * 7 }}{% raw %}<!--",
    "&lt;b&gt; is not <b>",
)
NAMES = ("exact", "my.rewards:short<b>\"'", "form")
RACE = 'O\'Brien "|" </td><b>'


def completions(step):
    """Three prompts of two datasets, with completions of every kind."""
    rows: list[dict[str, Any]] = []
    people = [("cxr", "F", "51–75", RACE), ("cxr", "M", None, None), ("d\"'><b>", None, None, None)]
    for prompt, (dataset, sex, age, race) in enumerate(people):
        cell = ", ".join(at or "?" for at in (sex, age, race)) if sex else "unlabelled"
        for rollout in range(5):
            scored = (rollout + prompt) % 4 != 3
            rows.append(
                {
                    "step": step,
                    "prompt": prompt,
                    "rollout": rollout,
                    "uid": f"{dataset}/{prompt}<i>",
                    "dataset": dataset,
                    "task": "find<i>ings" if prompt else "",
                    "sex": sex,
                    "age": 61.0 if age else None,
                    "attribute/sex": sex,
                    "attribute/age": age,
                    "attribute/race": race,
                    "cell": cell,
                    "question": f"Which? {EVIL[0]}",
                    "answer": f"A {EVIL[1]}",
                    "completion": f"{step} {prompt} {EVIL[rollout]}",
                    "prediction": EVIL[2] if rollout else None,
                    "exact": [1.0, 0.0, np.nan, 1.0, 0.0][rollout],
                    "length": 10 + rollout,
                    "finished": rollout != 4,
                    "reward": 0.1 * (7 - rollout) if scored else np.nan,
                    "advantage": 1.0 - rollout,
                    "component/exact": float(rollout == 0),
                    f"component/{NAMES[1]}": np.float32(0.7) if scored else np.nan,
                    "component/form": np.nan if prompt == 1 else 0.25 * rollout,
                    "normalised/form": np.nan if prompt == 1 else 0.2 * rollout,
                    "images": [f"samples/{step:06d}-{prompt}-0.png"] if prompt < 2 else [],
                }
            )
    table = pd.DataFrame(rows)
    scores = [name for name in table if re.match("exact|reward|advantage|component|normalised", str(name))]
    return table.astype(dict.fromkeys(scores, np.float32))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A small run with completions of two steps; the pictures of the last are there."""
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg/>")
    folder = tiny(tmp_path / "run")
    picture = next((folder / "samples").glob("*.png")).read_bytes()
    shutil.rmtree(folder / "samples")
    (folder / "samples").mkdir()
    for step in (4, 8):
        completions(step).to_parquet(folder / "samples" / f"{step:06d}.parquet")
    for prompt in (0, 1):
        (folder / "samples" / f"000008-{prompt}-0.png").write_bytes(picture)
    return folder


class Tree(html.parser.HTMLParser):
    """The elements of a page as nested dicts."""

    def __init__(self, source):
        super().__init__()
        self.root: dict[str, Any] = {"tag": "document", "attrs": {}, "children": [], "text": ""}
        self.open = [self.root]
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        node = {"tag": tag, "attrs": dict(attrs), "children": [], "text": ""}
        self.open[-1]["children"].append(node)
        if tag not in ("meta", "img", "input"):
            self.open.append(node)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for node in self.open:
            node["text"] += data

    def find(self, tag, node=None):
        for child in (node or self.root)["children"]:
            yield from ([child] if child["tag"] == tag else [])
            yield from self.find(tag, child)


def shown(page, settings):
    """What the script of a page shows for each setting of the filters."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    tree = Tree(page.read_text(encoding="utf-8"))
    (script,) = tree.find("script")
    given = json.dumps({"tree": tree.root, "script": script["text"], "settings": settings})
    command = ["node", str(Path(__file__).parent / "page_script.js")]
    return json.loads(subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout)


def test_filters_show_what_pandas_selects(run, tmp_path):
    table: Any = pd.concat([completions(8), completions(4)])
    short = f"component/{NAMES[1]}"
    cases = [
        ({}, table["step"] == 8),
        ({"step": ""}, table["step"] > 0),
        ({"step": "4"}, table["step"] == 4),
        ({"step": "", "dataset": "d\"'><b>"}, table["dataset"] != "cxr"),
        ({"step": "", "group": "sex: F"}, table["attribute/sex"] == "F"),
        ({"step": "", "group": f"race: {RACE}"}, table["attribute/race"] == RACE),
        ({"step": "", "group": f"F, 51–75, {RACE}"}, table["cell"] == f"F, 51–75, {RACE}"),
        ({"step": "", "group": "M, ?, ?"}, table["cell"] == "M, ?, ?"),
        ({"step": "", "group": "unlabelled"}, table["cell"] == "unlabelled"),
        ({"step": "", "outcome": "right"}, table["exact"] == 1),
        ({"step": "", "outcome": "wrong"}, table["exact"] == 0),
        ({"step": "", "outcome": "not scored"}, table["reward"].isna()),
        ({"step": "8", "outcome": "truncated"}, ~table["finished"] & (table["step"] == 8)),
        ({"step": "", "number": "reward", "limit": "0.5"}, table["reward"].astype(str).astype(float) >= 0.5),
        ({"step": "", "number": short, "limit": "0.7"}, table[short] > 0),
        ({"step": "", "number": short, "side": "below", "limit": "0.7"}, table["step"] < 0),
        ({"step": "", "number": "normalised/form", "side": "below", "limit": "0.3"}, table["normalised/form"] < 0.3),
        ({"step": "", "number": "advantage", "side": "below", "limit": "0"}, table["advantage"] < 0),
        ({"step": "", "number": "reward", "limit": ""}, table["step"] > 0),
        (
            {"step": "4", "dataset": "cxr", "group": "sex: M", "outcome": "wrong", "number": "reward", "limit": "0"},
            (table["step"] == 4) & (table["attribute/sex"] == "M") & (table["exact"] == 0) & (table["reward"] >= 0),
        ),
    ]  # fmt: skip
    page = report.build({"run": run}, tmp_path / "r.html", title="t")
    for (setting, wanted), found in zip(cases, shown(page, [setting for setting, _ in cases]), strict=True):
        rows = table[wanted]
        assert found["said"] == rows["completion"].tolist(), setting
        assert found["status"] == f"{len(rows)} of 30 completions" and found["panel"]
        assert found["prompts"] == len(rows.groupby(["step", "prompt"])), setting


def test_what_was_said_is_inert(run, tmp_path):
    page = report.build({"run": run}, tmp_path / "r.html", title="t")
    tree = Tree(page.read_text(encoding="utf-8"))
    (table,) = (one for one in tree.find("table") if one["attrs"].get("class") == "completions")
    said = [row["children"][0]["text"] for row in tree.find("tr", table) if "data-times" in row["attrs"]]
    assert said == pd.concat([completions(8), completions(4)])["completion"].tolist()
    inside = {one["tag"] for tag in ("b", "i", "script") for one in tree.find(tag, table)}
    names = {name for tag in ("tbody", "tr", "td", "th") for one in tree.find(tag, table) for name in one["attrs"]}
    assert not inside and not {name for name in names if name.startswith("on") or name == "x"}
    assert all(one["attrs"]["src"].startswith("data:image/png") for one in tree.find("img", table))
    (script,) = tree.find("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    policy = next(one["attrs"]["content"] for one in tree.find("meta") if "http-equiv" in one["attrs"])
    assert f"script-src 'sha256-{digest}';" in policy and "unsafe-inline" not in policy.partition("script-src")[2]


def test_the_table_is_whole_without_the_script_and_every_control_has_a_name(run, tmp_path):
    tree = Tree(report.build({"run": run}, tmp_path / "r.html", title="t").read_text(encoding="utf-8"))
    (panel,) = tree.find("fieldset")
    parts = [one for tag in ("fieldset", "table", "tbody", "tr") for one in tree.find(tag)]
    hidden = [one["tag"] for one in parts if "hidden" in one["attrs"]]
    assert hidden == ["fieldset"] and next(tree.find("legend", panel))["text"]
    labelled = [one for label in tree.find("label", panel) for one in tree.find("select", label)]
    for control in [*tree.find("select", panel), *tree.find("input", panel)]:
        assert control in labelled or control["attrs"]["aria-label"]
    (table,) = (one for one in tree.find("table") if one["attrs"].get("class") == "completions")
    assert all(one["attrs"].get("scope") in ("col", "rowgroup") for one in tree.find("th", table))


def test_every_component_is_a_column_where_there_are_several(run, tmp_path):
    head = built(run, tmp_path).table("completions")[0]
    assert head[5:] == ["reward", "advantage", *NAMES, "form, normalised"]
    rows = [row for row in built(run, tmp_path).table("completions") if row[0].startswith("8 1")]
    assert rows[0][2:] == ["1", "10", "right", "0.70", "+1.00", "1.00", "0.70", "–", "–"]
    assert rows[4][1:] == [EVIL[2], "1", "14", "wrong, truncated", "0.30", "−3.00", "0.00", "0.70", "–", "–"]
    for step in (4, 8):
        path = run / "samples" / f"{step:06d}.parquet"
        pd.read_parquet(path).drop(columns=[f"component/{NAMES[1]}", "component/form", "normalised/form"]).to_parquet(
            path
        )
    assert built(run, tmp_path).table("completions")[0][5:] == ["reward", "advantage"]


def test_completions_of_earlier_versions_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "_svg", lambda figure: "<svg/>")
    folder = tiny(tmp_path / "run")
    run_folder.write_old_samples(folder, 8)
    page = built(folder, tmp_path)
    shown_rows = [row for row in page.table("completions") if row[0].startswith("<think>")]
    assert ["<think>focal</think>\\boxed{Nodule}", "–", "4", "–", "right", "1.00", "+1.00"] in shown_rows
    assert "F, 51–75 · answer: Melanoma" in page.text and page.source.count('alt="image 1 of') == 2


def test_a_table_that_is_cut_costs_itself_alone(run, tmp_path):
    half(run / "samples" / "000008.parquet")
    page = built(run, tmp_path)
    assert "000008.parquet in samples/ is damaged and left out" in page.text
    assert [row for row in page.table("completions") if row[0].startswith("4 0")]


def test_a_table_with_a_flipped_bit_is_not_believed(run, tmp_path):
    """In a page with a checksum, as ``samples.save`` writes them; here in plain sight."""
    path = run / "samples" / "000008.parquet"
    completions(8).to_parquet(path, compression=None, write_page_checksum=True)
    data = bytearray(path.read_bytes())
    data[data.index(b"8 0 </script>")] ^= 1
    path.write_bytes(data)
    page = built(run, tmp_path)
    assert "000008.parquet in samples/ is damaged and left out" in page.text and "9 0 " not in page.text


@pytest.mark.parametrize("damage", ["a column is missing", "words for numbers", "no list"])
def test_a_foreign_table_is_left_out_by_name(run, tmp_path, damage):
    path = run / "samples" / "000004.parquet"
    table = pd.read_parquet(path)
    if damage == "a column is missing":
        table = table.drop(columns="uid")
    elif damage == "words for numbers":
        table["reward"] = "high"
    else:
        table["images"] = 3
    table.to_parquet(path)
    assert "000004.parquet in samples/ is damaged and left out" in built(run, tmp_path).text


def test_a_lost_image_is_told_with_the_latest_step(run, tmp_path):
    (run / "samples" / "000008-1-0.png").unlink()
    text = built(run, tmp_path).text
    assert text.count("1 image file(s) missing or damaged") == 1
    assert text.count("1 image file(s) in samples/") == 2  # of step 4


def test_steps_that_are_not_shown_are_told(run, tmp_path):
    for step in range(10, 90, 10):
        completions(step).to_parquet(run / "samples" / f"{step:06d}.parquet")
    text = " ".join(built(run, tmp_path).text.split())
    assert "steps 4, 10, 30, 50, 60, 80" in text or "steps 4, 10, 30, 40, 60, 80" in text
    assert "10 steps were kept; the others are in samples/." in text


# ---- components


def test_components_of_evaluations_by_hand(run, tmp_path):
    rng = np.random.default_rng(5)
    frames = {}
    for step in (0, 8):
        path = run / "evals" / f"{step:06d}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["components"] = {"exact": row["reward"], "judge": float(rng.random()) if rng.random() < 0.8 else np.nan}
            if rng.random() < 0.5:
                row["components"]["form"] = float(rng.random())
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        frames[step] = pd.DataFrame([row | row["components"] for row in rows])
    page = built(run, tmp_path)
    (lines,) = [rows for known, rows in page.tables if known.get("data-components") == "cxr"]
    told = {known["data-group"]: [text for _, text in cells] for known, cells in lines if "data-group" in known}
    assert {"all", "F", "M", ">75", "F, >75"} <= set(told)
    for group, rows in (
        ("all", lambda f: f["sex"] != ""),
        ("F", lambda f: f["sex"] == "F"),
        (">75", lambda f: f["age"] > 75),
    ):
        at = 2
        for name in ("exact", "judge", "form"):
            for step in (0, 8):
                own: Any = frames[step][rows(frames[step])]
                assert float(told[group][at].split()[0]) == pytest.approx(own[name].mean(), abs=5.1e-4)
                missing = int(own["judge"].isna().sum())
                assert (f"{missing} not scored" in told[group][at]) == (name == "judge" and missing > 0)
                assert (f"of {own['form'].notna().sum()} records" in told[group][at]) == (name == "form")
                at += 1


def test_a_run_of_one_component_has_no_table_of_them(run, tmp_path):
    assert not [known for known, _ in built(run, tmp_path).tables if "data-components" in known]


def test_components_are_drawn_over_the_steps(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_svg", lambda figure: drawn.append(figure) or "<svg/>")
    with tracking.MetricsLog(run / "metrics.jsonl") as log:
        for step in (9, 10):
            values = {f"reward/component/{name}": 0.1 * step for name in ("exact", "a.b:c")}
            values |= {"reward/normalised/a.b:c": 0.5, "reward/component/exact/cxr/F, >75": 0.0}
            log.append("train", step, values | {"advantage/component/exact": 0.75, "advantage/component/a.b:c": 0.25})
    page = built(run, tmp_path)
    titles = [[axis.get_title(loc="left") for axis in figure.axes] for figure in drawn]
    assert ["exact", "a.b:c", "a.b:c, normalised"] in [[t for t in own if t] for own in titles]
    (signal,) = (figure for figure in drawn if [a.get_title(loc="left") for a in figure.axes] == ["exact", "a.b:c"])
    assert [axis.lines[0].get_ydata().tolist() for axis in signal.axes] == [[0.75, 0.75], [0.25, 0.25]]
    assert "Components of the reward" in page.text
    assert len([alt for alt in re.findall('alt="([^"]*)"', page.source) if "component" in alt]) == 2


def test_tasks_of_held_out_records_are_drawn_over_the_steps(run, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "_svg", lambda figure: drawn.append(figure) or "<svg/>")
    with tracking.MetricsLog(run / "metrics.jsonl") as log:
        log.append("eval", 10, {"task/tal/tag": 0.25, "task/video_summary/judge": 0.5})
    assert "Held-out records by task" in built(run, tmp_path).text
    (figure,) = (f for f in drawn if "tal" in f.axes[0].get_title(loc="left"))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["tal · tag", "video_summary · judge"]
    assert [axis.lines[0].get_ydata().tolist() for axis in figure.axes] == [[0.25], [0.5]]
