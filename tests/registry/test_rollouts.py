"""Rollouts in the audit log: what each entry does to them, who may, and which of two controllers decides."""

from datetime import datetime
from typing import Any

import pytest

from lora_ops.errors import Damaged, LoraOpsError, Refused
from lora_ops.hashing import sha256_text
from lora_ops.records.rollout import Rollout, RolloutPlan
from lora_ops.records.route import RouteRecord, ShadowRoute
from lora_ops.registry import lifecycle, requirements, rollouts
from lora_ops.registry.changes import LostRace
from lora_ops.registry.owners import Owners
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import EvidenceSettings
from lora_ops.settings.rollout import RolloutSettings
from tests.registry.conftest import FIRST, Build, Clock, Story


@pytest.fixture
def plan(registry: Registry, story: Story, package: Build) -> RolloutPlan:
    """The plan to bring finance@2 into production, where finance@1 is."""
    registry.register(*package(1), actor="ana.silva")
    story.to("finance@1", "production")
    registry.register(*package(2), actor="ana.silva")
    story.to("finance@2", "shadow")
    return plan_of(registry, "finance@2", "finance@1")


def plan_of(registry: Registry, adapter: str, against: str) -> RolloutPlan:
    ours, theirs = (registry.get(one).summary for one in (adapter, against))
    return RolloutPlan.of(ours.id, ours.content_digest, theirs.id, theirs.content_digest, RolloutSettings())


@pytest.fixture
def rollout(registry: Registry, plan: RolloutPlan) -> Rollout:
    return rollouts.begin(registry, plan, actor="ci", reason="better on held-out rows")


def test_rollout_is_read_from_the_log_alone(registry: Registry, rollout: Rollout, plan: RolloutPlan) -> None:
    assert (rollout.plan, rollout.phase, rollout.percent, rollout.started_by) == (plan, "shadow", 0, "ci")
    canary = rollouts.move(registry, rollout, "canary", "shadow agrees", actor="ci", step=0)
    assert (canary.phase, canary.percent, canary.said) == ("canary", 1, "shadow agrees")
    for step in (1, 2, 3):
        canary = rollouts.move(registry, canary, "canary", "no breach", actor="ci", step=step)
    ready = rollouts.move(registry, canary, "ready", "no breach", actor="ci", verdict={"users": 300})
    assert ready.percent == 95 and ready.is_running
    other = Registry(registry.path, owners=registry.owners, clock=registry.clock)
    assert rollouts.rollouts(other, "finance") == [ready] == [rollouts.running(other, "finance")]
    other.close()
    assert not verify(registry).problems


def test_rollout_is_changed_by_one_of_two_controllers(registry: Registry, rollout: Rollout) -> None:
    rollouts.move(registry, rollout, "canary", "shadow agrees", actor="ci")
    head = registry.log.head()
    with pytest.raises(LostRace, match=r"changed meanwhile \(canary: shadow agrees\): look again"):
        rollouts.move(registry, rollout, "returned", "a breach", actor="ci")
    assert registry.log.head() == head


def test_rollout_of_a_tenant_is_alone(registry: Registry, rollout: Rollout, package: Build) -> None:
    registry.register(*package(3), actor="ana.silva")
    plan = plan_of(registry, "finance@3", "finance@1")
    with pytest.raises(Refused, match="finance@2 runs already.*rollout abort finance@2"):
        rollouts.begin(registry, plan, actor="ci", reason="next")
    rollouts.move(registry, rollout, "aborted", "finance@3 is better", actor=FIRST)
    assert rollouts.begin(registry, plan, actor="ci", reason="next").phase == "shadow"


def test_rollout_that_went_back_is_started_again(registry: Registry, rollout: Rollout) -> None:
    gone = rollouts.move(registry, rollout, "returned", "errors", actor="ci")
    with pytest.raises(Refused, match=r"has ended \(returned\): errors"):
        rollouts.move(registry, gone, "canary", "no", actor="ci")
    again = rollouts.begin(registry, gone.plan, actor="ci", reason="the node was broken")
    assert (again.phase, again.attempt) == ("shadow", 2)
    done = rollouts.move(registry, again, "done", "in production", actor="ci")
    with pytest.raises(Refused, match="finance@2 is done: in production"):
        rollouts.begin(registry, done.plan, actor="ci", reason="again")


