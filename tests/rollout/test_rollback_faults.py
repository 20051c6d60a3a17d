"""`lora-ops rollback` as a process: killed, beside a promotion, before a lock, with answers in flight."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from lora_ops import incidents
from lora_ops.registry.verification import verify
from tests.conftest import ROOT, commit_all, write_params
from tests.serving.conftest import (  # noqa: F401 - fixtures
    Clone,
    Served,
    clone_source,
    engine,
    eventually,
    register,
    served,
)

ON_CALL = "ben"
EVIDENCE = {"hours": 0, "requests": 1, "regression": False, "release_notes": False, "policy": "file"}


@pytest.fixture(scope="module")
def released(clone_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A clone in which finance@2 took over from finance@1, and finance@3 may go to production."""
    root = tmp_path_factory.mktemp("released") / "clone"
    shutil.copytree(clone_source, root)
    write_params(root, {"registry.evidence": EVIDENCE})
    (root / "runbooks").symlink_to(ROOT / "runbooks")
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        story = clone.story(registry)
        for version in ("finance@1", "finance@2"):
            story.to(version, "production")
        register(registry, clone.base, root.parent / "package", "finance", 7)
        story.to("finance@3", "canary")
        story.file("canary", about="finance@3")
        story.approve("finance@3")
    return root


