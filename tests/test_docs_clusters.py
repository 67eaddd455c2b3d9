"""The recipes of docs/clusters.md: scripts that a shell can parse, YAML of the right form, options that exist."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from fairgrpo_jax import commandline, hosts


TEXT = (Path(__file__).parent.parent / "docs" / "clusters.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def of(language):
    return [text for name, text in BLOCKS if name == language]


@pytest.mark.parametrize("script", of("bash"), ids=lambda text: text.split("\n")[1][:30])
def test_scripts_parse(script, tmp_path):
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert checked.returncode == 0 and not checked.stderr, checked.stderr
    if "#SBATCH" in script:
        assert script.startswith("#!/bin/bash") and "srun --label" in script and "gpus-per-task" not in script


def test_kubernetes_and_skypilot_are_yaml_of_their_form():
    job, sky = [yaml.safe_load(text) for text in of("yaml")]
    assert job["kind"] == "JobSet"
    workers = job["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert workers["parallelism"] == workers["completions"] == sky["num_nodes"]
    container = workers["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    subprocess.run(["bash", "-n"], input=sky["run"], text=True, check=True)


def commands():
    """The arguments of every training command in the recipes."""
    joined = re.sub(r"\\\n\s*", " ", TEXT)
    for line in re.findall(r"fairgrpo_jax\.train ([^\n'&]+)", joined):
        yield re.sub(r'"?\$\{?(\w+)\}?(:\d+)?[^\s"]*"?', "node1:9731,4,0", line).split()
    container = yaml.safe_load(of("yaml")[0])["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    yield container["containers"][0]["command"][3:] + container["containers"][0]["args"]


@pytest.mark.parametrize("argv", list(commands()), ids=lambda argv: " ".join(argv)[:50])
def test_commands_have_options_that_exist(argv):
    if "[" in argv[-1] or "]" in argv[0]:
        return
    parsed = commandline.parse(argv, prog="train", description="", schema=commandline.Distributed)
    assert parsed.config.mesh in ("32x1", "16x1", "4x1")
    spec = re.sub(r"\$i$", "0", parsed.distributed)
    place = hosts.parse(spec)
    assert place is None or place.index == 0
