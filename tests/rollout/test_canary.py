"""The canary beside its control group: what users of both arms make of the guardrails and the verdict."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.canary import Arm, CanaryRequest, Look, look
from lora_ops.settings.rollout import RolloutSettings

MORNING = datetime(2026, 3, 2, 9, tzinfo=UTC)
OURS, THEIRS = "a" * 64, "b" * 64
Worse = Callable[[CanaryRequest, random.Random], CanaryRequest]


def plan() -> RolloutPlan:
    return RolloutPlan.of("finance@2", OURS, "finance@1", THEIRS, RolloutSettings())


def request(arm: Arm, unit: str, at: datetime, draw: random.Random) -> CanaryRequest:
    adapter, digest = ("finance@2", OURS) if arm == "canary" else ("finance@1", THEIRS)
    return CanaryRequest(
        at=at,
        unit=unit,
        arm=arm,
        adapter=adapter,
        digest=digest,
        status=200,
        seconds=draw.lognormvariate(-1, 0.3),
        tokens=draw.randint(4, 8),
        insults=0.0,
        identifiers=0,
        is_task=True,
    )


def traffic(users: int, worse: Worse | None = None, *, seed: int = 0) -> Iterator[CanaryRequest]:
    """Two requests of each user, one user of either arm a minute; `worse` changes what the canary did."""
    draw = random.Random(seed)
    for user in range(users):
        for arm in ("canary", "control"):
            for second in (0, 20):
                at = MORNING + timedelta(minutes=user, seconds=second + draw.random())
                one = request(arm, f"{arm} {user}", at, draw)  # type: ignore[arg-type]
                yield worse(one, draw) if worse and arm == "canary" else one


def after(users: int) -> datetime:
    """When the last of so many users has closed."""
    return MORNING + timedelta(minutes=users + 20)


def test_canary_that_is_no_worse_advances() -> None:
    found = look(plan(), traffic(900), since=MORNING, now=after(900))
    assert found.verdict.decision == "advance", found.verdict
    assert (found.canary_users, found.control_users) == (900, 900)
    assert {one.name for one in found.guardrails} == {
        "errors",
        "insults",
        "identifiers",
        "task",
        "tokens",
        "P95 latency",
    }


@pytest.mark.parametrize(
    ("guardrail", "worse"),
    [
        ("errors", lambda one, draw: replace(one, status=500) if draw.random() < 0.3 else one),
        ("task", lambda one, draw: replace(one, is_task=draw.random() > 0.3)),
        ("insults", lambda one, draw: replace(one, insults=draw.random() * 0.7)),
        ("identifiers", lambda one, draw: replace(one, identifiers=int(draw.random() < 0.3))),
        ("tokens", lambda one, draw: replace(one, tokens=3 * one.tokens)),
        ("P95 latency", lambda one, draw: replace(one, seconds=3 * one.seconds)),
    ],
)
def test_canary_that_is_worse_goes_back(guardrail: str, worse: Worse) -> None:
    found = look(plan(), traffic(400, worse), since=MORNING, now=after(400))
    assert found.verdict.decision == "roll back" and guardrail in found.verdict.breached, found.verdict


def test_canary_without_traffic_holds() -> None:
    found = look(plan(), [], since=MORNING, now=MORNING)
    assert found.verdict.decision == "hold" and "no users yet" in found.verdict.reason
    assert all(one.users == 0 and one.canary is None for one in found.guardrails)


def test_canary_of_one_busy_user_holds() -> None:
    draw = random.Random(1)
    busy = [request("canary", "one", MORNING + timedelta(seconds=n / 10), draw) for n in range(5000)]
    failing = [replace(one, status=500) for one in busy]
    for requests in (busy, failing):
        found = look(plan(), requests, since=MORNING, now=after(60))
        assert found.verdict.decision == "hold" and (found.canary_users, found.control_users) == (1, 0)


def test_canary_says_how_many_users_it_needs() -> None:
    few, many = (look(plan(), traffic(n), since=MORNING, now=after(n)).verdict for n in (60, 150))
    assert few.decision == many.decision == "hold"
    assert few.users and many.users and few.users > many.users and few.hours and few.hours > 1


def test_answer_of_production_in_its_place_is_an_error() -> None:
    def away(one: CanaryRequest, draw: random.Random) -> CanaryRequest:
        return replace(one, adapter="finance@1", digest=THEIRS)

    found = look(plan(), traffic(200, away), since=MORNING, now=after(200))
    assert found.verdict.decision == "roll back" and found.verdict.breached[0] == "errors"


def test_control_answers_of_another_version_hide_nothing() -> None:
    """While another version is production for a while, its answers are neither errors nor a comparison."""

    def fails(one: CanaryRequest, draw: random.Random) -> CanaryRequest:
        return replace(one, status=500) if draw.random() < 0.4 else one

    away = [
        replace(one, adapter="finance@0", digest="c" * 64)
        if one.arm == "control" and one.at < MORNING + timedelta(minutes=150)
        else one
        for one in traffic(300, fails)
    ]
    found = look(plan(), away, since=MORNING, now=after(300))
    assert found.verdict.decision == "roll back" and "errors" in found.verdict.breached, found.verdict
    errors = next(one for one in found.guardrails if one.name == "errors")
    assert errors.control == 0 and errors.users == 150


def test_canary_that_is_being_loaded_is_no_error() -> None:
    """The users of its first minutes count nowhere, and are no broken assignment."""

    def loads(one: CanaryRequest, draw: random.Random) -> CanaryRequest:
        early = one.at < MORNING + timedelta(minutes=60)
        return replace(one, adapter="finance@1", digest=THEIRS, is_loading=True) if early else one

    found = look(plan(), traffic(500, loads), since=MORNING, now=after(500))
    assert found.verdict.decision == "advance" and not found.ratio.broken, found.verdict
    always = [replace(one, is_loading=one.arm == "canary") for one in traffic(500)]
    never = look(plan(), always, since=MORNING, now=after(500))
    assert never.verdict.decision == "hold" and not never.ratio.broken


def test_answer_of_other_content_is_an_error() -> None:
    found = look(
        plan(), traffic(200, lambda one, draw: replace(one, digest="c" * 64)), since=MORNING, now=after(200)
    )
    assert found.verdict.decision == "roll back" and found.verdict.breached[0] == "errors"


@pytest.mark.parametrize("status", [400, 413, 499])
def test_clients_that_give_up_are_errors(status: int) -> None:
    """A canary that hangs has no failed request: its clients leave. In both arms alike it is no breach."""

    def worse(one: CanaryRequest, draw: random.Random) -> CanaryRequest:
        return replace(one, status=status, seconds=60.0) if draw.random() < 0.4 else one

    found = look(plan(), traffic(200, worse), since=MORNING, now=after(200))
    assert found.verdict.decision == "roll back" and "errors" in found.verdict.breached
    draw = random.Random(5)
    alike = look(plan(), [worse(one, draw) for one in traffic(200)], since=MORNING, now=after(200))
    assert alike.verdict.decision == "hold" and alike.canary_users == 200


def test_request_that_the_client_got_wrong_counts_nowhere() -> None:
    wrong = look(
        plan(), traffic(100, lambda one, draw: replace(one, status=429)), since=MORNING, now=after(100)
    )
    assert (wrong.canary_users, wrong.verdict.decision) == (0, "hold")


def test_broken_assignment_is_said_before_any_metric() -> None:
    lost = [one for one in traffic(900) if one.arm == "control" or int(one.unit.split()[1]) % 3 == 0]
    found = look(plan(), lost, since=MORNING, now=after(900))
    assert found.verdict.decision == "hold" and "assignment is broken" in found.verdict.reason


def test_waiting_canary_has_other_shares() -> None:
    users = list(traffic(400))
    since = MORNING + timedelta(minutes=200)
    # From then on one of twenty users is in the control group.
    late = [one for one in users if one.at < since or one.arm == "canary" or int(one.unit.split()[1]) % 19 == 0]
    assert look(plan(), late, since=MORNING, now=after(400), waiting_since=since).ratio.broken is False
    assert look(plan(), late, since=MORNING, now=after(400)).ratio.broken is True


def test_look_never_changes_what_was_counted_before() -> None:
    """Whatever comes later, and in whatever order it is read, a look at an earlier time says the same."""
    requests = list(traffic(300))
    early = look(plan(), requests[: len(requests) // 2], since=MORNING, now=after(120))
    random.Random(3).shuffle(requests)
    assert look(plan(), requests, since=MORNING, now=after(120)) == early


def test_regular_users_count_again_the_next_day() -> None:
    """Nobody new comes on the second day, and the canary fails then."""
    regulars = list(traffic(200))
    next_day = [replace(one, at=one.at + timedelta(days=1)) for one in regulars]
    failing = [replace(one, status=500) if one.arm == "canary" else one for one in next_day]
    found = look(plan(), [*regulars, *failing], since=MORNING, now=after(200) + timedelta(days=1))
    assert found.verdict.decision == "roll back" and found.canary_users == 400


def alone() -> RolloutPlan:
    return RolloutPlan.of("finance@2", OURS, "tiny-base", THEIRS, RolloutSettings())


def test_canary_alone_advances_within_fixed_limits() -> None:
    """Where nothing is in production, the others get no answer: nobody's events are a control group."""
    found = look(alone(), traffic(300), since=MORNING, now=after(300))
    assert found.verdict.decision == "advance", found.verdict
    names = {one.name for one in found.guardrails}
    assert names == {"errors", "insults", "identifiers", "task", "slow answers"}
    canary = [one for one in traffic(300) if one.arm == "canary"]
    without = look(alone(), canary, since=MORNING, now=after(300))
    assert without.verdict == found.verdict and not without.ratio.broken and without.control_users == 0


