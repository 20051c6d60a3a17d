"""A picture, PDF or office document counts if it is one and whole."""

import io
import re
import struct
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from lora_ops.errors import LoraOpsError
from lora_ops.registry.counting import count
from lora_ops.registry.documents import document_problem, is_document

from .test_counting import ABOUT


def picture(form: str) -> bytes:
    made = io.BytesIO()
    Image.effect_noise((60, 40), 50).convert("P" if form == "GIF" else "RGB").save(made, form)
    return made.getvalue()


def plotted() -> bytes:
    made = io.BytesIO()
    figure, axes = plt.subplots()
    axes.plot([1, 2])
    figure.savefig(made, format="pdf")
    plt.close(figure)
    return made.getvalue()


def archive(part: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr("[Content_Types].xml", "<Types/>")
        file.writestr(part, "<document>It repeated a card number.</document>")
    return made.getvalue()


def old_office() -> bytes:
    """Write a file as Word 97 and Outlook do: a table of sectors, a directory, one stream of eight sectors."""
    end, table, free = 0xFFFFFFFE, 0xFFFFFFFD, 0xFFFFFFFF
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(16) + struct.pack("<5H", 0x3E, 3, 0xFFFE, 9, 6)
    head += bytes(10) + struct.pack("<7I", 1, 1, 0, 4096, end, 0, end)
    head += struct.pack("<110I", 0, 0, *[free] * 108)
    sectors = [table, end, *range(3, 10), end]
    sectors += [free] * (128 - len(sectors))
    directory = "Root Entry".encode("utf-16-le").ljust(512, b"\0")
    return head + struct.pack("<128I", *sectors) + directory + b"It repeated a card number. ".ljust(4096, b"x")


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def tiff_of_many_strips() -> bytes:
    """Write a TIFF whose tables hold more strips than any picture has: reading them took 2 GB."""
    many = 2**20 + 1
    entries = b"".join(struct.pack("<HHII", tag, 3, many, 100) for tag in (273, 279))
    return b"II*\0" + struct.pack("<IH", 8, 2) + entries + b"\1\0" * (many + 100)


WHOLE = {
    "png": picture("PNG"),
    "jpeg": picture("JPEG"),
    "gif": picture("GIF"),
    "webp": picture("WEBP"),
    "pdf of pictures": picture("PDF"),
    "pdf of a plot": plotted(),
    "filled jpeg": picture("JPEG").replace(b"\xff\xdb", b"\xff\xff\xdb", 1),
    "pdf of a loose count": re.sub(
        rb"startxref\s+(\d+)", lambda found: b"startxref\n%d" % (int(found[1]) - 1), plotted()
    ),
    "docx of the web": archive("word/document2.xml"),
    "docx": archive("word/document.xml"),
    "odt": archive("content.xml"),
    "tiff": picture("TIFF"),
    "doc or msg": old_office(),
    "heic": box(b"ftyp", b"heic\0\0\0\0mif1") + box(b"meta", b"\0" * 40) + box(b"mdat", b"\1" * 200),
}


@pytest.mark.parametrize("name", WHOLE)
def test_documents_count_when_they_are_whole(tmp_path: Path, name: str) -> None:
    content = WHOLE[name]
    assert is_document(content) and document_problem(content) is None
    (tmp_path / "file").write_bytes(content)
    assert count("incident", ABOUT, tmp_path / "file").document.kind == "incident"


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("share", [0, 0.5, 0.9])
def test_documents_that_were_cut_off_are_refused(tmp_path: Path, name: str, share: float) -> None:
    content = WHOLE[name]
    (tmp_path / "file").write_bytes(content[: max(8, int(share * len(content)))])
    with pytest.raises(LoraOpsError, match="file begins as a.* and is none, or was cut off: save it again"):
        count("review", ABOUT, tmp_path / "file")


@pytest.mark.parametrize(
    "content",
    [
        b"%PDF-",
        b"%PDF-1.7\n" + b"\xff" * 100,
        b"%PDF-1.4\nstartxref\n9\n%%EOF",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"\xff\xd8\xff\xd9",
        b"GIF89a" + b"\0" * 8 + b";",
        b"RIFF\x04\0\0\0WAVE",
        archive("run.exe"),
        b"II*\0" + b"\xff" * 40,
        tiff_of_many_strips(),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600,
        box(b"ftyp", b"mp42\0\0\0\0isom") + box(b"meta", b"\0" * 40) + box(b"mdat", b"\1" * 200),
    ],
)
def test_documents_in_name_only_are_refused(content: bytes) -> None:
    assert document_problem(content)
