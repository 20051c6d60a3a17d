"""What an answer is worth to a case: every kind of expectation, and answers that nobody planned for."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.gates.expectations import Patience, first_number, mismatches, refuses, score
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


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "https://example.com/schema.json"}, "only '#/\\$defs/NAME' of its own is read"),
        ({"$ref": "#/$defs/none"}, "only '#/\\$defs/NAME' of its own is read"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "refers to itself: write it out"),
        ({"$dynamicRef": "#x"}, "'\\$dynamicRef', which is not read"),
        ({"patternProperties": {"(a|a)*$": {}}}, "'patternProperties', which is not read"),
        ({"enum": list(range(3000))}, "more than 32 levels or 2000 values"),
        ({"pattern": "("}, "no regular expression"),
        ({"$defs": 7}, "no JSON schema"),
    ],
)
def test_expect_refuses_a_schema_without_bound(schema: dict[str, Any], said: str) -> None:
    """A reference to the network, to itself or to nothing stopped the gate, or never came to an end."""
    with pytest.raises(ValidationError, match=said):
        Expect(json_schema=schema)


def test_expect_refuses_a_schema_that_is_nested_too_deeply() -> None:
    schema: dict[str, Any] = {}
    for _ in range(600):
        schema = {"not": schema}
    with pytest.raises(ValidationError, match="more than 32 levels"):
        Expect(json_schema=schema)
    with pytest.raises(ValidationError, match="nested too deeply"):
        Expect(regex="(?:a|" * 320 + "b" + ")" * 320)


@pytest.mark.parametrize("answer", ["1" * 400, "1e308", "NaN", "Infinity", "-1e999", "0.1", "[" * 9_000, "{}"])
def test_mismatches_take_any_number_for_a_multiple(answer: str) -> None:
    """The quotient of a huge number is no float, which stopped the whole gate."""
    began = time.monotonic()
    meets(answer, json_schema={"type": "number", "multipleOf": 0.25})
    assert time.monotonic() - began < 1


def test_mismatches_stop_a_schema_whose_parts_multiply() -> None:
    """Twenty definitions, each of which asks twice for the next one, are a million steps."""
    parts: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(20)}
    schema = {"$defs": {**parts, "a20": {"type": "object"}}, "$ref": "#/$defs/a0"}
    began = time.monotonic()
    assert not meets("{}", json_schema=schema)
    assert time.monotonic() - began < 5


def test_mismatches_stop_a_pattern_of_a_schema() -> None:
    began = time.monotonic()
    assert not meets(f'"{"a" * 5_000}!"', json_schema={"pattern": "^(a|a)*$"})
    assert time.monotonic() - began < 5


def test_score_stops_where_all_patterns_take_too_long() -> None:
    """Each was stopped after a second, and 2,000 cases of them took an hour."""
    case = Case(id="a", slice="s", text="q", expect=Expect(regex="^(a|a)*$"))
    patience = Patience(0.3)
    with pytest.raises(LoraOpsError, match=r"took more than .* without a repeat inside a repeat"):
        score(case, ["a" * 5_000 + "!"], (), patience)


@pytest.mark.parametrize("metric", ["token_f1", "chrf", "rouge_l", "exact_match"])
def test_score_judges_a_long_answer_quickly(metric: str) -> None:
    case = Case(id="a", slice="s", text="q", score=Score(metric=metric, reference="a b " * 1_000))
    began = time.thread_time()  # not the clock: other work may hold this up
    assert 0 <= score(case, ["b a " * 2_500], ()) <= 1
    assert time.thread_time() - began < 60
