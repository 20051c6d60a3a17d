"""Metrics by hand-computed cases, and intervals that mean what they say."""

import numpy as np
import pytest

from lora_ops.evaluation.baselines import majority_baseline, tfidf_baseline
from lora_ops.evaluation.metrics import (
    NO_LABEL,
    bootstrap_macro_f1,
    bootstrap_mean,
    exact_match,
    read_label,
    score,
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


def test_macro_f1_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    targets = list(generator.choice(["a", "b", "c"], 200))
    guesses = list(generator.choice(["a", "b", "c", "elsewhere"], 200))
    ours = bootstrap_macro_f1(targets, guesses, ["a", "b", "c", "unused"], 100, 0)
    theirs = f1_score(targets, guesses, labels=["a", "b", "c"], average="macro")
    assert ours.value == pytest.approx(theirs, abs=1e-4)
    assert ours.low < ours.value < ours.high


def test_the_interval_of_a_mean_covers_the_truth_about_95_times_in_100() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for seed in range(200):
        interval = bootstrap_mean(generator.binomial(1, 0.3, 200).astype(float), 400, seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 199


def test_the_same_seed_gives_the_same_interval() -> None:
    args = ("exact_match", ["a", "b"] * 20, ["a", "a"] * 20, ["a", "b"], 200)
    assert score(*args, seed=5) == score(*args, seed=5)
    assert score(*args, seed=5).value == 0.5


def test_baselines_are_what_they_are_called() -> None:
    assert majority_baseline(["a", "b", "a"], 2) == ["a", "a"]
    texts = ["grand hotel", "city hotel", "blue airline", "red airline"]
    assert tfidf_baseline(texts, ["H", "H", "A", "A"], ["old hotel", "new airline"]) == ["H", "A"]
