"""Payment cards and IBANs, told from other numbers by their issuer, length and check digits."""

import re
from collections.abc import Iterator

Span = tuple[int, int]

# The lengths of IBANs by country (SWIFT's registry of IBANs, release 99).
IBAN_LENGTHS = {
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
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}

# The first digits of each network's cards, by the card's length (ISO/IEC 7812, the networks' published ranges).
_VISA = "4"
_MASTERCARD = "5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"
_MAESTRO = "50[1-6]|508|5893|6304|67"
_LONG = "6011|62|64[4-9]|65|63[6-9]|60|35(?:2[89]|[3-8])|220[0-5]"  # Discover, UnionPay, RuPay, JCB, Mir
_DINERS = "30[0-5]|3095|36|3[89]"
_ISSUERS = {
    13: _VISA,
    14: _DINERS,
    15: "34|37|2131|1800",
    16: f"{_VISA}|{_MASTERCARD}|{_MAESTRO}|{_LONG}|{_DINERS}|81|82|9792|8600|9860",
    19: f"{_VISA}|{_MAESTRO}|{_LONG}|{_DINERS}|81",
}
_CARDS = {length: re.compile(issuers) for length, issuers in _ISSUERS.items()}
# Lengths that hardly any card has, and many other numbers: cards only after a word that names them.
_RARE = dict.fromkeys((12, 13, 14, 15, 17, 18), re.compile(f"{_MAESTRO}|62"))
_MOST = max(_CARDS)
_MOST_GROUPS = 8  # pairs of digits

_DIGITS = re.compile(r"\d+")
_WHOLE_PART = re.compile(r"(?<!\d)\d{1,3}[.,]$")
_IBAN_START = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}")
# How cards are written in groups: fours with a shorter end, American Express, Diners, halves.
_GROUPED = re.compile(r"(?:4,){2,4}[1-4],|4,6,[45],|8,8,|5,5,5,|6,1[0-3],|4,5,6,")
_NAMED = re.compile(
    r"\b(?:card|cards|visa|master ?card|amex|american express|maestro|debit|credit|cc|pan|karte|kreditkarte|"
    r"carte|tarjeta|carta|kaart|kort|karta)\b[^\d\n]{0,30}$",
    re.IGNORECASE,
)
_LOOK_BACK = 60


def cards(text: str) -> Iterator[Span]:
    """Yield where a payment card's number stands in a folded text.

    The digits stand together or in the groups that cards are printed in, after a word such as `card` in any
    groups. Two sorts of numbers are cards only after such a word: a whole EAN-13, as of goods, and one of a
    length that hardly any card has.
    """
    for run in _runs(text):
        first = 0
        while first < len(run):
            last = _card_end(text, run, first)
            if last is not None:
                yield run[first][0], run[last][1]
                first = last
            first += 1


def _runs(text: str) -> Iterator[list[Span]]:
    """Yield the groups of digits that one space or hyphen parts; each digit is read once.

    A group that touches a letter, or a decimal point, is part of something else and parts two runs.
    """
    run: list[Span] = []
    for match in _DIGITS.finditer(text):
        start, end = match.span()
        before = text[start - 1] if start else " "
        after = text[end] if end < len(text) else " "
        # `0.4111` and `0,4111` are fractions; in `17031,4111` a comma parts two fields.
        fraction = before in ".," and _WHOLE_PART.search(text, max(0, start - 5), start)
        has_fraction = after == "." and text[end + 1 : end + 2].isdigit()
        in_word = before == "_" or before.isalpha() or after == "_" or after.isalpha()
        whole = not (fraction or has_fraction or in_word)
        joined = run and start == run[-1][1] + 1 and before in " -"
        if run and not (whole and joined):
            yield run
            run = []
        if whole:
            run.append((start, end))
    if run:
        yield run


def _card_end(text: str, run: list[Span], first: int) -> int | None:
    """Return the last of the groups from `first` on that make one card number, the longest there is."""
    digits, shape, found = "", "", None
    for last in range(first, min(first + _MOST_GROUPS, len(run))):
        start, end = run[last]
        if len(digits) + end - start > _MOST:
            break
        digits += text[start:end]
        shape += f"{end - start},"
        usual, rare = _CARDS.get(len(digits)), _RARE.get(len(digits))
        is_usual = usual is not None and usual.match(digits)
        is_rare = rare is not None and rare.match(digits)
        if not ((is_usual or is_rare) and luhn(digits)):
            continue
        is_printed = not _is_ean(digits) if last == first else _GROUPED.fullmatch(shape)
        start = run[first][0]
        if (is_usual and is_printed) or _NAMED.search(text, max(0, start - _LOOK_BACK), start):
            found = last
    return found


def luhn(digits: str) -> bool:
    """Return whether the last digit is the check digit of the others (ISO/IEC 7812-1, Luhn)."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _is_ean(digits: str) -> bool:
    """Return whether 13 digits are an article number (EAN-13, ISBN-13) by their check digit."""
    weighted = sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(digits))
    return len(digits) == 13 and weighted % 10 == 0


def ibans(text: str) -> Iterator[Span]:
    """Yield where an IBAN stands in a folded text; single spaces or hyphens may part its characters."""
    for match in _IBAN_START.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2].upper(), 0)
        end = _iban_end(text, match.start(), length) if length else None
        if end is not None and iban_is_valid("".join(filter(str.isalnum, text[match.start() : end]))):
            yield match.start(), end


def iban_is_valid(letters: str) -> bool:
    """Return whether an IBAN without gaps has its country's length and check digits (ISO 13616)."""
    upper = letters.upper()
    if len(upper) != IBAN_LENGTHS.get(upper[:2]) or not upper.isascii() or not upper.isalnum():
        return False
    # Country and check digits go to the end, letters count from A = 10.
    return int("".join(str(int(letter, 36)) for letter in upper[4:] + upper[:4])) % 97 == 1


def _iban_end(text: str, start: int, length: int) -> int | None:
    """Return where `length` ASCII letters and digits from `start` on end, single gaps between them allowed."""
    place, taken = start, 0
    while taken < length and place < len(text):
        letter = text[place]
        if letter.isascii() and letter.isalnum():
            taken += 1
        elif letter not in " -" or text[place - 1] in " -":
            return None
        place += 1
    ends = place == len(text) or not text[place].isalnum()
    return place if taken == length and ends else None
