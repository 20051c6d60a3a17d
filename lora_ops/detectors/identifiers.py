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
from lora_ops.detectors.phones import Lookups, phones


class Found(NamedTuple):
    """One identifier: `text[start:end]`."""

    kind: str
    start: int
    end: int


NAME = "identifiers"
VERSION = "4"
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

PASSES = 8  # over a text whose identifiers stand side by side
SEARCHED = 250_000
"""Characters of one text that all passes together search: a long text has fewer passes, at least 2."""

# What was replaced already names nothing, and no word before it names what follows it. It parts what stands
# before and behind it as a line's end does.
_MARKS = re.compile("|".join(re.escape(f"[{kind}]") for kind in KINDS))
_NEUTRAL = "\n"
# The words that a chain of identifiers is made of: the rest of this one, and those with a digit behind it.
_CHAIN = re.compile(r"\S*(?:[^\S\n]{1,3}\S*\d\S*)*")

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


def find_identifiers(text: str, lookups: Lookups | None = None) -> list[Found]:
    """Return the identifiers in a text from left to right; none overlaps another.

    Args:
        text: the text. What `redact` wrote into it, such as `[phone number]`, names nothing.
        lookups: what may still be asked of it; None: this is its only search.
    """
    folded, places = fold(text)
    if "[" in folded:
        folded = _MARKS.sub(lambda mark: _NEUTRAL * len(mark[0]), folded)
    found = []
    if "@" in folded:
        found += [Found(EMAIL, *match.span()) for match in _EMAIL.finditer(folded)]
    if _DIGIT.search(folded):
        found += [Found(IBAN, *span) for span in ibans(folded)]
        found += [Found(CARD, *span) for span in cards(folded)]
        found += [Found(SSN, *match.span()) for match in _SSN.finditer(folded)]
        found += [Found(IP, *span) for span in _addresses(folded)]
        found += [Found(PHONE, *span) for span in phones(folded, lookups)]
        for kind, named in _NAMED.items():
            found += [Found(kind, *match.span(1)) for match in named.finditer(folded)]
    return [Found(one.kind, places[one.start], places[one.end - 1] + 1) for one in merged(found)]


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
    count, lookups = 0, Lookups()
    passes = max(2, min(PASSES, SEARCHED // max(len(text), 1)))
    # What stands beside an identifier may be one too, once that is gone. Of a chain of thousands each one is
    # found once the one before it is gone. Two rounds after the last pass end it: the chain goes as a whole,
    # and then what is still found goes with the rest of its line.
    for number in range(passes + 2):
        found = _before_replacing(find_identifiers(replaced(text, parts), lookups), parts)
        if not found:
            break
        count += len(found)
        if number == passes:
            found = [Found(one.kind, one.start, chain_end(text, one.end)) for one in found]
        elif number > passes:
            found = [Found(one.kind, one.start, _line_end(text, one.end)) for one in found]
        parts = merged([*parts, *found])
    return parts, count


def chain_end(text: str, place: int) -> int:
    """Return where a chain of identifiers that reaches `place` ends at the latest."""
    chain = _CHAIN.match(text, place)
    assert chain
    return chain.end()


def _line_end(text: str, place: int) -> int:
    end = text.find("\n", place)
    return len(text) if end < 0 else end


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


def merged(found: Iterable[Found]) -> list[Found]:
    """Return these from left to right, those that overlap as one."""
    apart: list[Found] = []
    for one in sorted(found, key=lambda one: (one.start, KINDS.index(one.kind))):
        if apart and one.start < apart[-1].end:
            longer = min(apart[-1], one, key=lambda one: (one.start - one.end, KINDS.index(one.kind)))
            apart[-1] = Found(longer.kind, apart[-1].start, max(apart[-1].end, one.end))
        else:
            apart.append(one)
    return apart


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
