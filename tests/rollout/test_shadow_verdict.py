"""What pairs say of a version in shadow: a table, and advance, roll back or hold."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from lora_ops.records.pair import ShadowPair
from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.shadow_verdict import ShadowLook, as_rows, look_at_pairs
from lora_ops.settings.rollout import RolloutSettings, ShadowSettings

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
NOW = START + timedelta(days=3)


def plan(**shadow: Any) -> RolloutPlan:
    asked = ShadowSettings(**{"hours": 24, "requests": 200, **shadow})
    return RolloutPlan.of("finance@2", "cd" * 32, "finance@1", "ab" * 32, RolloutSettings(shadow=asked))


def pair(number: int, **changes: Any) -> dict[str, Any]:
    made = ShadowPair(
        **{
            "time": START + timedelta(minutes=3 * number),
            "request_id": f"r{number}",
            "tenant": "finance",
            "endpoint": "chat",
            "production": "finance@1",
            "production_digest": "ab" * 32,
            "shadow": "finance@2",
            "shadow_digest": "cd" * 32,
            "unit": f"u{number}",
            "epoch": 7,
            "status": "answered",
            "answers": 1,
            "agreement": 1.0,
            "production_task": 1.0,
            "shadow_task": 1.0,
            "production_identifiers": 0.0,
            "shadow_identifiers": 0.0,
            "production_insults": 0.0,
            "shadow_insults": 0.0,
            "production_characters": 7,
            "shadow_characters": 7,
            "prompt_tokens": 5,
            "production_tokens": 2,
            "shadow_tokens": 2,
            "production_first_token_seconds": 0.1,
            "shadow_first_token_seconds": 0.1,
            "production_seconds": 0.2,
            "shadow_seconds": 0.2,
            "production_finish": ["stop"],
            **changes,
        }
    )
    return made.model_dump()


def failed(number: int) -> dict[str, Any]:
    nothing = dict.fromkeys(
        ("agreement", "shadow_task", "shadow_identifiers", "shadow_insults", "shadow_tokens")
    )
    return pair(number, status="failed", **nothing)


def look(
    rows: list[dict[str, Any]], now: datetime = NOW, *, replayed: bool = False, **shadow: Any
) -> ShadowLook:
    return look_at_pairs(plan(**shadow), pd.DataFrame(rows), now=now, replayed=replayed)


def test_good_version_advances_after_enough_pairs_and_hours() -> None:
    found = look([pair(number) for number in range(600)])
    assert found.verdict.decision == "advance", found.verdict
    assert (found.answered, found.units, found.hours) == (600, 600, 30)
    said = {one.name: one.verdict for one in found.metrics}
    assert said.pop("agreement") == said.pop("P95 latency") == "not judged"
    assert set(said.values()) == {"non-inferior"}
    assert as_rows(found)[0]["name"] == "errors"


@pytest.mark.parametrize(
    ("worse", "named"),
    [
        ({"shadow_task": 0.0}, "task"),
        ({"shadow_insults": 1.0}, "insults"),
        ({"shadow_identifiers": 1.0}, "identifiers"),
        ({"shadow_tokens": 9}, "tokens"),
    ],
)
def test_worse_version_is_found_by_its_metric(worse: dict[str, Any], named: str) -> None:
    drawn = random.Random(1)
    rows = [pair(number, **(worse if drawn.random() < 0.5 else {})) for number in range(300)]
    found = look(rows)
    assert found.verdict.decision == "roll back" and found.verdict.breached == (named,)
    (metric,) = (one for one in found.metrics if one.name == named)
    assert metric.verdict == "breach" and metric.difference
    low, high = metric.difference
    assert high < 0 if named == "task" else low > 0


def test_empty_answers_hide_no_insults() -> None:
    """Nine in ten answers are empty, and each other one insults: only those have been looked at."""
    unseen = {"shadow_insults": None, "shadow_identifiers": None}
    found = look(
        [pair(number, **({"shadow_insults": 1.0} if number % 10 == 0 else unseen)) for number in range(300)]
    )
    units = {one.name: one.units for one in found.metrics}
    assert (units["insults"], units["identifiers"], units["task"], found.unscored) == (30, 30, 300, 0)
    assert found.verdict.decision == "roll back" and found.verdict.breached == ("insults",)


def test_version_that_fails_is_found_though_the_rest_is_good() -> None:
    drawn = random.Random(1)
    rows = [failed(number) if drawn.random() < 0.3 else pair(number) for number in range(300)]
    found = look(rows)
    assert found.verdict.decision == "roll back" and found.verdict.breached == ("errors",)
    assert found.failed + found.answered == 300


def test_hours_with_gaps_are_not_a_day() -> None:
    """An hour of traffic at both ends of a day is two hours."""
    rows = [
        pair(number, time=START + timedelta(hours=24 * (number % 2), seconds=number)) for number in range(600)
    ]
    found = look(rows)
    assert found.verdict.decision == "hold" and found.hours == 2
    assert "pairs in 22 more hours are needed (600 pairs in 2 different hours)" in found.verdict.reason


def test_too_few_pairs_hold_with_how_many_more() -> None:
    found = look([pair(number) for number in range(600)], requests=1000)
    assert found.verdict.decision == "hold" and "400 more pairs" in found.verdict.reason
    assert found.verdict.users == 400
    few = look([pair(number) for number in range(10)])
    assert few.verdict.decision == "hold" and few.verdict.users
    assert few.metrics[0].verdict == "undecided"


@pytest.mark.parametrize("replayed", [False, True])
def test_no_pairs_hold(replayed: bool) -> None:
    empty = pd.DataFrame({name: [] for name in ShadowPair.model_fields})
    found = look_at_pairs(plan(), empty, now=NOW, replayed=replayed)
    assert found.verdict.decision == "hold" and found.first_at is None
    assert all(one.shadow is None for one in found.metrics)


def test_one_busy_user_is_one_unit() -> None:
    rows = [pair(number, unit="robot", time=START + timedelta(seconds=number)) for number in range(600)]
    found = look(rows)
    assert found.units == 1 and found.verdict.decision == "hold"


def test_requests_that_name_nobody_are_a_unit_a_minute() -> None:
    """One key that sends ten requests a second is no 600 units."""
    rows = [
        pair(number, unit="key app", key="app", names_unit=False, time=START + timedelta(seconds=number / 10))
        for number in range(600)
    ]
    assert look(rows).units == 1
    two_keys = [pair(number, **{**row, "unit": "key b", "key": "b"}) for number, row in enumerate(rows)]
    assert look([*rows, *({**row, "id": f"b{row['id']}"} for row in two_keys)]).units == 2


def test_user_who_comes_back_the_next_day_counts_again() -> None:
    rows = [pair(number, unit="ana", time=START + timedelta(hours=25 * number)) for number in range(3)]
    assert look(rows, START + timedelta(days=4)).units == 3


def test_key_that_invents_users_counts_in_part() -> None:
    rows = [pair(number, unit=f"invented {number}", key="one") for number in range(600)]
    rows += [pair(number, unit=f"user {number}", key=f"key {number % 20}") for number in range(0, 600, 10)]
    settings = RolloutSettings(key_percent=50)
    of_share = RolloutPlan.of("finance@2", "cd" * 32, "finance@1", "ab" * 32, settings)
    found = look_at_pairs(of_share, pd.DataFrame(rows), now=NOW)
    assert found.units == 121 and "91% of the units come by one key (one)" in found.verdict.reason
    assert "539 don't count" in found.verdict.reason


def test_verdict_by_one_key_says_so() -> None:
    """It may be a tenant's own backend: people decide whether its users are real."""
    found = look([pair(number, key="backend") for number in range(600)])
    assert found.verdict.decision == "advance"
    assert found.verdict.reason.endswith("100% of the units come by one key (backend)")


