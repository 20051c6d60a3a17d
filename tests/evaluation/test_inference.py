"""Intervals and tests against scipy, published values and simulations whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from lora_ops.evaluation.inference import (
    difference,
    holm,
    independent_difference,
    interval,
    macro_f1_sample,
    mean_sample,
    odds_interval,
    ratio_sample,
    seed_noise,
    wilson,
)
from lora_ops.records.evaluation import Interval, PairedDifference


def rows_in_groups(values: np.ndarray) -> list[str]:
    """Each row a group of its own."""
    return [str(number) for number in range(len(values))]


def test_wilson_agrees_with_scipy_for_every_count() -> None:
    for hits in range(31):
        ours = wilson(hits / 30, 30)
        theirs = stats.binomtest(hits, 30).proportion_ci(method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_wilson_gives_newcombes_published_values() -> None:
    """Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3."""
    for hits, rows, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = wilson(hits / rows, rows)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_independent_difference_gives_newcombes_published_values() -> None:
    """Newcombe (1998), Interval estimation for the difference, table II, method 10."""
    for a, m, b, n, low, high in ((56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090)):
        found = independent_difference(wilson(a / m, m), wilson(b / n, n))
        assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


def test_seed_noise_is_the_prediction_of_a_pooled_t_test() -> None:
    """By scipy: the difference at which a t-test of one more training each is just at the 5 % level."""
    recipes = [[0.60, 0.66, 0.63], [0.70, 0.71]]
    found = seed_noise(recipes)
    assert found is not None
    freedom = 3
    pooled = np.sqrt((2 * np.var(recipes[0], ddof=1) + np.var(recipes[1], ddof=1)) / freedom)
    assert 2 * stats.t.sf(found / (pooled * np.sqrt(2)), freedom) == pytest.approx(0.05)


def test_seed_noise_covers_what_two_trainings_differ_by() -> None:
    """Of 2,000 pairs of trainings 95 % differ by less, whatever the three seeds before happened to be."""
    generator = np.random.default_rng(0)
    seeds, pairs = generator.normal(0.6, 0.02, (2000, 3)), generator.normal(0.6, 0.02, (2000, 2))
    covered = [
        abs(left - right) <= (seed_noise([values]) or 0)
        for values, (left, right) in zip(seeds.tolist(), pairs, strict=True)
    ]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)


def test_seed_noise_needs_two_seeds_of_one_recipe() -> None:
    assert seed_noise([[0.6], [0.7]]) is None
    assert seed_noise([]) is None


def test_interval_of_rows_agrees_with_scipys_bca() -> None:
    """Two runs of scipy with other seeds differ by as much."""
    values = np.random.default_rng(3).beta(2, 5, 120)
    ours = interval(mean_sample(values, rows_in_groups(values)), 9999, 0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=1).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)


def test_interval_of_zeros_claims_no_certainty() -> None:
    found = interval(mean_sample(np.zeros(300), rows_in_groups(np.zeros(300))), 500, 0)
    assert (found.value, found.low) == (0, 0)
    assert found.high == pytest.approx(0.0126, abs=1e-4)


def test_interval_of_three_right_answers_is_wide() -> None:
    found = interval(mean_sample(np.ones(3), ["a", "b", "c"]), 500, 0)
    assert found.low < 0.5 and found.high == 1


def test_interval_widens_where_rows_of_a_group_are_alike() -> None:
    values = np.random.default_rng(1).binomial(1, 0.5, 60).astype(float).repeat(5)
    by_row = interval(mean_sample(values, rows_in_groups(values)), 2000, 0)
    by_group = interval(mean_sample(values, [str(row // 5) for row in range(300)]), 2000, 0)
    assert by_group.value == by_row.value
    assert by_group.high - by_group.low > 1.8 * (by_row.high - by_row.low)


def test_interval_of_a_mean_covers_new_groups() -> None:
    """60 groups of 1 to 9 rows, alike in each: the share of intervals that hold the truth is near 95 %."""
    generator, covered, runs = np.random.default_rng(2), 0, 300
    for seed in range(runs):
        sizes = generator.integers(1, 10, 60)
        rates = generator.beta(1.2, 2.8, 60)  # of mean 0.3
        values = np.concatenate([generator.binomial(1, p, n) for p, n in zip(rates, sizes, strict=True)])
        groups = np.repeat(np.arange(60), sizes).astype(str)
        found = interval(mean_sample(values.astype(float), groups), 500, seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.91 <= covered / runs <= 0.985


def test_interval_of_macro_f1_misses_on_both_sides() -> None:
    """Rare labels and labels that nobody finds: a percentile interval misses on one side only."""
    generator, labels = np.random.default_rng(4), [f"label {n}" for n in range(12)]
    shares = np.array([30, 20, 12, 10, 8, 6, 4, 4, 2, 2, 1, 1]) / 100
    found_share = np.linspace(0.9, 0.1, 12)
    population = generator.choice(12, 60_000, p=shares)
    right = generator.random(60_000) < found_share[population]
    guesses = np.where(right, population, generator.choice(12, 60_000, p=shares))

    def sample(rows: np.ndarray, groups: np.ndarray) -> object:
        named = [np.array(labels)[values[rows]].tolist() for values in (population, guesses)]
        return macro_f1_sample(*named, labels, groups)

    truth = sample(np.arange(60_000), np.zeros(60_000, dtype=int)).value
    misses, runs = [0, 0], 200
    for seed in range(runs):
        rows = generator.integers(0, 60_000, 300)
        found = interval(sample(rows, np.arange(300)), 500, seed)
        misses[0] += truth < found.low
        misses[1] += truth > found.high
    assert sum(misses) / runs <= 0.09
    assert max(misses) / runs <= 0.07


def test_macro_f1_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    generator = np.random.default_rng(0)
    targets = list(generator.choice(["a", "b", "c"], 200))
    guesses = list(generator.choice(["a", "b", "c", "elsewhere"], 200))
    groups = rows_in_groups(np.zeros(200))
    ours = interval(macro_f1_sample(targets, guesses, ["a", "b", "c", "unused"], groups), 500, 0)
    theirs = f1_score(targets, guesses, labels=["a", "b", "c"], average="macro")
    assert ours.value == pytest.approx(theirs, abs=1e-4)
    assert ours.low < ours.value < ours.high


def test_difference_p_value_is_the_exact_one_of_mcnemar() -> None:
    """Of rows that only one system gets right, each is as likely to be the left one's: a coin."""
    left = np.array([1] * 14 + [0] * 4 + [1] * 30 + [0] * 12, float)
    right = np.array([0] * 14 + [1] * 4 + [1] * 30 + [0] * 12, float)
    groups = rows_in_groups(left)
    found = difference(mean_sample(left, groups), mean_sample(right, groups), 20_000, 0)
    assert found.value == pytest.approx(10 / 60, abs=1e-4)
    assert found.p_value == pytest.approx(stats.binomtest(14, 18).pvalue, abs=0.01)


