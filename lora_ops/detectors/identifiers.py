"""Direct identifiers in a text: the one detector of the data contract, the media source and the gateway.

Direct ones only: a name in a newspaper is not a data leak, an e-mail address in a card descriptor is. Cards
and IBANs are found by issuer, length and check digits (`check_digits`), phone numbers by the world's numbering
plans (`phones`), addresses by `ipaddress`. So a time stamp, a date, an ISBN or an order number is not one of
them. A date of birth, the number of a medical record and that of a passport look like any other date or number.
They are found only after the word that names them. The same holds for a social security number without hyphens.
Names of people are not found.

Each search is linear in the text: a pattern begins only at the edge of a word, and what varies is bounded.
`lora-ops detectors` measures what this finds and what it misses.
"""

import ipaddress
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lora_ops.detectors.check_digits import cards, ibans
from lora_ops.detectors.folding import fold
from lora_ops.detectors.phones import phones


class Found(NamedTuple):
    """One identifier: `text[start:end]`."""

    kind: str
    start: int
    end: int


NAME = "identifiers"
VERSION = "3"
"""Raised when the recognisers change: what another version found can't be compared."""

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
"""Where two overlap, the longer one gives its name, and of two as long the earlier kind."""

PASSES = 20  # over a text whose identifiers stand side by side

# `(?=(x))\1` takes x whole and gives no part of it back. Python's own possessive `++` is broken before 3.11.5.
_EMAIL = re.compile(
    r"(?<![\w.+%'-])(?=([\w.+%'-]+))\1@(?![0-9]x\.)(?:[\w-]+\.)+(?:xn--[a-z0-9-]{2,59}|[^\W\d_]{2,63})",
    re.IGNORECASE,
)
_DIGIT = re.compile(r"\d")
# Groups 70-88, 90-92 and 94-99 after a 9 are taxpayers' numbers (ITIN); no other number begins with 9.
_SSN = re.compile(
    r"(?<![\w-])(?!000|666)(?:[0-8]\d{2}([ -])(?!00)\d{2}|9\d{2}([ -])(?:5\d|6[0-5]|[78]\d|9[0-24-9]))"
    r"(?:\1|\2)(?!0000)\d{4}(?![\w-])"
)
_IPV4 = re.compile(
    r"(?<![\w.])(?<![A-Za-z]/)(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?!\w|\.\w|(?<=\.0)/\d)"
)
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:[0-9.]{7,15}|[0-9A-Fa-f]{1,4})?(?![\w:])")
_NOT_ADDRESS = re.compile(
    r"(?:version|release|build|firmware|revision|section|chapter|clause|paragraph|ver\.|sec\.|§)\s*$",
    re.IGNORECASE,
)

_IPV6_NETWORKS = tuple(map(ipaddress.IPv6Network, ("2000::/3", "fc00::/7", "fe80::/10", "64:ff9b::/96")))

_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\\.?"
_DATE = (
    r"(?:\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    rf"|\d{{1,2}} {_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}},? \d{{4}})"
)
_IS = r"(?:\s{0,3}[:=#]|\s{1,3}(?:is|was)(?=\s))?\s{0,3}"
# What the word before names: `DOB: 1970-05-17`, `MRN 00123456`, `passport no. X1234567`, `SSN 123456789`.
_NAMED = {
    BIRTH: re.compile(rf"(?<!\w)(?:d\.?o\.?b\.?|date of birth|birth ?date){_IS}({_DATE})(?!\w)", re.IGNORECASE),
    RECORD: re.compile(
        rf"(?<!\w)(?:mrn|medical record (?:number|no\.?|#)){_IS}([a-z]{{0,3}}-?\d{{5,12}})(?!\w)", re.IGNORECASE
    ),
    PASSPORT: re.compile(
        rf"(?<!\w)passport (?:number|no\.?|nr\.?|#){_IS}((?=[a-z]{{0,8}}\d)[a-z0-9]{{6,9}})(?!\w)",
        re.IGNORECASE,
    ),
    SSN: re.compile(
        rf"(?<!\w)(?:ssn|social security (?:number|no\.?|#)){_IS}"
        r"((?!000|666|9)\d{3}(?!00)\d{2}(?!0000)\d{4})(?!\w)",
        re.IGNORECASE,
    ),
}


