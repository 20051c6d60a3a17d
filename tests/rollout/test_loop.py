"""The controller's loop: it ends at a signal, survives what goes wrong, and two of them don't look at once."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.processes import only_one
from lora_ops.records.rollout import Rollout
from lora_ops.registry.store import Registry
from lora_ops.rollout.controller import Round
from lora_ops.rollout.loop import run_rollouts
from lora_ops.rollout.verdicts import Verdict
from tests.registry.conftest import SECOND
from tests.rollout.rolling import Traffic
from tests.rollout.test_controller import ready

Loop = Callable[..., list[Round]]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[Loop]:
    """Run the loop, and end it by SIGTERM once `until` holds of what was said."""
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    said: list[Round] = []

    def run(
        registry: Registry,
        evidence: Traffic,
        until: Callable[[list[Round]], bool],
        take_rules: Callable[[], None] = lambda: None,
    ) -> list[Round]:
        def watch() -> None:
            deadline = time.monotonic() + 60
            while not until(said) and time.monotonic() < deadline:
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGTERM, lambda *_: None)  # before the loop has its own
        watcher = threading.Thread(target=watch)
        watcher.start()
        run_rollouts(
            registry,
            evidence,
            take_rules=take_rules,
            lock_of=lambda tenant: only_one(tmp_path / f"{tenant}.lock", f"looking at '{tenant}'"),
            tenants=None,
            seconds=0.05,
            say=said.append,
        )
        watcher.join()
        return said

    yield run
    for one, handler in handlers.items():
        signal.signal(one, handler)


def test_loop_goes_on_until_a_signal(
    registry: Registry,
    rollout: Rollout,
    traffic_of: Traffic,
    loop: Loop,
) -> None:
    """It brings the version into the canary, says once that it waits, and ends."""
    said = loop(registry, traffic_of, lambda said: bool(said) and said[-1].said.startswith("hold"))
    assert [one.rollout.phase for one in said] == ["shadow", "canary", "canary"]
    time.sleep(0.1)
    assert sum(one.said.startswith("hold") for one in said) == 1


def test_loop_waits_where_another_one_looks(
    registry: Registry,
    rollout: Rollout,
    traffic_of: Traffic,
    loop: Loop,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with only_one(tmp_path / "finance.lock", "looking at 'finance'"):
        said = loop(registry, traffic_of, lambda said: "already" in caplog.text)
    assert said == [] and caplog.text.count("is looking at 'finance' already") == 1


def test_loop_survives_a_registry_that_is_locked(
    registry: Registry,
    rollout: Rollout,
    traffic_of: Traffic,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A backup holds the write lock for longer than the loop waits; afterwards the rollout goes on."""
    import sqlite3

    registry.db.rows("PRAGMA busy_timeout = 100")
    other = sqlite3.connect(registry.path / "registry.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    def until(said: list[Round]) -> bool:
        if "was not looked at" in caplog.text and other.in_transaction:
            other.execute("ROLLBACK")
        return bool(said) and said[-1].rollout.phase == "canary"

    assert loop(registry, traffic_of, until)[-1].rollout.phase == "canary"
    other.close()


def test_loop_survives_a_registry_that_is_read_only(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """A disk that was mounted read-only: it says so once, and goes on when the disk takes changes again."""
    registry.db.rows("PRAGMA query_only = 1")
    looks = [0]

    def until(said: list[Round]) -> bool:
        looks[0] += "was not looked at" in caplog.text
        return looks[0] > 10

    assert loop(registry, traffic_of, until) == [] and caplog.text.count("was not looked at") == 1
    registry.db.rows("PRAGMA query_only = 0")
    said = loop(registry, traffic_of, lambda said: bool(said) and said[-1].rollout.phase == "canary")
    assert said[-1].rollout.phase == "canary"


def test_loop_survives_what_nobody_foresaw(
    registry: Registry,
    rollout: Rollout,
    traffic_of: Traffic,
    loop: Loop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of one tenant's evidence ends no loop: the others' breaches are still looked for."""
    real = traffic_of.shadow

    def shadow(rollout: Rollout) -> Verdict:
        if "was not looked at" not in caplog.text:
            raise ValueError("a pair's score is out of range")
        return real(rollout)

    monkeypatch.setattr(traffic_of, "shadow", shadow)
    said = loop(registry, traffic_of, lambda said: bool(said) and said[-1].rollout.phase == "canary")
    assert said[-1].rollout.phase == "canary" and len(caplog.records) == 1


def test_loop_asks_the_approvers_of_today(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, loop: Loop
) -> None:
    """Somebody who approved leaves the team while the loop runs."""
    ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    assert registry.owners
    team = registry.owners.default
    left = team.model_copy(update={"people": [one for one in team.people if one.id != SECOND]})
    owners = registry.owners.model_copy(update={"default": left})

    def take_rules() -> None:
        registry.owners = owners

    said = loop(registry, traffic_of, bool, take_rules)
    assert "1 more approval" in said[-1].said and registry.named("finance", "production") == 1


def test_loop_goes_only_back_without_rules(
    registry: Registry, rollout: Rollout, traffic_of: Traffic, loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    """owners.yaml is half edited: two approvals promote nothing, and a breach takes the canary off."""

    def take_rules() -> None:
        raise LoraOpsError("owners.yaml is wrong")

    ready(registry, traffic_of)
    traffic_of.story.approve("finance@2")
    said = loop(registry, traffic_of, bool, take_rules)
    assert said[-1].said.startswith("paused") and registry.named("finance", "production") == 1
    traffic_of.come(200, status=500)
    said = loop(registry, traffic_of, lambda said: said[-1].rollout.phase == "returned", take_rules)
    assert said[-1].rollout.phase == "returned" and "owners.yaml is wrong" in caplog.text
