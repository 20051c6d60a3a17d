"""A rollout of finance@2 beside finance@1, and traffic that a test makes."""

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from lora_ops.records.rollout import Rollout
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.rollout.canary import CanaryRequest, Look, look
from lora_ops.rollout.controller import start
from lora_ops.rollout.verdicts import Verdict
from lora_ops.settings.rollout import RolloutSettings
from tests.registry.conftest import Build, Clock, Story
from tests.rollout.test_canary import traffic

SETTINGS = RolloutSettings.model_validate({"canary": {"steps": [5, 50], "hours": 1}})
AGREES = Verdict("advance", "pairs are not worse by the margin (alpha 0.05)")


@dataclass
class Traffic:
    """Evidence from requests that a test made: judged as those of a gateway are."""

    story: Story
    clock: Clock
    pairs: Verdict = AGREES
    requests: list[CanaryRequest] = field(default_factory=list)
    silence: str | None = None
    """Why no gateway answers with the version."""

    def shadow(self, rollout: Rollout) -> Verdict:
        return self.pairs

    def canary(self, rollout: Rollout) -> Look:
        found = [self._of(rollout, one) for one in self.requests]
        assert rollout.canary_since
        waiting = rollout.since if rollout.phase == "ready" else None
        return look(rollout.plan, found, now=self.clock(), since=rollout.canary_since, waiting_since=waiting)

    def shadow_report(self, rollout: Rollout) -> Report:
        return self.story.evidence("shadow", about=rollout.plan.adapter)[0]

    def canary_report(self, rollout: Rollout, look: Look) -> Report:
        return self.story.evidence("canary", about=rollout.plan.adapter)[0]

    def unanswered(self, rollout: Rollout) -> str | None:
        return self.silence

    def come(self, users: int, **worse: object) -> None:
        """Let so many users of either arm come, and their units close."""
        start = self.clock()
        for one in traffic(users):
            changed = worse if one.arm == "canary" else {}
            at = start + (one.at - next(traffic(1)).at)
            unit = f"{one.unit} of {start.isoformat()}"
            self.requests.append(replace(one, at=at, unit=unit, **changed))  # type: ignore[arg-type]
        self.clock.time += timedelta(minutes=users + 20)

    @staticmethod
    def _of(rollout: Rollout, one: CanaryRequest) -> CanaryRequest:
        plan = rollout.plan
        if one.arm == "canary":
            return replace(one, adapter=plan.adapter, digest=plan.content_digest)
        return replace(one, adapter=plan.against, digest=plan.against_digest)


@pytest.fixture
def traffic_of(registry: Registry, story: Story, package: Build, clock: Clock) -> Traffic:
    """finance@1 is in production, finance@2 is validated."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana.silva")
    story.to_rollout()
    return Traffic(story, clock)


@pytest.fixture
def rollout(registry: Registry, traffic_of: Traffic) -> Rollout:
    return start(registry, "finance@2", SETTINGS, actor="oncall", reason="better on held-out rows")
