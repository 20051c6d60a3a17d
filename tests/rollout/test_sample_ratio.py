"""The sample ratio check against the numbers in the tests of Optimizely's `ssrm_test` (Lindon and Malek)."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from lora_ops.rollout.sample_ratio import CONCENTRATIONS, Phase, log_e_value, sample_ratio

SHARES = (0.4, 0.4, 0.2)


@pytest.mark.parametrize(
    ("counts", "alternative", "expected"),
    [
        # Log marginal likelihoods that `test_sequential_posteriors` states for one-hot and for aggregated data.
        ((1, 0, 0), -1.0986122886681096, -0.916290731874155),
        ((1, 1, 0), -2.4849066497880004, -1.83258146374831),
        ((2, 2, 1), -6.4457198193855785, -5.27460083993072),
        ((20, 17, 9), -7.028201432058012, -4.0776406466061985),
        ((60, 63, 32), -19.96484521090386, -15.781031228536165),
    ],
)
def test_log_e_value_equals_published(counts: tuple[int, ...], alternative: float, expected: float) -> None:
    """Their prior is uniform, and the mean of ours is the expected shares: the test changes the shares."""
    ours = log_e_value(Phase(counts, (1 / 3,) * 3), 3.0)
    uniform_null = -sum(counts) * math.log(3)
    null = sum(count * math.log(share) for count, share in zip(counts, SHARES, strict=True))
    assert ours + uniform_null - null == pytest.approx(alternative - expected, abs=1e-9)


def test_correct_assignment_is_rarely_flagged() -> None:
    generator = np.random.default_rng(6)
    flagged = 0
    for _ in range(300):
        users = generator.multinomial(1, [0.5, 0.5], 400).cumsum(axis=0)
        flagged += any(sample_ratio([Phase(row.tolist(), (0.5, 0.5))], 0.05).broken for row in users[9::10])
    assert flagged <= binom.ppf(0.999, 300, 0.05)


def test_small_loss_of_users_is_found() -> None:
    assert not sample_ratio([Phase((5000, 5000), (0.5, 0.5))]).broken
    assert not sample_ratio([Phase((5000, 4900), (0.5, 0.5))]).broken
    found = sample_ratio([Phase((5000, 4500), (0.5, 0.5))])
    assert found.broken and str(found).startswith("assignment is broken: the shares of 9500 users")


def test_gross_faults_are_found_among_few_users() -> None:
    """The docstring's numbers: all users went to one of two arms."""

    def needed(concentrations: tuple[float, ...]) -> int:
        users = 1
        while (
            np.mean([math.exp(log_e_value(Phase((users, 0), (0.5, 0.5)), one)) for one in concentrations])
            < 1000
        ):
            users += 1
        return users

    assert needed(CONCENTRATIONS) == 23
    assert needed((10000.0,)) == 380


def test_steps_of_a_canary_add_up() -> None:
    steps = [Phase((60, 5940), (0.01, 0.99)), Phase((300, 5700), (0.05, 0.95))]
    assert not sample_ratio(steps).broken
    assert sample_ratio([*steps, Phase((900, 4200), (0.25, 0.75))]).broken
    assert sample_ratio([Phase((360, 11640), (0.01, 0.99))]).broken  # not the shares of either step


def test_one_user_and_none_flag_nothing() -> None:
    assert sample_ratio([]) == (1, False, 0)
    assert sample_ratio([Phase((0, 0), (0.5, 0.5))]).e_value == pytest.approx(1)
    assert not sample_ratio([Phase((1, 0), (0.01, 0.99))]).broken


def test_huge_evidence_stays_finite() -> None:
    assert math.isfinite(sample_ratio([Phase((10**7, 0), (0.5, 0.5))]).e_value)


@pytest.mark.parametrize(
    ("counts", "shares", "message"),
    [
        ((1, -1), (0.5, 0.5), "whole numbers of 0 or more"),
        ((1, 0.5), (0.5, 0.5), "whole numbers"),
        ((1, math.nan), (0.5, 0.5), "whole numbers"),
        ((1, 2), (0.5, 0.6), "positive and sum to 1"),
        ((1, 2), (0.0, 1.0), "positive and sum to 1"),
        ((1, 2, 3), (0.5, 0.5), "3 counts of users don't match 2 shares"),
    ],
)
def test_sample_ratio_refuses_bad_counts(counts: Any, shares: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_ratio([Phase(counts, shares)])
