"""Phone numbers, told from other numbers by the world's numbering plans (phonenumbers, after libphonenumber).

Most numbers without a country code look like any number. So one is found in four forms:

- with `+` and a country code that exists, at a length that the country has; with `00` or `011` in groups;
- grouped as in North America;
- with a leading 0, in exactly the groups that one of `REGIONS` writes;
- in any form beside a word that names it, such as `phone` or `call me on`, and in a short list after that one.
"""

import re
from collections.abc import Callable, Iterator
from functools import lru_cache

Span = tuple[int, int]

# Regions whose national numbers begin with 0 and are printed in groups of their own.
# fmt: off
REGIONS = (
    "AT", "AU", "BE", "BG", "CH", "CN", "DE", "EG", "FI", "FR", "GB", "HR", "IE", "IL", "IN", "IT", "JP", "KE",
    "KR", "MY", "NG", "NL", "NZ", "PH", "PK", "RO", "RS", "SE", "SI", "SK", "TH", "TR", "TW", "UA", "VN", "ZA",
)
# fmt: on
# A text that asks the numbering plans more often is a list of numbers. The rest of them count by their form
# alone, so that no text takes long and nothing of it stays unredacted.
MOST_LOOKUPS = 2000
NATIONAL_LOOKUPS = 8  # A national number is asked of each region, which takes about 8 times as long.

_GAP = r"[ ./()-]{0,3}"
_INTERNATIONAL = re.compile(
    # An x may follow, before an extension; another letter is a unit or an exponent.
    rf"(?<![\w+])(?:\+|00(?=[1-9])|011[ -](?=[1-9]))\(?\d(?:{_GAP}\d){{6,17}}(?![0-9A-WYZa-wyz_])"
)
# Neither area nor exchange begins with 0 or 1. After a group of three digits it is a part of a longer number.
_NORTH_AMERICAN = re.compile(
    r"(?<![\w.+-])(?<!\D\d{3} )(?:"
    r"(?:1[ .-])?\([2-9]\d{2}\)[ .-]?[2-9]\d{2}[ .-]\d{4}"  # (212) 555-0147
    r"|(?:1[ -])?[2-9]\d{2}(?:-[2-9]\d{2}-| [2-9]\d{2}[ -])\d{4}"  # 212-555-0147, 1 212 555-0147
    r"|(?:1\.)?[2-9]\d{2}\.[2-9]\d{2}\.\d{4}"  # 212.555.0147
    r")(?![\w-]|\.\d)"
)
_TRUNK = re.compile(rf"(?<![\w.+-])(?<!\d[:/])\(?0(?!\.)(?:{_GAP}\d){{8,12}}(?![\w:]|[.-]\d)")
_NATIONAL = re.compile(rf"(?<![A-Za-z0-9_.])(?<!\d[,:/])\(?\d(?:{_GAP}\d){{6,14}}(?![\w:%]|[.,-]\d)")
_DATE = re.compile(r"\d{4}[ ./-]\d{1,2}[ ./-]\d{1,2}(?: .*)?|\d{1,2}[ ./-]\d{1,2}[ ./-]\d{4}(?: .*)?")
_NAMED = re.compile(
    # Up to 30 characters without a digit may stand between the word and its number.
    r"(?:(?<![\w-])(?:(?:tele|cell |smart|mobile )?phone|mobile|cell|tel|telephone|cellphone|fax|whats ?app|"
    r"sms|hotline|call|dial|ring|reach|text me|ph|mob|telefon|telefonnummer|tel-nr|handy|handynummer|"
    r"mobil|rückruf|anruf|anrufen|rufen|t[ée]l[ée]phone|portable|appele[rz]|appel|tel[ée]fono|m[óo]vil|celular|"
    r"ll[áa]m[ae]\w*|telefone|telem[óo]vel|ligue|cellulare|chiam\w+|telefoon|mobiel|bel|tlf|puhelin|puh|"
    r"телефон|тел|моб)(?:es|s|ed|ing)?(?!\w)|电话|電話|手机|手機|携帯|전화|휴대폰|هاتف|फ़ोन|फोन|टेलीफोन)"
    r"[^\d\n]{0,30}$",
    re.IGNORECASE,
)
_NAMED_AFTER = re.compile(r"[ ,(-]{1,3}(?:office|fax|mobile|cell|home|phone|tel|handy|mobil)\b", re.IGNORECASE)
# What else a number beside such a word may be.
_OTHER = re.compile(
    r"(?<!\w)(?:orders?|invoice|refs?|reference|case|ticket|isbn|issn|doi|tracking|parcel|serial|imei|part|item|"
    r"id|code|pin|account|policy|version|model|article|sku|ean|upc|bestellung|rechnung|weighs?|costs?)"
    r"(?!\w)[^\d\n]{0,20}$",
    re.IGNORECASE,
)
# `Tel. 555 0147 / 555 0148`: the word names the next numbers of a list, too.
_LIST_GAP = re.compile(r" ?[,;/|&] ?(?:(?:or|and) )?| (?:or|and|oder|und|ou|et|o|y|e) ")
_MOST_LISTED = 2
_LOOK_BACK = 60
_FEWEST_DIGITS = 7


