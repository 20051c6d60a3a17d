"""A rollout round by round on a real registry: on, back, stay, and on again after a kill at each change."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.rollout import Rollout
from lora_ops.registry import lifecycle, rollouts, routes
from lora_ops.registry.requirements import Stage
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import controller
from lora_ops.rollout.controller import Round, abort, one_round, start
from lora_ops.rollout.verdicts import Verdict
from tests.registry.conftest import Build, Clock, Story
from tests.rollout.rolling import AGREES, SETTINGS, Traffic

WAITS = Verdict("hold", "about 40 more users, 2.0 hours")
BREAKS = Verdict("roll back", "task is worse by more than the margin")


def run(registry: Registry, evidence: Traffic, rounds: int = 20, adapter: str = "finance@2") -> Round:
    """Let a controller go on until it stays where it is."""
    for _ in range(rounds):
        found = rollouts.rollout_of(registry, adapter)
        assert found
        done = one_round(registry, found, evidence)
        if not done.changed or not done.rollout.is_running:
            return done
    raise AssertionError("it never stays")


def ready(registry: Registry, evidence: Traffic) -> Round:
    """Let enough users come until it waits for approvals."""
    run(registry, evidence)
    for users in (300, 60):
        evidence.come(users)
        done = run(registry, evidence)
    assert done.rollout.phase == "ready"
    return done


def canary_of(registry: Registry) -> float | None:
    canary = routes.current(registry, "finance").route.canary
    return canary.percent if canary else None


def test_rollout_goes_to_production_by_evidence(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Shadow, both steps, ready; two approvals later the alias moves, and the route is empty."""
    registry.least = registry.least.model_copy(update={"rollout": "required"})
    held = run(registry, traffic_of)
    assert (held.rollout.phase, canary_of(registry)) == ("canary", 5) and "no users yet" in held.said
    traffic_of.come(300)
    held = run(registry, traffic_of)
    assert (held.rollout.step, canary_of(registry)) == (1, 50) and "1.0 hours more" in held.said
    traffic_of.come(60)
    ready = run(registry, traffic_of)
    assert (ready.rollout.phase, canary_of(registry)) == ("ready", 95)
    assert "2 more approvals" in ready.said or "approval" in ready.said
    traffic_of.story.approve("finance@2")
    done = run(registry, traffic_of)
    assert (done.rollout.phase, registry.named("finance", "production")) == ("done", 2)
    assert routes.current(registry, "finance").route.is_empty
    assert not verify(registry).problems


