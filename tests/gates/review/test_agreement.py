"""Krippendorff's alpha and win rates, held against nltk, a published value and each other."""

import random
from collections.abc import Mapping

import numpy as np
import pytest
from nltk.metrics.agreement import AnnotationTask

from lora_ops.gates.review.agreement import alike, alpha, alpha_of, disagreements, rating_mean, win_rates

Votes = dict[str, dict[str, str]]


def drawn(seed: int, agree: float, pairs: int = 60) -> Votes:
    """Let two or three people see the truth in a share of the pairs, and guess in the others."""
    draw, said = random.Random(seed), Votes()
    kinds = ("adapter", "other", "same")
    for pair in range(pairs):
        truth = draw.choice(kinds)
        people = draw.sample(("ben", "chen", "dana"), draw.choice((2, 3)))
        said[str(pair)] = {who: truth if draw.random() < agree else draw.choice(kinds) for who in people}
    return said


def by_nltk(votes: Mapping[str, Mapping[str, str]]) -> float:
    mirror = {"adapter": "other", "other": "adapter", "same": "same"}
    rows = [(who, pair, vote) for pair, said in votes.items() for who, vote in said.items()]
    return AnnotationTask(rows + [(who, f"{pair}'", mirror[vote]) for who, pair, vote in rows]).alpha()


@pytest.mark.parametrize("agree", [0, 0.3, 0.7, 0.95, 1])
def test_alpha_of_sums_is_nltks(agree: float) -> None:
    votes = drawn(1, agree)
    sums = disagreements(list(votes.values())).sum(axis=0, keepdims=True)
    assert alpha_of(sums)[0] == pytest.approx(by_nltk(votes), abs=1e-12)


def test_alpha_holds_the_truth_in_its_interval() -> None:
    """With 2,000 pairs alpha is known; the intervals of 60 pairs hold it in about 95 of 100 cases."""
    truth = by_nltk(drawn(0, 0.7, 2000))
    found = [alpha(drawn(seed, 0.7), seed).value for seed in range(1, 101)]
    held = sum(one is not None and one.low <= truth <= one.high for one in found)
    assert held >= 88


def test_alpha_does_not_punish_an_adapter_that_wins() -> None:
    """With the names of the systems as labels, 39 votes alike of 40 gave an alpha of 0."""
    votes: Votes = {str(pair): {"ben": "adapter", "chen": "adapter"} for pair in range(40)}
    votes["0"]["chen"] = "other"
    plain = AnnotationTask([(who, pair, vote) for pair, said in votes.items() for who, vote in said.items()])
    assert plain.alpha() == pytest.approx(0, abs=0.001)
    found = alpha(votes, 1).value
    assert found is not None and found.value > 0.9


@pytest.mark.parametrize(
    ("votes", "why"),
    [
        ({"1": {"ben": "adapter"}, "2": {"ben": "other"}}, "no pair was judged by two reviewers"),
        ({}, "no pair was judged by two reviewers"),
        ({str(pair): {"ben": "same", "chen": "same"} for pair in range(30)}, "every vote is 'same'"),
    ],
)
def test_alpha_of_one_reviewer_or_one_vote_is_none(votes: Votes, why: str) -> None:
    """nltk answers 1."""
    found = alpha(votes, 1)
    assert found.value is None and found.why_not.startswith(why)


def test_alike_counts_votes_two_by_two() -> None:
    assert alike({"1": {"a": "same", "b": "same", "c": "other"}, "2": {"a": "same"}}) == pytest.approx(1 / 3)
    assert alike({"2": {"a": "same"}}) is None


def test_win_rate_is_less_sure_of_few_reviewers_than_of_pairs() -> None:
    votes = {str(pair): {"ben": "adapter", "chen": "same" if pair % 2 else "other"} for pair in range(60)}
    rates = win_rates(votes, 1)
    assert rates is not None
    by_pair, by_reviewer = rates
    assert by_pair.value == by_reviewer.value == pytest.approx(0.625)
    assert by_pair.high - by_pair.low < 0.1 < 0.5 < by_reviewer.high - by_reviewer.low
    assert win_rates({}, 1) is None


def test_rating_mean_stays_within_its_scale() -> None:
    pairs = [str(place) for place in range(30)]
    assert rating_mean([5] * 30, pairs, 1).model_dump()["value"] == 5
    found = rating_mean([int(one) for one in np.tile([2, 3, 4], 10)], pairs, 1)
    assert found.value == 3 and 2.6 < found.low < 3 < found.high < 3.4
