"""Shadow traffic: who is asked again, what is kept of it, and that no client ever notices."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.hashing import sha256_file
from lora_ops.records.route import RouteRecord, ShadowRoute
from lora_ops.registry import lifecycle, routes
from lora_ops.rollout.pairs import read_pairs
from lora_ops.serving import shadow
from lora_ops.serving.events import read_events
from lora_ops.serving.shadow import ShadowVersion
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, eventually, register, served
from tests.serving.shadowing import BODY, NeverIdle, count, inner, pairs, rollout, shadowed


def test_answers_of_production_are_asked_again_and_judged(staged: Clone, engine: Engine) -> None:
    """Streamed or not; the pair says who answered, and the tenant's figures know nothing of it."""
    tenants = {"finance": TenantServing(requests_per_minute=3)}
    with shadowed(staged, engine, staged.settings(tenants=tenants)) as gateway, gateway.http() as http:
        answer = http.post("/v1/completions", json={**BODY, "user": "ana"}, headers={"x-request-id": "a"})
        streamed = http.post("/v1/completions", json={**BODY, "user": "ana", "stream": True})
        chat = {"model": "finance", "messages": [{"role": "user", "content": "UBER"}], "max_tokens": 3}
        two = http.post("/v1/chat/completions", json={**chat, "n": 2, "seed": 5, "temperature": 1.0})
        assert [one.status_code for one in (answer, streamed, two)] == [200, 200, 200]
        eventually(lambda: count(gateway, "answered") == 3)
        assert http.post("/v1/completions", json=BODY).status_code == 429  # of the client's own three
        assert gateway.metric("lora_ops_requests_total", adapter="finance@2") == 0
        assert gateway.metric("lora_ops_generated_tokens_total", adapter="finance@2") == 0
        assert gateway.metric("lora_ops_adapter_cache_misses_total", adapter="finance@2") == 0
        assert count(gateway, "asked") == 3
    rows = pairs(staged).set_index("request_id")
    assert len(rows) == 3 and set(rows["production"]) == {"finance@1"} and set(rows["status"]) == {"answered"}
    first = rows.loc["a"]
    assert first["production_tokens"] == first["shadow_tokens"] == 4 and first["answers"] == 1
    assert first["production_characters"] == len(answer.json()["choices"][0]["text"])
    assert first["production_task"] == 0 and first["agreement"] in (0, 1)  # random weights name no label
    assert first["production_seconds"] > 0 and first["shadow_seconds"] > 0 and not first["replayed"]
    assert first["production_identifiers"] == first["shadow_identifiers"] == 0
    assert rows["unit"].nunique() == 2 and "ana" not in set(rows["unit"])
    assert sorted(rows["names_unit"]) == [False, True, True] and rows["key"].isna().all()
    assert rows["prompt_text"].isna().all() and rows["shadow_text"].isna().all()
    assert list(rows["answers"].sort_values()) == [1, 1, 2]
    events = read_events(staged.root / ".serving/events")
    assert set(events["adapter"]) == {"finance@1"} and len(events) == 4


def test_copy_is_asked_with_the_same_tokens_and_seed(staged: Clone, engine: Engine) -> None:
    """What the pair says of the shadow version is what a client would get that pins it; texts are redacted."""
    tenants = {"finance": TenantServing(keep_text=True)}
    body = {**BODY, "prompt": ["mail jane.doe@example.com", "UBER"], "temperature": 1.5, "seed": 7, "n": 2}
    with shadowed(staged, engine, staged.settings(tenants=tenants)) as gateway, gateway.http() as http:
        http.post("/v1/completions", json=body)
        eventually(lambda: count(gateway, "answered") == 1)
        pinned = http.post("/v1/completions", json={**body, "model": "finance@2"}).json()
        assert count(gateway, "asked") == 1  # who pins a version is not copied
    (row,) = pairs(staged).to_dict("records")
    assert row["shadow_text"] == "\n".join(one["text"] for one in pinned["choices"])
    assert row["prompt_text"] == "mail [e-mail address]\nUBER"


@pytest.mark.parametrize(
    "route",
    [
        RouteRecord(),
        RouteRecord(shadow=ShadowRoute(number=2, percent=100), stopped=(2,)),
        RouteRecord(shadow=ShadowRoute(number=1, percent=100)),
        RouteRecord(shadow=ShadowRoute(number=9, percent=100)),
    ],
)
def test_only_a_version_in_shadow_is_asked(staged: Clone, engine: Engine, route: RouteRecord) -> None:
    with shadowed(staged, engine, route=route) as gateway, gateway.http() as http:
        assert http.post("/v1/completions", json=BODY).status_code == 200
        eventually(lambda: not inner(gateway).after_answer._running)
        assert count(gateway, "asked") == 0


