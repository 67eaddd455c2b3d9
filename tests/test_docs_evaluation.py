"""docs/evaluation.md is followed: its commands run, and say what the page says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from fairgrpo_jax import evaluate
from fairgrpo_jax.audit import command


ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
COMMANDS = [line for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]


def test_the_guide_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table, audit = COMMANDS[0], next(line for line in COMMANDS if "--codes" in line)
    subprocess.run([sys.executable, ROOT / "docs" / "diabetes.py", *shlex.split(table)[2:]], check=True)
    assert Path("diabetes.csv").read_text().splitlines()[:3] == COMMANDS[1:4]
    command.main(shlex.split(audit)[3:])
    told = " ".join(capsys.readouterr().out.split())
    (quote,) = re.findall(r"(?:^> .*\n)+", PAGE, re.M)
    assert " ".join(quote.replace(">", "", 1).replace("\n>", "\n").split()) in told
    shown = re.findall(r"^\| `([\w.-]+)` \|", PAGE, re.M)
    assert sorted(shown) == sorted([*(path.name for path in Path("diabetes").iterdir() if path.name != "report.html")])
    rows = json.loads(Path("diabetes/metrics.json").read_text())["models"]["diabetes"]["groups"]
    right = {row["name"]: f"{row['figures']['top1']['value']:.3f}" for row in rows if row["attribute"] == "sex"}
    assert f"{right['F']} and {right['M']}" in " ".join(PAGE.split())


def test_every_command_of_the_guide_is_one():
    for line in COMMANDS:
        if "fairgrpo_jax.evaluate" in line:
            of_run, rest = evaluate.split(shlex.split(line)[3:])
            command.parser().parse_args([*rest, *(["answers"] if of_run else [])])
            assert not of_run or "--model.path" in of_run
