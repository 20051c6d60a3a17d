"""kill -9 at any point: a change is there whole or not at all, and the registry verifies."""

import atexit
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.requirements import EVIDENCE, missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from . import processes
from .conftest import FIRST, SECOND, Build, Clock, Story, build_package, public_key, ssh_key

PEOPLE = ("ana", FIRST, SECOND, "dana", "eve", "mallory")
CALLS = st.none() | st.integers(1, 330)


def contents(path: Path) -> list[Any]:
    """Everything that a registry holds, without what differs between two runs of one change."""
    registry = Registry(path)
    try:
        rows = registry.db.rows("SELECT * FROM aliases ORDER BY 1, 2")
        log = [(one.action, one.actor, one.tenant, one.number) for one in registry.log.entries()]
        return [rows, log, [(one.id, one.state, one.content_digest) for one in registry.summaries()]]
    finally:
        registry.close()


@pytest.mark.parametrize("calls", range(1, 340, 16))
def test_a_killed_registration_is_there_whole_or_not_at_all(
    registry: Registry, package: Build, calls: int
) -> None:
    registry.register(*package(1))
    registry.close()
    path, second = registry.path, package(2)
    ended = processes.run(lambda: Registry(path, clock=Clock()).register(*second), kill_at=calls)
    assert ended in (processes.KILLED, processes.DONE)
    again = Registry(path, clock=Clock())
    assert verify(again).ok
    assert again.register(*second)[0].number == 2
    assert again.register(*package(3))[0].number == 3
    assert verify(again).ok


