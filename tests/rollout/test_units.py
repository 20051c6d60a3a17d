"""Units: one user counts once, and what was counted never changes."""

import math
import random

import pytest

from lora_ops.rollout.units import Observation, Opening, Partners, Unit, by_key, closed_units


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
    partners = Partners("canary", "control")
    assert partners.add(units) == [(0, 1)]
    assert partners.add([]) == []
    assert partners.add([Unit(5, "5", "control", 5), Unit(6, "6", "control", 6)]) == [(3, 5), (4, 6)]


def test_units_refuse_bad_numbers() -> None:
    with pytest.raises(ValueError, match="'a' is not a finite number"):
        closed_units([Observation(0, "a", "canary", math.nan)], now=1, window=1)
    with pytest.raises(ValueError, match="0 seconds or more"):
        closed_units([], now=1, window=-1)


def opened(keys: str, arm: str = "canary") -> list[Opening]:
    return [Opening(place, f"{arm} {place}", arm, key) for place, key in enumerate(keys)]


@pytest.mark.parametrize(
    ("keys", "percent", "counted"),
    [
        ("aaaaaaaa", 100, 8),
        ("aaaaaaaa", 50, 1),
        ("abababab", 50, 8),
        ("aaaabbbb", 50, 3),
        ("abcdabcd", 25, 8),
    ],
)
def test_key_brings_its_part_of_the_units(keys: str, percent: float, counted: int) -> None:
    units, found = by_key(opened(keys), percent)
    assert (len(units), found.left_out) == (counted, 8 - counted)


def test_key_share_of_what_was_counted_never_changes() -> None:
    generator = random.Random(5)
    keys = {arm: "".join(generator.choices("aaab", k=80)) for arm in ("canary", "control")}
    seen = [one for arm in keys for one in opened(keys[arm], arm)]
    whole, _ = by_key(seen, 40)
    for now in (10, 30, 60):
        early = [one for one in seen if one.at <= now]
        assert by_key(early, 40)[0] == whole & {one.unit for one in early}
    # Either arm has its own part: otherwise one arm's users would decide which of the other count.
    alone, _ = by_key(opened(keys["canary"]), 40)
    assert {one for one in whole if one.startswith("canary")} == alone


def test_busiest_key_is_named() -> None:
    assert by_key(opened("aab"), 100)[1].said == "67% of the units come by one key (a)"
    assert by_key(opened("abcd"), 100)[1].said == "" and by_key([], 100)[1].said == ""
    without = [one._replace(key=None) for one in opened("aa")]
    assert by_key(without, 100)[1].said == "100% of the units come by a gateway without keys"
