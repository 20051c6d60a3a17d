"""Whether a file is the picture, PDF or office document that its first bytes say it is, and is whole."""

import io
import re
import struct
import zipfile
from collections.abc import Callable

JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of a JPEG that begin a frame, with its height and width."""
PDF_TAIL = 1024
"""A PDF ends in here, whatever a mail program added."""
PDF_INDEX = re.compile(rb"(?<!start)xref\b|\d{1,10}\s{1,8}\d{1,5}\s{1,8}obj\b")
"""What stands where the end of a PDF points to: the table of its objects, or the object that holds it."""
OFFICE_PART = re.compile(r"(word/document|xl/workbook|ppt/presentation)\d*\.(xml|bin)|content\.xml")
"""What a document of Word, Excel, PowerPoint or OpenDocument says is in one of these."""

OLE_FREE = 0xFFFFFFFC
"""From here on the number of a sector in a .doc or .msg file names none."""
TIFF_PIXELS = (273, 279, 324, 325)
"""Where the strips or tiles of a TIFF begin, and how long they are."""
TIFF_PARTS = 2**20
"""No picture has more strips or tiles; a file that says so would take all memory."""
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif")


def document_problem(content: bytes) -> str | None:
    """Return why a file is not the picture, PDF or office document that it begins as, or None.

    A file that begins as none of them has no problem here: see `is_document`.
    """
    for start, what, is_whole in DOCUMENTS:
        if start.match(content):
            return None if is_whole(content) else f"begins as {what} and is none, or was cut off"
    return None


def is_document(content: bytes) -> bool:
    """Return whether a file begins as a picture, a PDF or an office document."""
    return any(start.match(content) for start, _, _ in DOCUMENTS)


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


def _is_ole(content: bytes) -> bool:
    """Return whether every sector that the tables of a .doc, .xls, .ppt or .msg file name is there."""
    if len(content) < 512 or int.from_bytes(content[30:32], "little") not in (9, 12):
        return False
    sector = 1 << int.from_bytes(content[30:32], "little")
    there = -(-(len(content) - sector) // sector)
    tables = [one for one in struct.unpack_from("<109I", content, 76) if one < OLE_FREE]
    directory = int.from_bytes(content[48:52], "little")
    if not tables or max(*tables, directory) >= there:
        return False
    used = -1
    for at, table in enumerate(tables):
        start = (table + 1) * sector
        named = content[start : start + sector]
        names = struct.unpack(f"<{len(named) // 4}I", named[: len(named) // 4 * 4])
        used = max([used, *(at * (sector // 4) + i for i, name in enumerate(names) if name != 0xFFFFFFFF)])
    return 0 <= used < there


def _is_tiff(content: bytes) -> bool:
    """Return whether the pixels of a TIFF's first picture are all there."""
    order = "<" if content[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(f"{order}I", content, 4)
        (many,) = struct.unpack_from(f"{order}H", content, at)
        found: dict[int, tuple[int, ...]] = {}
        for entry in range(at + 2, at + 2 + 12 * many, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", content, entry)
            if tag not in TIFF_PIXELS or tag in found or kind not in (3, 4) or count > TIFF_PARTS:
                continue
            values = f"{order}{count}{'H' if kind == 3 else 'I'}"
            inside = struct.calcsize(values) <= 4
            place = entry + 8 if inside else struct.unpack_from(f"{order}I", content, entry + 8)[0]
            found[tag] = struct.unpack_from(values, content, place)
    except struct.error:  # beyond the end
        return False
    starts, sizes = found.get(273) or found.get(324), found.get(279) or found.get(325)
    if not starts or not sizes or len(starts) != len(sizes):
        return False
    return all(size > 0 and start + size <= len(content) for start, size in zip(starts, sizes, strict=True))


def _is_heic(content: bytes) -> bool:
    """Return whether the boxes of a HEIC picture are all there."""
    at, boxes = 0, set()
    while at + 8 <= len(content):
        size, header = int.from_bytes(content[at : at + 4]), 8
        if size == 1:
            size, header = int.from_bytes(content[at + 8 : at + 16]), 16
        if size == 0:  # up to the end
            size = len(content) - at
        if size < header:
            return False
        boxes.add(content[at + 4 : at + 8])
        at += size
    return at == len(content) and content[8:12] in HEIC_BRANDS and {b"meta", b"mdat"} <= boxes


# How each kind of document begins, its name, and whether a file is a whole one.
DOCUMENTS: tuple[tuple[re.Pattern[bytes], str, Callable[[bytes], bool]], ...] = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "a picture (PNG)", _is_png),
    (re.compile(rb"\xff\xd8\xff"), "a picture (JPEG)", _is_jpeg),
    (re.compile(rb"GIF8[79]a"), "a picture (GIF)", _is_gif),
    (re.compile(rb"RIFF"), "a picture (WebP)", _is_webp),
    (re.compile(rb"II\*\0|MM\0\*"), "a picture (TIFF)", _is_tiff),
    (re.compile(rb"\0\0.{2}ftyp", re.DOTALL), "a picture (HEIC)", _is_heic),
    (re.compile(rb"%PDF-"), "a PDF", _is_pdf),
    (re.compile(rb"PK\x03\x04"), "an office document", _is_office),
    (re.compile(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "an office document or a mail", _is_ole),
)
