"""Text of data stays text: in pages that a reviewer opens, in terminals, in Markdown and in plots."""

import html.parser
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from lora_ops import escaping
from lora_ops.notebooks import run_notebook
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)><svg/onload=alert(3)> a<asdf>b [red]x[/b] :cow: "
    "[x](javascript:alert(4)) <a href='javascript:alert(5)'>y</a> `|` "
    "<iframe srcdoc='<script>alert(6)</script>'> "
    r"$\href{javascript:alert(7)}{z}$ <style>*{display:none}</style> &lt;b&gt;"
)
CELLS = (
    f"hostile = {HOSTILE!r}",
    """import pandas as pd
from IPython.display import HTML, Markdown, display

from lora_ops import escaping

pd.options.display.max_colwidth = None
frame = pd.DataFrame({hostile: [hostile]})""",
    "display(frame, frame.set_index(hostile), escaping.table(frame))",
    r"""display(Markdown(
    f"# {escaping.markdown(hostile)}\n\n| a | b |\n|---|---|\n"
    f"| {escaping.markdown(hostile)} | 1 |\n\n- {escaping.code(hostile)}"
))""",
    "escaping.show(escaping.markup(hostile))\nprint(hostile)",
    # What nobody should write, and what somebody will: the page must hold all the same.
    "display(frame.style, HTML(hostile), Markdown(hostile))",
    "display({'application/javascript': 'alert(8)', 'text/plain': 'js'}, raw=True)",
    "display({'image/svg+xml': '<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"alert(9)\"/>'}, raw=True)",
    "from ipywidgets import interact\ninteract(lambda v: v, v=[hostile]);",
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ok\nAPPROVED by bob", r"ok\nAPPROVED by bob"),
        ("a\tb", r"a\tb"),
        ("\u202efinance", r"\u202efinance"),
        ("a\u200eb\u2028c", r"a\u200eb\u2028c"),
        ("pay\u200bments\ufeff", r"pay\u200bments\ufeff"),
        ("pay\u200dments", r"pay\u200dments"),
        ("x\U000e0041", r"x\U000e0041"),
        ("\udcff", r"\udcff"),
        ("می\u200cخواهم 👩\u200d💻 Größe 故障", "می\u200cخواهم 👩\u200d💻 Größe 故障"),
    ],
)
def test_one_line_shows_what_nobody_sees(text: str, shown: str) -> None:
    assert escaping.one_line(text) == shown
    assert escaping.markup(text) == shown


class Live(html.parser.HTMLParser):
    """Collects the tags and attributes by which a page can run or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "svg", "object", "embed", "asdf"):
            self.found.append(tag)
        for name, value in attrs:
            loads = name in ("src", "href", "srcdoc") and not (value or "").startswith(("data:image/", "#"))
            if name.startswith("on") or loads:
                self.found.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, CELLS)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "n.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        run_notebook(folder / "n.ipynb", folder / "out.ipynb", {}, folder)
    return folder / "out.html"


def test_a_page_holds_nothing_that_runs_or_loads(page: Path) -> None:
    live = Live()
    live.feed(page.read_text(encoding="utf-8"))
    assert live.found == []


def test_a_page_shows_the_text_as_it_is(page: Path) -> None:
    live = Live()
    live.feed(page.read_text(encoding="utf-8"))
    text = "".join(live.text)
    # The index, the header and the cell of three tables; Markdown's three; rich and print.
    assert text.count(HOSTILE) >= 8


@pytest.fixture
def dialogs(page: Path) -> Iterator[list[str]]:
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, headless=True, args=["--no-sandbox", "--disable-gpu"]
        )
        opened, shown = browser.new_page(), list[str]()

        def seen(dialog) -> None:  # type: ignore[no-untyped-def]
            shown.append(dialog.message)
            dialog.dismiss()

        opened.on("dialog", seen)
        opened.goto(page.as_uri())
        opened.evaluate("document.querySelectorAll('a').forEach(a => a.click())")
        opened.wait_for_timeout(300)
        assert opened.evaluate("document.querySelectorAll('table').length") >= 4
        yield shown
        browser.close()


def test_a_page_opens_no_dialog_in_a_browser(dialogs: list[str]) -> None:
    assert dialogs == []


def test_a_policy_stops_what_cleaning_would_miss(page: Path) -> None:
    policy = page.read_text(encoding="utf-8").partition("<style")[0]
    assert "Content-Security-Policy" in policy and "default-src 'none'" in policy


@pytest.mark.parametrize("text", [HOSTILE, "[red]", "\\[red]", "AIRBNB [/b]", "[link=x]y", ":warning:", "a\\b"])
def test_a_sentence_and_a_cell_show_text_as_it_is(text: str) -> None:
    out = io.StringIO()
    console = escaping.console(file=out, width=2000)
    console.print(f"[bold]{escaping.markup(text)}[/]")
    console.print(escaping.cell(text))
    assert out.getvalue() == f"{text}\n" * 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x9bc", r"a\rb\x9bc"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\tb\nc é 😀", "a\tb\nc é 😀"),
    ],
)
def test_visible_shows_what_a_terminal_would_act_on(text: str, shown: str) -> None:
    assert escaping.visible(text) == shown


def test_bullets_show_a_command_as_code() -> None:
    """Pages printed the backticks; what data say stays text."""
    said = "Run `lora-ops rollout pause finance@2 --reason TEXT`, not `rm` or <b> *x*."
    assert escaping.bullets([said]).data == (
        r"- Run `lora-ops rollout pause finance@2 --reason TEXT`, not \`rm\` or \<b\> \*x\*."
    )


@pytest.mark.parametrize(
    "text", ["`lora-ops <script>alert(1)</script>`", "``lora-ops x``", "a ` b `lora-ops x`"]
)
def test_command_in_a_sentence_is_inert(text: str) -> None:
    from nbconvert.filters.markdown import markdown2html

    html = markdown2html(escaping.markdown_sentence(text))
    assert "<script" not in html and html.count("<code>lora-ops") == 1


def test_shortened_keeps_begin_and_end_of_a_message() -> None:
    assert escaping.shortened("finance@9 is unknown: see /a/path") == "finance@9 is unknown: see /a/path"
    word = escaping.shortened(f"'{'x' * 100_000}' names no version: write tenant@number")
    assert word.startswith("'xxx") and "… (100,002 characters) names no version: write tenant@number" in word
    flood = escaping.shortened(f"x={'a b ' * 50_000}does not fit: 'x' takes a number.")
    assert len(flood) < 4100 and flood.startswith("x=a b ") and flood.endswith("'x' takes a number.")
    assert "characters left out" in flood


@pytest.mark.parametrize("text", ["$", "$$", "$$$", "a $x$ b", r"\$x$", "x_1 ^ {"])
def test_plot_text_is_no_formula(text: str) -> None:
    from matplotlib.cbook import is_math_text
    from matplotlib.figure import Figure

    figure = Figure()
    drawn = figure.text(0, 0, escaping.plot_text(text))
    figure.savefig(io.BytesIO())
    assert not is_math_text(drawn.get_text())
    assert drawn.get_text().replace(r"\$", "$") == text


def test_code_keeps_backticks_and_bars() -> None:
    assert escaping.code("a`b") == "``a`b``"
    assert escaping.code("`") == "`` ` ``"
    assert escaping.code("a\n|b") == "`a |b`"