def test_replayed_and_live_pairs_never_count_together() -> None:
    """Replayed ones are made at once: no hours are asked of them."""
    now = START + timedelta(minutes=1)
    rows = [pair(number, replayed=True, time=now) for number in range(600)]
    assert look(rows, now).verdict.decision == "hold" and look(rows, now).answered == 0
    found = look(rows, now, replayed=True)
    assert found.verdict.decision == "advance" and found.replayed


def test_pairs_of_other_content_do_not_count() -> None:
    rows = [pair(number, shadow_digest="ef" * 32) for number in range(300)]
    rows += [pair(number, production_digest="ef" * 32) for number in range(300)]
    assert look(rows).answered == 0


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"status": "preempted"}, "gave way to clients each time"),
        ({"shadow_task": None}, "could not be judged"),
    ],
)
def test_too_many_missing_pairs_hold(missing: dict[str, Any], said: str) -> None:
    rows = [pair(number, **(missing if number % 5 == 0 else {})) for number in range(900)]
    found = look(rows)
    assert found.verdict.decision == "hold" and said in found.verdict.reason


def test_a_look_changes_no_earlier_one() -> None:
    """Units that were counted keep their values, whatever their users ask later."""
    rows = [pair(number, unit=f"u{number % 50}") for number in range(600)]
    early = look(rows[:300], START + timedelta(hours=15))
    late = look(
        [*rows[:300], *(pair(400 + number, unit=f"u{number}", shadow_task=0.0) for number in range(50))]
    )
    assert early.units == 50
    assert early.metrics[1].difference == late.metrics[1].difference
