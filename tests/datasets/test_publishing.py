"""Sections of reStructuredText and their headings, as people read them."""

import io
import tarfile
from pathlib import Path

import pandas as pd

from lora_ops.datasets.publishing import load

FILLER = (
    "It is kept for as long as the settings say, and the next request for the same page is answered from it."
)
PAGE = f"""=====================
The caching framework
=====================

.. module:: cache
   :synopsis: Not a text.

Django keeps **whole pages** with :setting:`CACHES`, see :doc:`the guide </topics/cache>` and
:class:`~django.core.cache.Cache`. Don't use ``cache.get()`` in `old code <https://example.com/>`_::

    cache.get("a key")

* {FILLER}
* A list item of `RFC 2616`_.

.. note::

    A note is no text of the section.

term
    A definition is none, either.

__ https://example.com/

Timeouts
--------

{FILLER} {FILLER} {FILLER}

Keys and their versions
-----------------------

{FILLER} It holds :meth:`get_many` [#]_ and a_name. {"A sentence that comes too late. " * 12}

Next steps
==========

{FILLER} {FILLER} {FILLER}
"""


def read(folder: Path, files: dict[str, str]) -> pd.DataFrame:
    archive = folder / "django-5.2.tar.gz"
    with tarfile.open(archive, "w:gz") as sdist:
        for name, text in files.items():
            member = tarfile.TarInfo(f"django-5.2/{name}")
            member.size = len(text.encode())
            sdist.addfile(member, io.BytesIO(text.encode()))
    return load(archive).set_index("heading")


def test_load_reads_a_section_as_people_do(tmp_path: Path) -> None:
    frame = read(tmp_path, {"docs/topics/cache.txt": PAGE, "docs/releases/5.2.txt": PAGE.replace("The", "A")})
    assert list(frame.index) == ["The caching framework", "Keys and their versions"]
    framework = frame.loc["The caching framework"]
    assert framework["text"] == (
        "Django keeps whole pages with CACHES, see the guide and Cache. Don't use cache.get() in old code: "
        f"{FILLER} A list item of RFC 2616."
    )
    assert (framework["document"], framework["part"]) == ("topics/cache.txt", "topics")


def test_load_keeps_the_first_sentences_whole(tmp_path: Path) -> None:
    text = read(tmp_path, {"docs/topics/cache.txt": PAGE}).loc["Keys and their versions", "text"]
    assert text.startswith(f"{FILLER} It holds get_many and a_name. A sentence that comes too late.")
    assert text.endswith("too late.") and 280 < len(text) <= 320


def test_load_leaves_out_headings_that_occur_twice(tmp_path: Path) -> None:
    again = PAGE.replace("caching framework", "other framework")
    frame = read(tmp_path, {"docs/topics/cache.txt": PAGE, "docs/ref/other.txt": again})
    assert "Keys and their versions" not in frame.index


def test_load_leaves_out_texts_with_identifiers(tmp_path: Path) -> None:
    page = PAGE.replace("Django keeps", "Write to jo.doe@example.org. Django keeps")
    assert list(read(tmp_path, {"docs/topics/cache.txt": page}).index) == ["Keys and their versions"]
