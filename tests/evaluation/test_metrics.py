"""Metrics by hand-computed cases, and what an answer is read as."""

import pytest

from lora_ops.evaluation.baselines import majority_baseline, tfidf_baseline
from lora_ops.evaluation.metrics import (
    NO_LABEL,
    exact_match,
    read_label,
    sample,
    token_f1,
)

LABELS = ("Other", "Retail outlets", "Clothing outlets")


def test_exact_match_forgives_case_spaces_and_final_punctuation_only() -> None:
    answers = ["lodging.", " Lodging ", "The lodging", ""]
    assert exact_match(["Lodging"] * 4, answers).tolist() == [1, 1, 0, 0]


def test_token_f1_counts_shared_words() -> None:
    assert token_f1(["reset your password", "yes"], ["reset the password", "no"]) == pytest.approx([2 / 3, 0])


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("retail outlets", "Retail outlets"),
        ("It is Clothing outlets, not Other.", "Clothing outlets"),
        ("another thing", NO_LABEL),
        ("", NO_LABEL),
    ],
)
def test_an_answer_is_read_as_the_label_that_it_names_first(answer: str, label: str) -> None:
    assert read_label(answer, LABELS) == label


def test_sample_finds_a_metric_by_its_name() -> None:
    rows = (["a", "b"] * 20, ["a", "a"] * 20, ["a", "b"], [str(row) for row in range(40)])
    assert sample("exact_match", *rows).value == 0.5
    assert sample("token_f1", *rows).value == 0.5
    assert sample("macro_f1", *rows).value == pytest.approx(1 / 3)


def test_baselines_are_what_they_are_called() -> None:
    assert majority_baseline(["a", "b", "a"], 2) == ["a", "a"]
    texts = ["grand hotel", "city hotel", "blue airline", "red airline"]
    assert tfidf_baseline(texts, ["H", "H", "A", "A"], ["old hotel", "new airline"]) == ["H", "A"]
