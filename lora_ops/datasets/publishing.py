"""Sections of Django's documentation and their headings (source archive of Django 5.2.19, BSD-3-Clause)."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from lora_ops.detectors.identifiers import find_identifiers

# Release notes repeat a few headings ("Bugfixes") a hundred times.
PARTS = ("topics", "ref", "howto", "internals", "intro", "faq", "misc")
LENGTHS = (200, 900)
# Two cores train and answer within the minutes that this template promises: the first sentences must do.
LEAD_CHARACTERS = 320
# Headings that would fit under every other section, too.
GENERIC = frozenset(
    {"a full example", "basic usage", "getting started", "how it works", "next steps", "what's next?"}
)

_UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*")
_BULLET = re.compile(r"(?:[*+-]|#\.|\d+[.)])\s+")
# What reStructuredText writes around words, and the words that a reader sees. `~a.b.C` is shown as C.
_MARKUP = (
    (re.compile(r"(?::[\w:-]+:)?`([^`<]+?)\s*<[^`>]*>`_{0,2}", re.DOTALL), r"\1"),
    (re.compile(r":[\w:-]+:`~(?:[\w-]+\.)*([^`]+)`", re.DOTALL), r"\1"),
    (re.compile(r":[\w:-]+:`!?([^`]+)`", re.DOTALL), r"\1"),
    (re.compile(r"``(.+?)``", re.DOTALL), r"\1"),
    (re.compile(r"`([^`]+)`_{0,2}", re.DOTALL), r"\1"),
    (re.compile(r"\*\*(\S(?:[^*]*\S)?)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\S(?:[^*]*[^\s*])?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\[#?\w*\]_"), ""),
    (re.compile(r"(?<![\w`/])([A-Za-z][\w-]*[A-Za-z0-9])_(?=[\s.,;:)]|$)"), r"\1"),
    (re.compile(r"\\(.)"), r"\1"),
    (re.compile(r":{2,}(?=\s|$)"), ":"),
    (re.compile(r"(?<=\w)\s+([,.;:])(?=\s|$)"), r"\1"),
)
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+(?=[A-Z\"'(])")
_LEFT_OVER = re.compile(r"`|::|\[#|\|\w+\|")


class Section(NamedTuple):
    """A heading and the paragraphs between it and the next one."""

    heading: str
    text: str
    document: str


def load(archive: Path) -> pd.DataFrame:
    """Columns text (at most 320 characters), heading, document (its path), part (its first folder).

    A section has 200 to 900 characters in its own paragraphs and list items: code, notes, tables and
    subsections don't count. Its text is the first sentences of them, whole and without markup. A section whose
    first sentence is too long is left out.
    Left out are headings of one word (names of methods and settings, mostly) or of names alone, headings that
    occur twice or fit everywhere, texts with markup that was not read, and texts with direct identifiers.
    """
    with tarfile.open(archive) as sdist:
        sections = [section for member in sdist for section in _of_file(sdist, member)]
    frame = pd.DataFrame(sections)
    often = frame["heading"].str.casefold().duplicated(keep=False)
    frame = frame[~often & frame["heading"].map(_says_something) & frame["text"].str.len().between(*LENGTHS)]
    frame = frame[~frame["text"].str.contains(_LEFT_OVER) & ~frame["heading"].str.contains(_LEFT_OVER)]
    frame = frame[[not find_identifiers(text) for text in frame["text"]]]
    frame["text"] = frame["text"].map(_lead)
    frame = frame[(frame["text"] != "") & ~frame["text"].str.lower().duplicated(keep=False)]
    frame["part"] = frame["document"].str.split("/").str[0]
    return frame[["text", "heading", "document", "part"]].reset_index(drop=True)


def _of_file(sdist: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[Section]:
    # django-5.2.19/docs/topics/http/urls.txt
    path = PurePosixPath(member.name).parts[1:]
    if member.isfile() and path[-1].endswith(".txt") and path[0] == "docs" and path[1] in PARTS:
        file = sdist.extractfile(member)
        assert file is not None
        yield from _sections(file.read().decode("utf-8"), "/".join(path[1:]))


def _sections(source: str, document: str) -> Iterator[Section]:
    lines = source.splitlines()
    titles = [number for number in range(len(lines) - 1) if _is_title(lines, number)]
    for start, end in zip(titles, [*titles[1:], len(lines)], strict=True):
        # A title may have a line above it, which ends the text before.
        body = lines[start + 2 : end - 1] if end < len(lines) and _above(lines, end) else lines[start + 2 : end]
        yield Section(_plain(lines[start]), " ".join(map(_plain, _paragraphs(body))), document)


def _is_title(lines: list[str], number: int) -> bool:
    line, below = lines[number], lines[number + 1]
    is_text = bool(line.strip()) and not line.startswith(" ") and not _UNDERLINE.fullmatch(line)
    blank_above = number == 0 or not lines[number - 1].strip() or _above(lines, number)
    return is_text and blank_above and bool(_UNDERLINE.fullmatch(below)) and len(below) >= len(line)


def _above(lines: list[str], number: int) -> bool:
    return number > 0 and bool(_UNDERLINE.fullmatch(lines[number - 1]))


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Yield paragraphs and list items; what is indented belongs to code, a note or a definition."""
    for block in re.split(r"\n\s*\n", "\n".join(lines)):
        rows = [row for row in block.split("\n") if row.strip()]
        if not rows or rows[0].startswith((" ", "..", "__ ", "===", "---", "+--", ">>>", ":")):
            continue
        if len(rows) > 1 and rows[1].startswith(" ") and not _BULLET.match(rows[0]):
            continue  # a term and its definition
        yield " ".join(_BULLET.sub("", row.strip()) if _BULLET.match(row) else row.strip() for row in rows)


def _plain(text: str) -> str:
    for pattern, shown in _MARKUP:
        text = pattern.sub(shown, text)
    return " ".join(text.split())


def _lead(text: str) -> str:
    """Return the first sentences, as many as have at most `LEAD_CHARACTERS`."""
    kept = ""
    for sentence in _SENTENCE_END.split(text):
        longer = f"{kept} {sentence}".strip()
        if len(longer) > LEAD_CHARACTERS:
            break
        kept = longer
    return kept


def _says_something(heading: str) -> bool:
    """Return whether a heading has two words, one of them no name, and belongs to its section alone."""
    words = heading.split()
    ordinary = [word for word in words if re.fullmatch(r"[A-Z]?[a-z]{2,}[,:?!']?[a-z]*", word)]
    return len(words) > 1 and bool(ordinary) and heading.casefold() not in GENERIC
