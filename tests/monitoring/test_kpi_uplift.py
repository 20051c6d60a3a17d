"""The uplift of a KPI: Welch's interval over users, and days; the simulated uplift is found again."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from lora_ops.monitoring.kpi_plots import plot_uplifts
from lora_ops.monitoring.kpi_uplift import before_after_uplift, canary_uplift, samples, welch
from lora_ops.monitoring.simulated_kpis import KNOWN, NONE, Effect, simulate
from lora_ops.records.kpi import Samples, Uplift
from lora_ops.registry.served_times import CanaryShare, InProduction
from lora_ops.settings.kpis import KpiSettings
from tests.registry.conftest import MORNING

SETTINGS = KpiSettings()
SHARES = [CanaryShare(MORNING, 2, 50, "salt")]
RUNS = 200


def answers(users: int, each: int = 2, arms: tuple[str, str] = ("canary", "control")) -> pd.DataFrame:
    """Return answers of so many users of each arm, a minute apart."""
    many = 2 * users * each
    numbers = np.arange(many)
    return pd.DataFrame(
        {
            "request_id": [f"r{number}" for number in numbers],
            "time": pd.Timestamp(MORNING) + pd.to_timedelta(numbers % (24 * 60), unit="min"),
            "unit": [f"user {number}" for number in numbers % (2 * users)],
            "arm": [arms[number % 2] for number in numbers],
        }
    )


def joined(answers: pd.DataFrame, kpis: pd.DataFrame) -> pd.DataFrame:
    """Return KPIs as the store gives them."""
    rows = kpis.drop(columns="time").merge(answers, on="request_id").rename(columns={"time": "answered_at"})
    adapters = np.where(rows["arm"] == "canary", "finance@2", "finance@1")
    rows = rows.assign(adapter=adapters, count=1, simulated=True, tenant="finance")
    return rows.sort_values("answered_at", kind="stable", ignore_index=True)


def uplift(rows: pd.DataFrame, kind: str = "ctr", shares: list[CanaryShare] = SHARES, **changes: int) -> Uplift:
    found = canary_uplift(rows, kind, "finance@2", shares, KpiSettings(**changes))
    assert found
    return found


def both(pairs: list[tuple[np.ndarray, np.ndarray]]) -> list[Samples]:
    return [found for pair in pairs if (found := samples(*pair))]


def test_welch_is_that_of_scipy() -> None:
    draw = np.random.default_rng(1)
    one, other = draw.normal(1, 1, 50), draw.lognormal(0, 2, 70)
    found = welch(both([(one, other)]))
    assert found
    known = ttest_ind(one, other, equal_var=False).confidence_interval()
    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.difference == pytest.approx(one.mean() - other.mean())


def test_welch_of_parts_is_that_of_a_block_model() -> None:
    """Least squares with the parts as blocks gives the same difference."""
    draw = np.random.default_rng(2)
    parts = [(draw.normal(1, 1, 40), draw.normal(0, 1, 60)), (draw.normal(5, 1, 95), draw.normal(4.5, 1, 5))]
    found = welch(both(parts))
    values = np.concatenate([np.concatenate(pair) for pair in parts])
    arm = np.concatenate([np.repeat([1, 0], [len(one), len(other)]) for one, other in parts])
    block = np.repeat([0, 1], [100, 100])
    design = np.column_stack([arm, block == 0, block == 1]).astype(float)
    fitted = np.linalg.lstsq(design, values, rcond=None)[0][0]
    assert found and found.difference == pytest.approx(fitted)
    assert samples(np.array([1.0]), np.array([1.0, 2.0])) is None and welch([]) is None
    same = welch(both([(np.ones(5), np.ones(5))]))
    assert same and (same.low, same.high) == (0, 0)


@pytest.mark.parametrize("kind", KNOWN)
def test_known_uplift_is_found_again(kind: str) -> None:
    """By seed 7, which `demo/simulated_kpis.py` takes as well."""
    asked = answers(2000)
    found = uplift(joined(asked, simulate(asked, seed=7)), kind)
    true = KNOWN[kind].canary - KNOWN[kind].control
    assert found.low is not None and found.high is not None
    assert found.low <= true <= found.high and found.verdict == "better"
    assert (found.units, found.baseline_units, found.against) == (2000, 2000, "finance@1")
    assert found.simulated


def test_interval_covers_the_truth_as_often_as_said() -> None:
    """The most skewed KPI, with the fewest users that are compared: 95 % less four standard errors.

    `benchmarks/kpis.py` has all kinds.
    """
    asked = answers(SETTINGS.units)
    effects = {"rpm": KNOWN["rpm"]}
    covered = 0
    for seed in range(RUNS):
        found = uplift(joined(asked, simulate(asked, seed, effects)), "rpm")
        assert found.low is not None and found.high is not None
        covered += found.low <= effects["rpm"].canary - effects["rpm"].control <= found.high
    assert covered / RUNS >= 0.95 - 4 * (0.95 * 0.05 / RUNS) ** 0.5


def test_busy_user_is_one_unit() -> None:
    """A thousand clicks of one user decide nothing."""
    asked = answers(200, each=1)
    rows = joined(asked, simulate(asked, 1, {"ctr": NONE["ctr"]}))
    busy = rows[rows["arm"] == "canary"].head(1).assign(value=1.0)
    many = pd.concat([rows, *[busy] * 1000], ignore_index=True)
    assert uplift(many).units == 200
    assert abs((uplift(many).difference or 1) - (uplift(rows).difference or 1)) < 0.01


def test_too_few_users_claim_nothing() -> None:
    asked = answers(99)
    found = uplift(joined(asked, simulate(asked, 1)))
    assert found.difference is None and found.verdict == "unknown"
    assert found.said == "too few users: 99 and 99, and 100 in each arm are needed"


def test_broken_assignment_claims_nothing() -> None:
    """A page that doesn't report the canary's slow readers makes any canary look good."""
    asked = answers(1000)
    rows = joined(asked, simulate(asked, 1))
    lost = rows["unit"].isin([f"user {number}" for number in range(0, 800, 2)])
    found = uplift(rows[~lost])
    assert found.difference is None and "assignment is broken" in found.said


def test_later_share_is_compared_for_itself() -> None:
    """While it waits the canary has 95 %, at a time at which everybody clicks more: no uplift is there."""
    early = answers(500, each=1)
    late = early.assign(
        time=early["time"] + timedelta(days=1),
        unit="late " + early["unit"],
        request_id="late " + early["request_id"],
        arm=np.where(np.arange(len(early)) % 20 == 1, "control", "canary"),
    )
    equal = {"ctr": Effect(0.1, 0.1)}, {"ctr": Effect(0.5, 0.5)}
    tables = [joined(one, simulate(one, 3, effect)) for one, effect in zip((early, late), equal, strict=True)]
    shares = [CanaryShare(MORNING - timedelta(hours=1), 2, 5, "salt"), *SHARES]
    shares.append(CanaryShare(MORNING + timedelta(days=1), 2, 95, "salt"))
    rows = pd.concat(tables, ignore_index=True)
    found = uplift(rows, shares=shares)
    assert found.low is not None and found.high is not None and found.low < 0 < found.high
    means = rows.groupby("arm")["value"].mean()
    assert means["canary"] - means["control"] > 0.1  # what a comparison of all would say


def test_user_who_changes_the_arm_counts_for_the_first() -> None:
    asked = answers(150, each=1)
    changed = asked.assign(
        time=asked["time"] + timedelta(days=1), request_id="late " + asked["request_id"], arm="canary"
    )
    rows = pd.concat([joined(one, simulate(one, 1, {"ctr": NONE["ctr"]})) for one in (asked, changed)])
    found = uplift(rows.sort_values("answered_at", ignore_index=True))
    assert (found.units, found.baseline_units) == (150, 150)


def test_earlier_attempt_does_not_count() -> None:
    """It assigned users by another salt."""
    asked = answers(150)
    earlier = asked.assign(time=asked["time"] - timedelta(days=3), request_id="early " + asked["request_id"])
    rows = pd.concat([joined(one, simulate(one, 1, {"ctr": NONE["ctr"]})) for one in (earlier, asked)])
    shares = [CanaryShare(MORNING - timedelta(days=4), 2, 50, "old"), *SHARES]
    found = uplift(rows, shares=shares)
    assert found.first_at == MORNING and found.units == 150
    assert canary_uplift(rows, "ctr", "finance@3", shares, SETTINGS) is None
    assert canary_uplift(rows, "ctr", "finance@2", [], SETTINGS) is None


def days(adapter: str, first: datetime, mean: float, count: int, noise: float = 0.1) -> pd.DataFrame:
    """Return one row for each of so many days."""
    draw = np.random.default_rng(count)
    return pd.DataFrame(
        {
            "answered_at": [pd.Timestamp(first) + timedelta(days=day) for day in range(count)],
            "adapter": adapter,
            "kind": "rpm",
            "value": draw.normal(mean, noise, count),
            "count": 1000,
            "unit": None,
            "simulated": False,
        }
    )


SERVED = [InProduction(MORNING - timedelta(days=100), 1), InProduction(MORNING, 2)]


def test_before_after_compares_days_and_says_what_it_cannot() -> None:
    rows = pd.concat(
        [
            days("finance@1", MORNING - timedelta(days=60), 3, 60),
            days("finance@2", MORNING, 4, 60),
        ],
        ignore_index=True,
    )
    now = MORNING + timedelta(days=60)
    found = before_after_uplift(rows, "rpm", "finance@2", SERVED, now, SETTINGS)
    assert found and found.difference == pytest.approx(1, abs=0.1) and found.verdict == "better"
    assert (found.units, found.baseline_units, found.against) == (28, 28, "finance@1")
    assert "season" in found.said and found.method == "before_after"
    few = before_after_uplift(rows, "rpm", "finance@2", SERVED, MORNING + timedelta(days=4), SETTINGS)
    assert few and few.difference is None and few.said.startswith("too few days: 3 after and 28 before")


def test_before_after_needs_a_version_before() -> None:
    rows = days("finance@1", MORNING, 3, 30)
    now = MORNING + timedelta(days=40)
    assert before_after_uplift(rows, "rpm", "finance@1", SERVED, now, SETTINGS) is None
    assert before_after_uplift(rows, "rpm", "finance@3", SERVED, now, SETTINGS) is None
    emptied = [InProduction(MORNING, None), InProduction(MORNING + timedelta(days=1), 2)]
    assert before_after_uplift(rows, "rpm", "finance@2", emptied, now, SETTINGS) is None


def test_simulation_is_the_same_for_a_seed() -> None:
    asked = answers(5)
    assert simulate(asked, 1).equals(simulate(asked, 1)) and not simulate(asked, 1).equals(simulate(asked, 2))


def test_plot_draws_what_is_known_and_says_what_is_simulated() -> None:
    asked = answers(150)
    rows = joined(asked, simulate(asked, 1, {"ctr": KNOWN["ctr"]}))
    few = uplift(rows, units=10_000)
    figure = plot_uplifts([uplift(rows), few], "finance")
    (axes,) = figure.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["finance@2 ctr, canary"]
    assert axes.get_title() == "SIMULATED: finance"
    (nothing,) = plot_uplifts([few], "finance").axes
    assert [one.get_text() for one in nothing.texts] == ["no uplift is known yet"]
