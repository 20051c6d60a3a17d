"""Running a notebook: parameters it does not declare, cells that fail, and what is left behind."""

import ast
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from lora_ops.errors import LoraOpsError, NotFound, Unavailable
from lora_ops.notebooks import parse_parameters, run_notebook
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


def test_run_ends_at_ctrl_c_without_noise(tmp_path: Path) -> None:
    """A terminal interrupts the kernel, too, so the cell fails after nobody waits for it any more."""
    cell = "from pathlib import Path\nfrom time import sleep\nPath('started').touch()\nsleep(60)"
    write(tmp_path / "n.ipynb", "x = 0", cell)
    code = (
        # A shell's background job ignores Ctrl-C, and so do all that it starts: here the tests may be one.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom lora_ops.notebooks import run_notebook\n"
        "run_notebook(Path('n.ipynb'), Path('out.ipynb'), {}, Path.cwd())"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (tmp_path / "started").exists():
        assert run.poll() is None
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=120)
    assert "KeyboardInterrupt" in said and "Task exception was never retrieved" not in said


@pytest.mark.parametrize("way", ["same", "link", "hard link", "page"])
def test_run_does_not_overwrite_its_notebook(tmp_path: Path, way: str) -> None:
    notebook = write(tmp_path / ("n.html" if way == "page" else "n.ipynb"), "x = 0")
    before = notebook.read_bytes()
    output = tmp_path / "out.ipynb"
    if way == "same":
        output = tmp_path / "." / "n.ipynb"
    elif way == "link":
        output.symlink_to(notebook)
    elif way == "hard link":
        output.hardlink_to(notebook)
    else:
        output = tmp_path / "n.ipynb"
    with pytest.raises(LoraOpsError, match="is where its own result goes, which would overwrite it"):
        run_notebook(notebook, output, {}, tmp_path)
    assert notebook.read_bytes() == before


def test_run_refuses_a_notebook_of_another_suffix(tmp_path: Path) -> None:
    """Its page would take the place of its result."""
    notebook = write(tmp_path / "n.html", "x = 0")
    with pytest.raises(LoraOpsError, match="doesn't end in .ipynb: rename it"):
        run_notebook(notebook, tmp_path / "out.html", {}, tmp_path)


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


DECLARED = """confirm = False
days = 7
share = 0.5
reason = ""
query = 'status=open'
sizes = [1, 8]
weights: dict[str, float] = {}
threads: int | None = None
folder = None  # text=anything
at = min(1, 2)"""


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("confirm=False", False),
        ("confirm=true", True),
        ("days=-30", -30),
        ("share=1", 1.0),
        ("share=1e-3", 0.001),
        ("reason=None", "None"),
        ("reason=a=b, 'c'", "a=b, 'c'"),
        ("query=status=closed", "status=closed"),
        ("sizes=[4]", [4]),
        ('weights={"new": 0.1}', {"new": 0.1}),
        ("weights={'new': True}", {"new": True}),
        ("threads=None", None),
        ("threads=4", 4),
        ("folder=None", None),
        ("folder=reports", "reports"),
    ],
)
def test_a_parameter_has_the_type_of_its_cell(tmp_path: Path, given: str, value: object) -> None:
    notebook = write(tmp_path / "n.ipynb", DECLARED)
    (parsed,) = parse_parameters(notebook, [given]).values()
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["confirm=no"], "n.ipynb: confirm=no does not fit: 'confirm' takes True or False."),
        (["confirm=0"], "'confirm' takes True or False"),
        (["days=7.5"], "'days' takes a whole number"),
        (["days=None"], "'days' takes a whole number"),
        (["days=" + "9" * 5000], "'days' takes a whole number"),
        (["share=nan"], "'share' takes a number"),
        (["sizes=8"], "'sizes' takes a list"),
        (['sizes=["a"]'], "'sizes' takes a list"),
        (["threads=many"], "'threads' takes a whole number or None"),
        (["at=1"], "nothing says what 'at' takes"),
        (["text=1"], "declares no parameter 'text' (it declares: confirm, days, share, reason, query, "),
        (["status=1"], "declares no parameter 'status'"),
        (["days"], "write name=value"),
        (["days=1", "days=2"], "--parameter days is given twice"),
    ],
)
def test_a_parameter_that_does_not_fit_is_refused(tmp_path: Path, given: list[str], sentence: str) -> None:
    notebook = write(tmp_path / "n.ipynb", DECLARED)
    with pytest.raises(LoraOpsError, match=re.escape(sentence)):
        parse_parameters(notebook, given)


