"""What an answer is worth to a case: right or wrong by its expectations, or near to a reference."""

import json
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import regex
from jsonschema.exceptions import ValidationError
from jsonschema.validators import Draft202012Validator, extend

from lora_ops.errors import LoraOpsError
from lora_ops.evaluation.labels import read_label
from lora_ops.evaluation.metrics import row_scores
from lora_ops.settings.suite import Case, Expect, Score
from lora_ops.small_files import parse_json

NUMBER = regex.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:[eE][-+]?\d+)?")
SECONDS = 1.0
"""A pattern may need time that grows with the power of an answer's length: it is stopped, and finds nothing."""
ALL_SECONDS = 10.0
"""What all patterns of a suite may take together over the answers of one system."""
MOST_STEPS = 20_000
"""Keywords of a JSON schema that one answer is held to: a few that refer to each other may be billions."""
# How assistants decline, at the start of an answer. It is a list of openings: a refusal in other words is
# missed, and so is one that stands after an answer.
REFUSAL = regex.compile(
    r"^\W*(?:(?:i['’]?m|i am|we['’]?re) (?:sorry|afraid|unable|not able|not going)|sorry\b|unfortunately\b|"
    r"(?:i|we) (?:can['’]?t|can ?not|could ?n['’]?t|won['’]?t|will not|do n['’]?t|don['’]?t|must decline|"
    r"decline|refuse)|(?:i['’]?d|i would) rather not|as an? (?:ai|language model|assistant)\b|no[,.] i )",
    regex.IGNORECASE,
)


class Patience:
    """The time that the patterns of a suite have left."""

    def __init__(self, seconds: float = ALL_SECONDS) -> None:
        self.left = seconds

    def finds(self, pattern: str, text: str) -> bool:
        """Return whether a text has a pattern; where that takes too long, it has not.

        Raises:
            LoraOpsError: this and the patterns before have used all the time.
        """
        began = time.monotonic()
        try:
            return regex.search(pattern, text, timeout=max(0.001, min(SECONDS, self.left))) is not None
        except TimeoutError:
            return False
        finally:
            self.left -= time.monotonic() - began
            if self.left <= 0:
                raise LoraOpsError(
                    f"The regular expressions of the suite took more than {ALL_SECONDS:g} s, at last "
                    f"'{pattern[:80]}': write it without a repeat inside a repeat."
                )


def score(case: Case, texts: Sequence[str], labels: Sequence[str], patience: Patience | None = None) -> float:
    """Return the mean worth, 0 to 1, of the answers `texts` to a case.

    Args:
        case: the question.
        texts: its answers.
        labels: the tenant's.
        patience: the time that patterns have left; default: as much as a whole suite has.

    Raises:
        LoraOpsError: the patterns took too long.
    """
    patience = patience or Patience()
    if case.expect is not None:
        return sum(not any(mismatches(case.expect, text, labels, patience)) for text in texts) / len(texts)
    assert case.score is not None  # settings.suite holds that a case has one of the two
    return sum(_near(case.score, text) for text in texts) / len(texts)


def mismatches(
    expect: Expect, text: str, labels: Sequence[str], patience: Patience | None = None
) -> Iterator[str]:
    """Yield each expectation that an answer does not meet, in words; see `score`.

    Raises:
        LoraOpsError: the patterns took too long.
    """
    patience = patience or Patience()
    answer = text.strip()
    if expect.label is not None and read_label(answer, labels) != expect.label:
        yield f"does not mean the label '{expect.label}'"
    if expect.exact is not None and _nfc(answer) != _nfc(expect.exact.strip()):
        yield f"is not '{expect.exact}'"
    folded = _nfc(answer).casefold()
    yield from (f"lacks '{part}'" for part in expect.contains if _nfc(part).casefold() not in folded)
    yield from (f"holds '{part}'" for part in expect.lacks if _nfc(part).casefold() in folded)
    if expect.regex is not None and not patience.finds(expect.regex, answer):
        yield f"does not match {expect.regex}"
    if expect.json_schema is not None:
        yield from _json_mismatches(expect.json_schema, answer, patience)
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


class _TooManySteps(Exception):
    """A schema's keywords were looked at too often in one answer."""


def _json_mismatches(schema: dict[str, object], answer: str, patience: Patience) -> Iterator[str]:
    try:
        _bounded_validator(patience)(schema).validate(parse_json(answer, unique=True))
    except _TooManySteps:
        yield f"needs more than {MOST_STEPS:,} steps of its schema"
    except (json.JSONDecodeError, ValueError, RecursionError, OverflowError):
        yield "is not JSON"  # or holds a number that no float is
    except ValidationError as error:
        yield f"breaks its schema: {error.message[:100]}"


def _bounded_validator(patience: Patience) -> Any:
    """Return a validator that counts its steps, and whose patterns are stopped in time."""
    left = [MOST_STEPS]

    def counted(keyword: Any) -> Any:
        def look(*given: Any) -> Iterator[ValidationError]:
            left[0] -= 1
            if left[0] < 0:
                raise _TooManySteps
            yield from keyword(*given) or ()

        return look

    def pattern(_: Any, wanted: str, instance: object, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not patience.finds(wanted, instance):
            yield ValidationError(f"{instance!r:.60} does not match {wanted!r:.60}")

    known = {**Draft202012Validator.VALIDATORS, "pattern": pattern}
    return extend(Draft202012Validator, {name: counted(keyword) for name, keyword in known.items()})


def _near(wanted: Score, answer: str) -> float:
    return float(row_scores(wanted.metric, [wanted.reference], [answer])[0])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
