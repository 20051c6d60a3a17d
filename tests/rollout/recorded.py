"""A rollout whose gateway's files a test writes: pairs of its shadow and events of its canary."""

import random
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from lora_ops.records.pair import ShadowPair
from lora_ops.registry import rollouts
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.rollout.controller import Round, one_round, start
from lora_ops.rollout.traffic import GatewayTraffic
from lora_ops.settings.params import load_settings
from tests.conftest import ROOT, write_params
from tests.registry.conftest import Clock, Story, build_package
from tests.rollout.test_shadow_verdict import pair
from tests.serving.test_events import event

PLAN = {
    "rollout.shadow": {"hours": 3, "requests": 60},
    "rollout.canary": {"steps": [5, 50], "hours": 1, "users": 20, "window_seconds": 60},
    "rollout.alpha": 0.2,  # so that a hundred users decide
    "rollout.margins": {
        "errors": 0.2,
        "task": 0.3,
        "insults": 0.2,
        "identifiers": 0.2,
        "p95_latency": 2.0,
        "tokens": 1.0,
    },
}


@dataclass
class Recorded:
    """finance@1 is in production, finance@2 is validated, and their gateway's files are in `.serving`."""

    root: Path
    registry: Registry
    clock: Clock
    story: Story
    draw: random.Random

    def start(self) -> None:
        """Begin the rollout of finance@2, and bring it into shadow."""
        settings = load_settings(self.root).rollout
        start(self.registry, "finance@2", settings, actor="oncall", reason="better on held-out rows")
        self.look()

    def look(self) -> Round:
        """Let the controller look once."""
        found = rollouts.rollout_of(self.registry, "finance@2")
        assert found
        return one_round(self.registry, found, GatewayTraffic(self.registry, self.root / ".serving", 0.5))

    def asked_again(self, pairs: int, hours: float, **changes: Any) -> None:
        """Let so many pairs come in so many hours; a tenth of them disagree."""
        begun = self.clock()
        lines = []
        for number in range(pairs):
            at = begun + timedelta(hours=hours * (number + 0.5) / pairs)
            known = {
                "time": at,
                "shadow_digest": self._digest("finance@2"),
                "production_digest": self._digest("finance@1"),
                "request_id": f"{begun:%H%M}-{number}",
                "unit": f"{begun:%H%M} {number}",
                "agreement": float(number % 10 > 0),
                "production_seconds": self.draw.lognormvariate(-1, 0.3),
                "shadow_seconds": self.draw.lognormvariate(-0.9, 0.3),
                "production_tokens": self.draw.randint(2, 6),
                "shadow_tokens": self.draw.randint(2, 6),
            }
            lines.append(ShadowPair.model_validate(pair(number, **{**known, **changes})).model_dump_json())
        self._append("pairs", lines)
        self.clock.time = begun + timedelta(hours=hours, minutes=2)

    def answered(self, users: int, hours: float, **worse: Any) -> None:
        """Let so many users of either arm come in so many hours; `worse` is what the canary did."""
        begun = self.clock()
        lines = []
        for number in range(users):
            for arm, version in (("canary", "finance@2"), ("control", "finance@1")):
                at = begun + timedelta(hours=hours * (number + self.draw.random()) / users)
                known = {
                    "time": at,
                    "request_id": f"{begun:%d%H%M}-{arm}-{number}",
                    "unit": f"{begun:%d%H%M} {arm} {number}",
                    "arm": arm,
                    "adapter": version,
                    "digest": self._digest(version),
                    "seconds": self.draw.lognormvariate(-1, 0.3),
                    "generated_tokens": self.draw.randint(4, 8),
                    "answer_insults": 0.0,
                    "answer_new_identifiers": 0,
                    **(worse if arm == "canary" else {}),
                }
                lines.append(event(0, **known).model_dump_json())
        self._append("events", lines)
        self.clock.time = begun + timedelta(hours=hours, minutes=2)

    def to_canary(self) -> None:
        """Start, and let the shadow show that the version is no worse."""
        self.start()
        self.asked_again(120, 4)
        assert self.look().rollout.phase == "canary"

    def to_ready(self) -> None:
        """Let users of both arms come until approvals are awaited."""
        self.to_canary()
        for _ in range(4):
            self.answered(120, 1.2)
            if self.look().rollout.phase == "ready":
                return
        raise AssertionError(self.look().said)

    def _digest(self, version: str) -> str:
        return self.registry.get(version).summary.content_digest

    def _append(self, name: str, lines: list[str]) -> None:
        folder = self.root / ".serving" / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}-20260302T090000-1.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@contextmanager
def recording(
    root: Path, owners: Owners, params: dict[str, Any] | None = None, *, is_first: bool = False
) -> Iterator[Recorded]:
    """Make a clone with a registry of its own, as commands and notebooks find it.

    If `is_first`, finance@1 is validated, and nothing is in production.
    """
    root.mkdir()
    write_params(root, {**PLAN, **(params or {})})
    (root / "owners.yaml").write_text(owners.model_dump_json())
    (root / "dvc.yaml").write_text("stages: {}\n")
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    clock = Clock()
    with closing(open_registry(root, create=True)) as registry:
        registry.clock = clock
        for seed in (1,) if is_first else (1, 2):
            folder = root / f"package-{seed}"
            registry.register(folder, build_package(folder, seed, fresh_days=3650), actor="ana.silva")
        story = Story(registry, root / "evidence")
        if is_first:
            story.to("finance@1", "validated")
            story.file("human_evaluation", about="finance@1")
        else:
            story.to_rollout()
        yield Recorded(root, registry, clock, story, random.Random(3))
