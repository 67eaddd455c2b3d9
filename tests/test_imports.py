"""Who may import whom: arrows point downward only, and the pure library loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent

# A module may import those of lower floors, and those of its own floor that stand to its left.
FLOORS = (
    (
        "demographics",
        "_labels",
        "_statistics",
        "advantages",
        "diagnostics",
        "_kmeans",
        "grouping",
        "normalization",
        "losses",
        "_fairness_state",
        "_temperatures",
        "_hardness",
        "fairness",
        "estimators",
        "sampler",
        "metrics",
        "interop",
        "adapters",
    ),
    ("files", "processes", "programs", "hosts", "config", "mesh", "configs", "data", "models", "rewards", "tracking")
    + ("audit", "report"),
    ("rollout", "staged", "plan.cost", "plan.devices", "plan.footprint", "chunking", "learner", "checkpoint", "policy")
    + (
        "plan.utilisation",
        "plan.gathers",
        "plan.tables",
        "plan.ahead",
        "sources",
        "batches",
        "workers",
        "lengths",
        "prompts",
        "answers",
        "drawn",
        "step_log",
        "samples",
        "first_steps",
        "folder",
        "lock",
        "runs",
    ),
    ("commandline", "construct", "leaderboard", "export", "pictures", "answering", "scales", "evaluate", "sft", "train")
    + ("study", "plan.plan", "plan.here"),
)
ORDER = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
# On the second floor only these arrows exist; data knows no model, models know no dataset.
SIDEWAYS = {("configs", "config"), ("models", "mesh"), ("rewards", "config"), ("rewards", "models")}
SIDEWAYS |= {("report", "config"), ("report", "tracking"), ("report", "files"), ("tracking", "files")}
SIDEWAYS |= {
    ("report", "processes"),
    ("report", "audit"),
    ("data", "files"),
    ("data", "processes"),
    ("programs", "files"),
    ("audit", "data"),
    ("audit", "files"),
    ("audit", "processes"),
}


def modules():
    for folder in ("fairgrpo_jax", "models", "data", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = _name(parts[1:]) if folder == "fairgrpo_jax" else folder
            if parts[-1] not in ("__init__", "__main__") or len(parts) > 2 and name in ORDER:
                yield name, path


def _name(parts):
    """A module's name on its floor; the plan is a folder over several floors."""
    return ".".join(parts[:2]) if parts[0] == "plan" and len(parts) > 1 else parts[0]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "fairgrpo_jax":
            yield from (alias.name for alias in node.names if not alias.name.startswith("__"))
        elif isinstance(node, ast.ImportFrom) and (module := node.module or "").startswith("fairgrpo_jax."):
            parts = module.split(".")[1:]
            yield from ([f"plan.{a.name}" for a in node.names] if parts == ["plan"] else [_name(parts)])
        elif isinstance(node, ast.Import):
            yield from (_name(a.name.split(".")[1:]) for a in node.names if a.name.startswith("fairgrpo_jax."))


@pytest.mark.parametrize("name,path", list(modules()), ids=lambda value: str(value)[-40:])
def test_arrows_point_downward(name, path):
    floor, place = ORDER[name]
    for other in set(imported(path)) - {name}:
        other_floor, other_place = ORDER[other]
        if other_floor == floor == 1:
            assert (name, other) in SIDEWAYS, f"{path}: {name} imports {other}"
        else:
            assert (other_floor, other_place) < (floor, place), f"{path}: {name} imports {other}"


HEAVY = {"flax", "optax", "orbax", "transformers", "torch", "sklearn", "grain", "tensorflow_datasets", "matplotlib"}
LOADED = f"[m for m in sys.modules if m.split('.')[0] in {HEAVY}]"


def printed(code):
    """What a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_pure_modules_load_nothing_heavy():
    """One interpreter imports one after the other; the first that loads something is the one to blame."""
    public = [name for name in FLOORS[0] if not name.startswith("_")]
    code = "import importlib, sys\n"
    code += f"for name in {public}:\n    importlib.import_module('fairgrpo_jax.' + name)\n    print(name, {LOADED})"
    assert printed(code).splitlines() == [f"{name} []" for name in public]


def test_audit_needs_no_jax():
    """Whoever has predictions of another model waits for none of it."""
    code = "import sys, fairgrpo_jax.evaluate; from fairgrpo_jax.audit import command, page, paired"
    code += "; print([name for name in ('jax', 'scipy.stats', 'tyro', 'matplotlib') if name in sys.modules])"
    assert printed(code).strip() == "[]"


def test_package_itself_imports_nothing():
    assert printed("import sys, fairgrpo_jax; print('jax' in sys.modules)").strip() == "False"
