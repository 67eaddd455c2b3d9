"""The pages of the site that no file under docs/ holds: those of the root folder, and the reference of the modules."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fairgrpo_jax"
NOTEBOOK = "notebooks/fair_advantages.ipynb"

# Files of the root folder, by their page.
FROM_ROOT = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
# Pages of the reference: the title, and the modules that come first. All others stand in the page of their folder.
TITLES = {
    "pure": "The pure library",
    "program": "The training program",
    "models": "Models",
    "data": "Data",
    "configs": "Presets",
}
PURE = ("advantages", "fairness", "losses", "metrics", "normalization", "grouping", "demographics", "diagnostics")
PURE += ("estimators", "sampler", "interop", "adapters")


def public_modules() -> Iterator[str]:
    """The names of all modules without an underscore, as they are imported."""
    for folder in (PACKAGE, *(PACKAGE / name for name in ("models", "data", "configs"))):
        for path in sorted(folder.resolve().rglob("*.py")):
            parts = path.relative_to(folder.resolve()).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            inside = () if folder == PACKAGE else (folder.name,)
            if not any(part.startswith("_") for part in parts) and (*inside, *parts):
                yield ".".join(("fairgrpo_jax", *inside, *parts))


def reference() -> dict[str, list[str]]:
    """The modules of each page of the reference, every public module on one of them."""
    pages: dict[str, list[str]] = {name: [] for name in TITLES}
    for module in public_modules():
        top = module.split(".")[1]
        pages["pure" if top in PURE else top if top in TITLES else "program"].append(module)
    pages["pure"].sort(key=lambda module: PURE.index(module.split(".")[1]))
    return pages


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages, before MkDocs reads any."""
    from mkdocs.structure.files import File

    for page, name in FROM_ROOT.items():
        files.append(File.generated(config, page, content=_moved((ROOT / name).read_text())))
    for page, modules in reference().items():
        text = "\n\n".join([f"# {TITLES[page]}", *(f"::: {module}" for module in modules)])
        files.append(File.generated(config, f"api/{page}.md", content=text))
    files.append(File.generated(config, NOTEBOOK, abs_src_path=str(ROOT / NOTEBOOK)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links that leave docs/ at the copies inside the site."""
    return markdown.replace("](../notebooks/", "](notebooks/")


def _moved(text: str) -> str:
    """The text of a file of the root folder, with its links as they are from docs/."""
    text = text.replace("](docs/", "](")
    return re.sub(r"\]\((\w+\.md)\)", lambda link: f"]({_page(link[1])})", text)


def _page(name: str) -> str:
    return {source: page for page, source in FROM_ROOT.items()}.get(name, name)
