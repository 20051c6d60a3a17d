"""Quantiles at every look, against the numbers of `confseq`'s unit tests and against simulation."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import binom

from lora_ops.rollout.quantile_sequence import QuantileComparison, QuantileSequence, log_evidence


def evidence(deviation: float, side: str) -> float:
    """Log evidence at intrinsic time 100 with g = 0.2 and h = 0.8, tuned for that time, as `confseq` has it."""
    order, count = 0.2, 100 / (0.2 * 0.8)
    return float(log_evidence(count * order + deviation, count, order, side=side, planned=count))


def test_log_evidence_equals_published() -> None:
    """`confseq` (Howard), test/uniform_boundaries_unittest.cpp, beta-binomial mixtures; from R, it says."""
    assert evidence(10, "both") == pytest.approx(-0.6941012, abs=1e-6)
    assert evidence(10, "more") == pytest.approx(-0.07134019, abs=1e-6)
    assert evidence(31.4308, "both") == pytest.approx(math.log(20), abs=1e-5)
    assert evidence(28.41238, "more") == pytest.approx(math.log(20), abs=1e-5)


@pytest.mark.parametrize(("below", "count"), [(940, 1000), (990, 1000), (0, 3), (700, 1000)])
def test_one_sided_evidence_equals_an_integral(below: int, count: int) -> None:
    """By integration over the shares on one side, of the likelihood ratio under the beta distribution."""
    order = 0.95
    variance = order * (1 - order)
    tuned = 2 * math.log(1 / 0.1)
    r = 1000 * variance / (tuned + math.log(1 + tuned)) - variance
    a, b = r / (1 - order), r / order

    def density(share: float) -> float:
        return math.exp((a - 1) * math.log(share) + (b - 1) * math.log1p(-share) - betaln(a, b))

    def ratio(share: float) -> float:
        return math.exp(below * math.log(share / order) + (count - below) * math.log((1 - share) / (1 - order)))

    for side, bounds in (("fewer", (0.5, order)), ("more", (order, 1 - 1e-12))):
        total = quad(density, *bounds, points=[0.9] if side == "fewer" else None, limit=200)[0]
        expected = quad(lambda share: density(share) * ratio(share), *bounds, limit=500)[0] / total
        if expected > 1e-6:
            assert math.exp(log_evidence(below, count, order, side=side)) == pytest.approx(expected, rel=1e-4)


def test_evidence_of_a_far_tail_is_finite_and_small() -> None:
    found = log_evidence(np.array([0, 10, 10**5]), 10**5, 0.95, side="more")
    assert np.isfinite(found).all() and found[0] < 0 and found[2] > 1000


@pytest.mark.parametrize("values", ["continuous", "ties"])
def test_interval_covers_the_quantile_at_all_times(values: str) -> None:
    generator = np.random.default_rng(9)
    missed = 0
    for _ in range(300):
        drawn = generator.exponential(1, 400)
        if values == "ties":
            drawn = np.ceil(2 * drawn) / 2
        quantile = math.log(5) if values == "continuous" else math.ceil(2 * math.log(5)) / 2
        sequence = QuantileSequence(0.8, 0.1)
        sequence.add(drawn)
        missed += not sequence.interval.low <= quantile <= sequence.interval.high or sequence.changed
    assert missed <= binom.ppf(0.999, 300, 0.1)


def test_interval_narrows_and_continues_with_the_same_bits() -> None:
    drawn = np.random.default_rng(2).lognormal(0, 0.5, 2500)
    once, singly = QuantileSequence(0.95, 0.05), QuantileSequence(0.95, 0.05)
    once.add(drawn)
    bounds = [singly.interval]
    for value in drawn:
        singly.add([value])
        bounds.append(singly.interval)
    assert bounds[0] == (-math.inf, math.inf)
    assert all(before.low <= after.low <= after.high <= before.high for before, after in pairwise(bounds))
    assert singly.interval == once.interval and singly.estimate == once.estimate
    assert once.interval.low < math.exp(0.5 * 1.644854) < once.interval.high
    assert once.interval.high / once.interval.low < 1.3


def test_estimate_is_an_order_statistic() -> None:
    sequence = QuantileSequence(0.95, 0.05)
    assert sequence.estimate is None
    sequence.add(range(100, 0, -1))
    assert sequence.estimate == 95 and sequence.count == 100


def test_changed_quantile_is_said() -> None:
    sequence = QuantileSequence(0.5, 0.05)
    generator = np.random.default_rng(1)
    sequence.add(generator.random(500))
    assert not sequence.changed
    sequence.add(generator.random(3000) + 5)
    assert sequence.changed and sequence.interval == (-math.inf, math.inf)


def compared(shift: float, count: int, seed: int = 0, margin: float = 0.1) -> QuantileComparison:
    """P95 of two arms of lognormal latencies, the candidate slower by a factor of exp(shift)."""
    generator = np.random.default_rng(seed)
    comparison = QuantileComparison(0.95, margin, 0.05)
    comparison.add(generator.lognormal(shift, 0.5, count), generator.lognormal(0, 0.5, count))
    return comparison


def test_comparison_rarely_errs_at_any_look() -> None:
    """The candidate lies on the edge of the margin, so that either claim is an error."""
    generator = np.random.default_rng(5)
    breached = passed = 0
    for _ in range(100):
        comparison = QuantileComparison(0.8, 0.25, 0.05)
        for _ in range(20):
            comparison.add(1.25 * generator.exponential(1, 20), generator.exponential(1, 20))
            if comparison.breach >= 20:
                breached += 1
                break
            if comparison.non_inferior >= 20:
                passed += 1
                break
    assert max(breached, passed) <= binom.ppf(0.999, 100, 0.05)


def test_comparison_finds_a_slow_candidate() -> None:
    slow = compared(0.5, 1000)
    assert slow.breach >= 20 > slow.non_inferior
    assert slow.ratio.low > 1.1 and slow.ratio.low < math.exp(0.5) < slow.ratio.high
    assert slow.pairs_until(20) is None and slow.pairs_until(20, breach=True) == 0


def test_comparison_passes_an_equal_candidate() -> None:
    equal = compared(0, 8000)
    assert equal.non_inferior >= 20 > equal.breach and equal.pairs_until(20) == 0
    assert equal.ratio.low < 1 < equal.ratio.high < 1.15


@pytest.mark.parametrize("shift", [-0.3, 0.0, 0.3])
def test_comparison_smallest_product_is_found(shift: float) -> None:
    """By trying a fine grid of points, instead of the values alone."""
    comparison = compared(shift, 400)
    ours = np.asarray(comparison.candidate.values)
    theirs = 1.1 * np.asarray(comparison.baseline.values)
    points = np.linspace(0, 10, 40001)[:, None]
    products = log_evidence((ours <= points).sum(axis=1), 400, 0.95, side="fewer") + log_evidence(
        (theirs < points).sum(axis=1), 400, 0.95, side="more"
    )
    assert math.log(comparison.breach) == pytest.approx(float(products.min()), abs=1e-9)


def test_comparison_forecast_is_about_right() -> None:
    forecast = compared(0, 400, seed=2, margin=0.3).pairs_until(20)
    assert forecast is not None and 20 < forecast < 2000
    slow = compared(0.4, 150, seed=2)
    forecast = slow.pairs_until(20, breach=True)
    assert forecast is not None and 20 < forecast < 3000


def test_comparison_without_values_says_nothing() -> None:
    empty = QuantileComparison(0.95, 0.1, 0.05)
    assert (empty.breach, empty.non_inferior, empty.count) == (1, 1, 0)
    assert empty.pairs_until(20) is None and empty.ratio == (0, math.inf)


def test_bad_quantiles_are_refused() -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="an observation must lie between"):
            QuantileSequence(0.95, 0.05).add([value])
    comparison = QuantileComparison(0.95, 0.1, 0.05)
    with pytest.raises(ValueError, match="an observation must lie between"):
        comparison.add([1.0], [-1.0])
    assert comparison.candidate.count == 0
    with pytest.raises(ValueError, match="order of a quantile"):
        QuantileSequence(95, 0.05)
    with pytest.raises(ValueError, match="margin must be 0 or more"):
        QuantileComparison(0.95, -0.1, 0.05)