def test_rollout_is_paused_by_anybody_and_not_resumed_so(registry: Registry, rollout: Rollout) -> None:
    paused = rollouts.pause(registry, rollout, actor="eve", reason="a look first")
    assert paused.paused and paused.phase == "shadow"
    with pytest.raises(Refused, match="is paused already"):
        rollouts.pause(registry, paused, actor="eve", reason="a look first")
    with pytest.raises(Refused, match="eve may not change the rollout of finance@2"):
        rollouts.resume(registry, paused, actor="eve", reason="looked")
    resumed = rollouts.resume(registry, paused, actor="oncall", reason="looked")
    assert not resumed.paused
    with pytest.raises(Refused, match="is not paused"):
        rollouts.resume(registry, resumed, actor="oncall", reason="looked")


@pytest.mark.parametrize(
    ("actor", "reason", "said"),
    [
        ("eve", "better", "eve may not start the rollout of finance@2"),
        ("mallory", "better", "mallory may not start the rollout of finance@2"),
        ("ci", "  ", "Say why"),
    ],
)
def test_rollout_is_started_by_a_role_with_a_reason(
    registry: Registry, plan: RolloutPlan, actor: str, reason: str, said: str
) -> None:
    with pytest.raises(LoraOpsError, match=said):
        rollouts.begin(registry, plan, actor=actor, reason=reason)
    assert rollouts.rollouts(registry, "finance") == []


def test_rollout_goes_back_and_not_on_without_a_role(registry: Registry, rollout: Rollout) -> None:
    with pytest.raises(Refused, match="eve may not change"):
        rollouts.move(registry, rollout, "canary", "fine", actor="eve")
    assert rollouts.move(registry, rollout, "aborted", "not fine", actor="eve").phase == "aborted"


def test_rollout_of_somebody_who_left_goes_back_and_verifies(
    registry: Registry, rollout: Rollout, owners: Owners
) -> None:
    """A registry that does not verify can't be backed up: whoever started a rollout may leave the team."""
    shadow = ShadowRoute(number=2, percent=20)
    people = owners.model_dump(mode="json")
    people["default"]["people"] = [one for one in people["default"]["people"] if one["id"] != "ci"]
    registry.owners = Owners.model_validate(people)
    rollout = rollouts.move(
        registry,
        rollout,
        "shadow",
        "20 % of the requests",
        actor="ci",
        route=lambda route: route.model_copy(update={"shadow": shadow}),
    )
    rollouts.move(registry, rollout, "returned", "errors", actor="ci", route=lambda route: RouteRecord())
    assert registry.route("finance").is_empty
    assert not verify(registry).problems


def test_route_of_a_newer_release_stops_no_way_back(registry: Registry, rollout: Rollout) -> None:
    with registry.change("ci") as change:
        change.reroute("canary_set", "finance", {"canary": {"by": "mood"}})

    def gone(route: RouteRecord) -> RouteRecord:
        return route.model_copy(update={"canary": None})

    with pytest.raises(Refused, match="route of 'finance' was written by a newer lora-ops"):
        rollouts.move(registry, rollout, "canary", "fine", actor="ci", route=gone)
    assert rollouts.move(registry, rollout, "returned", "errors", actor="ci", route=gone).phase == "returned"


def test_entry_that_is_no_rollout_is_named(registry: Registry, rollout: Rollout) -> None:
    with registry.change("ci") as change:
        change.note("moved", "rollout", "finance@2", phase="nowhere", step=0)
    with pytest.raises(Damaged, match="about the rollout of finance@2, is not what lora-ops writes"):
        rollouts.running(registry, "finance")


def test_plan_with_a_setting_of_a_newer_release_is_read(registry: Registry, plan: RolloutPlan) -> None:
    stated = plan.model_dump(mode="json")
    stated["canary"]["mood"] = "good"
    with registry.change("ci") as change:
        change.note("started", "rollout", "finance@2", reason="a newer release", plan=stated)
    found = rollouts.running(registry, "finance")
    assert found and found.plan == plan


def test_entry_of_another_tenant_stops_nobody(registry: Registry, rollout: Rollout) -> None:
    with registry.change("ci") as change:
        change.note("moved", "rollout", "media@2", phase="nowhere", step=0)
    assert rollouts.running(registry, "finance") == rollout


def test_entry_of_a_newer_release_changes_nothing_known(registry: Registry, rollout: Rollout) -> None:
    with registry.change("ci") as change:
        change.note("annotated", "rollout", "finance@2", reason="a newer release")
    found = rollouts.rollout_of(registry, "finance@2")
    assert found and (found.phase, found.seq) == ("shadow", rollout.seq + 1)