BEGIN = '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, '


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no notebook, which is a file of JSON"),
        ("%PDF-1.7", "is no notebook, which is a file of JSON"),
        ("\udcff", "is no notebook, which is a file of JSON: .*utf-8"),
        ("[" * 100_000, "is no notebook, which is a file of JSON"),
        ('{"cells": []}', "is JSON, and no notebook: it has no 'nbformat'"),
        ("[1]", "is JSON, and no notebook: it has no 'nbformat'"),
        ('{"nbformat": 3, "nbformat_minor": 0, "worksheets": []}', "has notebook format 3, and only 4 runs"),
        ('{"nbformat": "x", "cells": []}', "has notebook format x, and only 4 runs"),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "is no whole notebook: .*'cells'"),
        (
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"source": "x"}]}',
            "no whole notebook: ",
        ),
        ('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [7]}', "no whole notebook: "),
        (
            '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": {"a": 1}}',
            "no whole notebook: ",
        ),
        ('{"nbformat": 4, "nbformat_minor": "five", "metadata": {}, "cells": []}', "is no whole notebook: "),
    ],
    ids=range(13),
)
def test_a_file_that_is_no_notebook_is_one_sentence(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "n.ipynb").write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(LoraOpsError, match=told) as caught:
        run_notebook(tmp_path / "n.ipynb", tmp_path / "out" / "n.ipynb", {}, tmp_path)
    assert len(str(caught.value)) < 600 + len(str(tmp_path)) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_parameters_cell_that_is_not_python_is_named(tmp_path: Path) -> None:
    notebook = write(tmp_path / "n.ipynb", "x = 1\ny = = 2")
    with pytest.raises(LoraOpsError, match=r"n.ipynb: the cell tagged `parameters` is not Python .*line 2"):
        run_notebook(notebook, tmp_path / "out.ipynb", {"x": 2}, tmp_path)


def test_magics_do_not_hide_parameters(tmp_path: Path) -> None:
    notebook = write(tmp_path / "n.ipynb", "%matplotlib inline\nx = 1")
    assert parse_parameters(notebook, ["x=2"]) == {"x": 2}


def test_a_long_tmpdir_does_not_stop_a_notebook(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    write(tmp_path / "n.ipynb", "x = 0", "print('hello')")
    run = (
        "from pathlib import Path; from lora_ops.notebooks import run_notebook; "
        "run_notebook(Path('n.ipynb'), Path('out.ipynb'), {}, Path('.'))"
    )
    environment = {**os.environ, "TMPDIR": str(long)}
    done = subprocess.run(
        [sys.executable, "-c", run], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "hello" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_notebook_acts_on_a_truthy_confirm(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    source = "\n".join(c.source for c in cells if c.cell_type == "code" and not c.source.startswith("%"))
    tree = ast.parse(source)
    compared = {
        id(node.left)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare)
        and isinstance(node.ops[0], ast.Is | ast.IsNot)
        and isinstance(node.comparators[0], ast.Constant)
        and node.comparators[0].value is True
    }
    reads = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and node.id == "confirm" and isinstance(node.ctx, ast.Load)
    ]
    assert all(id(node) in compared for node in reads)


@pytest.mark.parametrize(
    ("cell", "kind", "told"),
    [
        ("raise OSError(28, 'No space left on device')", Unavailable, "; free some space and run this again."),
        (
            "from pathlib import Path\nfrom lora_ops.registry.database import MissingRegistry\n"
            "raise MissingRegistry(Path('.registry'))",
            NotFound,
            ": There is no registry in .registry: `lora-ops register` makes one, and `lora-ops registry "
            "restore URL` brings one back.",
        ),
    ],
    ids=["full disk", "missing registry"],
)
def test_an_error_in_a_cell_keeps_its_kind(
    tmp_path: Path, cell: str, kind: type[LoraOpsError], told: str
) -> None:
    notebook = write(tmp_path / "n.ipynb", "x = 0", cell)
    with pytest.raises(kind, match=re.escape(told)):
        run_notebook(notebook, tmp_path / "out.ipynb", {}, tmp_path)


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


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_shows_text_through_escaping(path: Path) -> None:
    """pandas' Styler and rich's own print would take text of data for HTML or markup."""
    for cell in nbformat.read(path, as_version=4).cells:
        assert ".style" not in cell.source and "from rich" not in cell.source
