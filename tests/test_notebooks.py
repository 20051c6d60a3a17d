"""Running a notebook: parameters it does not declare, cells that fail, and what is left behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.notebooks import run_notebook
from tests.conftest import ROOT

NOTEBOOKS = sorted(ROOT.glob("*books/*.ipynb"))


def write(path: Path, *cells: str) -> Path:
    first, *rest = cells
    parameters = nbformat.v4.new_code_cell(first, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(nbformat.v4.new_code_cell, rest)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)
    return path


def test_a_notebook_runs_with_its_parameters_and_leaves_a_page(tmp_path: Path) -> None:
    notebook = write(tmp_path / "n.ipynb", "who = 'nobody'", "print('hello', who)")
    run_notebook(notebook, tmp_path / "out" / "n.ipynb", {"who": "finance"}, tmp_path)
    assert "hello finance" in (tmp_path / "out" / "n.ipynb").read_text()
    assert "hello finance" in (tmp_path / "out" / "n.html").read_text()


def test_a_killed_run_leaves_no_socket_in_the_folder_it_ran_in(tmp_path: Path) -> None:
    write(tmp_path / "n.ipynb", "x = 0", "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)")
    root = tmp_path / "root"
    root.mkdir()
    run = (
        "from pathlib import Path; from lora_ops.notebooks import run_notebook; "
        "run_notebook(Path('../n.ipynb'), Path('../out.ipynb'), {}, Path('.'))"
    )
    ended = subprocess.run([sys.executable, "-c", run], cwd=root, capture_output=True)
    assert ended.returncode == -signal.SIGKILL
    assert list(root.iterdir()) == []


def test_a_parameter_that_is_not_declared_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    notebook = write(tmp_path / "n.ipynb", "tenant = 'finance'")
    with pytest.raises(LoraOpsError, match=r"declares no parameter 'tennant' \(it declares: tenant\)"):
        run_notebook(notebook, tmp_path / "out.ipynb", {"tennant": "x"}, tmp_path)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failing_cell_is_named_and_the_partly_executed_notebook_is_kept(tmp_path: Path) -> None:
    notebook = write(tmp_path / "n.ipynb", "x = 0", "print('so far')", "1 / x\nx = 2", "print('never')")
    # The parameters injected by papermill are cell [2], as Jupyter shows it.
    told = r"n.ipynb failed in cell \[4\] `1 / x`: ZeroDivisionError: division by zero\. .*out.ipynb"
    with pytest.raises(LoraOpsError, match=told):
        run_notebook(notebook, tmp_path / "out.ipynb", {"x": 0}, tmp_path)
    kept = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    text = json.dumps(kept)
    assert "so far" in text and "ZeroDivisionError" in text
    assert not (tmp_path / "out.html").exists()


def test_our_own_errors_pass_through_as_their_sentence(tmp_path: Path) -> None:
    notebook = write(
        tmp_path / "n.ipynb",
        "x = 0",
        "from lora_ops.errors import LoraOpsError\nraise LoraOpsError('Do this.')",
    )
    with pytest.raises(LoraOpsError, match=r"failed in cell \[2\] `from lora_ops.*`: Do this\. The partly"):
        run_notebook(notebook, tmp_path / "out.ipynb", {}, tmp_path)


def test_a_kernel_that_is_killed_is_one_sentence_and_what_it_did_is_kept(tmp_path: Path) -> None:
    # As the machine does when memory runs out.
    killed = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    notebook = write(tmp_path / "n.ipynb", "x = 0", "print('so far')", killed)
    with pytest.raises(LoraOpsError, match=r"^n.ipynb: the kernel was killed, .*memory.*out.ipynb\.$"):
        run_notebook(notebook, tmp_path / "out.ipynb", {}, tmp_path)
    assert "so far" in (tmp_path / "out.ipynb").read_text()
    assert not (tmp_path / "out.html").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_notebooks_are_narratives_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    # As Jupyter writes it, so that saving it there changes no byte.
    assert path.read_text() == nbformat.writes(notebook) + "\n"
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.splitlines()[0].startswith("# ")
    assert "?" in notebook.cells[0].source.splitlines()[0]
    tagged = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert "def " not in cell.source and "class " not in cell.source
            assert len(cell.source.splitlines()) <= 25
