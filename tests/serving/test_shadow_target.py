"""Copies that go to another gateway: two real ones on loopback, and ones that no gateway should be."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.rollout.pairs import read_pairs
from lora_ops.serving import shadow, shadow_target
from lora_ops.serving.events import read_events
from lora_ops.serving.keys import KeyStore
from lora_ops.settings.serving import TenantServing
from tests.engines.scripted_server import DONE, ScriptedServer, event, running
from tests.engines.vllm_servers import free_port
from tests.serving.conftest import Clone, Served, eventually, served
from tests.serving.shadowing import BODY, count, inner, pairs, rollout, shadowed


@pytest.fixture
def staging(staged: Clone, tmp_path: Path, tiny_base: Path) -> Iterator[Served]:
    """A gateway over a copy of the registry, whose tenants have the same route."""
    root = tmp_path / "staging"
    shutil.copytree(staged.root, root)
    clone = Clone(root, root / "models/base")
    engine = TorchEngine(tiny_base, max_batch=16, kv_tokens=8192, threads=1)
    with shadowed(clone, engine) as gateway:
        yield gateway


def test_copies_are_asked_of_another_gateway(
    staged: Clone, engine: Engine, staging: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for the exact version with its own key, and told of nobody; it copies nothing again."""
    keys = KeyStore(tmp_path / "staging/.serving/keys.sqlite")
    secret = keys.create("tenant", "finance")[1]
    keys.close()
    monkeypatch.setenv("STAGING_KEY", secret)
    settings = staged.settings(tenants={"finance": TenantServing(keep_text=True)})
    settings = rollout(settings, target=staging.url, api_key_env="STAGING_KEY")
    body = {**BODY, "prompt": ["AIRBNB", "UBER"], "n": 2, "seed": 3, "temperature": 1.0, "user": "ana"}
    with shadowed(staged, engine, settings) as gateway, gateway.http() as http:
        assert http.post("/v1/completions", json=body, headers={"x-request-id": "mine"}).status_code == 200
        eventually(lambda: count(gateway, "answered") == 1)
        assert set(engine.status().adapters) == {"finance@1"}
        pinned = http.post("/v1/completions", json={**body, "model": "finance@2"}).json()
        assert count(gateway, "asked") == 1
    (row,) = pairs(staged).to_dict("records")
    assert row["shadow_text"] == "\n".join(one["text"] for one in pinned["choices"])
    assert row["target"] == staging.url and row["shadow_tokens"] == 16 and row["shadow_seconds"] > 0
    assert staging.metric("lora_ops_shadow_copies_total", secret) == 0
    events = read_events(tmp_path / "staging/.serving/events") if _flushed(tmp_path) else None
    assert events is not None and set(events["adapter"]) == {"finance@2"} and events["user"].isna().all()
    assert "mine" not in " ".join(events["request_id"])


def _flushed(tmp_path: Path) -> bool:
    eventually(lambda: any((tmp_path / "staging/.serving/events").glob("*.jsonl")))
    return True


@contextmanager
def before(staged: Clone, engine: Engine, url: str, **settings: Any) -> Iterator[Served]:
    with shadowed(staged, engine, rollout(staged.settings(), target=url, **settings)) as gateway:
        yield gateway


def test_gateway_that_is_away_is_left_alone_and_asked_later(
    staged: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """No pair blames the version for it. A gateway of the same port that comes back gets what waited."""
    monkeypatch.setattr(shadow_target, "BACK_OFF_SECONDS", (0.2,))
    monkeypatch.setattr(shadow, "MEMORY_SECONDS", 0.05)
    port = free_port()
    with before(staged, engine, f"http://127.0.0.1:{port}") as gateway, gateway.http() as http:
        for _ in range(3):
            assert http.post("/v1/completions", json=BODY).status_code == 200
        eventually(lambda: "can't be asked" in caplog.text)
        root = staged.root.parent / "back"
        shutil.copytree(staged.root, root)
        settings = Clone(root, root / "models/base").settings(port=port)
        with served(root, settings, TorchEngine(staged.base, max_batch=4, kv_tokens=2048, threads=1)):
            eventually(lambda: count(gateway, "answered") == 3, 30)
    assert set(pairs(staged)["status"]) == {"answered"}


GARBAGE = [b"\x00\xff" * 2000 + b"\n\n", b"data: {}\n\n", b"data: [1]\n\n", b'data: {"choices": [7]}\n\n', DONE]


async def _slow(body: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "a"}]})
    await asyncio.sleep(3600)


async def _cut(body: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "a"}]})
    raise RuntimeError("closed halfway")


async def _huge(body: dict[str, Any]) -> AsyncIterator[bytes]:
    while True:
        yield b": " + b"x" * 65536 + b"\n"


def _garbage(body: dict[str, Any]) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        for part in GARBAGE:
            yield part

    return parts()


@pytest.mark.parametrize("script", [_slow, _cut, _huge, _garbage])
def test_gateway_that_answers_nonsense_harms_no_client(staged: Clone, engine: Engine, script: Any) -> None:
    server = ScriptedServer()
    server.script = script
    with staged.registry() as registry:
        digest = registry.get("finance@2").summary.content_digest
    server.headers = {"x-lora-ops-digest": digest}
    with (
        running(server),
        before(staged, engine, server.url, timeout_seconds=1.0) as gateway,
        gateway.http() as http,
    ):
        for _ in range(6):
            answer = http.post("/v1/completions", json=BODY)
            assert answer.status_code == 200 and answer.elapsed.total_seconds() < 5
        eventually(lambda: count(gateway, "failed") == 6, 30)
        assert server.sent < 6 * 16 * 2**20
        assert inner(gateway).shadow._bytes == inner(gateway).shadow._copies == 0
    assert set(pairs(staged)["status"]) == {"failed"}


@pytest.mark.parametrize("headers", [{}, {"x-lora-ops-digest": "ab" * 32}])
def test_answers_of_other_content_are_no_pairs(
    staged: Clone, engine: Engine, headers: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    server = ScriptedServer()
    server.headers = headers
    with running(server), before(staged, engine, server.url) as gateway, gateway.http() as http:
        assert http.post("/v1/completions", json=BODY).status_code == 200
        eventually(lambda: "has other content as finance@2" in caplog.text)
    assert read_pairs(staged.root / ".serving/pairs", "finance@2", "x").empty and pairs(staged).empty


@pytest.mark.parametrize("status", [302, 502])
def test_page_of_a_proxy_says_nothing_of_the_version(
    staged: Clone, engine: Engine, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A gateway that fails names the version; a proxy whose gateway is away does not."""
    server = ScriptedServer()
    server.refuses = (status, b"<html>Bad Gateway</html>")
    with running(server), before(staged, engine, server.url) as gateway, gateway.http() as http:
        assert http.post("/v1/completions", json=BODY).status_code == 200
        eventually(lambda: "rollout.shadow.target can't be asked" in caplog.text)
        assert count(gateway, "failed") == 0
        with staged.registry() as registry:
            digest = registry.get("finance@2").summary.content_digest
        server.headers = {"x-lora-ops-digest": digest}
        eventually(lambda: count(gateway, "failed") == 1, 30)
