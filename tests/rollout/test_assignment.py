"""Who gets which version: sticky, monotone, and never one that may not answer."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ops.records.route import CanaryRoute, RouteRecord
from lora_ops.rollout.assignment import PRODUCTION, Assignment, Requester, assign, fraction

UNITS = [f"user {number}" for number in range(20_000)]
ODD = ["", "\0", "a\0b", "half a character \ud83d", "x" * 1_000_000, "user 1", "key None", "\u202euser"]
SALTS = st.text(min_size=8, max_size=64)
PERCENTS = st.floats(0, 100, exclude_min=True)
STATES = {2: "production", 3: "canary", 4: "canary", 5: "shadow"}.get


def canary(percent: float, salt: str = "salt salt", **more: object) -> RouteRecord:
    return RouteRecord.model_validate({"canary": {"number": 3, "percent": percent, "salt": salt}, **more})


def chosen(route: RouteRecord) -> set[str]:
    return {unit for unit in UNITS if assign(route, STATES, Requester(unit)).number == 3}


@given(SALTS, PERCENTS, PERCENTS, st.one_of(st.text(), st.sampled_from(ODD)))
def test_assign_is_monotone_and_sticky(salt: str, one: float, other: float, unit: str) -> None:
    less, more = (
        assign(canary(percent, salt), STATES, Requester(unit)).number == 3 for percent in sorted((one, other))
    )
    assert less <= more
    assert assign(canary(100, salt), STATES, Requester(unit)) == Assignment(3, "canary", "canary")


def test_assign_keeps_the_users_of_each_smaller_step() -> None:
    steps = [chosen(canary(percent)) for percent in (1, 5, 25, 50, 100)]
    assert all(less < more for less, more in zip(steps, steps[1:], strict=False))
    assert len(steps[-1]) == len(UNITS)
    assert chosen(canary(5)) == steps[1], "lowered again, the same 5 % have it"


@pytest.mark.parametrize("percent", [0.5, 1, 5, 25, 50, 99])
def test_assign_gives_the_canary_its_share(percent: float) -> None:
    """Within five standard deviations of a binomial, for each of three salts."""
    p, n = percent / 100, len(UNITS)
    for salt in ("first salt", "other salt", "0" * 64):
        count = len(chosen(canary(percent, salt)))
        assert abs(count - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_assign_with_another_salt_chooses_independently() -> None:
    both = len(chosen(canary(25, "first salt")) & chosen(canary(25, "other salt")))
    p, n = 0.25**2, len(UNITS)
    assert abs(both - n * p) < 5 * math.sqrt(n * p * (1 - p))


def test_assign_gives_one_client_one_version_at_each_step() -> None:
    found = [assign(canary(25), STATES, Requester("user batch job")) for _ in range(1000)]
    assert len(set(found)) == 1


def test_assign_takes_a_pin_before_the_canary() -> None:
    route = canary(100, user_salt="pins", segments={"beta": 2})
    route = route.model_copy(update={"users": {route.user_hash("ana"): 4}})
    assert assign(route, STATES, Requester("user ana", "ana", "beta")) == Assignment(4, "pinned_user")
    assert assign(route, STATES, Requester("user eve", "eve", "beta")) == Assignment(2, "segment")
    assert assign(route, STATES, Requester("user eve", "eve", "unknown")) == Assignment(3, "canary", "canary")
    assert assign(route, STATES, Requester("session ana", None, None)) == Assignment(3, "canary", "canary")


@pytest.mark.parametrize("pinned", [7, 6, 5])
def test_assign_gives_production_for_a_pin_that_is_out(pinned: int) -> None:
    """A user whose version was revoked (7), stopped (6) or is in shadow (5) is not in the canary instead."""
    route = canary(100, user_salt="pins", segments={"beta": pinned}, stopped=(6,))
    route = route.model_copy(update={"users": {route.user_hash("ana"): pinned}})
    states = {3: "canary", 5: "shadow", 6: "canary"}.get
    assert assign(route, states, Requester("user ana", "ana")) == PRODUCTION
    assert assign(route, states, Requester("user eve", "eve", "beta")) == PRODUCTION


@pytest.mark.parametrize("state", [None, "shadow", "production", "superseded"])
def test_assign_counts_a_canary_in_its_state_alone(state: str | None) -> None:
    states = {2: "production", 3: state}.get
    assert assign(canary(100), states, Requester("user 1")) == PRODUCTION
    assert assign(canary(100, stopped=(3,)), STATES, Requester("user 1")) == PRODUCTION


@pytest.mark.parametrize("percent", [1, 5, 25, 50, 75, 100])
def test_assign_names_a_control_group_of_the_same_size(percent: float) -> None:
    """As far as there are units left; who was in it stays in it until it is in the canary."""
    arms = {unit: assign(canary(percent), STATES, Requester(unit)) for unit in UNITS}
    control = {unit for unit, found in arms.items() if found.arm == "control"}
    assert {found.number for unit, found in arms.items() if unit in control} <= {None}
    assert {unit for unit, found in arms.items() if found.arm == "canary"} == chosen(canary(percent))
    p, n = min(percent, 100 - percent) / 100, len(UNITS)
    assert abs(len(control) - n * p) <= 5 * math.sqrt(n * p * (1 - p))
    less = {u for u in UNITS if assign(canary(percent / 2), STATES, Requester(u)).arm == "control"}
    assert less <= control | chosen(canary(percent))


@given(st.text(), st.text())
@settings(max_examples=200)
def test_fraction_is_at_least_0_and_below_1(salt: str, unit: str) -> None:
    assert 0 <= fraction(salt, unit) < 1


def test_route_refuses_a_percentage_of_nothing() -> None:
    for percent in (0, -1, 101, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="percent"):
            CanaryRoute(number=3, percent=percent, salt="salt salt")
