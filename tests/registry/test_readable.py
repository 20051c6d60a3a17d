"""A page, a notebook or another text counts by what a person can read in it."""

import json
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry.counting import count
from lora_ops.registry.readable import readable

from .test_counting import ABOUT


@pytest.mark.parametrize(
    "content",
    [
        "<!DOCTYPE html><html><head><title>An incident of the adapter</title></head><body></body></html>",
        "<script>let told = 'nothing that anybody reads';</script><p class='a long name of a class'></p>",
        "<script src='a/long/path/of/a/page.js'></script><!-- a remark that nobody ever reads -->",
        "<head><style>.a-long-name { color: red }</style><body>&nbsp;&nbsp;",
        '<?xml version="1.0"?><a_long_name_of_an_element><another_long_name/></a_long_name_of_an_element>',
        json.dumps({"cells": [], "metadata": {"kernelspec": {"display_name": "Python 3 of this environment"}}}),
        json.dumps({"cells": [{"cell_type": "markdown", "source": ["# oops"]}], "nbformat": 4}),
        json.dumps({"a_key_that_is_long_enough_to_be_a_text": None, "another_long_key": True}),
    ],
)
def test_a_page_of_nothing_to_read_is_no_incident(tmp_path: Path, content: str) -> None:
    (tmp_path / "page").write_text(content)
    with pytest.raises(LoraOpsError, match=r"page has \d letters and digits to read: evidence of kind"):
        count("incident", ABOUT, tmp_path / "page")


@pytest.mark.parametrize(
    "content",
    [
        "<html><head><body><p>It repeated a card number.</p></body></html>",
        "<3 this adapter, and yet it repeated a card number.",
        json.dumps({"cells": [{"source": ["It repeated", " a card number."]}]}),
        json.dumps({"cells": [{"source": "", "outputs": [{"data": {"image/png": "iVBORw0KGgoAAAANSUhEUg"}}]}]}),
        json.dumps({"reason": "it repeated a card number"}),
        "[INC-7] It repeated a card number.",
        "<script> tags were in the answers since 14:05, for all tenants.",
        "<!-- was the beginning of each answer since 14:05.",
        "<ben@example.com> wrote at 14:05 that the card numbers leak.",
        '<?xml version="1.0"?><alert name="card numbers in answers" since="14:05"/>',
        "<p>&#21345;&#21495;</p>" * 10,
    ],
)
def test_a_page_that_says_something_is_an_incident(tmp_path: Path, content: str) -> None:
    (tmp_path / "page").write_text(content)
    assert count("incident", ABOUT, tmp_path / "page").document.kind == "incident"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_text_of_another_encoding_is_an_incident(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "page").write_text("<p>It repeated a card number.</p>", encoding=encoding)
    assert count("incident", ABOUT, tmp_path / "page").document.kind == "incident"


def test_half_a_character_of_utf_16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes("It repeated a card number.".encode("utf-16")[:-1])
    with pytest.raises(LoraOpsError, match="page is no text"):
        count("incident", ABOUT, tmp_path / "page")


def test_readable_survives_deep_nesting() -> None:
    """The parser takes what a recursion of our own no longer would."""
    assert readable("[" * 100_000) == "[" * 100_000
    for depth in range(100, 1000, 5):
        assert "what happened" in readable("[" * depth + '"what happened"' + "]" * depth)


@pytest.mark.parametrize(
    "part", ["<a ", "<!", "<!--", "<script>", "</a", "<![CDATA[", "&#", '<a "', "<a '\"", "<"]
)
def test_readable_takes_as_long_as_the_page(part: str) -> None:
    """Twenty thousand beginnings without an end took minutes: each was looked for up to the end."""
    assert readable("<p>" + part * 200_000)
