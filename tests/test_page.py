"""What a page begins with, and what it folds away."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from lora_ops.hashing import sha256_file
from lora_ops.notebooks import run_notebook
from lora_ops.page import page_evaluation, write_page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    new = nbformat.v4
    cells = [
        new.new_markdown_cell("# Is it better?\n\nA report."),
        new.new_code_cell("tenant: str | None = None", metadata={"tags": ["parameters"]}),
        new.new_code_cell("print('in between')"),
        new.new_markdown_cell("## Decision"),
        new.new_code_cell("print(f'{tenant}: yes, by *far* <b>')\nprint('Next: register')"),
    ]
    notebook = new.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "n.ipynb")
    run_notebook(folder / "n.ipynb", folder / "out.ipynb", {"tenant": "finance"}, folder)
    return (folder / "out.html").read_text(encoding="utf-8")


def test_page_title_names_subject_day_and_question(page: str) -> None:
    assert re.search(r"<title>finance, 20\d\d-\d\d-\d\d \d\d:\d\d UTC: Is it better\?</title>", page)


def test_page_begins_with_what_was_found(page: str) -> None:
    body = page.partition("<body")[2]
    found, between = body.find("finance: yes, by *far* &lt;b&gt;"), body.find("in between\n</pre>")
    assert body.find("Is it better?") < found < body.find("Next: register") < between


def test_page_folds_code_and_shows_output(page: str) -> None:
    body = page.partition("<body")[2]
    for folded in re.findall(r'<details class="code">.*?</details>', body, re.DOTALL):
        body = body.replace(folded, "")
    assert "in between" in body and ">print<" not in body


def written(folder: Path, *outputs: dict[str, Any]) -> str:
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [nbformat.v4.new_output("display_data", **one) for one in outputs]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), folder / "out.ipynb")
    return write_page(folder / "out.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "kind", ["text/vnd.mermaid", "application/javascript", "image/svg+xml", "text/latex", "application/pdf"]
)
def test_page_shows_no_active_output(tmp_path: Path, kind: str) -> None:
    hostile = "graph LR; hostile[<img src=https://evil.example/x>]"
    page = written(tmp_path, {"data": {kind: hostile, "text/plain": "its text"}})
    assert "its text" in page
    assert "hostile" not in page and "evil.example" not in page


def test_page_names_no_picture_of_another_server(tmp_path: Path) -> None:
    names = {"filenames": {"image/png": "https://evil.example/x.png"}}
    sizes = {"image/png": {"width": 40, "height": '1" onerror="x'}}
    page = written(tmp_path, {"data": {"image/png": "aGk="}, "metadata": {**names, **sizes}})
    assert "evil.example" not in page and "onerror" not in page
    assert "data:image/png;base64,aGk=" in page and 'width="40"' in page


def test_page_of_an_evaluation_names_it(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("open('evaluation.json', 'w').write('{}');")
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, tmp_path / "n.ipynb")
    run_notebook(tmp_path / "n.ipynb", tmp_path / "03_evaluate.ipynb", {}, tmp_path)
    assert page_evaluation(tmp_path / "03_evaluate.html") == sha256_file(tmp_path / "evaluation.json")
    run_notebook(tmp_path / "n.ipynb", tmp_path / "other.ipynb", {}, tmp_path)
    assert page_evaluation(tmp_path / "other.html") is None


def test_text_of_a_page_names_no_evaluation(tmp_path: Path) -> None:
    meta = f'<meta name="lora-ops-evaluation" content="{"0" * 64}">'
    cells = [nbformat.v4.new_markdown_cell(f"# A report {meta}\n\n{meta}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "out.ipynb")
    assert page_evaluation(write_page(tmp_path / "out.ipynb")) is None


def test_page_of_an_empty_notebook_is_written(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["papermill"] = {"end_time": "2026-03-02T09:00:00"}
    nbformat.write(notebook, tmp_path / "out.ipynb")
    assert "2026-03-02 09:00 UTC" in write_page(tmp_path / "out.ipynb").read_text(encoding="utf-8")


def test_optional_parameter_is_passed_silently(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cell = nbformat.v4.new_code_cell("tenant: str | None = None", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "n.ipynb")
    run_notebook(tmp_path / "n.ipynb", tmp_path / "out.ipynb", {"tenant": "finance"}, tmp_path)
    assert "unknown parameter" not in caplog.text
