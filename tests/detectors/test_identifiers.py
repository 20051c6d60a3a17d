"""Direct identifiers: found where check digits and plans say so, redacted without a rest, in linear time."""

import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.detectors import phones
from lora_ops.detectors.identifiers import (
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
    find_identifiers,
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
    (PHONE, "212 555-0147"),
    (PHONE, "212.555.0147"),
    (IP, "192.168.10.20"),
    (IP, "2001:db8::ff00:42:8329"),
    (IP, "fe80::1"),
    (EMAIL, "jo@example.xn--p1ai"),
    (EMAIL, "jo\uff20example.org"),
    (CARD, "\uff14\uff11\uff11\uff11 1111 1111 1111"),
    (CARD, "4111\u00a01111\u20111111\u20091111"),
    (CARD, "41111111\u200b11111111"),
    (CARD, "3782 822463 10005"),
    (CARD, "\u0664\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661"),
    (CARD, "4\ufe0f\u20e3111111111111111"),
    (IBAN, "HN88CABF00000000000250005469"),
    (IP, "\uff17\uff18.\uff18\uff15.\uff15\uff18.\uff18\uff10"),
    (SSN, "912-70-1234"),
    (PHONE, "0049 171 2345678"),
    (IP, "fd00::1"),
    (IP, "::ffff:192.0.2.17"),
    (PHONE, "+44 (0)20 7946 0018"),
    (PHONE, "01 42 68 53 00"),
    (PHONE, "+1 555 867 5309"),
]


@pytest.mark.parametrize(("kind", "item"), ITEMS)
def test_an_identifier_is_found_and_nothing_of_it_is_left(kind: str, item: str) -> None:
    text = f"It is {item}, he said."
    assert [(one.kind, text[one.start : one.end]) for one in find_identifiers(text)] == [(kind, item)]
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
        (SSN, "SSN ", "123456789"),
        (PHONE, "Call me on ", "779 021 982"),
        (PHONE, "Mi tel\u00e9fono es ", "912 345 678"),
        (PHONE, "\u7535\u8bdd\uff1a", "13912345678"),
        (CARD, "My visa is ", "41 11 1111 1111 11 11"),
        (CARD, "card ", "4006381300063"),  # also an article's number
    ],
)
def test_a_number_is_found_after_the_word_that_names_it(kind: str, before: str, item: str) -> None:
    text = f"{before}{item}, he said."
    assert [(one.kind, text[one.start : one.end]) for one in find_identifiers(text)] == [(kind, item)]
    assert redact(text) == (f"{before}[{kind}], he said.", 1)
    assert find_identifiers(f"It is {item}, he said.") == []


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
        "4006381300063",  # EAN-13 that also passes Luhn
        "978-3-16-148410-0",
        "DE89 3704 0044 0532 0130 01 and 0,4111111111111111",
        "section 10.1.2.3 and Chrome/120.0.0.0",
        "255.255.255.0",
        "icon@2x.png",
        "The phone of order 1234567890",
        "call on 2026-11-26",
        "part 054-829-002",
        "41 11 1111 1111 11 11",
        "+999 1234567",
        "001234567890123",
        "912-45-1234",
        "x[::2] + y[1::2] - z[3::6]",
        "0.000 000 0023 and 1.008 664 916 06 and 6.700 535 2471",
        "-2739849386524269E26 +5479698773048538E26 +61245E3",
        "0049301234567890 0012125550147",  # numbers of orders, filled up with zeros
        "11.5.9.0.sb0007585",
        "10.0.0.0/24",
        "1,234,567 and 0,25 and 0,123 456",
        "206.768 2827 and 1.319 590 8951 e-15 and 28 024.951 3861",
        "Monthly 77, 259-264 1970 (astro-ph/9905191)",
        "628174795866951638 506766141317",
    ],
)
def test_what_only_looks_like_one_is_left_alone(text: str) -> None:
    assert redact(text) == (text, 0)


def test_many_padded_numbers_are_no_list_of_phones() -> None:
    text = "\n".join(f"{number:010d}" for number in range(123_456, 124_456))
    assert find_identifiers(text) == []


@pytest.mark.parametrize(
    "item", ["(212) 555-0147", "212-555-0147", "+49 30 1234567", "01-42-68-53-00", "4111 1111 1111 1111"]
)
@pytest.mark.parametrize("gap", [" ", ", ", ",", "\n", ";", " / "])
def test_each_number_of_a_list_is_found_at_once(item: str, gap: str) -> None:
    """A number that is found only once its neighbour is redacted would stay unseen by the contract."""
    found = find_identifiers(gap.join([item] * 8))
    assert len(found) == 8


def test_of_two_that_overlap_the_longer_gives_its_name() -> None:
    assert redact("+992 372 12 3456")[0] == f"[{PHONE}]"
    assert redact("call 192.168.10.20")[0] == f"call [{IP}]"


def test_a_row_of_csv_holds_each_of_its_numbers() -> None:
    text = "17031,4111111111111111,378282246310005,jo@example.org"
    assert redact(text) == (f"17031,[{CARD}],[{CARD}],[{EMAIL}]", 3)


