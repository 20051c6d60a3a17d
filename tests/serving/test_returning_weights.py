"""A request names a version whose weights are in the archive: they come back, or the client is told when."""

import threading
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.errors import Unavailable
from lora_ops.registry.archived_files import RESTORED, archived
from lora_ops.registry.archived_weights import record_archived, remove_original, send_weights
from lora_ops.registry.backup_place import Place
from lora_ops.serving import gateway as gateway_module
from lora_ops.serving.returning_weights import MOST_RETURNING, ReturningWeights
from tests.serving.conftest import Clone, Served, eventually, served

ASKED = "finance@1"


@pytest.fixture
def stored(clone: Clone, tmp_path: Path) -> Path:
    """Where the archive has the weights of finance@1, which are not here any more."""
    with clone.registry() as registry:
        version = registry.get(ASKED)
        file = send_weights(registry, version, Place(str(tmp_path / "archive")), "shuffle-zstd")
        record_archived(registry, ASKED, file, actor="ci", reason="old", needed=lambda version: None)
        assert remove_original(registry, file.sha256, lambda version: None, -1)
    return tmp_path / "archive" / file.path


def ask(running: Served, model: str = ASKED) -> httpx.Response:
    with running.http() as http:
        body = {"model": model, "prompt": "Weekly rail ticket", "max_tokens": 2, "temperature": 0}
        return http.post("/v1/completions", json=body)


def test_request_brings_weights_back(clone: Clone, engine: Engine, stored: Path) -> None:
    with served(clone.root, clone.settings(), engine) as running:
        answers = [ask(running) for _ in range(2)]
        assert [one.status_code for one in answers] == [200, 200], answers[0].text
        assert answers[0].headers["x-lora-ops-adapter"] == ASKED
    with clone.registry() as registry:
        assert archived(registry) == {}
        entries = [one for one in registry.history(ASKED) if one.action == RESTORED]
        assert [(one.actor, one.body["reason"]) for one in entries] == [("gateway", "a request needs it")]
    assert stored.exists()


def test_damaged_archive_answers_nobody_else_worse(clone: Clone, engine: Engine, stored: Path) -> None:
    stored.write_bytes(stored.read_bytes()[:-5])
    with served(clone.root, clone.settings(), engine) as running:
        answer = ask(running)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "adapter_damaged")
        assert ask(running, "finance@2").status_code == 200
    with clone.registry() as registry:
        assert set(archived(registry)) == {ASKED}


def test_slow_archive_is_503_until_the_weights_are_back(
    clone: Clone, engine: Engine, stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, bring = threading.Event(), gateway_module.bring_back_if_archived

    def slowly(*given: Any, **named: Any) -> None:
        goes_on.wait(60)
        bring(*given, **named)

    monkeypatch.setattr(gateway_module, "bring_back_if_archived", slowly)
    monkeypatch.setattr(gateway_module, "ReturningWeights", partial(ReturningWeights, patience=0.05))
    with served(clone.root, clone.settings(), engine) as running:
        answer = ask(running)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert "being brought back from the archive" in answer.json()["error"]["message"]
        assert ask(running, "finance@2").status_code == 200
        goes_on.set()
        eventually(lambda: ask(running).status_code == 200, seconds=30)


def test_returning_weights_are_brought_once_for_all() -> None:
    begun, goes_on, brought = threading.Event(), threading.Event(), []

    def bring(version: str) -> None:
        brought.append(version)
        begun.set()
        goes_on.wait(60)

    returning = ReturningWeights(bring, patience=0.05)
    for _ in range(3):
        with pytest.raises(Unavailable, match="ask again"):
            returning.wait("finance@1")
    assert brought == ["finance@1"]
    goes_on.set()


def test_returning_weights_that_failed_are_tried_again() -> None:
    tries: list[str] = []

    def bring(version: str) -> None:
        tries.append(version)
        if len(tries) == 1:
            raise Unavailable("The archive is down.")

    returning = ReturningWeights(bring, patience=60)
    with pytest.raises(Unavailable, match="down"):
        returning.wait("finance@1")
    returning.wait("finance@1")
    assert len(tries) == 2


def test_returning_weights_begin_few_at_once() -> None:
    """A store that hangs took a thread for each version that anybody asked for."""
    goes_on, begun = threading.Event(), []

    def bring(version: str) -> None:
        begun.append(version)
        goes_on.wait(60)

    returning = ReturningWeights(bring, patience=0.05)
    versions = [f"finance@{number}" for number in range(1, MOST_RETURNING + 1)]
    for version in versions:
        with pytest.raises(Unavailable, match="being brought back from the archive"):
            returning.wait(version)
    with pytest.raises(Unavailable, match="other versions are being brought back first"):
        returning.wait("news@1")
    assert sorted(begun) == versions
    goes_on.set()

    def is_back() -> bool:
        with suppress(Unavailable):
            returning.wait("news@1")
        return "news@1" in begun

    eventually(is_back)
