"""What an answer is worth to a case: right or wrong by its expectations, or near to a reference."""

import json
import unicodedata
from collections.abc import Iterator, Sequence

import regex
from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator

from lora_ops.evaluation.labels import read_label
from lora_ops.evaluation.metrics import row_scores
from lora_ops.settings.suite import Case, Expect, Score
from lora_ops.small_files import parse_json

NUMBER = regex.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
SECONDS = 1.0
"""A pattern may need time that grows with the power of an answer's length: it is stopped, and finds nothing."""
# How assistants decline, at the start of an answer. It is a list of openings: a refusal in other words is
# missed, and so is one that stands after an answer.
REFUSAL = regex.compile(
    r"^\W*(?:(?:i['’]?m|i am|we['’]?re) (?:sorry|afraid|unable|not able|not going)|sorry\b|unfortunately\b|"
    r"(?:i|we) (?:can['’]?t|can ?not|could ?n['’]?t|won['’]?t|will not|do n['’]?t|don['’]?t|must decline|"
    r"decline|refuse)|(?:i['’]?d|i would) rather not|as an? (?:ai|language model|assistant)\b|no[,.] i )",
    regex.IGNORECASE,
)


def score(case: Case, texts: Sequence[str], labels: Sequence[str]) -> float:
    """Return the mean worth, 0 to 1, of the answers `texts` to a case; `labels` are the tenant's."""
    if case.expect is not None:
        return sum(not any(mismatches(case.expect, text, labels)) for text in texts) / len(texts)
    assert case.score is not None  # settings.suite holds that a case has one of the two
    return sum(_near(case.score, text) for text in texts) / len(texts)


def mismatches(expect: Expect, text: str, labels: Sequence[str]) -> Iterator[str]:
    """Yield each expectation that an answer does not meet, in words."""
    answer = text.strip()
    if expect.label is not None and read_label(answer, labels) != expect.label:
        yield f"does not mean the label '{expect.label}'"
    if expect.exact is not None and _nfc(answer) != _nfc(expect.exact.strip()):
        yield f"is not '{expect.exact}'"
    folded = _nfc(answer).casefold()
    yield from (f"lacks '{part}'" for part in expect.contains if _nfc(part).casefold() not in folded)
    yield from (f"holds '{part}'" for part in expect.lacks if _nfc(part).casefold() in folded)
    if expect.regex is not None and not _found(expect.regex, answer):
        yield f"does not match {expect.regex}"
    if expect.json_schema is not None:
        yield from _json_mismatches(expect.json_schema, answer)
    if expect.number is not None:
        number = first_number(answer)
        if number is None or abs(number - expect.number) > expect.tolerance:
            yield f"has not the number {expect.number:g}"
    if expect.max_words is not None and len(answer.split()) > expect.max_words:
        yield f"has more than {expect.max_words} words"
    if expect.max_characters is not None and len(answer) > expect.max_characters:
        yield f"has more than {expect.max_characters} characters"
    if expect.refuses is not None and refuses(answer) != expect.refuses:
        yield "does not decline" if expect.refuses else "declines"


def refuses(answer: str) -> bool:
    """Return whether an answer opens as assistants decline; see `REFUSAL` for what that misses."""
    return REFUSAL.match(unicodedata.normalize("NFKC", answer)) is not None


def first_number(text: str) -> float | None:
    """Return the first number of a text, with `1,234` and `1.5e3` as English writes them; None without one."""
    for match in NUMBER.finditer(unicodedata.normalize("NFKC", text)):
        if any(one.isdecimal() for one in match.group()):
            try:
                return float(match.group().replace(",", "").replace("−", "-"))
            except ValueError:  # a part of one, such as `e5` behind digits of another script
                continue
    return None


def _found(pattern: str, answer: str) -> bool:
    try:
        return regex.search(pattern, answer, timeout=SECONDS) is not None
    except TimeoutError:
        return False


def _json_mismatches(schema: dict[str, object], answer: str) -> Iterator[str]:
    try:
        Draft202012Validator(schema).validate(parse_json(answer, unique=True))
    except (json.JSONDecodeError, ValueError, RecursionError):
        yield "is not JSON"
    except ValidationError as error:
        yield f"breaks its schema: {error.message[:100]}"


def _near(wanted: Score, answer: str) -> float:
    return float(row_scores(wanted.metric, [wanted.reference], [answer])[0])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
