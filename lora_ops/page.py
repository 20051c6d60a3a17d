"""Write an executed notebook as an HTML page for a reviewer: who it is about, what was found, and no script."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ops.escaping import clean_html, markdown, markdown_sentence, visible

# nbconvert has a block for scripts, widgets and diagrams, too, which run something or need a network.
SHOWN = ("text/html", "text/markdown", "image/png", "image/jpeg", "text/plain")
_EVALUATION = re.compile(rb'<meta (?=[^>]*name="lora-ops-evaluation")[^>]*content="([0-9a-f]{64})"')
# nbconvert's page without its scripts from a CDN, and with a policy that lets none run. Code is folded, since a
# reviewer reads what was found; `details` unfolds without a script.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; font-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
<meta http-equiv="x-dns-prefetch-control" content="off">
<meta name="referrer" content="no-referrer">
{%- if resources["evaluation"] %}
<meta name="lora-ops-evaluation" content="{{ resources["evaluation"] }}">
{%- endif %}
{%- endblock html_head_js -%}
{%- block html_head_js_mathjax -%}{%- endblock html_head_js_mathjax -%}
{%- block html_head_js_mermaidjs -%}{%- endblock html_head_js_mermaidjs -%}
{%- block html_head_css -%}
<style>
body { max-width: 72rem; margin: 0 auto !important; }
details.code > summary { cursor: pointer; color: #757575; font: 12px sans-serif; padding: 2px 0; }
.jp-OutputArea-output { overflow-x: auto; }
.jp-RenderedHTMLCommon td, .jp-RenderedHTMLCommon th { text-align: left !important; }
</style>
{%- endblock html_head_css -%}
{%- block input_group -%}
<details class="code"><summary>Code</summary>{{ super() }}</details>
{%- endblock input_group -%}
"""


def write_page(executed: Path, head: str | None = None, evaluation: str | None = None) -> Path:
    """Write an executed notebook as a page that opens without Jupyter and without a network; return its path.

    The page begins with its subject, its day and what the last cell printed, which is the notebook's decision.
    It has no script: what it shows of data was cleaned (`lora_ops.escaping`), and its policy forbids the
    browser to run or load anything. What is no text, table or picture, such as a widget or a diagram, is left
    out.

    Args:
        executed: the notebook; the page gets its name with the suffix .html.
        head: where the registry's audit log ends, such as `17:a0d71c22e54f`; the page keeps it, so that whoever
            holds the page can tell whether the registry was replaced by an older one.
        evaluation: the SHA-256 of the evaluation that the page is about; see `page_evaluation`.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        shown = [_shown(one) for one in cell.get("outputs", [])]
        cell.outputs = [one for one in shown if one.get("data") != {}]
    question, subject, found = _question(notebook), _subject(notebook.metadata), _found(notebook)
    notebook.metadata["title"] = visible(f"{subject}: {question}" if subject else question)
    if subject or found:
        lines = [f"**{markdown(subject)}**"] * bool(subject) + [markdown_sentence(line) for line in found]
        opening = nbformat.v4.new_markdown_cell("  \n".join(lines))
        titled = bool(notebook.cells) and notebook.cells[0].cell_type == "markdown"
        notebook.cells.insert(1 if titled else 0, opening)
    if head is not None:
        check = f"`lora-ops registry verify --expect-head {head}` compares."
        notebook.cells.append(nbformat.v4.new_markdown_cell(f"The audit log ended at {head}: {check}"))
    exporter = HTMLExporter(
        raw_template=TEMPLATE,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        sanitize_html=True,
        filters={"clean_html": clean_html},
        preprocessors=[CoalesceStreamsPreprocessor],  # of a progress bar, its last state
    )
    resources = {"metadata": {"name": executed.stem}, "evaluation": evaluation}
    body, _ = exporter.from_notebook_node(notebook, resources)
    page = executed.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page


def page_evaluation(page: Path) -> str | None:
    """Return the SHA-256 of the evaluation that a page says it is about; None where it says nothing of it."""
    head = page.read_bytes().partition(b"<body")[0]
    found = _EVALUATION.search(head)
    return found[1].decode() if found else None


def _shown(output: Any) -> Any:
    """Return an output with what a page may show of it; its metadata could name a picture of another server."""
    if "data" not in output:
        return output
    data = {kind: output.data[kind] for kind in SHOWN if kind in output.data}
    if "application/vnd.jupyter.widget-view+json" in output.data:
        data = {}  # its text is the name of a Python object
    sizes = {
        kind: {name: size[name] for name in ("width", "height") if type(size.get(name)) is int}
        for kind, size in output.metadata.items()
        if kind in data and isinstance(size, Mapping)
    }
    return type(output)({**output, "data": type(output)(data), "metadata": type(output)(sizes)})


def _question(notebook: Any) -> str:
    """Return the notebook's first heading, which asks what the notebook answers."""
    lines = [
        line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
    ]
    return next((line.lstrip("# ") for line in lines if line.startswith("#")), "")


def _subject(metadata: Mapping[str, Any]) -> str:
    """Return what papermill was told the page is about, and when it ended: "finance@2, 2026-11-25 09:30 UTC".

    The most exact of the names that this project's notebooks declare wins.
    """
    papermill = metadata.get("papermill", {})
    parameters = papermill.get("parameters", {})
    about = next(
        (str(parameters[name]) for name in ("reference", "version", "tenant") if parameters.get(name)), ""
    )
    ended = str(papermill.get("end_time") or papermill.get("start_time") or "")
    return ", ".join(part for part in (about, f"{ended[:16].replace('T', ' ')} UTC" if ended else "") if part)


def _found(notebook: Any) -> list[str]:
    """Return the lines that the last cell with code printed."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    outputs = code[-1].outputs if code else []
    text = "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")
    return [line for line in text.splitlines() if line.strip()]