def test_difference_pairs_the_rows() -> None:
    """Ten rows more right on the very same rows: the intervals overlap widely, the difference is clear."""
    left = np.array([1] * 160 + [0] * 140, float)
    right = np.array([1] * 150 + [0] * 150, float)
    samples = [mean_sample(values, rows_in_groups(values)) for values in (left, right)]
    first, second = (interval(sample, 2000, 0) for sample in samples)
    assert first.low < second.high
    assert difference(*samples, 2000, 0).low > 0
    assert difference(*samples, 2000, 0).is_clear


def test_difference_of_equal_systems_claims_no_certainty() -> None:
    values = np.array([1, 0] * 20, float)
    sample = mean_sample(values, rows_in_groups(values))
    found = difference(sample, sample, 500, 0)
    assert (found.value, found.p_value) == (0, 1)
    assert found.low < -0.05 and found.high > 0.05
    assert not found.is_clear


def test_difference_counts_a_group_once() -> None:
    """Eight groups of 40 equal rows are eight observations: six against two is no proof."""
    left = np.repeat([1, 1, 1, 1, 1, 1, 0, 0], 40).astype(float)
    groups = np.repeat(np.arange(8), 40).astype(str)
    assert not difference(mean_sample(left, groups), mean_sample(1 - left, groups), 2000, 0).is_clear
    rows = rows_in_groups(left)
    assert difference(mean_sample(left, rows), mean_sample(1 - left, rows), 2000, 0).is_clear


def test_holm_gives_the_values_of_holms_method() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03 0.06 0.06 0.02."""
    given = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}.items()
    tests = {name: PairedDifference(value=0.1, low=0, high=0.2, p_value=p, p_corrected=p) for name, p in given}
    corrected = {name: one.p_corrected for name, one in holm(tests).items()}
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({}) == {}


def test_interval_is_the_same_for_the_same_seed() -> None:
    values = np.random.default_rng(5).random(80)
    sample = mean_sample(values, rows_in_groups(values))
    assert interval(sample, 200, 5) == interval(sample, 200, 5) != interval(sample, 200, 6)
    assert isinstance(interval(sample, 200, 5), Interval)


def test_odds_interval_covers_a_ratio_above_1() -> None:
    """Answers twice as long as their targets: the ratio of sums in new groups is covered as often as stated."""
    generator, covered = np.random.default_rng(5), 0
    for _ in range(200):
        targets = generator.poisson(4, 60) + 1.0
        answers = generator.poisson(2 * targets)
        share = ratio_sample(answers.astype(float), answers + targets, rows_in_groups(targets))
        found = odds_interval(share, 400, 0)
        assert found.value == pytest.approx(answers.sum() / targets.sum(), abs=1e-4)
        covered += found.low <= 2 <= found.high
    assert covered >= 180


@pytest.mark.parametrize(("answers", "value"), [([3.0], 3), ([0.0, 0.0], 0), ([90_000.0, 90_000.0], 90_000)])
def test_odds_interval_of_few_groups_is_wide_and_finite(answers: list[float], value: float) -> None:
    part = np.array(answers)
    found = odds_interval(ratio_sample(part, part + 1, rows_in_groups(part)), 100, 0)
    assert found.low <= found.value == value <= found.high < np.inf
    assert found.low < found.high
