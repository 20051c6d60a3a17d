"""Escapes of JSON read as often as texts lie within each other."""

import json

import pytest

from lora_ops.detectors.escapes import found_within, unescaped
from lora_ops.detectors.identifiers import replaced


def test_unescaped_reads_texts_within_each_other() -> None:
    inner = json.dumps(
        {"to": "jan\u00e9.doe@example.com", "tel": "+49\u00a030\u00a01234567", "face": "\U0001f600"}
    )
    outer = json.dumps({"body": inner.replace("@", "\\u0040")})
    read, places = unescaped(outer)
    assert "jan\u00e9.doe@example.com" in read and "\u00a01234567" in read and "\U0001f600" in read
    assert len(places) == len(read) + 1 and list(places) == sorted(places) and places[-1] == len(outer)
    assert unescaped("no escape") == ("no escape", range(10))
    assert unescaped("half \\ud83d, end \\")[0] == "half \ufffd, end \\"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ('{"tel": "+49\\u00a030\\u00a01234567", "n": 1}', '{"tel": "[phone number]", "n": 1}'),
        ("It is jane.doe\\u0040example.com, he said", "It is [e-mail address], he said"),
        ("It is jane.doe\\\\u0040example.com", "It is [e-mail address]"),
        ("It is 4111 1111 1111 1111\\u0020", "It is [payment card number]\\u0020"),
        ("C:\\users\\new and \\u00e9", "C:\\users\\new and \\u00e9"),
    ],
)
def test_found_within_lies_in_the_text_as_it_was(text: str, redacted: str) -> None:
    assert replaced(text, found_within(text)) == redacted