def test_offsets_are_those_of_the_text_where_it_was_folded() -> None:
    text = "\u200b\u200bsee 4111\u200b1111\u200b1111\u200b1111\u200b and 😀 \uff17\uff18.1.1.1"
    found = [text[one.start : one.end] for one in find_identifiers(text)]
    assert found == ["4111\u200b1111\u200b1111\u200b1111", "\uff17\uff18.1.1.1"]


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
    assert not find_identifiers(text)


@given(st.text(string.digits + "aDE@.:+-/() \n\u00a0é", max_size=200))
def test_found_items_lie_apart_and_redacting_again_finds_nothing(text: str) -> None:
    found = find_identifiers(text)
    assert all(one.start < one.end for one in found)
    assert all(one.end <= other.start for one, other in zip(found, found[1:], strict=False))
    redacted, count = redact(text)
    assert (count == 0) == (redacted == text) == (not found)
    assert redact(redacted) == (redacted, 0)


@given(st.text(string.digits, min_size=15, max_size=15))
def test_one_wrong_digit_makes_a_card_none(digits: str) -> None:
    number = f"4{digits[:14]}"
    cards = [last for last in string.digits if find_identifiers(number + last)]
    assert len(cards) == 1


@pytest.mark.parametrize(
    "pattern",
    ["1", "1 ", "4 ", "1-", "a@", "a@b.", "a:", "+1 ", "DE89 ", "1.", "(", "a", ":", "030 ", "call 1", "00 1 "],
)
def test_almost_identifiers_take_linear_time(pattern: str) -> None:
    """20,000 characters of `1 ` before `1x` took 1.7 s, and four times as long for twice as many."""
    text = pattern * (200_000 // len(pattern)) + " 1x\u200b"
    started = time.process_time()
    assert all(one.end <= len(text) for one in find_identifiers(text))
    assert time.process_time() - started < 3


@pytest.mark.parametrize(
    "item", ["0171 2345678", "+49 30 12345", "4111111111111111", "jo@a.de", "10.1.1.1", "call 1234567"]
)
def test_a_megabyte_of_identifiers_goes_in_seconds(item: str) -> None:
    text = "".join(f"{item}, {number:06d}x " for number in range(1_000_000 // (len(item) + 10)))
    started = time.process_time()
    redacted, _ = redact(text)
    assert item not in redacted
    assert time.process_time() - started < 10


def test_redact_ends_a_chain_that_has_no_end() -> None:
    """Each number was found once the one before it was gone: 16,000 characters took 13 s."""
    text, count = redact("+14155552671" * 2000 + " and more")
    assert count > PASSES and "4155552671" not in text
    assert text == "[phone number]" * (PASSES + 1) + " and more"
    assert redact("+14155552671" * 5 + " and more") == ("[phone number]" * 5 + " and more", 5)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        (
            "Call +1 212 555 0147 for the mayor of 8804190 people.",
            "Call [phone number] for the mayor of 8804190 people.",
        ),
        ("Hotline +49 30 1234567. Sold: 1234567; 2345678.", "Hotline [phone number]. Sold: 1234567; 2345678."),
        ("card 4111111111111111, 4006381300063", "card [payment card number], 4006381300063"),
        ("The [phone number] of 8804190 people", "The [phone number] of 8804190 people"),
    ],
)
def test_what_was_replaced_names_no_number_behind_it(text: str, redacted: str) -> None:
    """The mark `[phone number]` was a word that names a number: each one named the next."""
    assert redact(text)[0] == redacted
    assert redact(redacted) == (redacted, 0)


def test_a_long_list_of_plain_numbers_stays() -> None:
    numbers = "; ".join(str(1_234_567 + 7919 * number) for number in range(40))
    text = f"Hotline +49 30 1234567. Sold: {numbers}. That is all, and the rest is prose."
    assert redact(text) == (text.replace("+49 30 1234567", "[phone number]"), 1)


def test_one_word_names_the_numbers_of_a_short_list() -> None:
    assert redact("Tel. 5550147 / 5550148, 5550149") == ("Tel. [phone number], [phone number]", 2)
    assert redact("call 5550147 or 5550148, 5550149 and 5550150") == (
        "call [phone number] or [phone number], [phone number] and 5550150",
        3,
    )


@pytest.mark.parametrize("form", ["001 1{:015d}", "+999 {:012d}", "0{:02d} 12 34567890"])
def test_numbers_behind_the_last_lookup_count_by_form(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those in international form were looked up without an end, at each of their lengths."""
    monkeypatch.setattr(phones, "MOST_LOOKUPS", 0)
    text = form.format(42)
    assert redact(f"see {text}") == ("see [phone number]", 1)


def test_lookups_of_a_text_are_counted_over_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def exists(candidate: str) -> bool:
        asked.append(candidate)
        return False

    monkeypatch.setattr(phones, "_exists", exists)
    monkeypatch.setattr(phones, "MOST_LOOKUPS", 60)
    lines = "\n".join(f"001 1{number:03d} 1234 5678" for number in range(100))
    text, _ = redact(lines + "\n" + "+14155552671" * 12)
    assert len(asked) == len(set(asked)) <= 60
    assert "4155552671" not in text and "001 1099" not in text
