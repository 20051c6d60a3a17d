"""Units: one user counts once, and what was counted never changes."""

import math
import random

import pytest

from lora_ops.rollout.units import Observation, Unit, closed_units, paired_differences


def test_one_user_with_many_values_is_one_unit() -> None:
    busy = [Observation(second / 100, "busy", "canary", second % 2) for second in range(5000)]
    units = closed_units([*busy, Observation(1, "calm", "control", 0.25)], now=3600, window=60)
    assert units == [Unit(60, "busy", "canary", 0.5), Unit(61, "calm", "control", 0.25)]


def test_units_once_counted_never_change() -> None:
    generator = random.Random(3)
    seen = [
        Observation(generator.uniform(0, 1000), f"u{generator.randrange(80)}", "canary", generator.random())
        for _ in range(2000)
    ]
    whole = closed_units(seen, now=math.inf, window=100)
    for now in (150.0, 400.0, 900.0):
        early = closed_units([one for one in seen if one.at <= now], now=now, window=100)
        assert early == whole[: len(early)]
    generator.shuffle(seen)
    assert closed_units(seen, now=math.inf, window=100) == whole


def test_open_and_crossing_users_dont_count() -> None:
    seen = [
        Observation(0, "a", "control", 0),
        Observation(5, "a", "canary", 1),
        Observation(50, "b", "canary", 1),
    ]
    assert closed_units(seen, now=60, window=60) == [Unit(60, "a", "control", 0)]


def test_first_value_serves_quantiles() -> None:
    seen = [Observation(1, "a", "canary", 7), Observation(0, "a", "canary", 3)]
    assert closed_units(seen, now=9, window=1, value="first")[0].value == 3
    assert closed_units(seen, now=9, window=1)[0].value == 5


def test_pairs_wait_for_their_partner() -> None:
    arms = ["canary", "control", "rest", "canary", "canary"]
    units = [Unit(place, str(place), arm, place) for place, arm in enumerate(arms)]
    assert paired_differences(units, "canary", "control") == [-1]
    assert paired_differences([], "canary", "control") == []


def test_units_refuse_bad_numbers() -> None:
    with pytest.raises(ValueError, match="'a' is not a finite number"):
        closed_units([Observation(0, "a", "canary", math.nan)], now=1, window=1)
    with pytest.raises(ValueError, match="0 seconds or more"):
        closed_units([], now=1, window=-1)
