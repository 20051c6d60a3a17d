"""Evidence that may be looked at after every observation, against simulation and exact arithmetic.

No published number is known to us for these bets (the paper and `confseq` print none), so an independent slow
implementation in fractions stands for it.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom

from lora_ops.rollout.bets import FRACTIONS, RESTART, Bets
from lora_ops.rollout.sequential import BettingSequence, DifferenceSequence, relative_excess

RUNS = 1000


def slack(alpha: float) -> float:
    """The share of 1,000 runs that a false alarm rate of alpha stays below with probability 0.999."""
    return float(binom.ppf(0.999, RUNS, alpha)) / RUNS


def capital(values: list[Fraction], mean: Fraction) -> Fraction:
    """The e-value against a mean of at most `mean`, in exact arithmetic and from the definition."""
    first, count = Fraction(4, 5), math.ceil(len(values) / RESTART)
    weights = [first, *((1 - first) / (series * (series + 1)) for series in range(1, count))]
    total = 1 - sum(weights)  # waits for later series
    for series, weight in enumerate(weights):
        for fraction in map(Fraction, FRACTIONS.tolist()):
            product = Fraction(1)
            for value in values[series * RESTART :]:
                product *= 1 - fraction + fraction * value / mean
            total += weight * product / len(FRACTIONS)
    return total


def test_e_values_equal_exact_arithmetic() -> None:
    values = [Fraction(number * 7 % 11, 10) for number in range(2 * RESTART + 60) if number * 7 % 11 <= 10]
    sequence = BettingSequence(0.05, tested=[0.25, 0.5])
    sequence.add(float(value) for value in values)
    for mean in (Fraction(1, 4), Fraction(1, 2)):
        expected = capital(values, mean)
        assert sequence.e_value(at_most=float(mean)) == pytest.approx(float(expected), rel=1e-9)
        mirrored = capital([1 - value for value in values], 1 - mean)
        assert sequence.e_value(at_least=float(mean)) == pytest.approx(float(mirrored), rel=1e-9)


@pytest.mark.parametrize("values", ["binary", "beta"])
@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_false_alarms_stay_below_alpha_at_all_looks(values: str, alpha: float) -> None:
    generator = np.random.default_rng(14)
    shape = (600, RUNS)
    drawn = generator.binomial(1, 0.3, shape) if values == "binary" else generator.beta(3, 7, shape)
    bets = Bets([0.3] * RUNS)
    bets.add(drawn.astype(float))
    for side in (0, 1):
        assert (bets.peak[side] >= 1 / alpha).mean() <= slack(alpha)
    # The interval misses the mean where either side reaches 2 / alpha.
    assert (bets.peak.max(axis=0) >= 2 / alpha).mean() <= slack(alpha)


def test_false_alarms_of_equal_versions_are_rare() -> None:
    """Two equal versions lie inside the hypothesis, so that breaches are rarer than alpha."""
    generator = np.random.default_rng(14)
    pairs = generator.binomial(1, 0.1, (2, 600, RUNS)).astype(float)
    bets = Bets([(1 + 0.02) / 2] * RUNS)
    bets.add((pairs[0] - pairs[1] + 1) / 2)
    assert (bets.peak[0] >= 20).mean() <= 0.05


def test_interval_covers_the_mean_at_all_times() -> None:
    generator = np.random.default_rng(3)
    missed = 0
    for _ in range(100):
        sequence = BettingSequence(0.1, np.arange(1, 100) / 100)
        for value in generator.beta(2, 5, 200):
            sequence.add([value])
            if not sequence.interval.low <= 2 / 7 <= sequence.interval.high:
                missed += 1
                break
    assert missed <= binom.ppf(0.999, 100, 0.1)


def test_interval_is_where_a_search_finds_the_threshold() -> None:
    values = np.random.default_rng(5).random(400)
    sequence = BettingSequence(0.05)
    sequence.add(values)
    inside = []
    for mean in np.arange(300, 701) / 1000:
        bets = Bets([mean])
        bets.add(values)
        if bets.peak.max() < 40:
            inside.append(mean)
    low, high = sequence.interval
    assert 0.3 < low < high < 0.7
    assert (low, high) == pytest.approx((min(inside) - 0.001, max(inside) + 0.001))
    assert len(inside) == round((high - low) * 1000) - 1  # the means form an interval without a gap


def test_interval_only_narrows() -> None:
    sequence = BettingSequence(0.05)
    before = sequence.interval
    assert before == (0, 1)
    for value in np.random.default_rng(1).random(300):
        sequence.add([value])
        after = sequence.interval
        assert before.low <= after.low < after.high <= before.high
        before = after
    assert after.high - after.low < 0.25


def test_sequences_continue_with_the_same_bits() -> None:
    """A controller that is killed adds its stored observations again; how they are cut changes no bit."""
    differences = np.random.default_rng(2).uniform(-1, 1, 2 * RESTART + 7)
    once, singly, cut = (DifferenceSequence(0.05, 0.05) for _ in range(3))
    once.add(differences)
    for difference in differences:
        singly.add([difference])
    cut.add(differences[:100])
    cut.add([])
    cut.add(differences[100:].tolist())
    for other in (singly, cut):
        assert (other.breach, other.non_inferior) == (once.breach, once.non_inferior)
        assert (other.interval, other.mean, other.count) == (once.interval, once.mean, once.count)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.01])
def test_bad_values_are_refused_and_nothing_is_added(value: float) -> None:
    sequence = BettingSequence(0.05)
    with pytest.raises(ValueError, match=r"must lie between 0 and 1, got .* at place 2"):
        sequence.add([0.5, value])
    assert sequence.count == 0 and sequence.mean is None
    with pytest.raises(ValueError, match="between -1 and 1"):
        DifferenceSequence(0.05, 0.05).add([math.nan])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_bad_error_rates_and_margins_are_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must lie between 0 and 1"):
        BettingSequence(alpha)
    with pytest.raises(ValueError, match="margin must lie between 0 and 0.99"):
        DifferenceSequence(math.nan if alpha == 1 else -0.1, 0.05)


def test_e_value_is_known_of_tested_means_only() -> None:
    sequence = BettingSequence(0.05, tested=[0.5])
    with pytest.raises(ValueError, match=r"0.4 is not tested"):
        sequence.e_value(at_most=0.4)
    with pytest.raises(ValueError, match="either at_most or at_least"):
        sequence.e_value()
    with pytest.raises(ValueError, match="between 0.001 and 0.999"):
        BettingSequence(0.05, [0.0])


def test_interval_is_the_same_where_means_are_dropped() -> None:
    """Against the peaks of all candidates, of which none is dropped, also where the mean changes."""
    generator = np.random.default_rng(6)
    drawn = np.concatenate([generator.beta(2, 8, 300), generator.beta(8, 2, 300)])
    means = np.arange(1, 200) / 200
    bets, sequence = Bets(means), BettingSequence(0.05, means)
    for value in drawn:
        bets.add(np.array([value]))
        sequence.add([value])
        low = means[bets.peak[0] >= 40].max(initial=0)
        high = means[bets.peak[1] >= 40].min(initial=1)
        assert sequence.changed == (low >= high)
        assert sequence.changed or sequence.interval == (low, high)
    assert sequence.changed


@pytest.mark.parametrize("value", [0.0, 1.0, 0.5])
def test_capital_stays_finite_over_many_equal_values(value: float) -> None:
    sequence = BettingSequence(0.05, tested=[0.001, 0.999])
    sequence.add([value] * 3000)
    bounds = sequence.interval
    assert bounds.low <= value <= bounds.high and bounds.high - bounds.low < 0.01
    assert not sequence.changed
    assert math.isfinite(sequence.e_value(at_most=0.001)) and sequence.e_value(at_least=0.999) >= 0


def test_changed_mean_is_said() -> None:
    sequence = BettingSequence(0.05)
    sequence.add([0.1] * 500)
    assert not sequence.changed
    sequence.add([0.9] * 3000)
    assert sequence.changed
    assert sequence.interval == (0, 1)


def test_late_breach_is_found_soon() -> None:
    """A version that gets worse after 2,000 good pairs is found by bets that begin late."""
    generator = np.random.default_rng(8)
    sequence = DifferenceSequence(0.02, 0.05)
    errors = generator.binomial(1, 0.02, (2, 2000))
    sequence.add((errors[0] - errors[1]).astype(float))
    assert sequence.breach < 1
    errors = generator.binomial(1, [[0.2], [0.02]], (2, 300))
    sequence.add((errors[0] - errors[1]).astype(float))
    assert sequence.breach >= 20


def test_forecast_of_pairs_is_about_right() -> None:
    generator = np.random.default_rng(4)
    ratios = []
    for _ in range(20):
        sequence = DifferenceSequence(0.05, 0.05)
        scores = generator.beta(5, 2, (2, 4000))
        differences = scores[0] - scores[1]
        sequence.add(differences[:60])
        forecast = sequence.pairs_until(20)
        if forecast:
            needed = 60
            while sequence.non_inferior < 20:
                sequence.add([differences[needed]])
                needed += 1
            ratios.append((needed - 60) / forecast)
    assert len(ratios) >= 10
    assert 1 / 3 < np.median(ratios) < 3


def test_forecast_is_none_where_the_pairs_point_elsewhere() -> None:
    sequence = DifferenceSequence(0.05, 0.05)
    assert sequence.pairs_until(20) is None
    sequence.add([0.4, 0.3] * 15)
    assert sequence.pairs_until(20) is None
    assert sequence.pairs_until(20, breach=True) == 0
    sequence = DifferenceSequence(0.05, 0.05)
    sequence.add([0.0] * 10)
    forecast = sequence.pairs_until(20)
    assert forecast is not None
    sequence.add([0.0] * (forecast - 1))
    assert sequence.non_inferior < 20
    sequence.add([0.0])
    assert sequence.non_inferior >= 20 and sequence.pairs_until(20) == 0


def test_relative_excess_bounds_amounts() -> None:
    assert relative_excess(110, 100) == pytest.approx(0.0476, abs=1e-4)
    assert relative_excess(0, 0) == 0
    assert relative_excess(5, 0) == 1
    with pytest.raises(ValueError, match="0 or more"):
        relative_excess(math.nan, 1)
