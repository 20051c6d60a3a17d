"""Pass, fail and undecided on paired rows, held against scipy and simulations."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest

from lora_ops.evaluation.inference import mean_sample
from lora_ops.gates.paired import compare_rows, compare_samples, corrected, least_rows, tango
from lora_ops.records.regression import Comparison


def pairs(both: int, gained: int, lost: int, neither: int = 0) -> tuple[list[float], list[float], list[str]]:
    """Scores of candidate and baseline, each row a group of its own."""
    left = [1.0] * (both + gained) + [0.0] * (lost + neither)
    right = [1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither
    return left, right, [str(place) for place in range(len(left))]


def compared(*counts: int, margin: float = 0.1) -> Comparison:
    return compare_rows(*pairs(*counts), margin)


@pytest.mark.parametrize(("gained", "lost", "rows"), [(1, 0, 44), (3, 1, 14), (9, 20, 120)])
def test_tango_bounds_are_where_the_score_test_rejects(gained: int, lost: int, rows: int) -> None:
    """The share under the hypothesis is found here by maximising the likelihood, not by Tango's formula."""

    def statistic(supposed: float) -> float:
        def unlikely(share: float) -> float:
            shares = [share + supposed, share, 1 - 2 * share - supposed]
            counts = [gained, lost, rows - gained - lost]
            return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, shares, strict=True))

        bounds = (max(0.0, -supposed), (1 - supposed) / 2)
        share = float(minimize_scalar(unlikely, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)
        variance = 2 * share + supposed - supposed**2
        return ((gained - lost) / rows - supposed) / math.sqrt(variance / rows)

    low, high = tango(gained, lost, rows)
    assert statistic(low) == pytest.approx(1.959964, abs=2e-3)
    assert statistic(high) == pytest.approx(-1.959964, abs=2e-3)


@pytest.mark.parametrize(("gained", "lost", "rows"), [(0, 0, 30), (5, 2, 60), (0, 12, 40), (30, 0, 30)])
def test_tango_is_symmetric_and_holds_its_value(gained: int, lost: int, rows: int) -> None:
    low, high = tango(gained, lost, rows)
    assert -1 <= low <= (gained - lost) / rows <= high <= 1
    assert tango(lost, gained, rows) == pytest.approx((-high, -low))


def test_tango_covers_the_true_difference() -> None:
    """1,000 draws of 40 pairs: the interval holds the true difference in about 95 of 100."""
    generator = np.random.default_rng(3)
    drawn = generator.multinomial(40, [0.10, 0.15, 0.75], size=1000)
    held = [low <= -0.05 <= high for low, high in (tango(int(g), int(w), 40) for g, w, _ in drawn)]
    assert 0.93 <= np.mean(held) <= 0.98


@pytest.mark.parametrize("margin", [0.02, 0.05, 0.1, 0.15, 0.3, 0.5])
def test_least_rows_pass_and_one_fewer_do_not(margin: float) -> None:
    rows = least_rows(margin)
    assert compared(rows, 0, 0, margin=margin).verdict == "pass"
    assert compared(rows - 1, 0, 0, margin=margin).verdict == "undecided"


def test_compare_rows_p_value_is_mcnemars() -> None:
    found = compared(40, 2, 9)
    assert found.method == "exact"
    assert found.difference.p_value == binomtest(2, 11).pvalue


def test_verdict_fails_where_it_is_clearly_worse() -> None:
    assert compared(60, 0, 20).verdict == "fail"


def test_verdict_passes_within_the_margin_though_worse() -> None:
    """800 rows show a drop of 2 points, and that it is smaller than 10."""
    found = compared(780, 2, 18)
    assert found.difference.is_clear and found.difference.value < 0
    assert found.verdict == "pass"


def test_verdict_is_undecided_with_few_rows() -> None:
    found = compared(10, 0, 0)
    assert found.verdict == "undecided"
    assert found.rows + (found.more_rows or 0) == least_rows(0.1)


def test_more_rows_would_decide() -> None:
    found = compared(30, 2, 3)
    assert found.verdict == "undecided" and found.more_rows
    factor = math.ceil((found.rows + found.more_rows) / found.rows)
    assert compared(*(count * factor for count in (30, 2, 3))).verdict == "pass"


def test_more_rows_is_none_beyond_the_margin() -> None:
    found = compared(8, 0, 2)
    assert found.verdict == "undecided" and found.more_rows is None


def test_detectable_drop_is_found_in_80_of_100() -> None:
    """Versions that drop by the effect that is printed are found worse about as often as it says."""
    generator, rows = np.random.default_rng(7), 200
    found = compared(160, 20, 20)
    drop = found.detectable
    lost, gained = 0.1 + drop / 2, 0.1 - drop / 2
    drawn = generator.multinomial(rows, [gained, lost, 1 - gained - lost], size=400)
    worse = [g < w and binomtest(int(g), int(g + w)).pvalue < 0.05 for g, w, _ in drawn]
    assert 0.70 <= np.mean(worse) <= 0.92


def test_compare_rows_resamples_groups() -> None:
    """Ten rows of each group say what one says: the interval is that of the groups."""
    left, right, groups = pairs(24, 3, 3)
    one = compare_rows(left, right, groups, 0.1)
    ten = compare_rows(left * 10, right * 10, groups * 10, 0.1)
    assert ten.method == "bootstrap" and ten.groups == 30 and ten.rows == 300
    width, other = (found.difference.high - found.difference.low for found in (one, ten))
    assert other > 0.7 * width


def test_compare_rows_of_one_group_twice_is_not_sure() -> None:
    """Where all rows agree a bootstrap would be certain; few groups still decide nothing."""
    left = [1.0] * 100
    found = compare_rows(left, left, ["a", "b"] * 50, 0.1)
    assert found.verdict == "undecided" and found.difference.low < -0.1


def test_compare_rows_takes_scores_between() -> None:
    generator = np.random.default_rng(1)
    right = generator.uniform(0.2, 0.6, 200)
    groups = [str(place // 2) for place in range(200)]
    better = compare_rows(right + generator.uniform(0, 0.2, 200), right, groups, 0.05)
    worse = compare_rows(right - generator.uniform(0, 0.2, 200), right, groups, 0.05)
    assert (better.verdict, worse.verdict) == ("pass", "fail")


@pytest.mark.parametrize(
    ("left", "right", "groups"),
    [([], [], []), ([1.0], [1.0, 0.0], ["a"]), ([1.5], [1.0], ["a"]), ([math.nan], [1.0], ["a"])],
)
def test_compare_rows_refuses_what_does_not_pair(
    left: Sequence[float], right: Sequence[float], groups: Sequence[str]
) -> None:
    with pytest.raises(ValueError):
        compare_rows(left, right, groups, 0.1)


def test_corrected_equal_versions_fail_at_the_level_of_one_test() -> None:
    """Twelve slices, two equal versions: any of them fails in at most 5 of 100 drawings (here one-sided)."""
    generator, failed, draws = np.random.default_rng(11), 0, 300
    for _ in range(draws):
        gates = {}
        for number in range(12):
            gained, lost, both = generator.multinomial(40, [0.15, 0.15, 0.7])
            gates[str(number)] = compared(int(both), int(gained), int(lost))
        failed += any(one.verdict == "fail" for one in corrected(gates).values())
    assert failed / draws <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize(("gains", "losses"), [(0.05, 0.10), (0.0, 0.05)])
def test_compare_rows_seldom_passes_what_is_worse_by_the_margin(gains: float, losses: float) -> None:
    """25 groups of 1 to 7 rows, few of which differ: a bootstrap passed 13 of 100, where 2.5 are stated."""
    generator, passed, draws = np.random.default_rng(5), 0, 200
    for _ in range(draws):
        sizes = generator.integers(1, 8, 25)
        kinds = generator.choice(3, size=25, p=[gains, losses, 1 - gains - losses])
        left = np.repeat(np.where(kinds == 1, 0.0, 1.0), sizes)
        right = np.repeat(np.where(kinds == 0, 0.0, 1.0), sizes)
        groups = np.repeat([str(place) for place in range(25)], sizes)
        passed += compare_rows(left, right, list(groups), 0.05).verdict == "pass"
    assert passed / draws <= 0.025 + 2 * math.sqrt(0.025 * 0.975 / draws)


def test_compare_rows_passes_equal_groups_that_seldom_differ() -> None:
    """Wider bounds must still decide: 60 groups of 3 rows, one gained and one lost, margin 0.15."""
    right = np.ones(180)
    left, other = right.copy(), right.copy()
    left[:3], other[3:6] = 0, 0
    found = compare_rows(left, other, [str(place // 3) for place in range(180)], 0.15)
    assert found.method == "bootstrap" and found.verdict == "pass"


def test_compare_samples_of_few_differing_groups_is_not_sure() -> None:
    """One group of 40 differs: resamples without it say that nothing does."""
    groups = [str(place) for place in range(40)]
    values = np.linspace(0.2, 0.8, 40)
    other = values.copy()
    other[0] += 0.1
    found = compare_samples(mean_sample(values, groups), mean_sample(other, groups), 40, (0, 1), 0.05)
    assert found.verdict == "undecided"
