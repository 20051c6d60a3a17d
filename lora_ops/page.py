"""Write an executed notebook as an HTML page for a reviewer: who it is about, what was found, and no script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_ops.escaping import clean_html, markdown, visible

WIDGET = "application/vnd.jupyter.widget-view+json"
# nbconvert's page without its scripts from a CDN, and with a policy that lets none run. Code is folded, since a
# reviewer reads what was found; `details` unfolds without a script.
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; font-src data:; \
style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'">
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


def write_page(executed: Path, head: str | None = None) -> Path:
    """Write an executed notebook as a page that opens without Jupyter and without a network; return its path.

    The page begins with its subject, its day and what the last cell printed, which is the notebook's decision.
    It has no script: what it shows of data was cleaned (`lora_ops.escaping`), and its policy forbids the
    browser to run or load anything. A widget needs a kernel, so it is left out.

    Args:
        executed: the notebook; the page gets its name with the suffix .html.
        head: where the registry's audit log ends, such as `17:a0d71c22e54f`; the page keeps it, so that whoever
            holds the page can tell whether the registry was replaced by an older one.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    notebook = nbformat.read(executed, as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.outputs = [one for one in cell.get("outputs", []) if WIDGET not in one.get("data", {})]
    question, subject, found = _question(notebook), _subject(notebook.metadata), _found(notebook)
    notebook.metadata["title"] = visible(f"{subject}: {question}" if subject else question)
    if subject or found:
        lines = [f"**{markdown(subject)}**"] * bool(subject) + [markdown(line) for line in found]
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
    body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": executed.stem}})
    page = executed.with_suffix(".html")
    page.write_text(body, encoding="utf-8")
    return page


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
