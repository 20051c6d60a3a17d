"""The end of a text that was cut off: what of it may be most of an identifier.

A client that ends an answer itself, by `max_tokens` or `stop`, would get `4111 1111 1111 111` of a card,
and work out its last digit.
"""

import re

from lora_ops.detectors.check_digits import IBAN_LENGTHS
from lora_ops.detectors.folding import fold
from lora_ops.detectors.identifiers import BIRTH, CARD, EMAIL, IBAN, PHONE, Found
from lora_ops.detectors.phones import is_date, is_named

_TAIL = 400  # characters of the text
MOST_UNNAMED = 9
"""Digits in a row that are no part of an identifier, unless a word names them: six of a card say its bank."""

_EMAIL = re.compile(r"(?<![\w.+%'-])(?=([\w.+%'-]+))\1@[\w.-]*$")
_IBAN = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){4,30}[ -]?$")
_FEWEST_DIGITS = 6
_NUMBER = re.compile(r"(?<![\w.])(?<!\d[,:/])[+(]{0,2}\d(?:[ ./()-]{0,3}\d){5,40}[ ./()-]{0,3}$")
_NAMED = re.compile(
    r"(?<!\w)(?:ssn|social security|mrn|medical record|passport|card|visa)(?!\w)[^\d\n]{0,30}$",
    re.IGNORECASE,
)
_BIRTH = re.compile(
    r"(?<!\w)(?:d\.?o\.?b\.?|date of birth|birth ?date)\W{0,6}(?:is )?[\d./-]{5,10}$", re.IGNORECASE
)


def open_end(text: str) -> Found | None:
    """Return what may be the begin of an identifier at the end of a text, or None."""
    begin = max(0, len(text) - _TAIL)
    folded, places = fold(text[begin:])
    for kind, start in _begun(folded):
        return Found(kind, begin + places[start], len(text))
    return None


def _begun(folded: str) -> "list[tuple[str, int]]":
    """Return the kind and the first place of each."""
    found = []
    email = _EMAIL.search(folded)
    if email:
        found.append((EMAIL, email.start()))
    iban = _IBAN.search(folded)
    if iban and iban[0][:2].upper() in IBAN_LENGTHS and sum(map(str.isdigit, iban[0])) >= _FEWEST_DIGITS:
        found.append((IBAN, iban.start()))
    birth = _BIRTH.search(folded)
    if birth:
        found.append((BIRTH, birth.start()))
    number = _NUMBER.search(folded)
    if number and _may_be_begun(folded, number):
        is_phone = number[0][0] in "+(0" or is_named(folded, number.start())
        found.append((PHONE if is_phone else CARD, number.start()))
    return sorted(found, key=lambda one: one[1])


def _may_be_begun(folded: str, number: re.Match[str]) -> bool:
    """Return whether digits at the end are like the begin of a phone number, a card or an SSN."""
    digits = number[0].strip(" ./()-")
    if is_date(digits):
        return False
    starts_so = number[0][0] in "+(" or digits.startswith("0")
    named = is_named(folded, number.start()) or _NAMED.search(folded, 0, number.start())
    is_grouped = not digits.isdigit() and "." not in digits
    return bool(starts_so or named or is_grouped or len(digits) > MOST_UNNAMED)
