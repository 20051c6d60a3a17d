"""Notebooks with widgets: their cells end, and a page shows what the widgets captured."""

from pathlib import Path

import nbformat
import papermill

from lora_ops.notebook_engine import ENGINE

CELL = """from ipywidgets import interact
interact(lambda v: print(f"chosen {v}"), v=["this", "that"]);"""


def test_engine_sends_the_kernel_nothing_for_widgets(tmp_path: Path) -> None:
    """nbclient's own Output widget took such an output away, and now and then the end of the cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL) for _ in range(3)])
    nbformat.write(notebook, tmp_path / "in.ipynb")
    done = papermill.execute_notebook(
        tmp_path / "in.ipynb",
        tmp_path / "out.ipynb",
        engine_name=ENGINE,
        kernel_name="python3",
        progress_bar=False,
        execution_timeout=60,
    )
    for cell in done.cells:
        assert "chosen this" in str(cell.outputs)
