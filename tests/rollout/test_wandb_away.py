"""A rollout whose log is at W&B goes back while W&B can't be reached: its canary stops here at once."""

from collections.abc import Iterator
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.records.rollout import Rollout, RolloutPlan
from lora_ops.registry import rollouts, routes
from lora_ops.registry.closing import settle
from lora_ops.registry.owners import Owners
from lora_ops.registry.shared import SharedRegistry
from lora_ops.rollout.canary import Look
from lora_ops.rollout.controller import Evidence, abort, one_round
from lora_ops.rollout.sample_ratio import sample_ratio
from lora_ops.rollout.verdicts import Verdict
from lora_ops.settings.rollout import RolloutSettings
from tests.registry.conftest import Build, Clock, Story
from tests.registry.test_shared import Connect
from tests.wandb_server import WandbServer


@pytest.fixture
def shared(
    tmp_path: Path, owners: Owners, clock: Clock, connect: Connect, package: Build
) -> Iterator[SharedRegistry]:
    """finance@1 is in production, and finance@2 a canary with users."""
    registry = SharedRegistry(tmp_path / "laptop", connect(), owners=owners, clock=clock)
    story = Story(registry, tmp_path)
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to("finance@1", "production")
    story.to("finance@2", "canary")
    ours, theirs = (registry.get(one).summary for one in ("finance@2", "finance@1"))
    plan = RolloutPlan.of(ours.id, ours.content_digest, theirs.id, theirs.content_digest, RolloutSettings())
    rollout = rollouts.begin(registry, plan, actor="ci", reason="better on held-out rows")
    rollouts.move(
        registry,
        rollout,
        "canary",
        "shadow agrees",
        actor="ci",
        route=lambda route: routes.with_canary(route, 2, 1),
    )
    yield registry
    registry.close()


def known(registry: SharedRegistry) -> Rollout:
    found = rollouts.rollout_of(registry, "finance@2")
    assert found
    return found


def breach(registry: SharedRegistry) -> None:
    evidence = create_autospec(Evidence)
    evidence.canary.return_value = Look(Verdict("roll back", "errors"), (), 60, 60, sample_ratio([]))
    one_round(registry, known(registry), evidence)


def test_breach_stops_the_canary_while_wandb_is_away(shared: SharedRegistry, server: WandbServer) -> None:
    server.fail(".", times=10_000)
    for _ in range(2):
        with pytest.raises(LoraOpsError, match="finance@2 answers nobody on this machine any more; W&B"):
            breach(shared)
    assert len(shared.stops.all()) == 1
    server.faults.clear()
    assert settle(shared) == []
    [stopped] = [one for one in shared.log.entries() if one.action == "stopped"]
    assert (stopped.actor, stopped.body["reason"]) == ("ci", "its rollout went back: canary: errors")
    breach(shared)
    assert known(shared).phase == "returned" and shared.route("finance").canary is None
    assert shared.route("finance").stopped == (2,)


def test_abort_stops_the_canary_while_wandb_is_away(shared: SharedRegistry, server: WandbServer) -> None:
    server.fail(".", times=10_000)
    with pytest.raises(LoraOpsError, match="route stop finance@2 --reason TEXT` there"):
        abort(shared, known(shared), actor="eve", reason="complaints")
    assert len(shared.stops.all()) == 1
