"""The contract as a site of data docs: static, offline, and without a value of the data."""

import re
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from lora_ops.datasets.docs import build_data_docs
from lora_ops.datasets.prepare import candidate_rows
from lora_ops.settings.data import DataSettings

EVIL = "<img src=x onerror=alert(1)>"
OWN = {
    "name": "own",
    "expectations": [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "price", "max_value": 9},
            "meta": {},
        }
    ],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = DataSettings.model_validate(
        {"source": "rows.csv", "labels": [EVIL, "b"], "rows": {"train": 7, "validation": 2, "test": 1}}
    )
    frame = pd.DataFrame(
        {
            "text": [f"<script>alert(1)</script> secret {n} to jo@example.org" for n in range(20)],
            "label": ["zzz"] * 20,
            "price": [str(n) for n in range(20)],
        },
        dtype=object,
    )
    folder = tmp_path_factory.mktemp("docs") / "site"
    first = build_data_docs(frame, candidate_rows(frame, settings), "own", settings, OWN, folder)
    assert first == folder / "index.html"
    return folder


def pages(site: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in site.rglob("*.html")}


def test_the_site_has_both_suites_and_their_results(site: Path) -> None:
    found = " ".join(pages(site).values())
    assert {"index.html", "own.html", "own source numbers.html"} <= set(pages(site))
    assert "must be less than or equal to" in found and "Failed" in found


def test_data_docs_index_links_every_page(site: Path) -> None:
    """The first page had two empty tables, since great-expectations fills them by a script."""
    links = re.findall(r'href="((?:validations|expectations)/[^"]+)">([^<]+)<', pages(site)["index.html"])
    assert {site / unquote(link) for link, _ in links} == set(site.rglob("*/**/*.html"))
    assert [name for _, name in links] == ["own", "own source numbers"] * 2


def test_no_page_loads_or_runs_anything_from_elsewhere(site: Path) -> None:
    for text in pages(site).values():
        assert not re.search(r"<script|\son\w+=|javascript:", text, re.IGNORECASE)
        assert not re.search(r"<(?!a\b)\w+[^>]*(?:src|href)=[\"'](?:https?:)?//", text, re.IGNORECASE)
        assert EVIL not in text
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:https?:)?//[\w.]+/[^\s]*\.(?:png|css|woff2?)", style.read_text())


def test_no_page_shows_a_value_of_the_data(site: Path) -> None:
    for text in pages(site).values():
        assert "secret" not in text and "jo@example.org" not in text and "zzz" not in text
