"""notebooks/registry.ipynb runs from any folder and ends with what it found."""

from pathlib import Path

import nbformat
import papermill
import pytest

from lora_ops.notebook_engine import ENGINE
from lora_ops.registry.backends import open_registry
from tests.conftest import small_clone

from .conftest import build_package

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "registry.ipynb"


def test_it_is_committed_without_outputs_and_says_its_parameters() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].metadata.tags == ["parameters"]
    assert max(len(cell.source.splitlines()) for cell in code) <= 10


def test_it_answers_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone, elsewhere = tmp_path / "clone", tmp_path / "elsewhere"
    clone.mkdir()
    elsewhere.mkdir()
    small_clone(clone)
    registry = open_registry(clone, create=True)
    for seed in (1, 2):
        folder = clone / f"package-{seed}"
        registry.register(folder, build_package(folder, seed, fresh_days=3650), actor="ana.silva")
    registry.close()
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = papermill.execute_notebook(
        NOTEBOOK, tmp_path / "out.ipynb", cwd=elsewhere, engine_name=ENGINE, progress_bar=False
    )
    said = done.cells[-1].outputs[0].text
    assert said.startswith("finance@2 is 'candidate' and may serve today: nobody has approved it")
    assert said.endswith("the registry verifies.\n")
    views = [one for cell in done.cells for one in cell.get("outputs", []) if "widget-view" in str(one)]
    assert len(views) == 1  # the drop-down lists of versions
    assert any("image/png" in one.get("data", {}) for cell in done.cells for one in cell.get("outputs", []))
