"""Every notebook runs from top to bottom, and is committed with its outputs."""

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def name(path: Path) -> str:
    return path.stem


def test_there_are_some():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    # this environment, whichever kernels are installed
    client.create_kernel_manager().kernel_spec.argv[0] = sys.executable
    client.execute()
    assert not [o for c in notebook.cells for o in c.get("outputs", []) if o.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name)
def test_it_reads_well_without_running(path):
    notebook = nbformat.read(path, as_version=4)
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert notebook.cells[0].source.startswith("# ")
    assert any("image/png" in o.get("data", {}) for c in code for o in c.outputs), "commit the figures"
    assert not [o for c in code for o in c.outputs if o.get("name") == "stderr"], "warnings in the output"
    assert path.stat().st_size < 2_000_000
