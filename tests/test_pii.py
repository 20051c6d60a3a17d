"""Direct identifiers: found where check digits and form say so, redacted without a rest, in linear time."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.pii import (
    BIRTH,
    CARD,
    EMAIL,
    IBAN,
    IP,
    PASSES,
    PASSPORT,
    PHONE,
    RECORD,
    SSN,
    find_pii,
    redact,
)

ITEMS = [
    (EMAIL, "jo@example.org"),
    (EMAIL, "jo.o'neil+x@mail.example.co.uk"),
    (EMAIL, "jürgen@müller.example"),
    (CARD, "4111 1111 1111 1111"),
    (CARD, "4111-1111-1111-1111"),
    (CARD, "378282246310005"),
    (CARD, "4222222222222"),
    (CARD, "30569309025904"),
    (CARD, "6304000000000000"),
    (IBAN, "DE89370400440532013000"),
    (IBAN, "DE89 3704 0044 0532 0130 00"),
    (IBAN, "de89 3704 0044 0532 0130 00"),
    (IBAN, "gb82west12345698765432"),
    (IBAN, "FR14 2004 1010 0505 0001 3M02 606"),
    (SSN, "078-05-1120"),
    (SSN, "078 05 1120"),
    (PHONE, "+49 30 1234567"),
    (PHONE, "+49 (0)30/123-4567"),
    (PHONE, "+14155552671"),
    (PHONE, "(212) 555-0147"),
    (PHONE, "1-212-555-0147"),
    (IP, "192.168.10.20"),
    (IP, "2001:db8::ff00:42:8329"),
    (IP, "fe80::1"),
]


@pytest.mark.parametrize(("kind", "item"), ITEMS)
def test_an_identifier_is_found_and_nothing_of_it_is_left(kind: str, item: str) -> None:
    text = f"It is {item}, he said."
    assert [(one.kind, text[one.start : one.end]) for one in find_pii(text)] == [(kind, item)]
    assert redact(text) == (f"It is [{kind}], he said.", 1)


@pytest.mark.parametrize(
    ("kind", "before", "item"),
    [
        (BIRTH, "DOB: ", "1970-05-17"),
        (BIRTH, "d.o.b. ", "17/05/70"),
        (BIRTH, "Her date of birth is ", "17 May 1970"),
        (BIRTH, "birthdate=", "May 17, 1970"),
        (RECORD, "MRN ", "00123456"),
        (RECORD, "medical record no. ", "AB-1234567"),
        (PASSPORT, "passport no. ", "X1234567"),
        (PASSPORT, "Passport number: ", "C01X00T47"),
    ],
)
def test_a_number_is_found_after_the_word_that_names_it(kind: str, before: str, item: str) -> None:
    text = f"{before}{item}, he said."
    assert [(one.kind, text[one.start : one.end]) for one in find_pii(text)] == [(kind, item)]
    assert redact(text) == (f"{before}[{kind}], he said.", 1)
    assert find_pii(f"It is {item}, he said.") == []


@pytest.mark.parametrize(
    "text",
    [
        "The passport number is required before 2026-05-17.",
        "MRNA 1234567 and the date of birth rates of 1970",
        "dob 12 and passport 2026",
        "1617176400000",  # a time stamp in milliseconds
        "1617176400000000",  # and in microseconds
        "4111 1111 1111 1112",  # fails Luhn
        "DE89 3704 0044 0532 0130 01",  # fails mod 97
        "666-05-1120",
        "2026-03-02 09:15:30",
        "12:30:45",
        "version 1.2.3.4",
        "v1.2.3.4",
        "std::vector a::b",
        "127.0.0.1 and ::1",
        "0.4111111111111111",
        "order 1234567",
        "rooms 101-202-303",
        "a @ b. c",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert redact(text) == (text, 0)


def test_an_iban_leaves_no_part_of_itself() -> None:
    assert redact("pay to DE89 3704 0044 0532 0130 00 today") == ("pay to [IBAN] today", 1)


def test_a_card_is_found_before_its_expiry() -> None:
    assert redact("4111 1111 1111 1111 12/29")[0] == "[payment card number] 12/29"


@given(
    before=st.text(string.ascii_letters + " .,;:()\n", max_size=30),
    after=st.text(string.ascii_letters + " .,;:()\n", max_size=30),
    item=st.sampled_from(ITEMS),
)
def test_no_digit_of_a_found_item_remains(before: str, after: str, item: tuple[str, str]) -> None:
    text, _ = redact(f"{before} {item[1]} {after}")
    assert not any(letter.isdigit() for letter in text)
    assert not find_pii(text)


@given(st.text(string.digits + "aDE@.:+-/() \n\u00a0é", max_size=200))
def test_found_items_lie_apart_and_redacting_again_finds_nothing(text: str) -> None:
    found = find_pii(text)
    assert all(one.start < one.end for one in found)
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    redacted, count = redact(text)
    assert (count == 0) == (redacted == text) == (not found)
    assert redact(redacted) == (redacted, 0)


@given(st.text(string.digits, min_size=15, max_size=15))
def test_one_wrong_digit_makes_a_card_none(digits: str) -> None:
    number = f"4{digits[:14]}"
    cards = [last for last in string.digits if find_pii(number + last)]
    assert len(cards) == 1


@pytest.mark.parametrize("pattern", ["1", "1 ", "1-", "a@", "a@b.", "a:", "+1 ", "DE89 ", "1.", "(", "a", ":"])
def test_a_long_text_of_almost_identifiers_ends(pattern: str) -> None:
    """A pattern that backtracks would take hours here."""
    text = pattern * (200_000 // len(pattern))
    assert all(one.end <= len(text) for one in find_pii(text))


def test_redact_ends_a_chain_that_has_no_end() -> None:
    """Each number was found once the one before it was gone: 16,000 characters took 13 s."""
    text, count = redact("+1234567" * 2000 + " and more")
    assert count > PASSES and "1234567" not in text
    assert text.startswith("[phone number]" * PASSES)
    assert redact("+1234567" * 5 + " and more") == ("[phone number]" * 5 + " and more", 5)