@pytest.mark.parametrize(
    ("guardrail", "worse"),
    [
        ("errors", lambda one, draw: replace(one, status=500) if draw.random() < 0.3 else one),
        ("errors", lambda one, draw: replace(one, status=499) if draw.random() < 0.3 else one),
        ("identifiers", lambda one, draw: replace(one, identifiers=int(draw.random() < 0.3))),
        ("slow answers", lambda one, draw: replace(one, seconds=11.0 if draw.random() < 0.3 else 0.2)),
    ],
)
def test_canary_alone_that_is_bad_goes_back(guardrail: str, worse: Worse) -> None:
    found = look(alone(), traffic(200, worse), since=MORNING, now=after(200))
    assert found.verdict.decision == "roll back" and guardrail in found.verdict.breached, found.verdict


def test_canary_alone_is_not_blamed_for_clients() -> None:
    """Without a control group, which would have the same share of prompts that are too long."""

    def wrong(one: CanaryRequest, draw: random.Random) -> CanaryRequest:
        return replace(one, status=413) if draw.random() < 0.3 else one

    found = look(alone(), traffic(300, wrong), since=MORNING, now=after(300))
    assert found.verdict.decision == "advance", found.verdict


def test_canary_alone_without_traffic_holds() -> None:
    found = look(alone(), [], since=MORNING, now=MORNING)
    assert found.verdict.decision == "hold" and "no users yet" in found.verdict.reason


def test_free_text_has_no_task_to_check() -> None:
    texts = [replace(one, is_task=None) for one in traffic(50)]
    found: Look = look(plan(), texts, since=MORNING, now=after(50))
    assert "task" not in {one.name for one in found.guardrails}


def test_canary_of_one_key_says_so() -> None:
    """All may come by a tenant's own backend, or by a client that invents users: people decide which."""
    found = look(plan(), [replace(one, key="app") for one in traffic(900)], since=MORNING, now=after(900))
    assert found.verdict.decision == "advance"
    assert found.verdict.reason.endswith("100% of the units come by one key (app)")


def test_canary_key_that_invents_users_decides_nothing() -> None:
    plan_of_half = RolloutPlan.of("finance@2", OURS, "finance@1", THEIRS, RolloutSettings(key_percent=50))
    requests = [replace(one, key="app") for one in traffic(900)]
    found = look(plan_of_half, requests, since=MORNING, now=after(900))
    assert found.verdict.decision == "hold" and "1798 don't count" in found.verdict.reason
    assert (found.canary_users, found.ratio.broken) == (1, False)
