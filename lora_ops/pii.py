"""Direct identifiers in a text: the one detector of the data contract, the media source and the gateway.

Direct ones only: a name in a newspaper is not a data leak, an e-mail address in a card descriptor is. Check
digits are checked (cards by Luhn, IBANs by mod 97), so a time stamp or an order number is no card. Phone
numbers are found where they are written as such: with + and a country code, or grouped as in North America. Any
other national number looks like any number. (phonenumbers, Apache-2.0, knows the numbering plans, but needs the
region of each text, which nobody gives.) A date of birth, the number of a medical record and that of a passport
look like any other date or number, so they are found only after the word that names them. Names of people are
not found.

Each search is linear in the text: a pattern begins only at the edge of a word, and what varies is bounded.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple


class Found(NamedTuple):
    """One identifier: `text[start:end]`."""

    kind: str
    start: int
    end: int


EMAIL = "e-mail address"
IBAN = "IBAN"
CARD = "payment card number"
SSN = "US social security number"
IP = "IP address"
PHONE = "phone number"
BIRTH = "date of birth"
RECORD = "medical record number"
PASSPORT = "passport number"
KINDS = (EMAIL, IBAN, CARD, SSN, IP, PHONE, BIRTH, RECORD, PASSPORT)
"""Where two overlap, the earlier kind gives its name."""

PASSES = 20  # over a text whose identifiers stand side by side

_GAP = "[ \u00a0\u202f\u2010\u2011\u2013-]"
# `(?=(x))\1` takes x whole and gives no part of it back. Python's own possessive `++` is broken before 3.11.5.
_EMAIL = re.compile(r"(?<![\w.+%'-])(?=([\w.+%'-]+))\1@(?:[\w-]+\.)+[^\W\d_]{2,63}")
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(rf"(?<![\w.,])(?=(\d+(?:{_GAP}\d+)*))\1(?!\w)")
_IBAN_START = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}")
_SSN = re.compile(r"(?<![\w-])(?!000|666)\d{3}([ -])(?!00)\d{2}\1(?!0000)\d{4}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\w|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9A-Fa-f]{1,4}|[0-9.]{7,15})?(?![\w:])")
_VERSION = re.compile(r"(?:version|release|build)\s*$", re.IGNORECASE)
_PHONE = re.compile(
    # +49 30 1234567: at most 15 digits (ITU-T E.164).
    r"(?<![\w+])\+[1-9](?:[ \u00a0\u202f\u2010\u2011\u2013./()-]{0,3}\d){6,14}(?!\d)"
    # (212) 555-0147, 1-212-555-0147, 212.555.0147
    r"|(?<![\w.+-])(?:1[ .-])?(?:\(\d{3}\)[ .-]?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w-]|\.\d)"
)

_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\\.?"
_DATE = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    rf"|\d{{1,2}} {_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}},? \d{{4}})"
)
_IS = r"(?:\s{0,3}[:=#]|\s{1,3}(?:is|was)(?=\s))?\s{0,3}"
# What the word before names: `DOB: 1970-05-17`, `MRN 00123456`, `passport no. X1234567`.
_NAMED = {
    BIRTH: re.compile(rf"(?<!\w)(?:d\.?o\.?b\.?|date of birth|birth ?date){_IS}({_DATE})(?!\w)", re.IGNORECASE),
    RECORD: re.compile(
        rf"(?<!\w)(?:mrn|medical record (?:number|no\.?|#)){_IS}([a-z]{{0,3}}-?\d{{5,12}})(?!\w)", re.IGNORECASE
    ),
    PASSPORT: re.compile(
        rf"(?<!\w)passport (?:number|no\.?|nr\.?|#){_IS}((?=[a-z]{{0,8}}\d)[a-z0-9]{{6,9}})(?!\w)",
        re.IGNORECASE,
    ),
}

# The lengths of IBANs by country (SWIFT's registry of IBANs).
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}

# Which first digits a card's network uses, by the card's length (ISO/IEC 7812).
_CARDS = {
    13: re.compile("4"),
    14: re.compile("30[0-5]|36|38|39"),
    15: re.compile("34|37|2131"),
    16: re.compile("4|5|6|35|30|36|38|39|22[2-9]|2[3-6]|27[01]|2720"),
    17: re.compile("5[0678]|6"),
    18: re.compile("5[0678]|6"),
    19: re.compile("4|5[0678]|6|35"),
}
_CARD_BEGINS = frozenset("23456")


def find_pii(text: str) -> list[Found]:
    """Return the identifiers in a text from left to right; none overlaps another."""
    found = []
    if "@" in text:
        found += [Found(EMAIL, *match.span()) for match in _EMAIL.finditer(text)]
    if _DIGIT.search(text):
        found += [Found(IBAN, *span) for span in _ibans(text)]
        found += [Found(CARD, *span) for span in _cards(text)]
        found += [Found(SSN, *match.span()) for match in _SSN.finditer(text)]
        found += [Found(IP, *span) for span in _addresses(text)]
        found += [Found(PHONE, *match.span()) for match in _PHONE.finditer(text)]
        for kind, named in _NAMED.items():
            found += [Found(kind, *match.span(1)) for match in named.finditer(text)]
    return _merged(found)


def redact(text: str) -> tuple[str, int]:
    """Return the text with each identifier replaced by its kind in brackets, and how many there were."""
    count = 0
    # What stands beside an identifier may be one too, once that is gone.
    for _ in range(PASSES):
        found = find_pii(text)
        count += len(found)
        for one in reversed(found):
            text = f"{text[: one.start]}[{one.kind}]{text[one.end :]}"
        if not found:
            return text, count
    # A chain of thousands, each found once the one before it is gone: its rest goes as a whole, unsearched.
    found = find_pii(text)
    if found:
        text = f"{text[: found[0].start]}[{found[0].kind}]"
    return text, count + len(found)


def _merged(found: Iterable[Found]) -> list[Found]:
    merged: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, KINDS.index(one.kind))):
        if merged and one.start < merged[-1].end:
            kind = min(merged[-1].kind, one.kind, key=KINDS.index)
            merged[-1] = Found(kind, merged[-1].start, max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return merged


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    for match in _IBAN_START.finditer(text):
        length = _IBAN_LENGTHS.get(match[0][:2].upper(), 0)
        span = _take(text, match.start(), length) if length else None
        if span is None:
            continue
        letters = "".join(letter for letter in text[slice(*span)] if letter.isalnum()).upper()
        # Country and check digits go to the end, letters count from A = 10 (ISO 13616).
        if int("".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])) % 97 == 1:
            yield span


def _take(text: str, start: int, length: int) -> tuple[int, int] | None:
    """Return where `length` ASCII letters and digits from `start` on end, single gaps between them allowed."""
    place, taken = start, 0
    while taken < length and place < len(text):
        if text[place].isascii() and text[place].isalnum():
            taken += 1
        elif not re.fullmatch(_GAP, text[place]) or re.fullmatch(_GAP, text[place - 1]):
            return None
        place += 1
    ends = place == len(text) or not text[place].isalnum()
    return (start, place) if taken == length and ends else None


def _cards(text: str) -> Iterator[tuple[int, int]]:
    for run in _DIGITS.finditer(text):
        digits = run[0]
        groups = [match.span() for match in re.finditer(r"\d+", digits)]
        first = 0
        while first < len(groups):
            last = _card_end(digits, groups, first)
            if last is not None:
                yield run.start() + groups[first][0], run.start() + groups[last][1]
                first = last
            first += 1


def _card_end(run: str, groups: list[tuple[int, int]], first: int) -> int | None:
    """Return the last of the groups from `first` on that make one card number, the longest there is."""
    digits, found = "", None
    if run[groups[first][0]] not in _CARD_BEGINS:
        return None
    for last in range(first, len(groups)):
        digits += run[slice(*groups[last])]
        if len(digits) > max(_CARDS):
            break
        network = _CARDS.get(len(digits))
        if network and network.match(digits) and _luhn(digits):
            found = last
    return found


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text):
        address = ipaddress.ip_address(match[0]) if not re.search(r"(^|\.)0\d", match[0]) else None
        named = _VERSION.search(text, max(0, match.start() - 20), match.start())
        if not named and (address is None or not (address.is_loopback or address.is_unspecified)):
            yield match.span()
    for match in _IPV6.finditer(text):
        # `a::b` is code rather than an address.
        if not _DIGIT.search(match[0]):
            continue
        try:
            six = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        if not (six.is_loopback or six.is_unspecified):
            yield match.span()