def test_revoked_version_is_asked_no_more(staged: Clone, engine: Engine) -> None:
    """Not even what waits already."""
    never = NeverIdle()
    with shadowed(staged, engine) as gateway, gateway.http() as http:
        inner(gateway).shadow._ask = never
        http.post("/v1/completions", json=BODY)
        assert never.asked.wait(10)
        with staged.registry() as registry:
            lifecycle.revoke(registry, "finance@2", actor="oncall", reason="it insults")
        eventually(lambda: count(gateway, "dropped") == 1)
        http.post("/v1/completions", json=BODY)
        assert count(gateway, "asked") == 1
    assert pairs(staged).empty


def test_share_is_drawn_by_request(staged: Clone) -> None:
    version = ShadowVersion(route=_route("ab"), percent=20)
    ids = [f"r{number}" for number in range(5000)]
    drawn = {one for one in ids if version.gets(one)}
    assert 0.18 < len(drawn) / len(ids) < 0.22
    assert drawn == {one for one in ids if replace(version).gets(one)}  # and again the same
    more = {one for one in ids if replace(version, percent=50).gets(one)}
    assert drawn < more
    other = {one for one in ids if replace(version, route=_route("cd")).gets(one)}
    assert 0.1 < len(drawn & other) / len(drawn) < 0.3  # another version is asked others


def _route(digest: str) -> Any:
    class Fixed:
        pass

    fixed = Fixed()
    fixed.digest = digest  # type: ignore[attr-defined]
    return fixed


