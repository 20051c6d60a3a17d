"""A labelled sample of identifiers that a seed makes: what the recognisers are measured on, as data.

Its numbers follow the rules that the recognisers check (example numbers of phonenumbers, Luhn, mod 97), in the
forms that the author of the recognisers thought of. So recall on it is recall of these forms, not of people's
writing. The sample of `samples.presidio_templates` has other people's sentences and numbers. No number is known
to belong to anybody.
"""

import random
import uuid
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from lora_ops.detectors.check_digits import IBAN_LENGTHS, iban_is_valid, luhn
from lora_ops.detectors.identifiers import CARD, EMAIL, IBAN, IP, PHONE, SSN

# The recognisers were mended by a look at what they missed under another seed, 20261126.
SEED = 7
EACH = 60  # rows of each kind of thing

CARRIERS = (
    "It is {}, he said.",
    "Please note: {}.",
    "{}",
    "Send it to {} before Friday",
    "Meine Angaben: {} (bitte vertraulich behandeln)",
    "Voici : {}",
    'The record says "{}" and nothing else.',
    "name;value\nJo;{}\n",
    "<p>{}</p>",
)
CALLS = (
    "Call me on {}.",
    "phone: {}",
    "Tel. {}",
    "You can reach her mobile at {} after six.",
    "Bitte rufen Sie mich an: {}",
    "Téléphone : {}",
    "Mi teléfono es {}",
)
WORDS = ("garden", "river", "paper", "silver", "winter", "copper", "maple", "harbour", "lantern", "meadow")


class IdentifierRow(NamedTuple):
    """A text and what it holds, each as kind and spelling."""

    text: str
    items: tuple[tuple[str, str], ...]


