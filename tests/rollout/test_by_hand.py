"""What people may do by hand to a version with a rollout: none of it goes past the evidence."""

import pytest

from lora_ops.errors import Refused
from lora_ops.hashing import sha256_text
from lora_ops.records.rollout import Rollout
from lora_ops.registry import lifecycle, rollouts, routes
from lora_ops.registry.by_hand import MOST_USERS
from lora_ops.registry.reports import Report, filed, load
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout.controller import abort, start
from lora_ops.rollout.verdicts import Verdict
from tests.registry.conftest import Build
from tests.registry.test_rollouts import ask
from tests.rollout.rolling import SETTINGS, Traffic
from tests.rollout.test_controller import canary_of, ready, run

WHY = {"actor": "oncall", "reason": "I want it"}
BREAKS = Verdict("roll back", "task is worse by more than the margin")


def test_what_went_back_gets_no_users_by_hand(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """No controller looks at it any more: its errors would stay on air."""
    run(registry, traffic_of)
    traffic_of.come(60, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned"
    for give in (
        lambda: routes.set_canary(registry, "finance@2", 1, **WHY),
        lambda: routes.pin(registry, "finance@2", users=["ana"], **WHY),
        lambda: routes.pin(registry, "finance@2", segments=["staff"], **WHY),
    ):
        with pytest.raises(Refused, match="finance@2 went back .*errors.*rollout start finance@2"):
            give()
    assert routes.current(registry, "finance").route.is_empty
    start(registry, "finance@2", SETTINGS, actor="oncall", reason="the node was broken")
    with pytest.raises(Refused, match="gives it 0 % of the users \\(shadow\\): wait for it"):
        routes.set_canary(registry, "finance@2", 1, **WHY)


def test_hand_gives_a_canary_no_more_than_its_step(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """With all users it has no control group, so that nobody would see a breach."""
    run(registry, traffic_of)
    with pytest.raises(Refused, match="gives it 5 % of the users \\(canary\\)"):
        routes.set_canary(registry, "finance@2", 100, **WHY)
    for percent in (1.0, 5.0):
        routes.set_canary(registry, "finance@2", percent, **WHY)
        assert canary_of(registry) == percent
    routes.pin(registry, "finance@2", segments=["staff"], **WHY)
    found = rollouts.rollout_of(registry, "finance@2")
    assert found
    abort(registry, found, **WHY)
    ask(registry, "required")
    with pytest.raises(Refused, match="One person gives finance@2 at most 1 %"):
        routes.set_canary(registry, "finance@2", 5, **WHY)
    ask(registry, "optional")
    routes.set_canary(registry, "finance@2", 100, **WHY)  # people ended it, and it is theirs


def test_rollout_that_is_ready_takes_pins(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    """In a step of 5 % its testers are few and named; once it is ready, 95 % of the users get it anyway."""
    ask(registry, "required")
    run(registry, traffic_of)
    users = [f"user {number}" for number in range(MOST_USERS + 1)]
    for give in ({"users": users}, {"segments": ["staff"]}):
        with pytest.raises(Refused, match="finance@2"):
            routes.pin(registry, "finance@2", **give, **WHY)
    routes.pin(registry, "finance@2", users=users[1:], **WHY)
    traffic_of.come(300)
    run(registry, traffic_of)
    traffic_of.come(60)
    assert run(registry, traffic_of).rollout.phase == "ready"
    routes.pin(registry, "finance@2", users=users, segments=["staff"], **WHY)
    found = verify(registry)
    assert not found.problems and not any("gives finance@2" in one for one in found.warnings)


def test_paused_rollout_gives_users_by_hand_up_to_its_step(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Its controller still takes it back."""
    ask(registry, "required")
    held = run(registry, traffic_of).rollout
    rollouts.pause(registry, held, actor="eve", reason="a look at the answers first")
    routes.set_canary(registry, "finance@2", 1, **WHY)
    routes.set_canary(registry, "finance@2", 5, **WHY)
    with pytest.raises(Refused, match="gives it 5 % of the users"):
        routes.set_canary(registry, "finance@2", 6, **WHY)


def test_share_of_what_went_back_can_be_lowered(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """A release that knew no such rule left it there."""
    run(registry, traffic_of)
    traffic_of.come(60, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned"
    assert registry.owners
    share = {"canary": {"number": 2, "percent": 50, "salt": "12345678"}}
    with registry.change("oncall") as change:
        digest = sha256_text(registry.owners.text)
        change.reroute("canary_set", "finance", share, reason="I want it", owners_sha256=digest)
    routes.set_canary(registry, "finance@2", 25, **WHY)
    assert canary_of(registry) == 25


def test_version_that_broke_in_shadow_gets_no_users(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Whoever files a report on a shadow brings it to canary, and no further."""
    traffic_of.pairs = BREAKS
    assert run(registry, traffic_of).rollout.phase == "returned"
    reports = traffic_of.story.evidence("shadow", about="finance@2")
    lifecycle.promote(registry, "finance@2", "canary", evidence=reports, **WHY)
    with pytest.raises(Refused, match="went back"):
        routes.set_canary(registry, "finance@2", 50, **WHY)


def test_report_of_an_earlier_attempt_revives_no_approval(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """What people signed before a breach names the same bytes as a report that is filed once more."""
    ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    seen = filed(registry.get("finance@2"), registry.log.entries("finance", 2))["canary"]
    document = load(registry.files, seen)
    assert document and seen.source_sha256
    source = registry.files.checked(seen.source_sha256, "the events").read_bytes()
    traffic_of.come(200, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned"
    traffic_of.requests.clear()
    start(registry, "finance@2", SETTINGS, actor="oncall", reason="the node was broken")
    ready(registry, traffic_of)
    lifecycle.file_evidence(registry, "finance@2", Report(document, source, "once more"), actor="oncall")
    found = lifecycle.approvals(registry, registry.get("finance@2"))
    assert {one.void for one in found} == {"the rollout ended after it"}


def test_paused_rollout_keeps_people_from_production(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Somebody looks at the answers first: neither CI nor a colleague promotes it meanwhile."""
    held = ready(registry, traffic_of).rollout
    traffic_of.story.approve("finance@2")
    paused = rollouts.pause(registry, held, actor="eve", reason="a look at the answers first")
    with pytest.raises(Refused, match="an end of its rollout's pause \\(a look at.*rollout resume finance@2"):
        lifecycle.promote(registry, "finance@2", "production", **WHY)
    rollouts.resume(registry, paused, **WHY)
    lifecycle.promote(registry, "finance@2", "production", **WHY)
    assert not verify(registry).problems


def test_ready_beside_what_was_rolled_back_is_no_more(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, package: Build
) -> None:
    """finance@3 is no worse than finance@2, which leaks; before a controller looks, nobody promotes it."""
    story = traffic_of.story
    ready(registry, traffic_of)
    story.approve("finance@2")
    assert run(registry, traffic_of).rollout.phase == "done"
    registry.least = registry.least.model_copy(update={"regression": False})
    registry.register(*package(3), actor="ana.silva")
    story.to("finance@3", "validated")
    story.file("human_evaluation", about="finance@3")
    traffic_of.requests.clear()
    start(registry, "finance@3", SETTINGS, **WHY)
    run(registry, traffic_of, adapter="finance@3")
    for users in (300, 60):
        traffic_of.come(users)
        done = run(registry, traffic_of, adapter="finance@3")
    assert done.rollout.phase == "ready"
    story.approve("finance@3")
    incident = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", evidence=incident, **WHY)
    with pytest.raises(Refused, match="a rollout beside finance@1, which is in production now, not finance@2"):
        lifecycle.promote(registry, "finance@3", "production", **WHY)
