"""Metrics by hand-computed cases, and what an answer is read as."""

import pytest

from lora_ops.evaluation.baselines import lead_words_baseline, majority_baseline, tfidf_baseline
from lora_ops.evaluation.metrics import (
    exact_match,
    sample,
    token_f1,
)

LABELS = ("Other", "Retail outlets", "Clothing outlets")


def test_exact_match_forgives_case_spaces_and_final_punctuation_only() -> None:
    answers = ["lodging.", " Lodging ", "The lodging", ""]
    assert exact_match(["Lodging"] * 4, answers).tolist() == [1, 1, 0, 0]


def test_exact_match_of_labels_is_strict_where_labels_are_alike() -> None:
    """Wrong answers that differ from their target in signs or case only are wrong."""
    assert exact_match(["<=50K", ">50K"], [">50K", ">50K."], ["<=50K", ">50K"]).tolist() == [0, 1]
    assert exact_match(["yes", "Yes"], ["Yes", " Yes."], ["yes", "Yes", "YES"]).tolist() == [0, 1]


def test_exact_match_of_free_text_keeps_signs() -> None:
    assert exact_match(["-1", "!!!", "C#"], ["1", "???", "c#."]).tolist() == [0, 0, 1]


def test_token_f1_counts_shared_words() -> None:
    assert token_f1(["reset your password", "yes"], ["reset the password", "no"]) == pytest.approx([2 / 3, 0])


def test_sample_finds_a_metric_by_its_name() -> None:
    rows = (["a", "b"] * 20, ["a", "a"] * 20, ["a", "b"], [str(row) for row in range(40)])
    assert sample("exact_match", *rows).value == 0.5
    assert sample("token_f1", *rows).value == 0.5
    assert sample("macro_f1", *rows).value == pytest.approx(1 / 3)


def test_baselines_are_what_they_are_called() -> None:
    assert majority_baseline({"b": 0.3, "a": 0.7}, 2) == ["a", "a"]
    texts = ["grand hotel", "city hotel", "blue airline", "red airline"]
    assert tfidf_baseline(texts, ["H", "H", "A", "A"], ["old hotel", "new airline"]) == ["H", "A"]


def test_tfidf_baseline_of_one_label_always_answers_it() -> None:
    assert tfidf_baseline(["grand hotel", "city hotel"], ["H", "H"], ["blue airline"]) == ["H"]


def test_lead_words_baseline_copies_as_many_as_the_median_answer() -> None:
    targets = ["One two", "One two three", "One two three four five"]
    assert lead_words_baseline(targets, ["a b c d e", "a  b", ""]) == ["a b c", "a b", ""]
    assert lead_words_baseline(["One two", "One two three"], ["a b c d"]) == ["a b c"]
