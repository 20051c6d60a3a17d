"""notebooks/05_review.ipynb in a real browser: votes by keys, a reload, and what is on the disk."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pandas as pd
import papermill
import pytest

from lora_ops.gates.review.annotations import read
from lora_ops.gates.review.sessions import FOLDER, Session, open_session, start, texts_of
from lora_ops.gates.review.submissions import submit
from lora_ops.hashing import sha256_file
from lora_ops.notebook_engine import ENGINE
from lora_ops.paths import ANSWERS
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.backends import open_registry
from tests.conftest import ROOT, small_clone, write_params
from tests.gates.sources import file_answers_again
from tests.registry.conftest import build_package, fill_in, won

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
NOTEBOOK = ROOT / "notebooks" / "05_review.ipynb"
HOSTILE = "<script>window.ran = 1</script><img src=x onerror='window.ran = 2'> **row** $x$ `y` \u202e"


def test_notebook_is_committed_without_outputs_or_functions() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].metadata.tags == ["parameters"] and not any("def " in cell.source for cell in code)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with finance@1, whose rows are hostile text, and a review of it for two people."""
    root = small_clone(tmp_path / "clone")
    (root / "notebooks").mkdir()
    shutil.copy(NOTEBOOK, root / "notebooks")
    shutil.copytree(ROOT / "suites/guidelines", root / "suites/guidelines")
    folder = root / "package"
    manifest = build_package(folder, 1, fresh_days=36500)
    answers = pd.read_csv(folder / ANSWERS, dtype=str, keep_default_na=False)
    answers.assign(text=HOSTILE + answers["text"]).to_csv(folder / ANSWERS, index=False)
    file = FileRecord(bytes=(folder / ANSWERS).stat().st_size, sha256=sha256_file(folder / ANSWERS))
    manifest = manifest.model_copy(update={"files": {**manifest.files, ANSWERS: file}})
    registry = open_registry(root, create=True)
    registry.register(folder, manifest, actor="ana.silva")
    file_answers_again(registry, "finance@1", "ana.silva")
    people = ("ben.okafor", "dana.roth")
    start(registry, "finance@1", actor="ana.silva", reviewers=people, pairs=20, annotators=2, seed=3)
    registry.close()
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("JUPYTERLAB_SETTINGS_DIR", str(tmp_path / "settings"))
    # Else Jupyter asks for the kernel, on a busy machine more than once.
    own = tmp_path / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    own.parent.mkdir(parents=True)
    own.write_text('{"autoStartDefaultKernel": true}')
    monkeypatch.setenv("JUPYTERLAB_WORKSPACES_DIR", str(tmp_path / "workspaces"))
    return root


def test_notebook_runs_from_any_folder_and_tells_the_result(clone: Path, tmp_path: Path) -> None:
    """While somebody has not submitted, nothing is told that would sway them."""
    said = {}
    for name in ("before", "after"):
        done = papermill.execute_notebook(
            NOTEBOOK, tmp_path / "out.ipynb", cwd=tmp_path, engine_name=ENGINE, progress_bar=False
        )
        outputs = [one for cell in done.cells for one in cell.get("outputs", [])]
        assert sum("widget-view" in str(one) for one in outputs) == 1
        said[name] = "".join(one.get("text", "") for one in outputs)
        with closing(open_registry(clone)) as registry:
            session = open_session(registry, "finance@1")
            registry.approvals = "unsigned"
            for person in session.plan.tasks if name == "before" else ():
                fill_in(registry, session, person, won)
                submit(registry, session, actor=person)
        write_params(clone, {"registry.approvals": "unsigned"})
    assert "are shown once ben.okafor, dana.roth have submitted" in said["before"]
    assert "alpha" not in said["before"] and "Krippendorff's alpha 1.000" in said["after"]
    assert "lora-ops review submit finance@1" in said["after"]


@pytest.fixture
def lab(clone: Path, tmp_path: Path) -> Iterator[str]:
    """JupyterLab on a free port; where it answers."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1"]
    command += [
        "--IdentityProvider.token=",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={clone}",
        "--LabApp.news_url=None",
    ]
    log = (tmp_path / "lab.log").open("w")
    server = subprocess.Popen(command, stdout=log, stderr=log, cwd=clone, start_new_session=True)
    try:
        deadline = time.monotonic() + 90
        while not (found := list((tmp_path / "runtime").glob("jpserver-*.json"))):
            assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
            time.sleep(0.1)
        url = json.loads(found[0].read_text())["url"]
        start_kernel(url, deadline)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)
        log.close()


def start_kernel(url: str, deadline: float) -> None:
    """Start the notebook's kernel, so that the page finds it ready."""
    path = "notebooks/05_review.ipynb"
    session = {"path": path, "name": path, "type": "notebook", "kernel": {"name": "python3"}}
    while True:
        try:
            httpx.post(f"{url}api/sessions", json=session, timeout=60, verify=False).raise_for_status()
            return
        except httpx.ConnectError:  # its file is there a moment before its port
            assert time.monotonic() < deadline
            time.sleep(0.1)


def start_again(url: str) -> None:
    """End the notebook's kernel, and start another one."""
    for session in httpx.get(f"{url}api/sessions", timeout=60, verify=False).raise_for_status().json():
        httpx.delete(f"{url}api/sessions/{session['id']}", timeout=60, verify=False).raise_for_status()
    start_kernel(url, time.monotonic() + 90)