def test_processes_killed_at_any_moment_leave_a_registry_that_verifies(tmp_path: Path, package: Build) -> None:
    packages = [package(seed) for seed in range(8)]
    path = tmp_path / "shared"

    def write() -> None:
        registry = Registry(path, create=True)
        for one in packages:
            registry.register(*one)
            lifecycle.reject(registry, registry.get("finance").id, actor="ben", reason="next")

    for attempt in range(25):
        process = processes.start(write)
        time.sleep(0.004 * attempt)
        os.kill(process, signal.SIGKILL)
        processes.wait(process)
        registry = Registry(path, create=True)
        assert verify(registry).ok
        registry.close()
    registry = Registry(path)
    numbers = [one.number for one in registry.summaries()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize("limit", [0, 100, 400, 1_000, 2_000, 5_000, 20_000, 50_000, 90_000, 120_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    registry: Registry, package: Build, limit: int
) -> None:
    registry.register(*package(1))
    registry.close()
    second, before = package(2), contents(registry.path)

    def register() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no file may grow beyond it
        Registry(registry.path, clock=Clock()).register(*second)

    assert processes.run(register) in (processes.REFUSED, processes.DONE)
    again = Registry(registry.path, clock=Clock())
    assert verify(again).ok
    assert contents(registry.path) == before or again.get("finance@2").number == 2
    assert again.register(*second)[0].number == 2


TEAM = Owners.model_validate(
    {
        "default": {
            "team": "Payments",
            "contacts": ["a@example.com"],
            "escalation": ["b@example.com"],
            "review_cadence_days": 30,
            "people": [
                {
                    "id": name,
                    "name": name,
                    "email": f"{name}@example.com",
                    "roles": ["approver"],
                    "keys": [public_key(name)],
                }
                for name in PEOPLE[:4]
            ]
            + [{"id": "ci", "name": "CI", "email": "ci@example.com", "roles": ["operator"]}],
        }
    }
)


@cache
def served() -> Path:
    """One version in production, one approved in canary, so that what needs a long life happens early."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    registry = Registry(folder / "registry", create=True, owners=TEAM, clock=Clock())
    story = Story(registry, folder / "reports")
    for seed, stage in ((1, "production"), (2, "canary")):
        package = folder / f"package-{seed}"
        registry.register(package, build_package(package, seed), actor="ana")
        story.to(f"finance@{seed}", stage)
    story.file("canary", about="finance@2")
    story.approve("finance@2")
    registry.close()
    return registry.path


class Life(RuleBasedStateMachine):
    """Any sequence of operations by anybody, any of them killed at any call into C."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.path = self.folder / "registry"
        shutil.copytree(served(), self.path)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def open(self, path: Path | None = None) -> Registry:
        return Registry(path or self.path, owners=TEAM, clock=self.clock)

    def attempt(self, action: Callable[[Registry], object], kill_at: int | None) -> None:
        """Do it to a copy in peace, then to the registry with the kill: one of the two is what is left."""
        copy = self.folder / "copy"
        shutil.copytree(self.path, copy)
        before = contents(self.path)

        def act(path: Path) -> None:
            registry = self.open(path)
            action(registry)
            registry.close()

        peaceful = processes.run(lambda: act(copy))
        assert peaceful in (processes.DONE, processes.REFUSED)
        after = contents(copy)
        if peaceful == processes.REFUSED:
            assert after == before
        shutil.rmtree(copy)
        ended = processes.run(lambda: act(self.path), kill_at=kill_at)
        assert ended == (processes.KILLED if ended == processes.KILLED else peaceful)
        found = contents(self.path)
        assert found == after if ended != processes.KILLED else found in (before, after)

    @rule(seed=st.integers(1, 4), author=st.sampled_from(PEOPLE), kill_at=CALLS)
    def register(self, seed: int, author: str, kill_at: int | None) -> None:
        package = self.folder / f"package-{seed}"
        manifest = build_package(package, seed)
        self.attempt(lambda registry: registry.register(package, manifest, actor=author), kill_at)

    @rule(
        number=st.integers(1, 3),
        person=st.sampled_from(PEOPLE),
        lacking=st.sampled_from([False, False, True]),
        kill_at=CALLS,
    )
    def go_on(self, number: int, person: str, lacking: bool, kill_at: int | None) -> None:
        def step(registry: Registry) -> None:
            version = registry.get(f"finance@{number}")
            stage, _ = missing_for(registry, version.id)
            if stage is None:
                raise LoraOpsError("nowhere to go")
            kinds = EVIDENCE[version.state, stage] - {"evaluation", "canary", "incident"}
            story = Story(registry, self.folder / "reports")
            evidence = story.evidence(*([] if lacking else kinds), about=version.id)
            lifecycle.promote(registry, version.id, stage, actor=person, reason="next", evidence=evidence)

        self.attempt(step, kill_at)

    @rule(number=st.integers(1, 3), person=st.sampled_from(PEOPLE), kill_at=CALLS)
    def approve(self, number: int, person: str, kill_at: int | None) -> None:
        self.attempt(
            lambda registry: lifecycle.approve(
                registry, f"finance@{number}", actor=person, reason="next", key=ssh_key(person)
            ),
            kill_at,
        )

    @rule(number=st.integers(1, 3), kind=st.sampled_from(["policy", "canary", "incident"]), kill_at=CALLS)
    def file(self, number: int, kind: str, kill_at: int | None) -> None:
        def step(registry: Registry) -> None:
            Story(registry, self.folder / "reports").file(kind, about=f"finance@{number}")

        self.attempt(step, kill_at)

    @rule(
        number=st.integers(1, 3),
        decide=st.sampled_from([lifecycle.reject, lifecycle.revoke, lifecycle.archive]),
        kill_at=CALLS,
    )
    def end(self, number: int, decide: Callable[..., object], kill_at: int | None) -> None:
        self.attempt(
            lambda registry: decide(registry, f"finance@{number}", actor="ben", reason="next"), kill_at
        )

    @rule(days=st.floats(-0.01, 100))
    def wait(self, days: float) -> None:
        self.clock.move(days=days)

    @invariant()
    @precondition(lambda self: hasattr(self, "path"))
    def holds(self) -> None:
        registry = self.open()
        try:
            result = verify(registry)
            assert result.ok, result
            rows = registry.summaries()
            assert [one.number for one in rows] == list(range(1, len(rows) + 1))
            for stage in ("shadow", "canary", "production"):
                named = [one for one in rows if stage in one.aliases]
                assert named == [one for one in rows if one.state == stage]
                assert len(named) <= 1
            for one in rows:
                served = one.state in ("production", "superseded")
                given = lifecycle.approvals(registry, registry.get(one.id))
                approved = {each.person for each in given if each.void is None}
                assert one.author not in approved
                assert not served or len(approved) >= 2
        finally:
            registry.close()


Life.TestCase.settings = settings(
    max_examples=10,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLife = Life.TestCase
