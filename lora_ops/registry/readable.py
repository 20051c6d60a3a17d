"""What a person can read in a page, a notebook or a document of JSON or XML."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

PAGE_CHARACTERS = 16 * 2**20
"""Of a page so much is read: that takes a few seconds at most."""
# What a browser doesn't show; a head also ends where the body begins.
HIDDEN = {
    "script": re.compile(r"</script\b", re.IGNORECASE),
    "style": re.compile(r"</style\b", re.IGNORECASE),
    "template": re.compile(r"</template\b", re.IGNORECASE),
    "head": re.compile(r"</head\b|<body\b", re.IGNORECASE),
}
# Possessive, so that a page without an end takes no longer than its length.
TAG = re.compile(r"<[/?!]?([a-zA-Z]\w{0,30})(?:[^<>\"']++|\"[^\"<>]*+\"|'[^'<>]*+'|[\"'])*+>")
ENTITY = re.compile(r"&#?\w{1,32};")
XML_NAMES = re.compile(r"</?[\w:.-]++|(?<![\w:.-])[\w:.-]++\s*+=")
"""The names of elements and attributes."""


def readable(text: str) -> str:
    """Return what a person reads in a text: of HTML no tags, of XML no names, of JSON and notebooks the values.

    A picture in a notebook counts as the digits that it is saved as: a page of plots is not empty.
    """
    bare = text.lstrip("\ufeff \t\r\n")
    if bare.startswith("<"):
        page = bare[:PAGE_CHARACTERS]
        is_xml = page.startswith("<?xml") and not re.search(r"<html\b", page[:4096], re.IGNORECASE)
        shown = XML_NAMES.sub(" ", page) if is_xml else " ".join(_shown(page))
        return ENTITY.sub(lambda found: html.unescape(found[0]), shown)
    if bare.startswith(("{", "[")):
        try:
            found = json.loads(bare)
        except (ValueError, RecursionError):
            return text  # JSON lines, or prose that begins with a bracket
        if isinstance(found, dict) and isinstance(found.get("cells"), list):
            found = [_of_cell(cell) for cell in found["cells"] if isinstance(cell, dict)]
        return " ".join(_values(found))
    return text


def _shown(page: str) -> Iterator[str]:
    """Yield the text of a page that a browser shows.

    What begins and never ends is text here, since prose may name it: "<script> tags were in the answers".
    """
    at = 0
    endless: set[str] = set()  # what was looked for up to the end once, and is never looked for again
    while (start := page.find("<", at)) >= 0:
        yield page[at:start]
        at = _after_markup(page, start, endless)
        if at == start:
            yield "<"
            at += 1
    yield page[at:]


def _after_markup(page: str, start: int, endless: set[str]) -> int:
    """Return where the comment, hidden element or tag ends that begins at `start`; `start` if none does."""
    if page.startswith("<!--", start):
        end = -1 if "-->" in endless else page.find("-->", start + 4)
        if end < 0:
            endless.add("-->")
            return start
        return end + 3
    tag = TAG.match(page, start)
    if tag is None:
        return start
    name = tag[1].lower()
    if tag[0][1] not in "/?!" and name in HIDDEN and name not in endless:
        closing = HIDDEN[name].search(page, tag.end())
        if closing:
            return closing.start()
        endless.add(name)
    return tag.end()


def _of_cell(cell: dict[str, Any]) -> list[Any]:
    outputs = cell.get("outputs")
    shown = [
        [one.get("text"), one.get("data"), one.get("evalue")]
        for one in (outputs if isinstance(outputs, list) else [])
        if isinstance(one, dict)
    ]
    return [cell.get("source"), shown]


def _values(found: Any) -> Iterator[str]:
    waiting = [found]  # no recursion: what json.loads just took may be too deep for one
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            waiting += list(one.values())
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, str):
            yield one
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield str(one)
