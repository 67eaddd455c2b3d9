"""The notebooks run from top to bottom in a kernel of their own, as a reader would run them."""

from pathlib import Path

import nbclient
import nbformat
import pytest


NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    committed = [cell.get("outputs", []) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}}).execute()
    for cell, before in zip(notebook.cells, committed, strict=True):
        assert printed(cell.get("outputs", [])) == printed(before)


def printed(outputs):
    """What a cell printed, in however many parts it arrived."""
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def test_there_is_one_of_ten_cells():
    assert [len(nbformat.read(path, as_version=4).cells) for path in NOTEBOOKS] == [10]
