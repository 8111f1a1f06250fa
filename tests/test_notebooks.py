"""The notebooks run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_is_committed_with_its_outputs(path, monkeypatch):
    # Threads that wait for one another are slow where other tests take the cores.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    assert any("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": FOLDER}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_name_no_file_of_the_machine(path):
    """As warnings do, which say where they come from."""
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            assert not re.search(
                r"/\w+/\S+\.py:\d+|/(home|root|tmp)/", str(output.get("text", ""))
            )


def test_there_are_notebooks():
    assert NOTEBOOKS
