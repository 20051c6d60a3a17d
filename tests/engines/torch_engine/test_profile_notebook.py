"""The profile notebook runs from any folder and ends with what was found."""

import json
from pathlib import Path

from lora_ops.notebooks import run_notebook
from tests.conftest import ROOT

NOTEBOOK = ROOT / "benchmarks/profile.ipynb"


def test_it_shows_where_the_time_of_a_step_goes(tiny_base: Path, tmp_path: Path) -> None:
    settings = {"base": str(tiny_base), "batches": [1, 2], "context": 4, "steps": 2, "threads": 1}
    run_notebook(NOTEBOOK, tmp_path / "out.ipynb", settings, tmp_path)
    *_, last = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    assert "batch 2:" in "".join(last["outputs"][0]["text"])


def test_it_is_committed_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
