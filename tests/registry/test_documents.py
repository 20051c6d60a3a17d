"""A picture, PDF, office document, page or notebook counts if it is one and holds something."""

import io
import json
import re
import zipfile
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from PIL import Image

from lora_ops.errors import LoraOpsError
from lora_ops.registry.counting import count
from lora_ops.registry.documents import document_problem, is_document, readable

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
    ],
)
def test_documents_in_name_only_are_refused(content: bytes) -> None:
    assert document_problem(content)


@pytest.mark.parametrize(
    "content",
    [
        "<!DOCTYPE html><html><head><title>An incident of the adapter</title></head><body></body></html>",
        "<script>let told = 'nothing that anybody reads';</script><p class='a long name of a class'></p>",
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
    ],
)
def test_a_page_that_says_something_is_an_incident(tmp_path: Path, content: str) -> None:
    (tmp_path / "page").write_text(content)
    assert count("incident", ABOUT, tmp_path / "page").document.kind == "incident"


def test_readable_survives_deep_nesting() -> None:
    assert readable("[" * 100_000) == "[" * 100_000
