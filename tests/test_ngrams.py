"""Hashed n-grams: they keep counts, and neither order nor text."""

import pytest

from lora_ops.ngrams import MOST, hashed_ngrams, user_part

KEY = b"0" * 32


def test_hashed_ngrams_keep_counts_and_no_order() -> None:
    assert hashed_ngrams("Grand Hotel", KEY) == hashed_ngrams("hotel, GRAND!", KEY)
    assert hashed_ngrams("Grand Hotel", KEY) != hashed_ngrams("Grand Hotel", b"1" * 32)
    assert len(hashed_ngrams("abc", KEY)) == 2 * 3  # " ab", "abc", "bc "
    assert hashed_ngrams("", KEY) == hashed_ngrams("?!", KEY) == ""


def test_hashed_ngrams_of_a_long_text_are_a_sample() -> None:
    text = " ".join(map(str, range(10_000)))
    assert len(hashed_ngrams(text, KEY)) == 2 * MOST and hashed_ngrams(text, KEY) == hashed_ngrams(text, KEY)


def test_hashed_ngrams_take_half_a_character() -> None:
    assert len(hashed_ngrams("\ud800bc", KEY)) % 2 == 0


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("system: Name it.\nuser: one\nassistant: 1\nuser: two\nlines", "two\nlines"),
        ("user: alone", "alone"),
        ("a completion", "\na completion"),
    ],
)
def test_user_part_is_what_the_user_said_last(prompt: str, said: str) -> None:
    assert user_part(prompt) == said