def find_identifiers(text: str) -> list[Found]:
    """Return the identifiers in a text from left to right; none overlaps another."""
    folded, places = fold(text)
    found = []
    if "@" in folded:
        found += [Found(EMAIL, *match.span()) for match in _EMAIL.finditer(folded)]
    if _DIGIT.search(folded):
        found += [Found(IBAN, *span) for span in ibans(folded)]
        found += [Found(CARD, *span) for span in cards(folded)]
        found += [Found(SSN, *match.span()) for match in _SSN.finditer(folded)]
        found += [Found(IP, *span) for span in _addresses(folded)]
        found += [Found(PHONE, *span) for span in phones(folded)]
        for kind, named in _NAMED.items():
            found += [Found(kind, *match.span(1)) for match in named.finditer(folded)]
    return [Found(one.kind, places[one.start], places[one.end - 1] + 1) for one in _merged(found)]


def redact(text: str) -> tuple[str, int]:
    """Return the text with each identifier replaced by its kind in brackets, and how many there were."""
    parts, count = _passes(text)
    return replaced(text, parts), count


def redacted_parts(text: str) -> list[Found]:
    """Return what `redact` replaces, from left to right; none overlaps another."""
    return _passes(text)[0]


def replaced(text: str, parts: Iterable[Found]) -> str:
    """Return the text with each of these parts, from left to right, replaced by its kind in brackets."""
    pieces, place = [], 0
    for one in parts:
        pieces += [text[place : one.start], f"[{one.kind}]"]
        place = one.end
    return "".join([*pieces, text[place:]])


def _passes(text: str) -> tuple[list[Found], int]:
    """Return what is replaced, in places of `text`, and how many identifiers were found."""
    parts: list[Found] = []
    count = 0
    # What stands beside an identifier may be one too, once that is gone.
    for _ in range(PASSES):
        found = find_identifiers(replaced(text, parts) if parts else text)
        count += len(found)
        if not found:
            return parts, count
        parts = _merged([*parts, *_before_replacing(found, parts)])
    # A chain of thousands, each found once the one before it is gone: its rest goes as a whole, unsearched.
    found = _before_replacing(find_identifiers(replaced(text, parts)), parts)
    if found:
        rest = Found(found[0].kind, found[0].start, len(text))
        parts = [*(one for one in parts if one.end <= rest.start), rest]
    return parts, count + len(found)


def _before_replacing(found: Iterable[Found], parts: Sequence[Found]) -> list[Found]:
    """Return `found` in places of the text as it was before these parts of it were replaced."""
    starts, ends = [], []  # of what stands in their places
    shift = 0
    for part in parts:
        starts.append(part.start + shift)
        ends.append(part.start + shift + len(part.kind) + 2)
        shift = ends[-1] - part.end

    def before(place: int, *, end: bool) -> int:
        index = bisect_right(starts, place) - 1
        if index < 0:
            return place
        if place < ends[index]:  # within what stands there
            part = parts[index]
            return part.end if end and place > starts[index] else part.start
        return place - ends[index] + parts[index].end

    return [Found(one.kind, before(one.start, end=False), before(one.end, end=True)) for one in found]


def _merged(found: Iterable[Found]) -> list[Found]:
    merged: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, KINDS.index(one.kind))):
        if merged and one.start < merged[-1].end:
            longer = min(merged[-1], one, key=lambda one: (one.start - one.end, KINDS.index(one.kind)))
            merged[-1] = Found(longer.kind, merged[-1].start, max(merged[-1].end, one.end))
        else:
            merged.append(one)
    return merged


def _addresses(text: str) -> Iterator[tuple[int, int]]:
    for match in _IPV4.finditer(text):
        named = _NOT_ADDRESS.search(text, max(0, match.start() - 20), match.start())
        # A leading zero is octal to some programs: `ipaddress` refuses it, and people write it.
        octets = [str(int(octet)) for octet in match[0].split(".")]
        if not named and _is_somebodys(ipaddress.IPv4Address(".".join(octets))):
            yield match.span()
    for match in _IPV6.finditer(text):
        # `a::b` is code rather than an address.
        if not _DIGIT.search(match[0]):
            continue
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        if _is_somebodys(address):
            yield match.span()


def _is_somebodys(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Return whether one machine may have an address: not this machine's own, nor a group, nor a mask.

    Of IPv6 those that are given out count (RFC 4291): in code `1::2` is a slice.
    """
    if address.version == 4:
        return not address.is_loopback and 0 < int(address) >> 24 < 224
    return address.ipv4_mapped is not None or any(address in network for network in _IPV6_NETWORKS)
