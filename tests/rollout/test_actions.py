"""Who may do what with a rollout, by owners.yaml and what was approved."""

from lora_ops.records.rollout import Rollout
from lora_ops.registry import rollouts
from lora_ops.registry.store import Registry
from lora_ops.rollout.actions import actions, lacking
from lora_ops.rollout.controller import abort, one_round
from tests.registry.conftest import Story
from tests.rollout.rolling import Traffic
from tests.rollout.test_controller import BREAKS, ready


def people(registry: Registry, rollout: Rollout) -> dict[str, tuple[str, ...]]:
    return {one.what: one.people for one in actions(registry, rollout)}


def test_actions_follow_a_rollout(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, story: Story
) -> None:
    owners = registry.owners
    assert owners
    team = owners.team("finance")
    everybody, movers = (
        tuple(one.id for one in team.people),
        tuple(one.id for one in team.with_role(frozenset({"approver", "operator"}))),
    )
    assert people(registry, rollout) == {"pause": everybody, "end it": everybody}
    paused = rollouts.pause(registry, rollout, actor="oncall", reason="a look first")
    assert people(registry, paused)["go on"] == movers
    rollouts.resume(registry, paused, actor="oncall", reason="fine")

    done = ready(registry, traffic_of).rollout
    may = people(registry, done)["approve"]
    author = registry.get("finance@2").summary.author
    assert len(may) >= 2 and author not in may and "approvals" in "; ".join(lacking(registry, done))
    story.approve("finance@2")
    left = people(registry, done)["approve"]
    assert set(left) < set(may) and lacking(registry, done) == []

    ended = one_round(registry, done, traffic_of).rollout
    assert ended.phase == "done" and people(registry, ended) == {"take it back": movers}


def test_actions_after_a_breach_and_an_abort(registry: Registry, rollout: Rollout, traffic_of: Traffic) -> None:
    mirrored = one_round(registry, rollout, traffic_of).rollout
    traffic_of.pairs = BREAKS
    back = one_round(registry, mirrored, traffic_of).rollout
    assert back.phase == "returned" and set(people(registry, back)) == {"try it again", "give it up"}
    again = rollouts.begin(registry, back.plan, actor="oncall", reason="once more")
    ended = abort(registry, again, actor="oncall", reason="enough")
    assert actions(registry, ended) == []


def test_no_owners_file_lets_nobody_act(registry: Registry, rollout: Rollout) -> None:
    registry.owners = None
    assert actions(registry, rollout) == []
