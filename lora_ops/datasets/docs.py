"""A contract as a site of great-expectations' data docs: static pages that load nothing from anywhere else."""

import re
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lora_ops.datasets.contract import open_context, suites_with_tables
from lora_ops.folders import replacing
from lora_ops.settings.data import DataSettings

# Counts and no values: the pages may be shown to people who may not see the data.
RESULT_FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": 0}

# The pages name scripts, fonts and styles of other hosts. Without them this is what a reader needs.
STYLE = """<style>
body { font-family: sans-serif; margin: 1rem 2rem; }
table { border-collapse: collapse; margin: 0.5rem 0; }
td, th { border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
.modal, .ge-breadcrumbs, .ge-walkthrough-modal, footer { display: none; }
/* Filters and lists of pages that only a script fills. */
.ge-index-page-tabs-container, .card:has(.btn-group-toggle) { display: none; }
</style>
</head>"""
_SCRIPT = re.compile(r"<script\b.*?</script\s*>", re.DOTALL | re.IGNORECASE)
_REMOTE = re.compile(r"<(?:link|img|script|iframe|source)\b[^>]*(?:https?:)?//[^>]*>", re.IGNORECASE)
_HANDLER = re.compile(r"""\son\w+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s>]+)""", re.IGNORECASE)
_SCRIPT_LINK = re.compile(r"javascript:", re.IGNORECASE)
_REMOTE_URL = re.compile(r"url\(['\"]?(?:https?:)?//[^)]*\)", re.IGNORECASE)


def build_data_docs(
    source: pd.DataFrame,
    rows: pd.DataFrame,
    tenant: str,
    settings: DataSettings,
    own: dict[str, Any] | None,
    folder: Path,
) -> Path:
    """Check the rows once more and write what came out as a site into `folder`, all or nothing.

    Args:
        source: the rows of the source.
        rows: what `check_rows` made of them.
        own: the tenant's own suite.

    Returns:
        The first page.
    """
    import great_expectations as gx

    with replacing(folder) as building:
        context = open_context()
        for site in list(context.get_site_names()):
            context.delete_data_docs_site(site)
        context.add_data_docs_site(
            tenant,
            {
                "class_name": "SiteBuilder",
                "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
                "store_backend": {
                    "class_name": "TupleFilesystemStoreBackend",
                    "base_directory": str(building.resolve()),
                },
            },
        )
        for suite, table in suites_with_tables(rows, tenant, settings, source, own):
            asset = context.data_sources.add_pandas(suite.name).add_dataframe_asset(suite.name)
            batch = asset.add_batch_definition_whole_dataframe("all")
            validation = gx.ValidationDefinition(name=suite.name, data=batch, suite=context.suites.add(suite))
            context.validation_definitions.add(validation).run(
                batch_parameters={"dataframe": table}, result_format=RESULT_FORMAT
            )
        context.build_data_docs()
        for page in building.rglob("*.html"):
            page.write_text(_offline(page.read_text(encoding="utf-8")), encoding="utf-8")
        index = building / "index.html"
        listed = index.read_text(encoding="utf-8").replace("</body>", f"{_links(building)}\n</body>", 1)
        index.write_text(listed, encoding="utf-8")
        for style in building.rglob("*.css"):
            style.write_text(_REMOTE_URL.sub("none", style.read_text(encoding="utf-8")), encoding="utf-8")
    return folder / "index.html"


def _links(folder: Path) -> str:
    """Return links to the site's pages; great-expectations lists them by a script, which `_offline` removes."""
    lists = []
    for part, title in {"validations": "Results", "expectations": "Checks"}.items():
        # great-expectations names a page of results SUITE/RUN/TIME/BATCH.html, and a page of checks SUITE.html.
        pages = {page.relative_to(folder / part).parts[0]: page for page in (folder / part).rglob("*.html")}
        links = [
            f'<li><a href="{quote(page.relative_to(folder).as_posix())}">{escape(name)}</a></li>'
            for name, page in sorted((name.removesuffix(".html"), page) for name, page in pages.items())
        ]
        lists.append(f"<h4>{title}</h4>\n<ul>{''.join(links)}</ul>")
    return "\n".join(lists)


def _offline(page: str) -> str:
    for what in (_SCRIPT, _REMOTE, _HANDLER, _SCRIPT_LINK):
        page = what.sub("", page)
    return page.replace("</head>", STYLE, 1)