@pytest.fixture
def clone(released: Path, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(released, root, symlinks=True)
    return Clone(root, root / "models/base")


def begin(clone: Clone, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lora_ops", *arguments, "--actor", ON_CALL, "--reason", "It leaks."],
        env={**os.environ, "LORA_OPS_ROOT": str(clone.root), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def roll_back(clone: Clone, *more: str) -> subprocess.Popen[str]:
    return begin(clone, "rollback", "finance@2", "--yes", "--without-notebook", *more)


def actions(clone: Clone) -> list[tuple[str, int | None]]:
    with clone.registry() as registry:
        return [(entry.action, entry.number) for entry in registry.log.entries("finance")]


@contextmanager
def silent_gateway() -> Iterator[str]:
    """One that takes connections and answers nothing."""
    with socket.create_server(("localhost", 0)) as listener:
        yield f"http://localhost:{listener.getsockname()[1]}"


def test_rollback_killed_before_its_record_is_completed(clone: Clone) -> None:
    before = actions(clone)
    with silent_gateway() as gateway:
        killed = roll_back(clone, "--gateway", gateway)
        eventually(lambda: actions(clone)[-1] == ("revoked", 2), seconds=60)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    changed = [("production", 1), ("revoked", 2)]
    assert actions(clone) == [*before, *changed]
    for _ in range(2):
        again = roll_back(clone, "--gateway", "http://localhost:9")
        said, problem = again.communicate()
        assert (again.returncode, problem) == (0, "")
        assert "finance@1 is in production again, and finance@2 is revoked." in said
        assert actions(clone) == [*before, *changed, ("incident", 2)]
    with clone.registry() as registry:
        assert verify(registry).ok


def test_rollback_and_revocation_while_params_are_broken(clone: Clone) -> None:
    """Whoever edits params.yaml keeps nobody on call: the last commit's counts."""
    commit_all(clone.root)
    (clone.root / "params.yaml").write_text("serving: [")
    rolled = roll_back(clone, "--gateway", "http://localhost:9")
    said, problem = rolled.communicate()
    assert rolled.returncode == 0 and "finance@1 is in production again" in said, problem
    revoked = begin(clone, "registry", "revoke", "finance@3")
    said, problem = revoked.communicate()
    assert revoked.returncode == 0 and "finance@3 is now 'revoked'" in said, problem
    (clone.root / "params.yaml").unlink()
    shutil.copy(ROOT / "params.yaml", clone.root)
    with clone.registry() as registry:
        assert (registry.named("finance", "production"), registry.state("finance", 3)) == (1, "revoked")
        assert verify(registry).ok


def test_rollback_beside_a_promotion(clone: Clone) -> None:
    """Both wait for the same lock: whichever is second decides on what the first one did."""
    with closing(sqlite3.connect(clone.root / ".registry/registry.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        both = [
            begin(clone, "registry", "promote", "finance@3", "production"),
            roll_back(clone, "--gateway", "http://localhost:9"),
        ]
        for process in both:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
    promoted, rolled = (process.communicate() for process in both)
    codes = [process.returncode for process in both]
    with clone.registry() as registry:
        serving = registry.named("finance", "production")
        state = registry.state("finance", 2)
        assert verify(registry).ok
    if serving == 3:  # the promotion was first, so nothing was left to roll back
        assert codes[0] == 0 and state in ("superseded", "revoked"), (promoted, rolled)
        assert codes[1] == 0 or "finance@3" in rolled[1], rolled
    else:
        assert (serving, state, codes[1]) == (1, "revoked", 0), (promoted, rolled)
        assert codes[0] != 0, promoted


def test_rollback_in_front_of_a_lock_says_one_sentence(clone: Clone) -> None:
    with closing(sqlite3.connect(clone.root / ".registry/registry.sqlite")) as other:
        other.execute("BEGIN IMMEDIATE")
        waits = roll_back(clone, "--gateway", "http://localhost:9")
        _, problem = waits.communicate()
    assert waits.returncode == 5
    assert problem.count("\n") == 1
    assert "finance@2 does not answer any more, and finance@1 has not returned" in problem
    again = roll_back(clone, "--gateway", "http://localhost:9")
    assert again.wait() == 0, again.communicate()
    assert actions(clone)[-1] == ("incident", 2)
    with clone.registry() as registry:
        assert (registry.named("finance", "production"), registry.state("finance", 2)) == (1, "revoked")


def test_answers_in_flight_end_on_the_version_that_left(
    clone: Clone,
    engine: object,  # noqa: F811
    tmp_path: Path,
) -> None:
    def ask(gateway: Served, tokens: int) -> httpx.Response:
        body = {"model": "finance", "prompt": "AIRBNB", "max_tokens": tokens, "ignore_eos": True}
        return httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=60, verify=False)

    with served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        assert ask(gateway, 1).headers["x-lora-ops-adapter"] == "finance@2"
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(ask(gateway, 900)))
        asking.start()
        queue = gateway.server.gateway.queue  # type: ignore[attr-defined]
        eventually(lambda: queue.running == 1)
        with clone.registry() as registry:
            incidents.take_back(registry, "finance@2", tmp_path / "x", actor=ON_CALL, reason="It leaks.")
        assert asking.is_alive()
        assert ask(gateway, 1).headers["x-lora-ops-adapter"] == "finance@1"
        asking.join()
    [old] = answers
    assert (old.status_code, old.headers["x-lora-ops-adapter"]) == (200, "finance@2")
    assert old.json()["usage"]["completion_tokens"] == 900


def test_wrong_gateway_is_said_loudly(clone: Clone, engine: object, tmp_path: Path) -> None:  # noqa: F811
    """A gateway of another clone answers by the bad version: the route has changed, and somebody must look."""
    other = tmp_path / "other"
    shutil.copytree(clone.root, other, symlinks=True)
    with served(other, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        done = roll_back(clone, "--gateway", gateway.url)
        said, problem = done.communicate()
    assert done.returncode == 5
    assert "finance@1 is in production again, and finance@2 is revoked." in said
    assert f"{gateway.url} answers 'finance' by finance@2: look whether" in problem
    with clone.registry() as registry:
        assert registry.named("finance", "production") == 1


def test_version_that_returns_is_still_in_memory(
    clone: Clone,
    engine: object,  # noqa: F811
    tmp_path: Path,
) -> None:
    """The gateway unloaded what a promotion replaced, within a second."""

    def loads(gateway: Served) -> float:
        return gateway.metric("lora_ops_adapter_loads_total", adapter="finance@2")

    def ask(gateway: Served) -> str:
        body = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 1}
        return httpx.post(f"{gateway.url}/v1/completions", json=body, verify=False).headers[
            "x-lora-ops-adapter"
        ]

    with clone.registry() as registry, served(clone.root, clone.settings(), engine) as gateway:  # type: ignore[arg-type]
        assert ask(gateway) == "finance@2"
        clone.story(registry).to("finance@3", "production")
        assert ask(gateway) == "finance@3"
        incidents.take_back(registry, "finance@3", tmp_path / "x", actor=ON_CALL, reason="It leaks.")
        before = loads(gateway)
        assert ask(gateway) == "finance@2"
        assert loads(gateway) == before