def made_identifiers(seed: int = SEED, each: int = EACH) -> list[IdentifierRow]:
    """Return rows that hold one identifier each, then rows that hold what looks like one."""
    source = random.Random(seed)
    rows = []
    for kind, make in _POSITIVES:
        for _ in range(each):
            rows.append(_row(source, kind, _respelled(source, make(source))))
    rows += _phone_rows(source, 4 * each)
    for make in _NEGATIVES:
        rows += [IdentifierRow(source.choice(CARRIERS).format(make(source)), ()) for _ in range(each // 2)]
    return rows


def _row(source: random.Random, kind: str, item: str, carriers: tuple[str, ...] = CARRIERS) -> IdentifierRow:
    return IdentifierRow(source.choice(carriers).format(item), ((kind, item),))


def _phone_rows(source: random.Random, count: int) -> Iterator[IdentifierRow]:
    import phonenumbers
    from phonenumbers import PhoneNumberFormat, PhoneNumberType

    regions = sorted(phonenumbers.SUPPORTED_REGIONS)
    kinds = (PhoneNumberType.FIXED_LINE, PhoneNumberType.MOBILE)
    while count:
        number = phonenumbers.example_number_for_type(source.choice(regions), source.choice(kinds))
        if number is None:
            continue
        count -= 1
        written = PhoneNumberFormat.E164 if source.random() < 0.3 else PhoneNumberFormat.INTERNATIONAL
        abroad = phonenumbers.format_number(number, written)
        form = source.randrange(4)
        if form == 0:
            yield _row(source, PHONE, _respelled(source, abroad))
        elif form == 1:
            yield _row(source, PHONE, source.choice((abroad.replace(" ", "-"), abroad.replace("+", "00", 1))))
        else:
            at_home = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
            yield _row(source, PHONE, at_home, CALLS if form == 2 else CARRIERS)


def digits(source: random.Random, count: int) -> str:
    """Return random digits."""
    return "".join(source.choices("0123456789", k=count))


def card(source: random.Random) -> str:
    """Return a card's number with its check digit, as it is printed or without gaps."""
    prefix, length, groups = source.choice(
        [
            ("4", 16, (4, 4, 4, 4)),
            ("51", 16, (4, 4, 4, 4)),
            ("2221", 16, (4, 4, 4, 4)),
            ("34", 15, (4, 6, 5)),
            ("37", 15, (4, 6, 5)),
            ("6011", 16, (4, 4, 4, 4)),
            ("36", 14, (4, 6, 4)),
            ("3530", 16, (4, 4, 4, 4)),
            ("62", 19, (4, 4, 4, 4, 3)),
            ("6759", 16, (4, 4, 4, 4)),
        ]
    )
    body = prefix + digits(source, length - len(prefix) - 1)
    whole = next(body + last for last in "0123456789" if luhn(body + last))
    return whole if source.random() < 0.4 else _grouped(whole, groups, source.choice(" -"))


def iban(source: random.Random) -> str:
    """Return an IBAN with its check digits, in groups of four or without gaps."""
    country = source.choice(sorted(IBAN_LENGTHS))
    body = digits(source, IBAN_LENGTHS[country] - 4)
    checks = (f"{country}{check:02d}{body}" for check in range(2, 99))
    whole = next(one for one in checks if iban_is_valid(one))
    if source.random() < 0.5:
        return whole if source.random() < 0.7 else whole.lower()
    return " ".join(whole[place : place + 4] for place in range(0, len(whole), 4))


def social_security_number(source: random.Random) -> str:
    """Return a number in the ranges that were ever given out."""
    area = source.choice([one for one in range(1, 900) if one != 666])
    gap = source.choice("- ")
    return f"{area:03d}{gap}{source.randrange(1, 100):02d}{gap}{source.randrange(1, 10000):04d}"


def address(source: random.Random) -> str:
    """Return an IPv4 or IPv6 address."""
    if source.random() < 0.5:
        return str(IPv4Address((source.randrange(1, 224) << 24) + source.randrange(2**24) or 1))
    six = IPv6Address((0x2001_0DB8 << 96) + source.getrandbits(source.choice((32, 96))))
    return six.exploded if source.random() < 0.3 else six.compressed


def mail(source: random.Random) -> str:
    """Return an e-mail address."""
    person = source.choice((".", "_", "-", "")).join(source.sample(WORDS, 2)) + source.choice(
        ("", "7", "+news")
    )
    host = source.choice(
        ("example.org", "mail.example.co.uk", "müller.example", "example.xn--p1ai", "sub.example.museum")
    )
    return source.choice((str, str.upper, str.title))(f"{person}@{host}")


def _grouped(whole: str, groups: tuple[int, ...], gap: str) -> str:
    parts, place = [], 0
    for size in groups:
        parts.append(whole[place : place + size])
        place += size
    return gap.join(parts)


def _respelled(source: random.Random, item: str) -> str:
    """Return an item in three of four cases as it is, else in other characters that show the same."""
    if source.random() < 0.75:
        return item
    how = source.randrange(4)
    if how == 0:
        return item.replace(" ", "\u00a0").replace("-", "\u2011")
    if how == 1:
        return "".join(chr(ord(one) + 0xFEE0) if one in "0123456789@" else one for one in item)
    if how == 2:
        return "".join(chr(ord(one) - 48 + 0x0660) if one.isascii() and one.isdigit() else one for one in item)
    middle = len(item) // 2
    return f"{item[:middle]}\u200b{item[middle:]}"


_POSITIVES: tuple[tuple[str, Callable[[random.Random], str]], ...] = (
    (EMAIL, mail),
    (CARD, card),
    (IBAN, iban),
    (SSN, social_security_number),
    (IP, address),
)


def _ean(source: random.Random, prefix: str) -> str:
    body = prefix + digits(source, 12 - len(prefix))
    weighted = sum(int(digit) * (1 + 2 * (place % 2)) for place, digit in enumerate(body))
    return body + str(-weighted % 10)


def _date(source: random.Random) -> str:
    year, month, day = source.randrange(1950, 2030), source.randrange(1, 13), source.randrange(1, 29)
    return source.choice(
        (
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d}.{month:02d}.{year}",
            f"{month:02d}/{day:02d}/{year}",
            f"{year}{month:02d}{day:02d}",
            f"{year}-{month:02d}-{day:02d} {day:02d}:{month:02d}:07",
            f"{year}-{month:02d}-{day:02d}T09:15:30+01:00",
        )
    )


def _wrong_card(source: random.Random) -> str:
    right = card(source)
    return right[:-1] + str((int(right[-1]) + source.randrange(1, 10)) % 10)


def _wrong_iban(source: random.Random) -> str:
    right = iban(source)
    return right[:-1] + str((int(right[-1]) + source.randrange(1, 10)) % 10)


_NEGATIVES: tuple[Callable[[random.Random], str], ...] = (
    _date,
    lambda source: str(1_600_000_000_000 + source.randrange(10**11)),  # milliseconds since 1970
    lambda source: str(1_600_000_000_000_000 + source.randrange(10**14)),  # microseconds
    lambda source: str(1_600_000_000 + source.randrange(10**8)),  # seconds
    lambda source: (
        source.choice(("version ", "v", "build ", "release ", "Chrome/")) + f"{source.randrange(1, 99)}.0.0.0"
    ),
    lambda source: f"{source.randrange(1, 9)}.{source.randrange(20)}.{source.randrange(40)}",
    lambda source: _ean(source, source.choice(("978", "979", "400", "450", "30"))),
    lambda source: "ISBN 978-3-16-" + digits(source, 6) + "-0",
    lambda source: f"order {digits(source, source.choice((6, 7, 8, 9, 10, 12)))}",
    lambda source: source.choice(("invoice ", "ticket #", "case no. ")) + digits(source, 10),
    lambda source: f"1Z{digits(source, 16)}",
    lambda source: str(uuid.UUID(int=source.getrandbits(128))),
    lambda source: f"{source.getrandbits(160):040x}",
    lambda source: f"{source.randrange(90)}.{digits(source, 6)}, {source.randrange(180)}.{digits(source, 6)}",
    lambda source: f"{source.randrange(1, 900):,}.{source.randrange(100):02d}".join(
        ("$", " and €1,250,000.00")
    ),
    lambda source: ":".join(f"{source.randrange(256):02X}" for _ in range(6)),
    lambda source: source.choice(("255.255.255.0", "127.0.0.1", "0.0.0.0", "::1", "std::vec2::at", "12:30:45")),
    lambda source: f"pages {source.randrange(100, 400)}-{source.randrange(400, 800)}, rooms 101-202-303",
    lambda source: "-".join(str(source.randrange(100, 200)) for _ in range(3)) + "-" + digits(source, 4),
    lambda source: " ".join(str(source.randrange(100)) for _ in range(12)),
    lambda source: f"0.{digits(source, 16)} and {source.randrange(1, 9)},{digits(source, 15)}",
    lambda source: f"The phone costs {source.randrange(100, 999)} and weighs {source.randrange(100, 300)} g",
    lambda source: f"icon@{source.choice('23')}x.png and a @ b. c, left-pad@1.3.0",
    lambda source: f"part {digits(source, 3)}-{digits(source, 3)}-{digits(source, 3)}",
    _wrong_card,
    _wrong_iban,
)