def test_breach_takes_the_canary_off(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    run(registry, traffic_of)
    traffic_of.come(60, status=500)
    done = run(registry, traffic_of)
    assert done.rollout.phase == "returned" and "errors" in done.said and canary_of(registry) is None
    assert registry.get("finance@2").state == "canary" and registry.named("finance", "production") == 1
    last = registry.log.of_kind("rollout")[-1]
    assert last.body["canary_users"] == 60 and last.body["guardrails"][0]["name"] == "errors"


def test_breach_while_approvals_are_awaited_goes_back(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    run(registry, traffic_of)
    traffic_of.come(300)
    run(registry, traffic_of)
    traffic_of.come(60)
    assert run(registry, traffic_of).rollout.phase == "ready"
    traffic_of.story.approve("finance@2")
    traffic_of.come(200, status=500)
    done = run(registry, traffic_of)
    assert done.rollout.phase == "returned" and registry.named("finance", "production") == 1
    assert canary_of(registry) is None


def test_approvals_before_a_breach_open_nothing(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Nobody promotes by hand what went back; approved anew, it must come to `ready` first."""
    ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    traffic_of.come(200, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned"
    for do in (
        lambda: lifecycle.promote(registry, "finance@2", "production", actor="oncall", reason="it is late"),
        lambda: lifecycle.approve(registry, "finance@2", actor="dana", reason="it is late"),
    ):
        with pytest.raises(Refused, match="a rollout that is ready.*'returned': canary.*errors.*rollout start"):
            do()
    assert {one.void for one in lifecycle.approvals(registry, registry.get("finance@2"))} == {
        "the rollout ended after it"
    }
    start(registry, "finance@2", SETTINGS, actor="oncall", reason="the node was broken")
    with pytest.raises(Refused, match="a rollout that is ready.*'shadow'.*rollout abort"):
        lifecycle.promote(registry, "finance@2", "production", actor="oncall", reason="it is late")


def test_lost_users_hold_the_promotion(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    """All approve, and of a canary with 95 % of the users no event comes any more."""
    held = ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    traffic_of.come(60)
    known = len(traffic_of.requests) - 240
    late = [one for one in traffic_of.requests[known:] if one.arm == "control"]
    traffic_of.requests = traffic_of.requests[:known] + late
    done = one_round(registry, held.rollout, traffic_of)
    assert done.said.startswith("hold: assignment is broken") and registry.named("finance", "production") == 1


def test_abort_is_before_the_promotion_of_its_round(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody ends the rollout after a controller saw that nothing is missing, and before it promotes."""
    held = ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    real = controller.missing_for

    def missing_for(registry: Registry, reference: str) -> tuple[Stage | None, list[str]]:
        found = real(registry, reference)
        abort(registry, held.rollout, actor="eve", reason="it insults people")
        return found

    monkeypatch.setattr(controller, "missing_for", missing_for)
    with pytest.raises(Refused, match="the rollout ended after it"):
        one_round(registry, held.rollout, traffic_of)
    assert registry.named("finance", "production") == 1
    traffic_of.clock.time += timedelta(minutes=1)
    traffic_of.story.approve("finance@2")  # people may agree to it after that
    lifecycle.promote(registry, "finance@2", "production", actor="oncall", reason="eve was wrong")


def test_breach_in_shadow_ends_the_shadow(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    traffic_of.pairs = BREAKS
    done = run(registry, traffic_of)
    assert (done.rollout.phase, done.said) == ("returned", "shadow: task is worse by more than the margin")
    assert routes.current(registry, "finance").route.is_empty and registry.get("finance@2").state == "shadow"


def test_hold_changes_nothing(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    traffic_of.pairs = WAITS
    held = run(registry, traffic_of)
    head = registry.log.head()
    assert str(WAITS) == held.said == run(registry, traffic_of).said and registry.log.head() == head


def test_no_route_moves_to_what_does_not_answer(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Before each move a gateway must answer with the version; production stays, and a breach still counts."""
    traffic_of.silence = "http://127.0.0.1:8000 does not answer with finance@2 (500: it can't be loaded)"
    held = run(registry, traffic_of)
    assert held.said == f"hold: {traffic_of.silence}" and canary_of(registry) is None
    assert registry.get("finance@2").state == "shadow"
    traffic_of.silence = None
    run(registry, traffic_of)
    traffic_of.come(300)
    traffic_of.silence = "no gateway runs"
    assert run(registry, traffic_of).said == "hold: no gateway runs" and canary_of(registry) == 5
    traffic_of.silence = None
    run(registry, traffic_of)
    traffic_of.come(60)
    traffic_of.silence = "no gateway runs"
    assert run(registry, traffic_of).said == "hold: no gateway runs" and canary_of(registry) == 50
    traffic_of.silence = None
    assert run(registry, traffic_of).rollout.phase == "ready"
    traffic_of.story.approve("finance@2")
    traffic_of.silence = "no gateway runs"
    assert run(registry, traffic_of).said == "hold: no gateway runs"
    assert registry.named("finance", "production") == 1
    traffic_of.come(200, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned"


def test_paused_rollout_goes_back_and_not_on(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    held = run(registry, traffic_of)
    paused = rollouts.pause(registry, held.rollout, actor="eve", reason="a look first")
    traffic_of.come(300)
    held = one_round(registry, paused, traffic_of)
    assert held.said.startswith("paused; the evidence says advance") and canary_of(registry) == 5
    traffic_of.come(100, status=500)
    assert one_round(registry, paused, traffic_of).rollout.phase == "returned"


def test_abort_leaves_production_alone(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    held = run(registry, traffic_of)
    routes.pin(registry, "finance@2", segments=["staff"], actor="oncall", reason="try it")
    ended = abort(registry, held.rollout, actor="eve", reason="finance@3 is better")
    assert ended.phase == "aborted" and routes.current(registry, "finance").route.is_empty
    with pytest.raises(Refused, match=r"has ended \(aborted\)"):
        abort(registry, ended, actor="eve", reason="again")


def test_revoked_canary_ends_its_rollout(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    run(registry, traffic_of)
    lifecycle.revoke(registry, "finance@2", actor="eve", reason="it insults people")
    done = run(registry, traffic_of)
    assert (done.rollout.phase, done.said) == ("aborted", "finance@2 was revoked")


def test_expired_canary_goes_back(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    run(registry, traffic_of)
    traffic_of.clock.time += timedelta(days=400)
    done = run(registry, traffic_of)
    assert done.rollout.phase == "returned" and "expired" in done.said and canary_of(registry) is None


def test_other_production_ends_the_rollout(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    """Whoever rolled production back meanwhile must not get this canary compared with another version."""
    run(registry, traffic_of)
    lifecycle.revoke(registry, "finance@1", actor="eve", reason="it insults people")
    done = run(registry, traffic_of)
    assert done.rollout.phase == "aborted" and "nothing is in production now" in done.said


def test_route_that_was_changed_by_hand_holds(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    run(registry, traffic_of)
    routes.clear(registry, "finance", "canary", actor="eve", reason="complaints")
    traffic_of.come(300)
    held = run(registry, traffic_of)
    assert "the route gives finance@2 0 %, and this step 5 %" in held.said and canary_of(registry) is None


def test_shadow_that_was_cleared_by_hand_holds(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """Whoever ended it, for a gateway that is too busy, does not find it back at the next look."""
    traffic_of.pairs = WAITS
    run(registry, traffic_of)
    routes.clear(registry, "finance", "shadow", actor="eve", reason="the gateway is too busy")
    held = run(registry, traffic_of)
    assert "the route asks finance@2 for 0 % of the requests again, and the plan 20 %" in held.said
    assert routes.current(registry, "finance").route.shadow is None
    traffic_of.pairs = BREAKS
    assert run(registry, traffic_of).rollout.phase == "returned"


def test_clock_that_was_set_back_holds(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    run(registry, traffic_of)
    traffic_of.come(300)
    traffic_of.clock.time -= timedelta(days=2)
    held = run(registry, traffic_of)
    assert held.said.startswith("hold") and canary_of(registry) == 5


def test_traffic_that_ends_in_a_step_holds(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    """Silence is no evidence: neither a night nor ten days of it take the version on or back."""
    run(registry, traffic_of)
    traffic_of.come(40)
    for days in (0.5, 10):
        traffic_of.clock.time += timedelta(days=days)
        held = run(registry, traffic_of)
        assert held.said.startswith("hold") and "no traffic now" in held.said and canary_of(registry) == 5
    traffic_of.come(300)
    assert run(registry, traffic_of).rollout.step == 1


def test_gateway_that_is_away_for_an_hour_holds(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    """It has enough users, and comes back: the rollout goes on with those of before."""
    run(registry, traffic_of)
    traffic_of.come(300)
    traffic_of.silence = "no gateway runs with .serving"
    for _ in range(3):
        assert run(registry, traffic_of).said == "hold: no gateway runs with .serving"
        traffic_of.clock.time += timedelta(minutes=20)
    traffic_of.silence = None
    assert run(registry, traffic_of).rollout.step == 1 and canary_of(registry) == 50


def test_raising_the_share_keeps_the_salt(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    run(registry, traffic_of)
    first = routes.current(registry, "finance").route.canary
    traffic_of.come(300)
    run(registry, traffic_of)
    second = routes.current(registry, "finance").route.canary
    assert first and second and second.percent > first.percent and second.salt == first.salt


def test_starter_who_left_the_team_stops_no_way_back(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    run(registry, traffic_of)
    assert registry.owners
    team = registry.owners.default
    others = tuple(one for one in team.people if one.id != "oncall")
    registry.owners = registry.owners.model_copy(update={"default": team.model_copy(update={"people": others})})
    traffic_of.come(100, status=500)
    assert run(registry, traffic_of).rollout.phase == "returned" and canary_of(registry) is None


@pytest.fixture
def first(registry: Registry, story: Story, package: Build, clock: Clock) -> Traffic:
    """The rollout of finance@1 has begun, and nothing is in production."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to("finance@1", "validated")
    story.file("human_evaluation", about="finance@1")
    start(registry, "finance@1", SETTINGS, actor="oncall", reason="the first one")
    return Traffic(story, clock)


def first_ready(registry: Registry, evidence: Traffic) -> Round:
    run(registry, evidence, adapter="finance@1")
    for users in (300, 60):
        evidence.come(users)
        done = run(registry, evidence, adapter="finance@1")
    assert done.rollout.phase == "ready"
    return done


def test_first_version_goes_to_production(registry: Registry, first: Traffic) -> None:
    """Nothing is mirrored; its canary has no control group; two people approve all the same."""
    found = rollouts.rollout_of(registry, "finance@1")
    assert found and found.plan.is_alone and not found.plan.against.startswith("finance")
    moved = one_round(registry, found, first)
    assert "answers whoever asks for it by this name" in moved.said
    assert routes.current(registry, "finance").route.is_empty
    held = first_ready(registry, first)
    assert "approval" in held.said and canary_of(registry) == 95
    first.story.approve("finance@1")
    done = run(registry, first, adapter="finance@1")
    assert (done.rollout.phase, registry.named("finance", "production")) == ("done", 1)
    assert routes.current(registry, "finance").route.is_empty and not verify(registry).problems


def test_first_version_that_is_bad_goes_back(registry: Registry, first: Traffic) -> None:
    run(registry, first, adapter="finance@1")
    first.come(60, status=500)
    done = run(registry, first, adapter="finance@1")
    assert done.rollout.phase == "returned" and canary_of(registry) is None
    assert registry.named("finance", "production") is None


def test_version_after_a_revoked_one_is_alone(registry: Registry, traffic_of: Traffic) -> None:
    lifecycle.revoke(registry, "finance@1", actor="eve", reason="it insults people")
    begun = start(registry, "finance@2", SETTINGS, actor="oncall", reason="the way out")
    assert begun.plan.is_alone and one_round(registry, begun, traffic_of).rollout.phase == "shadow"


def test_start_needs_what_shadow_needs(registry: Registry, traffic_of: Traffic, package: Build) -> None:
    registry.register(*package(3), actor="ana.silva")
    with pytest.raises(Refused, match="finance@3 is 'candidate': a rollout begins with"):
        start(registry, "finance@3", SETTINGS, actor="oncall", reason="next")
    traffic_of.story.to("finance@3", "validated")
    with pytest.raises(Refused, match="can't go into shadow yet; missing: .*human_evaluation"):
        start(registry, "finance@3", SETTINGS, actor="oncall", reason="next")
    assert rollouts.rollouts(registry, "finance") == []


class Killed(BaseException):
    """Stands for SIGKILL right after a transaction."""


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the process die after the n-th change from now on."""

    def after(count: int) -> None:
        left = [count]
        whole = Registry.change

        from contextlib import contextmanager

        @contextmanager
        def change(self: Registry, *args: object, **more: object) -> Iterator[object]:
            with whole(self, *args, **more) as one:  # type: ignore[arg-type]
                yield one
            left[0] -= 1
            if left[0] == 0:
                monkeypatch.setattr(Registry, "change", whole)
                raise Killed

        monkeypatch.setattr(Registry, "change", change)

    return after


@pytest.mark.parametrize("kills", range(1, 8))
def test_kill_after_each_change_is_mended(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, dying: Callable[[int], None], kills: int
) -> None:
    """Wherever a controller dies, the next one brings the rollout to where it would have been."""
    dying(kills)
    for users in (0, 300, 60):
        traffic_of.come(users)  # after the kill, too: nothing of them is lost
        for _ in range(3):
            with suppress(Killed, LoraOpsError):
                run(registry, traffic_of)
    found = rollouts.rollout_of(registry, "finance@2")
    assert found and (found.phase, canary_of(registry)) == ("ready", 95)
    traffic_of.story.approve("finance@2")
    dying(1)
    with suppress(Killed):
        run(registry, traffic_of)
    assert run_to_the_end(registry, traffic_of) == "done" and registry.named("finance", "production") == 2
    assert routes.current(registry, "finance").route.is_empty and not verify(registry).problems


def run_to_the_end(registry: Registry, evidence: Traffic) -> str:
    found = rollouts.rollout_of(registry, "finance@2")
    assert found
    return run(registry, evidence).rollout.phase if found.is_running else found.phase


def test_stopped_production_holds_a_rollout(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    """Its refusals would make any canary look good; once it is resumed, the rollout goes on."""
    run(registry, traffic_of)
    traffic_of.come(300)
    routes.stop(registry, "finance@1", actor="oncall", reason="it insults")
    held = run(registry, traffic_of)
    assert (held.rollout.step, held.changed) == (0, False)
    assert "production answers nobody" in held.said and "finance@1 was stopped" in held.said
    routes.resume(registry, "finance@1", actor="oncall", reason="it doesn't")
    assert run(registry, traffic_of).rollout.step == 1


def test_stopped_production_keeps_no_breach_waiting(
    registry: Registry, rollout: Rollout, traffic_of: Traffic
) -> None:
    run(registry, traffic_of)
    traffic_of.come(60, status=500)
    routes.stop(registry, "finance@1", actor="oncall", reason="it insults")
    assert run(registry, traffic_of).rollout.phase == "returned"


def test_stopped_production_holds_a_shadow(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    traffic_of.pairs = WAITS
    run(registry, traffic_of)
    routes.stop(registry, "finance@1", actor="oncall", reason="it insults")
    traffic_of.pairs = AGREES
    held = run(registry, traffic_of)
    assert held.rollout.phase == "shadow" and "production answers nobody" in held.said
