"""Percentiles of counted times are those that Prometheus gives; tests/monitoring asks a real one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.histograms import ANSWER, cumulative, percentile, share_within


def test_cumulative_counts_a_bound_itself_as_below() -> None:
    assert cumulative([1, 2, 2.5, 9], (1, 2.5)) == [1, 3, 4]


def test_percentile_spreads_values_in_their_bucket() -> None:
    counts = cumulative([0.3] * 4, (0.25, 0.5))
    assert percentile((0.25, 0.5), counts, 0.5) == 0.375
    assert percentile((0.25, 0.5), counts, 1) == 0.5


def test_percentile_above_the_last_bound_is_that_bound() -> None:
    assert percentile((1, 2), cumulative([1, 7, 7], (1, 2)), 0.95) == 2.0


def test_percentile_of_nothing_is_none() -> None:
    assert percentile((1, 2), cumulative([], (1, 2)), 0.5) is None
    assert share_within((1, 2), cumulative([], (1, 2)), 1) is None


@given(st.lists(st.floats(0, 400), min_size=1), st.sampled_from([0.5, 0.95, 0.99]))
def test_percentile_is_in_the_bucket_of_the_exact_one(values: list[float], share: float) -> None:
    """The value at its rank and the estimate are between the same two bounds."""
    exact = sorted(values)[max(0, -int(-share * len(values) // 1) - 1)]
    found = percentile(ANSWER, cumulative(values, ANSWER), share)
    above = next((bound for bound in ANSWER if exact <= bound), ANSWER[-1])
    below = max((bound for bound in ANSWER if bound < exact), default=0.0)
    assert found is not None and (below <= found <= above or exact > ANSWER[-1] == found)


def test_share_within_counts_up_to_the_limit() -> None:
    assert share_within((1, 2), cumulative([0.5, 1, 1.5, 3], (1, 2)), 1) == pytest.approx(0.5)