class Lookups:
    """What one text may still ask the numbering plans, in all searches of it; each question counts once."""

    def __init__(self) -> None:
        self._left = MOST_LOOKUPS
        self._answers: dict[tuple[Callable[[str], bool], str], bool] = {}

    def ask(self, question: Callable[[str], bool], candidate: str, cost: int = 1) -> bool | None:
        """Return the answer, or None where the text has asked too much."""
        answer = self._answers.get((question, candidate))
        if answer is None and self._left >= cost:
            self._left -= cost
            answer = self._answers[question, candidate] = question(candidate)
        return answer


def phones(text: str, lookups: Lookups | None = None) -> Iterator[Span]:
    """Yield where phone numbers stand in a folded text; spans may overlap.

    Args:
        text: the folded text.
        lookups: what the text may still ask; None: this is the only search of it.
    """
    lookups = lookups or Lookups()
    for match in _INTERNATIONAL.finditer(text):
        end = _international_end(match[0], lookups)
        if end:
            yield match.start(), match.start() + end
    for match in _NORTH_AMERICAN.finditer(text):
        yield match.span()
    for match in _TRUNK.finditer(text):
        if not _is_form(match[0]) or _stands_after(_OTHER, text, match.start()):
            continue
        if lookups.ask(_is_printed_nationally, match[0], NATIONAL_LOOKUPS) is not False:
            yield match.span()
    last, listed = 0, _MOST_LISTED  # where the last named number ended, and how many of its list came after it
    for match in _NATIONAL.finditer(text):
        start = match.start()
        in_list = listed < _MOST_LISTED and _LIST_GAP.fullmatch(text, last, start)
        named = is_named(text, start) or _NAMED_AFTER.match(text, match.end())
        is_other = _stands_after(_OTHER, text, start) or _DATE.fullmatch(match[0])
        if (named or in_list) and not is_other:
            last, listed = match.end(), 0 if named else listed + 1
            yield match.span()


def is_named(text: str, start: int) -> bool:
    """Return whether a word before this place of a folded text says that a phone number follows."""
    return _stands_after(_NAMED, text, start)


def is_date(candidate: str) -> bool:
    """Return whether digits in groups are a date, alone or before something else."""
    return _DATE.fullmatch(candidate) is not None


def _is_form(candidate: str) -> bool:
    """Return whether digits are grouped as phone numbers are: no country mixes points with other gaps."""
    gaps = set(re.sub(r"\d", "", candidate))
    return bool(gaps) and (gaps == {"."} or "." not in gaps) and not _DATE.fullmatch(candidate)


def _stands_after(word: re.Pattern[str], text: str, start: int) -> bool:
    return word.search(text, max(0, start - _LOOK_BACK), start) is not None


def _international_end(candidate: str, lookups: Lookups) -> int | None:
    """Return how much of a candidate is one number: up to the last group with which it exists in the plans.

    Where none exists, the longest of a possible length counts after `+`: nobody writes other numbers that way.
    Digits without a gap after 00 are rather a number of an order, filled up with zeros. Where the text has
    asked too much, all of it counts.
    """
    if candidate.isdigit():
        return None
    ends = [match.end() for match in re.finditer(r"\d(?!\d)", candidate)]
    counted = [end for end in ends if sum(map(str.isdigit, candidate[:end])) >= _FEWEST_DIGITS][::-1]
    for question in (_exists, _is_possible) if candidate[0] == "+" else (_exists,):
        for end in counted:
            answer = lookups.ask(question, candidate[:end])
            if answer is None:
                return counted[0]
            if answer:
                return end
    return None


def _plain(international: str) -> str:
    return "+" + re.sub(r"^(?:00|011)|\(0\)|\D", "", international)


@lru_cache(4096)
def _exists(international: str) -> bool:
    import phonenumbers

    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(_plain(international)))
    except phonenumbers.NumberParseException:
        return False


@lru_cache(4096)
def _is_possible(international: str) -> bool:
    import phonenumbers

    try:
        number = phonenumbers.parse(_plain(international))
    except phonenumbers.NumberParseException:
        return False
    # A local number's length is none after a country code.
    return phonenumbers.is_possible_number_with_reason(number) == phonenumbers.ValidationResult.IS_POSSIBLE


@lru_cache(4096)
def _is_printed_nationally(candidate: str) -> bool:
    """Return whether a region has this number and prints it in these groups."""
    import phonenumbers

    groups = re.findall(r"\d+", candidate)
    for region in REGIONS:
        try:
            number = phonenumbers.parse("".join(groups), region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number_for_region(number, region):
            printed = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
            if re.findall(r"\d+", printed) == groups:
                return True
    return False
