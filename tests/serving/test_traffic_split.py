"""Which version answers whom, where several share a model."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ops.serving.traffic_split import Arm, TrafficSplit

UNITS = [f"user {number}" for number in range(4000)]


def split(*weights: float, salt: str = "salt") -> TrafficSplit[int]:
    return TrafficSplit([Arm(f"finance@{n}", n, weight) for n, weight in enumerate(weights, 1)], salt)


def canaries(weight: float, salt: str = "salt") -> set[str]:
    both = split(100 - weight, weight, salt=salt)
    return {unit for unit in UNITS if both.pick(unit) == 2}


def test_split_gives_each_arm_its_part() -> None:
    counts = Counter(map(split(70, 25, 5).pick, UNITS))
    assert [counts[n] / len(UNITS) for n in (1, 2, 3)] == pytest.approx([0.7, 0.25, 0.05], abs=0.02)


def test_split_keeps_its_units_as_a_weight_rises() -> None:
    steps = [canaries(weight) for weight in (1, 5, 25, 50, 100)]
    assert all(less <= more for less, more in zip(steps, steps[1:], strict=False))
    assert 0 < len(steps[0]) < len(steps[1]) < len(steps[2]) < len(steps[3]) < len(steps[4]) == len(UNITS)


def test_split_of_three_moves_units_only_to_the_arm_that_rises() -> None:
    before, after = split(60, 20, 20), split(45, 15, 40)
    assert {(before.pick(unit), after.pick(unit)) for unit in UNITS} == {(1, 1), (2, 2), (3, 3), (1, 3), (2, 3)}


def test_split_with_another_salt_chooses_independently() -> None:
    here, there = canaries(25), canaries(25, "another")
    assert len(here & there) / len(UNITS) == pytest.approx(0.25**2, abs=0.02)


@given(st.text(), st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_split_takes_any_unit_and_sticks(unit: str, one: float, other: float) -> None:
    assert split(one, other).pick(unit) == split(one, other).pick(unit) in (1, 2)


@pytest.mark.parametrize("unit", ["", "user 1", "half a character \ud83d"])
def test_split_with_one_weight_gives_everything_to_it(unit: str) -> None:
    assert split(1).pick(unit) == 1
    assert split(0, 3).pick(unit) == 2
    assert split(2, 3).pick(unit) in (1, 2)


@pytest.mark.parametrize("weights", [(), (0,), (-1, 2), (float("nan"), 1), (float("inf"), 1)])
def test_split_refuses_weights_that_are_none(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="A split needs weights of at least 0"):
        split(*weights)


def test_split_refuses_two_arms_of_one_name() -> None:
    with pytest.raises(ValueError, match="the same name"):
        TrafficSplit([Arm("finance@1", 1), Arm("finance@1", 2)])