@pytest.fixture
def approved(registry: Registry, story: Story, package: Build) -> Registry:
    """finance@2 has reports on shadow and canary that people filed, and two approvals; it had no rollout."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to("finance@1", "production")
    story.to("finance@2", "canary")
    story.file("canary", about="finance@2")
    story.approve("finance@2")
    return registry


def ask(registry: Registry, rollout: str) -> None:
    registry.least = registry.least.model_copy(update={"rollout": rollout})


def bring(registry: Registry, reference: str = "finance@2") -> None:
    lifecycle.promote(registry, reference, "production", actor="ci", reason="two agreed")


def test_filed_reports_are_no_way_around_a_rollout(approved: Registry) -> None:
    assert EvidenceSettings().rollout == "required"
    ask(approved, "required")
    said = r"missing.*a rollout that is ready \(`lora-ops rollout start finance@2 --reason TEXT` begins it"
    with pytest.raises(Refused, match=said):
        bring(approved)
    ask(approved, "optional")
    bring(approved)
    assert approved.named("finance", "production") == 2 and not verify(approved).problems


def test_aborted_rollout_is_no_way_around_one(registry: Registry, rollout: Rollout, story: Story) -> None:
    rollouts.move(registry, rollout, "aborted", "we know better", actor=FIRST)
    story.to("finance@2", "canary")
    story.file("canary", about="finance@2")
    story.approve("finance@2")
    ask(registry, "required")
    with pytest.raises(Refused, match=r"it is 'aborted': we know better; `lora-ops rollout start finance@2"):
        bring(registry)
    ask(registry, "optional")
    bring(registry)


def test_rollout_is_asked_for_beside_production_alone(registry: Registry, story: Story, package: Build) -> None:
    """Nothing to compare with asks for none; nor does a rollback, which must work in any state."""
    ask(registry, "required")
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to("finance@1", "production")
    ask(registry, "optional")
    story.to("finance@2", "production")
    ask(registry, "required")
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)
    assert registry.named("finance", "production") == 1 and not verify(registry).problems


def test_expired_production_asks_for_no_rollout(approved: Registry, clock: Clock) -> None:
    """It answers nobody and never will again: there is nothing to compare with, and its users wait."""
    ask(approved, "required")
    until = datetime.fromisoformat(approved.get("finance@1").summary.fresh_until)
    clock.move(days=(until - clock()).days + 1)
    lacks = missing_for(approved, "finance@2")[1]
    assert not any("rollout" in one for one in lacks)
    ask(approved, "optional")
    assert missing_for(approved, "finance@2")[1] == lacks


def test_verify_names_a_promotion_without_its_rollout(
    approved: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(approved, "required")
    monkeypatch.setattr(requirements, "not_ready", lambda registry, version: ())
    bring(approved)
    assert any("without a rollout that was ready" in one for one in verify(approved).problems)


def forge(registry: Registry, actor: str, action: str, **body: Any) -> None:
    """Write an entry past the checks, with the registry's key, as a script of whoever has the folder could."""
    assert registry.owners
    known = {"reason": "trust me", "owners_sha256": sha256_text(registry.owners.text)}
    with registry.change(actor) as change:
        change.note(action, "rollout", "finance@2", **known, **body)


@pytest.mark.parametrize(
    ("phase", "step", "said"),
    [
        ("ready", 3, "moves a rollout from shadow (step 0) to ready (step 3)"),
        ("canary", 3, "moves a rollout from shadow (step 0) to canary (step 3)"),
    ],
)
def test_verify_names_a_phase_that_follows_none(
    registry: Registry, rollout: Rollout, phase: str, step: int, said: str
) -> None:
    forge(registry, "ci", "moved", phase=phase, step=step)
    [problem] = verify(registry).problems
    assert said in problem


def test_verify_names_who_moved_a_rollout_without_a_role(registry: Registry, rollout: Rollout) -> None:
    """An author who has the registry's folder takes a version on; taking it back anybody in the team may."""
    forge(registry, "eve", "moved", phase="canary", step=0)
    [problem] = verify(registry).problems
    assert "(moved rollout finance@2) is by eve, whom owners.yaml of that day does not let" in problem


def test_verify_names_a_rollout_that_goes_on_after_its_end(registry: Registry, rollout: Rollout) -> None:
    rollouts.move(registry, rollout, "aborted", "complaints", actor="eve")
    assert not verify(registry).problems
    forge(registry, "ci", "moved", phase="canary", step=0)
    assert any("changes a rollout that had ended (aborted)" in one for one in verify(registry).problems)


def test_verify_knows_a_rollout_that_is_begun_twice(
    registry: Registry, rollout: Rollout, plan: RolloutPlan
) -> None:
    forge(registry, "eve", "retried", plan=plan.model_dump(mode="json"))
    problems = verify(registry).problems
    assert any("begins a rollout that runs or is done" in one for one in problems)
    assert any("is by eve" in one for one in problems)
