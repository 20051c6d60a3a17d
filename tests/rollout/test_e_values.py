"""Combined e-values against the definition: every group of hypotheses, one by one."""

import math
from itertools import combinations

import numpy as np
import pytest

from lora_ops.rollout.e_values import adjusted, combined, p_value


def smallest_mean(e_values: dict[str, float], name: str) -> float:
    """The smallest mean over all groups that contain a hypothesis, by trying each group."""
    groups = (group for size in range(1, len(e_values) + 1) for group in combinations(e_values, size))
    return min(sum(e_values[one] for one in group) / len(group) for group in groups if name in group)


def test_adjusted_equals_closed_testing() -> None:
    generator = np.random.default_rng(0)
    for count in range(1, 7):
        e_values = dict(zip("abcdef", np.exp(generator.normal(1, 2, count)).tolist(), strict=False))
        found = adjusted(e_values)
        assert list(found) == list(e_values)
        for name in e_values:
            assert found[name] == pytest.approx(smallest_mean(e_values, name))
            assert found[name] >= e_values[name] / count * (1 - 1e-12)  # never below Bonferroni's


def test_combined_is_the_mean() -> None:
    assert combined({"errors": 40, "tokens": 0.5, "risk": 1.5}) == 14


def test_adjusted_holds_the_familywise_error() -> None:
    """Three true hypotheses on the same data, and one false: a true one is rarely named."""
    generator = np.random.default_rng(1)
    named = 0
    for shift in generator.normal(0, 1, 2000):
        e_value = math.exp(3 * shift - 4.5)  # a likelihood ratio, whose mean is 1 under the hypothesis
        found = adjusted({"a": e_value, "b": e_value, "c": e_value, "false": 1e6})
        named += any(found[name] >= 20 for name in "abc")
    assert named / 2000 <= 0.05


def test_p_value_is_the_reciprocal() -> None:
    assert p_value(20) == 0.05 and p_value(0) == 1 and p_value(math.inf) == 0


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_combined_refuses_bad_e_values(value: float) -> None:
    with pytest.raises(ValueError, match="e-value of errors must be 0 or more"):
        adjusted({"errors": value})
    with pytest.raises(ValueError, match="no e-value"):
        combined({})
