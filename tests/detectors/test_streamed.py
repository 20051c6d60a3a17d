"""A text that is redacted while it is written: what leaves is the whole text redacted."""

import random
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.detectors.identifiers import redact, redacted_parts
from lora_ops.detectors.made_identifiers import made_identifiers
from lora_ops.detectors.streamed import MOST_HELD, StreamedText
from tests.detectors.test_identifiers import ITEMS

PROSE = (
    "the quick brown fox jumps over 3 lazy dogs, while 4.50 euro of 2024 buy nobody at No. 10 (on May 5) more. "
)
PROSE += "Than a tale of Mr. Smith - however it ends. Écoutez : 東京は晴れです。"
WORDS = PROSE.split()


def streamed(chunks: Iterable[str]) -> list[str]:
    """What leaves after each chunk, and then at the end."""
    text, left = StreamedText(), []
    for chunk in chunks:
        text.add(chunk)
        left.append(text.leave(text.cut(), redacted_parts(text.window))[0])
    left.append(text.leave(len(text.window), redacted_parts(text.window))[0])
    return left


def pieces(text: str, source: random.Random, most: int) -> Iterator[str]:
    while text:
        size = source.randint(1, most)
        yield text[:size]
        text = text[size:]


@pytest.mark.parametrize("item", [item for _, item in ITEMS])
def test_streamed_item_never_leaves(item: str) -> None:
    for before, after in (
        ("", ""),
        ("My number is ", " as you know, and so on"),
        ("Jo: ", ", ok. "),
        ("(", ")"),
    ):
        text = f"{before}{item}{after}"
        assert "".join(streamed(text)) == redact(text)[0], text


def test_streamed_text_is_that_of_the_whole_text() -> None:
    source = random.Random(5)
    rows = [row.text for row in made_identifiers(seed=11, each=3)]
    for row in rows:
        parts = [row, *source.sample(rows, 2), *(" ".join(source.sample(WORDS, 6)) for _ in range(3))]
        source.shuffle(parts)
        text = " ".join(parts)
        assert "".join(streamed(pieces(text, source, source.choice((1, 5, 40))))) == redact(text)[0], text


@settings(deadline=None)
@given(st.text("01258 ab@.:+-/() \n\u200b\uff14é", max_size=150), st.integers(1, 30), st.randoms())
def test_streamed_text_of_odd_letters_is_redacted(text: str, most: int, source: random.Random) -> None:
    assert "".join(streamed(pieces(text, source, most))) == redact(text)[0]


def test_plain_words_leave_with_the_next_one() -> None:
    words = ["Please ", "read ", "this ", "first, ", "and ", "tell ", "me ", "whether"]
    assert streamed(words)[:-2] == words[:-1]


def test_words_behind_a_number_leave_after_two_more() -> None:
    assert streamed(["It ", "costs ", "12 ", "euro ", "today ", "only "])[:6] == [
        "It ",
        "costs ",
        "",
        "",
        "12 euro today ",
        "only ",
    ]


@pytest.mark.parametrize("unit", ["a", "4 ", "1.", "0", "é", "a@", "\u200b", "{", "12345678901234567890 "])
def test_text_that_never_pauses_takes_little_memory_and_time(unit: str) -> None:
    """What is looked at again has a bound; a word that never ends waits, and is looked at once it has ended."""
    text, cuts = StreamedText(), 0
    for _ in range(4000):
        text.add(unit)
        cut = text.cut()
        if cut > len(text.window) - len(text.held):
            cuts += 1
            text.leave(cut, [])
    one_word = unit in ("a", "1.", "0", "é", "a@", "\u200b")
    assert (cuts == 0) == one_word
    assert one_word or len(text.window) < 2000


def test_context_that_names_a_number_outlives_the_window() -> None:
    text = "word " * 500 + "phone number of the office: 5550147 "
    assert "".join(streamed(text)).endswith("phone number of the office: [phone number] ") == (
        redact(text)[0].endswith("[phone number] ")
    )


def test_plain_numbers_behind_a_phone_number_stream_alike() -> None:
    """Each number was found once the one before it had been replaced, otherwise than in the whole text."""
    numbers = "; ".join(str(1_234_567 + 7919 * number) for number in range(100))
    text = f"Hotline +49 30 1234567. Sold: {numbers}. That is all, and the rest is prose."
    assert "".join(streamed(pieces(text, random.Random(1), 3))) == redact(text)[0]


def test_chain_without_an_end_is_held_for_a_bounded_time() -> None:
    chain = "+1 (415) 5552671" * 400
    text, most, looks, left = StreamedText(), 0, 0, []
    for piece in pieces(f"{chain} and so on, as I said", random.Random(1), 4):
        text.add(piece)
        cut = text.cut()
        if cut > len(text.window) - len(text.held):
            looks += 1
            left.append(text.leave(cut, redacted_parts(text.window))[0])
        most = max(most, len(text.held))
    left.append(text.leave(len(text.window), redacted_parts(text.window))[0])
    whole = "".join(left)
    assert most < 2 * MOST_HELD and looks < 400
    assert whole.startswith("[phone number]") and whole.endswith(" and so on, as I said")
    assert not any(letter.isdigit() for letter in whole)


def test_end_of_a_prompt_is_context_and_never_leaves() -> None:
    text = StreamedText("Card 4111 1111 1111 ")
    text.add("1111 and so on")
    left, found = text.leave(len(text.window), redacted_parts(text.window))
    assert (left, len(found)) == ("[payment card number] and so on", 1)
