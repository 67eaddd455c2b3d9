"""docs/own-data.md is followed to the letter: its commands, in their order, and its examples of files."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from fairgrpo_jax import commandline, configs, data
from tests import own_data


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "own-data.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [line for language, text in BLOCKS if not language for line in text.splitlines()]


def section(title):
    """The text below a heading, up to the next one."""
    return PAGE.split(f"\n### {title}\n")[1].split("\n#")[0]


def rows(text):
    """The objects in the JSON blocks of a text."""
    lines = [line for block in re.findall(r"```json\n(.*?)```", text, re.S) for line in block.splitlines()]
    return [json.loads(line) | {"split": "train"} for line in lines]


def pictures(folder):
    (folder / "images").mkdir(parents=True)
    for number in range(1, 3):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "images" / f"{number:04d}.png")


def test_json_lines(tmp_path):
    pictures(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(section("JSON lines"))))
    check_records(tmp_path / "train.jsonl")


def test_parquet(tmp_path):
    pictures(tmp_path)
    columns = pyarrow.Table.from_pylist([{"image": None, "images": None} | row for row in rows(section("JSON lines"))])
    pyarrow.parquet.write_table(columns, tmp_path / "train.parquet")
    check_records(tmp_path / "train.parquet")


def test_table(tmp_path):
    pictures(tmp_path)
    (text,) = re.findall(r"```csv\n(.*?)```", section("Table"), re.S)
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "test.csv").write_text(text)
    check_records(tmp_path / "train.csv", root=tmp_path)


def test_image_folders(tmp_path):
    for name in ("Nevus", "Melanoma"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "train" / name / "0001.png")
    records = data.load("jsonl", tmp_path, split="train").records
    assert {(record.answer, record.media[0].path) for record in records} == {
        (name, tmp_path / "train" / name / "0001.png") for name in ("Nevus", "Melanoma")
    }
    assert {record.choices for record in records} == {("Melanoma", "Nevus")}


def test_conversations(tmp_path):
    pictures(tmp_path)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(section("Conversations"))))
    first, second = data.load("jsonl", tmp_path / "train.jsonl", split="train").records
    assert first.turns == second.turns and [turn.role for turn in first.turns] == ["system", "user"]
    assert (first.answer, first.patient, second.patient) == ("Nevus", "p17", "p18")


def check_records(path, root=None):
    """The two rows of the page."""
    records = data.load("jsonl", root or path, split="train").records
    told = [(record.answer, record.patient, record.sex, record.age, len(record.media)) for record in records]
    assert told == [("Nevus", "p17", "F", 61.0, 1), ("Growth", "p17", None, None, 2)]
    assert [medium.path for medium in records[1].media] == [path.parent / "images" / f"000{n}.png" for n in (1, 2)]


def test_options_and_presets_of_the_page_exist():
    """Also those outside of blocks, which no test runs."""
    for words_ in re.findall(r"`(--(?:sampling|warmup|data)[^`]*)`", PAGE):
        if " " in words_ and "..." not in words_:
            commandline.apply(configs.get("mine"), shlex.split(words_))
    assert {name for name in re.findall(r"`(mine(?:/\w+)?)`", PAGE)} <= set(configs.names())


@pytest.mark.slow
def test_the_commands_of_the_page_one_after_the_other(tmp_path):
    """As real processes in an empty folder; the runs are made as small as a test by more options at their end."""
    own_data.checkpoint(tmp_path / "MODEL")
    own_data.write(tmp_path / "my-data")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    assert len(COMMANDS) == 9
    for line in COMMANDS:
        module = line.split()[2]
        small = own_data.SMALL if module == "fairgrpo_jax.train" else []
        small = [*small, "--steps", "5"] if "runs/first" in line and small else small
        words_ = [sys.executable, *shlex.split(line)[1:], *small]
        done = subprocess.run(words_, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "defect" not in done.stderr, f"{line}\n{done.stdout}\n{done.stderr}"
        if "runs/first" in line and small:
            assert done.stdout.count("warning: none of the completions of the first 5 steps has a reward") == 1
            assert "looked for: " in done.stdout and "from the data: --data.prompt-length 128" in done.stdout
    for made in ("runs/first/report.html", "first.html", "policy/model.safetensors", "adapter/adapter_config.json"):
        assert (tmp_path / made).is_file()
    further = json.loads((tmp_path / "runs" / "further" / "config.json").read_text())["model"]
    assert (further["lora_rank"], further["lora_alpha"]) == (16, 32.0)
