"""Whether a file is the document that its first bytes say it is, and what a person can read in a page."""

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of a JPEG that begin a frame, with its height and width."""
PDF_TAIL = 1024
"""A PDF ends in here, whatever a mail program added."""
PDF_INDEX = re.compile(rb"(?<!start)xref\b|\d{1,10}\s{1,8}\d{1,5}\s{1,8}obj\b")
"""What stands where the end of a PDF points to: the table of its objects, or the object that holds it."""
PAGE_CHARACTERS = 16 * 2**20
"""Of a page of HTML so much is read: parsing takes a second for ten of these megabytes."""
OFFICE_PART = re.compile(r"(word/document|xl/workbook|ppt/presentation)\d*\.(xml|bin)|content\.xml")
"""What a document of Word, Excel, PowerPoint or OpenDocument says is in one of these."""


def document_problem(content: bytes) -> str | None:
    """Return why a file is not the picture, PDF or office document that it begins as, or None.

    A file that begins as none of them has no problem here: see `is_document`.
    """
    for start, (what, is_whole) in DOCUMENTS.items():
        if content.startswith(start):
            return None if is_whole(content) else f"begins as {what} and is none, or was cut off"
    return None


def is_document(content: bytes) -> bool:
    """Return whether a file begins as a picture, a PDF or an office document."""
    return content.startswith(tuple(DOCUMENTS))


def readable(text: str) -> str:
    """Return what a person reads in a text: of HTML no tags, of JSON the values, of a notebook its cells.

    A picture in a notebook counts as the digits that it is saved as: a page of plots is not empty.
    """
    bare = text.lstrip("\ufeff \t\r\n")
    if bare.startswith("<"):
        page = _Page()
        page.feed(bare[:PAGE_CHARACTERS])
        page.close()
        return " ".join(page.texts)
    if bare.startswith(("{", "[")):
        try:
            found = json.loads(bare)
        except (ValueError, RecursionError):
            return text  # JSON lines, or prose that begins with a bracket
        if isinstance(found, dict) and isinstance(found.get("cells"), list):
            found = [_of_cell(cell) for cell in found["cells"] if isinstance(cell, dict)]
        return " ".join(_values(found))
    return text


def _of_cell(cell: dict[str, Any]) -> list[Any]:
    outputs = cell.get("outputs")
    shown = [
        [one.get("text"), one.get("data"), one.get("evalue")]
        for one in (outputs if isinstance(outputs, list) else [])
        if isinstance(one, dict)
    ]
    return [cell.get("source"), shown]


def _values(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from _values(one)
    elif isinstance(found, str):
        yield found
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield str(found)


class _Page(HTMLParser):
    """Collects the text of a page that a browser shows."""

    HIDDEN = frozenset(("script", "style", "template", "head"))

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._hidden: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "body":  # a browser ends an open head here
            self._hidden.clear()
        elif tag in self.HIDDEN:
            self._hidden.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._hidden:
            del self._hidden[self._hidden.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)


def _is_png(content: bytes) -> bool:
    at, pixels = 8, 0
    while at + 12 <= len(content):
        length, kind = int.from_bytes(content[at : at + 4]), content[at + 4 : at + 8]
        if at == 8 and (kind, length) != (b"IHDR", 13):
            return False
        if kind == b"IEND":
            return pixels > 0
        pixels += length if kind == b"IDAT" else 0
        at += 12 + length
    return False


def _is_jpeg(content: bytes) -> bool:
    at, sized = 2, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4])
        if marker == 0xFF:  # fills up
            at += 1
            continue
        if marker in JPEG_SIZES:
            sized = any(content[at + 5 : at + 9])
        if marker == 0xDA:  # pixels follow up to the end
            return sized and content.find(b"\xff\xd9", at) > at + length
        at += 2 + max(length, 2)
    return False


def _is_gif(content: bytes) -> bool:
    return (
        len(content) > 13 and any(content[6:10]) and b"," in content[13:] and content.rstrip(b"\0")[-1:] == b";"
    )


def _is_webp(content: bytes) -> bool:
    size = int.from_bytes(content[4:8], "little")
    return content[8:15] == b"WEBPVP8" and 12 < size <= len(content) - 8


def _is_pdf(content: bytes) -> bool:
    end = re.search(rb".*startxref\s{1,8}(\d{1,10})\s{1,8}%%EOF", content[-PDF_TAIL:], re.DOTALL)
    # Many programs count to the line before.
    return end is not None and PDF_INDEX.search(content, int(end[1]), int(end[1]) + 64) is not None


def _is_office(content: bytes) -> bool:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {one.filename: one.file_size for one in archive.infolist()}
            return any(size and OFFICE_PART.fullmatch(part) for part, size in sizes.items())
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return False


# How each kind of document begins, its name, and whether a file is a whole one.
DOCUMENTS: dict[bytes, tuple[str, Callable[[bytes], bool]]] = {
    b"\x89PNG\r\n\x1a\n": ("a picture (PNG)", _is_png),
    b"\xff\xd8\xff": ("a picture (JPEG)", _is_jpeg),
    b"GIF87a": ("a picture (GIF)", _is_gif),
    b"GIF89a": ("a picture (GIF)", _is_gif),
    b"RIFF": ("a picture (WebP)", _is_webp),
    b"%PDF-": ("a PDF", _is_pdf),
    b"PK\x03\x04": ("an office document", _is_office),
}