def test_copies_give_way_to_clients(staged: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients need all slots each time that a copy is tried: the pair says so."""
    monkeypatch.setattr(shadow, "TRIES", 1)
    settings = staged.settings(max_running=2)
    long = {**BODY, "max_tokens": 1500, "ignore_eos": True}
    with shadowed(staged, engine, settings) as gateway, gateway.http() as http:
        http.post("/v1/completions", json=long)
        eventually(lambda: inner(gateway).queue._background.used > 0)
        threads = [
            threading.Thread(target=lambda: gateway.http().post("/v1/completions", json=BODY)) for _ in range(6)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        eventually(lambda: count(gateway, "preempted") + count(gateway, "answered") == 7, 60)
    rows = pairs(staged)
    (row,) = rows[rows["production_tokens"] == 1500].to_dict("records")
    assert row["status"] == "preempted"
    assert pd.isna(row["shadow_tokens"]) and pd.isna(row["agreement"]) and row["production_task"] == 0


def test_copies_beyond_the_queue_are_dropped(staged: Clone, engine: Engine) -> None:
    """By their number and by their size; a shutdown drops those that wait."""
    never = NeverIdle()
    settings = rollout(staged.settings(), queue=2, queue_bytes=4096)
    with shadowed(staged, engine, settings) as gateway, gateway.http() as http:
        inner(gateway).shadow._ask = never
        large = {**BODY, "prompt": "word " * 100}
        assert http.post("/v1/completions", json=large).status_code == 200
        eventually(lambda: count(gateway, "dropped") == 1)
        for _ in range(4):
            assert http.post("/v1/completions", json=BODY).status_code == 200
        eventually(lambda: count(gateway, "dropped") == 3)
        assert never.asked.is_set()
        metrics = inner(gateway).telemetry
    assert metrics.shadow_copies.labels("finance@2", "dropped")._value.get() == 5
    assert pairs(staged).empty


@pytest.mark.parametrize(("target", "most"), [(None, 1), ("http://127.0.0.1:9", 4)])
def test_one_copy_at_a_time_shares_steps_with_clients(
    staged: Clone, engine: Engine, target: str | None, most: int
) -> None:
    """Another gateway's copies share nothing here."""
    at_once: list[int] = []

    class Counts(NeverIdle):
        running = 0

        async def __call__(self, *_: object) -> None:
            self.running += 1
            at_once.append(self.running)
            await asyncio.sleep(0.2)
            self.running -= 1

    settings = rollout(staged.settings(), target=target)
    with shadowed(staged, engine, settings) as gateway, gateway.http() as http:
        inner(gateway).shadow._ask = Counts()
        for _ in range(8):
            assert http.post("/v1/completions", json={**BODY, "max_tokens": 1}).status_code == 200
        eventually(lambda: count(gateway, "answered") == 8)
    assert max(at_once) <= most and (most == 1 or max(at_once) > 1)


def test_copies_take_no_memory_that_clients_use(
    staged: Clone, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(shadow, "MEMORY_SECONDS", 0.1)
    with shadowed(staged, engine) as gateway, gateway.http() as http:
        http.post("/v1/completions", json={**BODY, "model": "finance@1"})
        inner(gateway).cache._budget = inner(gateway).cache.bytes
        http.post("/v1/completions", json=BODY)
        eventually(lambda: count(gateway, "dropped") == 1)
        assert set(engine.status().adapters) == {"finance@1"}
        assert gateway.metric("lora_ops_adapter_evictions_total") == 0


def test_version_that_fails_harms_nobody(staged: Clone, engine: Engine) -> None:
    """Its weights are damaged: each copy is a failed pair."""
    with staged.registry() as registry:
        digest = registry.get("finance@2").manifest.files["adapter_model.safetensors"].sha256
    files = (path for path in (staged.root / ".registry/files").rglob("*") if path.is_file())
    (kept,) = (path for path in files if sha256_file(path) == digest)
    kept.chmod(0o644)
    kept.write_bytes(b"x" + kept.read_bytes()[1:])
    with shadowed(staged, engine) as gateway, gateway.http() as http:
        answers = [http.post("/v1/completions", json=BODY) for _ in range(2)]
        assert [one.status_code for one in answers] == [200, 200]
        eventually(lambda: count(gateway, "failed") == 2)
    rows = pairs(staged)
    assert set(rows["status"]) == {"failed"} and set(rows["code"]) == {"adapter_damaged"}
    assert rows["shadow_tokens"].isna().all() and rows["production_task"].eq(0).all()


def test_route_of_the_registry_decides_within_a_second(staged: Clone, engine: Engine) -> None:
    """A share is given, and taken by a stop, while the gateway runs; both are changes in the registry."""
    with served(staged.root, staged.settings(), engine) as gateway, gateway.http() as http:
        http.post("/v1/completions", json=BODY)
        with staged.registry() as registry:
            routes.set_shadow(registry, "finance@2", 100, actor="oncall", reason="to compare it")
        http.post("/v1/completions", json=BODY)
        eventually(lambda: count(gateway, "answered") == 1)
        with staged.registry() as registry:
            routes.stop(registry, "finance@2", actor="oncall", reason="it is slow")
        http.post("/v1/completions", json=BODY)
        eventually(lambda: not inner(gateway).after_answer._running)
        assert count(gateway, "asked") == 1
    assert len(pairs(staged)) == 1


def test_chat_is_read_as_the_version_in_shadow_would(clone: Clone, engine: Engine, tmp_path: Path) -> None:
    """It was trained with another system prompt: its answer to production's would say nothing about it."""
    with clone.registry() as registry:
        params: dict[str, object] = {"data": {"system": "Which city is it in? Answer in one word."}}
        assert register(registry, clone.base, tmp_path / "f3", "finance", 7, params) == "finance@3"
        clone.story(registry).to("finance@1", "production")
        clone.story(registry).to("finance@3", "shadow")
        digest = registry.get("finance@3").summary.content_digest
    settings = clone.settings(tenants={"finance": TenantServing(keep_text=True)})
    body = {"messages": [{"role": "user", "content": "AIRBNB * HM2X"}], "max_tokens": 12}
    route = RouteRecord(shadow=ShadowRoute(number=3, percent=100))
    with shadowed(clone, engine, settings, route) as gateway, gateway.http() as http:
        http.post("/v1/chat/completions", json={"model": "finance", **body})
        eventually(lambda: count(gateway, "answered") == 1)
        pinned = http.post("/v1/chat/completions", json={"model": "finance@3", **body}).json()
        inner(gateway).shadow._context_length = lambda: 8  # as of a version whose system prompt is too long
        http.post("/v1/chat/completions", json={"model": "finance", **body})
        eventually(lambda: count(gateway, "failed") == 1)
    first, second = read_pairs(clone.root / ".serving/pairs", "finance@3", digest).to_dict("records")
    assert first["shadow_text"] == pinned["choices"][0]["message"]["content"]
    assert (second["status"], second["code"]) == ("failed", "context_length_exceeded")