@pytest.fixture
def page() -> "Iterator[sync_api.Page]":
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        opened = browser.new_page(viewport={"width": 1400, "height": 1300})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()


def open_desk(page: "sync_api.Page", url: str) -> Any:
    """Open the notebook, run all of it, and return the desk.

    Jupyter sometimes loses a cell or the desk's channel: then the kernel is started anew, as a person would.
    """
    said = []
    for again in (False, True, True):
        if again:
            start_again(url)
        page.goto(f"{url}lab/tree/notebooks/05_review.ipynb?reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        if shows_desk(page):
            return page.locator(".lora-review")
        said.append(page.locator(".jp-NotebookPanel").inner_text())
    raise AssertionError("No desk; the notebook said: " + "\n----\n".join(said))


def shows_desk(page: "sync_api.Page") -> bool:
    """Run all cells once, and return whether the desk came."""
    for _ in range(5):  # on a busy machine Jupyter may ask for the kernel, or have none yet
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]", state="attached")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()
        with suppress(sync_api.TimeoutError):
            page.locator(".lora-review, .jp-Dialog").first.wait_for(timeout=30_000)
        if page.locator(".jp-Dialog").count():
            page.locator(".jp-Dialog .jp-mod-accept").first.click()
            with suppress(sync_api.TimeoutError):
                page.wait_for_selector(".jp-Dialog", state="detached", timeout=10_000)
        elif page.locator(".jp-InputArea-prompt", has_text=re.compile(r"\[(\*|\d+)\]")).count():
            break  # the cells run, or have run: a second run would take the desk away while somebody votes
    with suppress(sync_api.TimeoutError):
        page.wait_for_selector(".lora-review", timeout=30_000)
        return True
    return False


def told(desk: Any, **values: int) -> None:
    """Wait until the desk says so: `place`, `judged`, `saved`."""
    wanted = "".join(f'[data-{name}="{value}"]' for name, value in values.items())
    desk.page.wait_for_selector(f".lora-review{wanted}")


def test_a_reviewer_votes_with_keys_reloads_and_goes_on(clone: Path, lab: str, page: "sync_api.Page") -> None:
    desk = open_desk(page, lab)
    told(desk, place=1, judged=0)
    registry = open_registry(clone)
    session: Session = open_session(registry, "finance@1")
    texts, tasks = texts_of(registry, session), session.plan.tasks["ben.okafor"]
    registry.close()
    # Texts are shown as they are, without anything that says whose they are, and none of them runs.
    first = texts[tasks[0].row]
    left = first.adapter if tasks[0].adapter == "left" else first.other
    assert desk.locator(".asked").inner_text() == first.text.replace("\u202e", "\\u202e")
    assert desk.locator(".answer.left .text").inner_text() == left
    assert "adapter" not in desk.inner_text() and page.evaluate("window.ran") is None
    assert "How to judge answers on purchases" in desk.locator(".guidelines").inner_text()
    desk.focus()
    page.keyboard.press("4")  # the left answer's accuracy, then the right one's
    page.keyboard.press("2")
    page.keyboard.press("ArrowLeft")
    told(desk, place=1, judged=1, saved=3)
    page.keyboard.press("c")
    page.keyboard.type("b is no shortcut here, nor is 5")
    page.keyboard.press("Escape")
    file, deadline = session.file_of("ben.okafor"), time.monotonic() + 30
    while read(file).last[1].said.comment != "b is no shortcut here, nor is 5":
        assert time.monotonic() < deadline  # a slow typist's pauses are saved, too, so saves can't be counted
        time.sleep(0.1)
    if os.environ.get("SCREENSHOT"):
        page.screenshot(path=os.environ["SCREENSHOT"])
    page.keyboard.press("Enter")
    told(desk, place=2, judged=1)
    page.keyboard.press("ArrowRight")
    told(desk, place=2, judged=2)
    page.keyboard.press("Enter")
    told(desk, place=3)
    page.keyboard.press("Enter")  # skipped
    told(desk, place=4)
    page.keyboard.press("b")
    page.keyboard.type("it gives advice")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    told(desk, place=4, judged=3)
    page.keyboard.press("Backspace")
    told(desk, place=3)
    cells = page.locator(".jp-NotebookPanel .jp-Cell").count()
    assert cells == len(nbformat.read(NOTEBOOK, as_version=4).cells)  # no key reached Jupyter's own shortcuts

    desk = open_desk(page, lab)  # the page is loaded again, and the cells are run again
    told(desk, place=3, judged=3)
    desk.focus()
    page.keyboard.press("ArrowLeft")
    told(desk, judged=4)
    page.keyboard.press("Backspace")
    told(desk, place=2)
    assert desk.locator(".vote.right").get_attribute("aria-pressed") == "true"
    page.keyboard.press("ArrowDown")  # a changed mind
    told(desk, judged=4, saved=2)

    votes = read(clone / FOLDER / "finance@1" / "votes" / "ben.okafor.jsonl")
    said = {place: line.said for place, line in votes.last.items()}
    assert {place: one.vote for place, one in said.items()} == {1: "left", 2: "same", 3: "left", 4: "same"}
    assert said[1].ratings == {"left": {"accuracy": 4}, "right": {"accuracy": 2}}
    assert said[1].comment == "b is no shortcut here, nor is 5"
    assert said[4].breach == {"left": "it gives advice"}
    assert [path.name for path in (clone / FOLDER / "finance@1" / "votes").iterdir()] == ["ben.okafor.jsonl"]
