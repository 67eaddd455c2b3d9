"""The layout holds: one package, three folders reached through links, and no second copy of anything."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fairgrpo_jax


ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "data", "configs")


@pytest.mark.parametrize("name", FOLDERS)
def test_folder_is_a_subpackage_of_the_checkout(name):
    assert (ROOT / "fairgrpo_jax" / name).is_symlink()
    module = importlib.import_module(f"fairgrpo_jax.{name}")
    assert Path(str(module.__file__)).resolve().parent == ROOT / name


@pytest.mark.parametrize("name", FOLDERS)
def test_plain_import_is_refused(name):
    code = f"import {name}"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"import fairgrpo_jax.{name}, not {name}" in result.stderr


def test_every_file_is_found_as_a_module():
    found = {module.name for module in pkgutil.walk_packages(fairgrpo_jax.__path__, "fairgrpo_jax.")}
    for folder in ("fairgrpo_jax", *FOLDERS):
        base = ROOT if folder == "fairgrpo_jax" else ROOT / "fairgrpo_jax"
        for path in (base / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            assert name == "fairgrpo_jax" or name in found, name


def test_one_version():
    version = fairgrpo_jax.__version__
    changes = re.findall(r"(?m)^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text())
    assert changes[0] == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_hooks_before_a_commit_run_what_make_lint_runs():
    lint = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    assert lint
    wanted = [line.strip().replace("$(RUN)", ".venv/bin/python") for line in lint[1].splitlines()]
    assert re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text()) == wanted


# What a distribution is imported as, where that is another name.
MODULES = {
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
}
# Imports that only those meet who asked for the extra.
OPTIONAL = {"dicom": {"pydicom"}, "xlsx": {"openpyxl"}, "judge": {"openai"}, "parity": {"torch"}}


def declared(requirements):
    """The modules of a list of requirements."""
    names = [re.split(r"[^\w-]", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name) for name in names}


def imported():
    """The third-party modules that the package imports, each with one file that does."""
    found = {}
    for path in (path for folder in ("fairgrpo_jax", *FOLDERS) for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.split(".")[0]] = path
    return {name: path for name, path in found.items() if name not in sys.stdlib_module_names | {"fairgrpo_jax"}}


def test_what_is_imported_is_declared_and_the_reverse():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always, found = declared(project["dependencies"]), imported()
    for extra, names in OPTIONAL.items():
        assert names <= declared(project["optional-dependencies"][extra])
    undeclared = {name: str(path) for name, path in found.items() if name not in always.union(*OPTIONAL.values())}
    assert not undeclared, f"imported, not declared in pyproject.toml: {undeclared}"
    unused = always.union(*OPTIONAL.values()) - set(found)
    assert not unused, f"declared in pyproject.toml, imported nowhere: {unused}"


@pytest.mark.slow
def test_wheel_holds_real_files_and_only_one_name(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fairgrpo_jax"}
    for wanted in (
        "fairgrpo_jax/py.typed",
        "fairgrpo_jax/models/qwen2_5_vl.py",
        "fairgrpo_jax/models/tiny/tiny_tokenizer/tokenizer.json",
        "fairgrpo_jax/data/datasets/synthetic.py",
        "fairgrpo_jax/configs/clinic.py",
        "fairgrpo_jax/report/report.html.jinja",
        "fairgrpo_jax/report/filter.js",
    ):
        assert wanted in names
