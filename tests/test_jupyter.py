"""Saving from Jupyter, through its own server: what a run leaves in a notebook of the pipeline."""

import json
import shutil
import sys
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT, run

# What a browser does with Jupyter Server: read a notebook, put what the kernel answered into it, and save it.
SESSION = """
import sys
from jupyter_core.utils import run_sync
from jupyter_server.serverapp import ServerApp
from nbclient import NotebookClient
from nbformat import from_dict

server = ServerApp()
server.initialize(["--allow-root", "--port=0", "--ServerApp.root_dir=" + sys.argv[1]], find_extensions=False)
get, save = run_sync(server.contents_manager.get), run_sync(server.contents_manager.save)
for path in sys.argv[2:]:
    model = get(path)
    notebook = from_dict(model["content"])
    NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    assert any(cell.get("outputs") for cell in notebook.cells), path
    for cell in notebook.cells:
        cell.metadata["trusted"] = cell.cell_type == "code"
    save({"type": "notebook", "format": "json", "content": notebook}, path)
"""


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the repository's, and a Jupyter that finds the configuration which `make` installs."""
    installed = tmp_path / "etc" / "jupyter_server_config.json"
    installed.parent.mkdir(parents=True)
    shutil.copy(ROOT / "lora_ops/jupyter.json", installed)
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path / "etc"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return tmp_path


def save_after_a_run(root: Path, cwd: Path, *paths: str) -> None:
    done = run(sys.executable, "-c", SESSION, root, *paths, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_notebook_that_was_run_and_saved_is_the_committed_one_byte_for_byte(session: Path) -> None:
    save_after_a_run(session / "notebooks", session, "02_train.ipynb")
    saved, committed = (root / "notebooks/02_train.ipynb" for root in (session, ROOT))
    assert saved.read_bytes() == committed.read_bytes()


def test_an_edit_and_its_tags_are_saved_and_its_output_is_not(session: Path) -> None:
    path = session / "notebooks" / "01_prepare.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print('mine')", metadata={"tags": ["new"]}))
    nbformat.write(notebook, path)
    save_after_a_run(session, session, "notebooks/01_prepare.ipynb")
    last = nbformat.read(path, as_version=4).cells[-1]
    assert (last.source, last.metadata.tags, last.outputs) == ("print('mine')", ["new"], [])


def test_a_notebook_of_another_folder_keeps_its_outputs(session: Path) -> None:
    (session / "reports").mkdir()
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('evidence')")]),
        session / "reports" / "run.ipynb",
    )
    save_after_a_run(session, session, "reports/run.ipynb")
    saved = json.loads((session / "reports" / "run.ipynb").read_text())
    assert saved["cells"][0]["outputs"][0]["text"] == ["evidence\n"]
