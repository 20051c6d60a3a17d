"""What a page begins with, and what it folds away."""

import re
from pathlib import Path

import nbformat
import pytest

from lora_ops.notebooks import run_notebook
from lora_ops.page import write_page


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
