"""Texts that people write into the record: what says something, and what only fills the field."""

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.free_text import count_letters, require_name, require_text


@pytest.mark.parametrize("text", ["ok", "故障", "INC-1", " it leaks ", "x\x1b[31m1", "Größe\ngeprüft"])
def test_text_that_a_person_can_read_is_taken(text: str) -> None:
    assert require_text(text, "Say why") == text.strip()


@pytest.mark.parametrize(
    "text",
    ["", "   ", "x", "...", "\0" * 100, "\u200b\u200d" * 9, "\u3164\u115f\uffa0", "\x1b\x07", "\u2800" * 5],
)
def test_text_that_says_nothing_is_refused(text: str) -> None:
    with pytest.raises(LoraOpsError, match="Say why: this text has .* letter or digit, and at least 2"):
        require_text(text, "Say why")


def test_text_longer_than_two_pages_is_refused() -> None:
    assert len(require_text("x" * 4000, "Say why")) == 4000
    with pytest.raises(LoraOpsError, match="Say why in at most 4,000 characters .this text has 1,000,000"):
        require_text("x" * 1_000_000, "Say why")


def test_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(LoraOpsError, match=r"Say why: 'it leaks \\udcff' is not UTF-8"):
        require_text("it leaks \udcff", "Say why")


def test_letters_and_digits_of_any_script_count() -> None:
    assert count_letters("aé1 故障 ٣!-\u200b\u3164") == 6


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "no letter"),
        ("\u200b", "no letter"),
        ("a" * 201, "at most 200"),
        ("ana\nben", r"'ana\\nben' has a character that nobody sees"),
        ("an\u200ba", r"'an\\u200ba' has a character that nobody sees"),
        ("\u202eana", r"'\\u202eana' has a character that nobody sees"),
        ("a\udcff", r"'a\\udcff' is not UTF-8"),
    ],
)
def test_name_of_nobody_is_refused(name: str, says: str) -> None:
    with pytest.raises(LoraOpsError, match=f"Say who: .*{says}"):
        require_name(name, "Say who")
    assert require_name(" ana ", "Say who") == "ana"
