"""The site's reference names every public module, the pure library first."""

import importlib.util
import pkgutil
from pathlib import Path

import fairgrpo_jax
from tests.test_imports import FLOORS


ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
assert spec and spec.loader
hooks = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hooks)


def test_every_public_module_is_in_the_reference_once():
    found = {module.name for module in pkgutil.walk_packages(fairgrpo_jax.__path__, "fairgrpo_jax.")}
    public = sorted(name for name in found if not any(part.startswith("_") for part in name.split(".")))
    assert sorted(module for page in hooks.reference().values() for module in page) == public


def test_the_pure_library_is_the_lowest_floor():
    pure = {module.removeprefix("fairgrpo_jax.") for module in hooks.reference()["pure"]}
    assert pure == {name for name in FLOORS[0] if not name.startswith("_")}


def test_pages_of_the_reference_are_in_the_navigation():
    site = (ROOT / "mkdocs.yml").read_text()
    assert all(f"api/{page}.md" in site for page in hooks.reference())


def test_links_of_the_root_folder_lead_inside_the_site():
    text = "[a](docs/data.md#rows) [b](CONTRIBUTING.md) [c](notebooks/x.ipynb) [d](https://e.org/README.md)"
    moved = "[a](data.md#rows) [b](contributing.md) [c](notebooks/x.ipynb) [d](https://e.org/README.md)"
    assert hooks._moved(text) == moved
