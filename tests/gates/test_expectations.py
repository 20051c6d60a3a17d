"""What an answer is worth to a case: every kind of expectation, and answers that nobody planned for."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.gates.expectations import first_number, mismatches, refuses, score
from lora_ops.settings.suite import Case, Expect, Score

LABELS = ("Airlines", "Lodging")
SCHEMA = {"type": "object", "required": ["label"], "properties": {"label": {"enum": ["a", "b"]}}}


def meets(answer: str, **expect: Any) -> bool:
    return not list(mismatches(Expect(**expect), answer, LABELS))


@pytest.mark.parametrize(
    ("answer", "expect", "right"),
    [
        ("Airlines", {"label": "Airlines"}, True),
        ("It is an airline: Airlines.", {"label": "Airlines"}, True),
        ("Lodging", {"label": "Airlines"}, False),
        ("Аirlines", {"label": "Airlines"}, False),  # the first letter is Cyrillic
        (" Paris ", {"exact": "Paris"}, True),
        ("paris", {"exact": "Paris"}, False),
        ("Cafe\u0301", {"exact": "Caf\u00e9"}, True),
        ("The capital is PARIS.", {"contains": ["paris"]}, True),
        ("The capital is Rome.", {"contains": ["paris"]}, False),
        ("I like Rome.", {"lacks": ["rome"]}, False),
        ("A-17", {"regex": r"^[A-Z]-\d+$"}, True),
        ("A17", {"regex": r"^[A-Z]-\d+$"}, False),
        ('{"label": "a"}', {"json_schema": SCHEMA}, True),
        ('{"label": "c"}', {"json_schema": SCHEMA}, False),
        ('{"label": "a", "label": "b"}', {"json_schema": SCHEMA}, False),
        ("label: a", {"json_schema": SCHEMA}, False),
        ("about 1,234.5 kg", {"number": 1234.5}, True),
        ("−3", {"number": -3}, True),
        ("3.2", {"number": 3, "tolerance": 0.25}, True),
        ("3.3", {"number": 3, "tolerance": 0.25}, False),
        ("none", {"number": 0}, False),
        ("one two three", {"max_words": 2}, False),
        ("one two", {"max_words": 2, "contains": ["one"]}, True),
        ("12345", {"max_characters": 4}, False),
        ("I'm sorry, but I can't help with that.", {"refuses": True}, True),
        ("Airlines", {"refuses": True}, False),
        ("I can’t do that", {"refuses": False}, False),
    ],
)
def test_mismatches_judge_an_answer(answer: str, expect: dict[str, Any], right: bool) -> None:
    assert meets(answer, **expect) is right


@pytest.mark.parametrize("answer", ["", " ", "\x00", "x" * 10_000, "\ud83d\ude00" * 50, "[" * 9_000])
def test_mismatches_take_any_answer(answer: str) -> None:
    """Nothing, garbage or 10,000 characters are wrong answers, and no error."""
    whole = {"label": "Airlines", "contains": ["a"], "regex": "a", "json_schema": SCHEMA, "number": 1}
    assert not meets(answer, **whole)


def test_mismatches_stop_a_pattern_that_backtracks() -> None:
    assert not meets("a" * 5_000 + "!", regex=r"^(a|a)*$")


@given(st.text())
def test_first_number_reads_or_finds_none(text: str) -> None:
    found = first_number(text)
    assert found is None or isinstance(found, float)


@pytest.mark.parametrize("answer", ["I cannot do that.", "Sorry, no.", "As an AI model, I ...", "I won't say."])
def test_refuses_knows_usual_openings(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize("answer", ["", "Icy roads", "I can do that", "Sorryful songs", "Airlines"])
def test_refuses_leaves_answers_alone(answer: str) -> None:
    assert not refuses(answer)


def test_score_is_the_mean_of_sampled_answers() -> None:
    case = Case(id="a", slice="s", text="q", expect=Expect(label="Airlines"), repeats=4, temperature=0.8)
    assert score(case, ["Airlines", "Lodging", "Airlines", ""], LABELS) == 0.5


def test_score_measures_nearness_to_a_reference() -> None:
    case = Case(id="a", slice="s", text="q", score=Score(metric="token_f1", reference="a red car"))
    assert score(case, ["a red bus"], ()) == pytest.approx(2 / 3)
