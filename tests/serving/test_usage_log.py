"""The usage log of real gateways: what they did for whom, and what was in memory, adds up to their uptime."""

import asyncio
import signal
import threading
import time
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from lora_ops.costs.usage import Usage, usage_in
from lora_ops.costs.usage_log import read_usage
from lora_ops.engines.protocol import Engine, Generation, Sampling
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.settings.params import Settings
from lora_ops.settings.serving import UsageSettings
from lora_ops.windows import Window
from tests.serving.conftest import Clone, eventually, served
from tests.serving.shadowing import BODY, count, shadowed
from tests.serving.test_server import serving


def beating(clone: Clone, seconds: float = 1.0, **changes: Any) -> Settings:
    return clone.settings(usage=UsageSettings(heartbeat_seconds=seconds), **changes)


def usage_of(root: Path) -> Usage:
    now = datetime.now(UTC)
    return usage_in(root / ".serving", Window(now - timedelta(hours=1), now + timedelta(seconds=1)), now)


def lines_of(root: Path) -> pd.DataFrame:
    return read_usage(root / ".serving/usage").sort_values("uptime_seconds", ignore_index=True)


def ask(url: str, model: str, times: int, tokens: int = 8) -> None:
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        for _ in range(times):
            body = {"model": model, "prompt": "AIRBNB", "max_tokens": tokens, "ignore_eos": True}
            assert http.post("/v1/completions", json=body).status_code == 200


def test_usage_of_two_tenants_sums_to_uptime(clone: Clone, engine: Engine) -> None:
    """Under traffic of both at the same time, that shares the engine's steps."""
    with served(clone.root, beating(clone), engine) as gateway:
        began = time.monotonic()
        askers = [
            threading.Thread(target=ask, args=(gateway.url, model, 12, 60))
            for model in ("finance@1", "finance@2", "healthcare@1", "healthcare@1")
        ]
        for one in askers:
            one.start()
        for one in askers:
            one.join()
        asked = time.monotonic() - began
        told = gateway.metric("lora_ops_device_seconds_total")
    usage = usage_of(clone.root)
    (run,) = usage.runs
    found = usage.devices["cpu"]
    assert run.ended == "stopped" and usage.notes == []
    assert found.busy + found.shared + found.idle == pytest.approx(found.up, rel=0.01)
    assert found.up >= asked
    # Each is measured by another clock: requests' shares of steps, the engine's steps, the gateway's uptime.
    assert found.busy == pytest.approx(told, rel=0.01)
    assert run.busy_seconds <= found.up
    assert 0.3 * asked < found.busy <= run.busy_seconds
    rows = usage.versions.set_index("version")
    assert rows["requests"].to_dict() == {"finance@1": 12, "finance@2": 12, "healthcare@1": 24}
    assert rows["generated_tokens"].to_dict() == {"finance@1": 720, "finance@2": 720, "healthcare@1": 1440}
    assert rows["cpu_seconds"].sum() == pytest.approx(found.busy)
    assert (rows["cpu_seconds"] > 0).all()
    assert (rows["hits"] + rows["misses"] == rows["requests"]).all() and (rows["misses"] >= 1).all()
    assert (rows["loads"] == 1).all() and (rows["evictions"] == 0).all()
    assert (rows["held_seconds"] > 0).all() and (rows["held_seconds"] <= found.up).all()
    assert (rows["unused_gib_hours"] < rows["held_gib_hours"]).all()


def test_usage_of_adapters_that_make_room(clone: Clone, tiny_base: Path) -> None:
    """Memory is for one adapter: each request of another one evicts it."""
    engine = TorchEngine(tiny_base, max_batch=4, kv_tokens=2048, threads=1)
    with served(clone.root, beating(clone), engine) as gateway:
        ask(gateway.url, "finance@1", 1)
        size = int(gateway.metric("lora_ops_adapter_bytes", adapter="finance@1"))
    engine = TorchEngine(tiny_base, max_batch=4, kv_tokens=2048, threads=1)
    with served(clone.root, beating(clone, adapter_memory=size), engine) as gateway:
        for _ in range(3):
            ask(gateway.url, "finance@1", 2)
            ask(gateway.url, "healthcare@1", 1)
    lines = lines_of(clone.root)
    last = lines[lines["gateway"] == lines.sort_values("time")["gateway"].iloc[-1]]
    assert last["kind"].value_counts()[["load", "evict"]].to_dict() == {"load": 6, "evict": 5}
    memory = last[last["kind"].isin(["load", "evict"])]
    # There is never more than one: a load follows each eviction.
    assert list(memory["kind"]) == ["load", "evict"] * 5 + ["load"]
    assert (
        list(memory["adapter"])
        == [name for _ in range(3) for name in ("finance@1", "finance@1", "healthcare@1", "healthcare@1")][:11]
    )
    rows = usage_of(clone.root).versions.set_index("version")
    assert rows.loc["finance@1", ["hits", "misses", "evictions"]].to_list() == [3, 4, 3]
    assert rows.loc["healthcare@1", ["hits", "misses", "evictions"]].to_list() == [0, 3, 2]
    up = usage_of(clone.root).devices["cpu"].up
    assert rows["held_gib_hours"].sum() <= 1.001 * size / 2**30 * up / 3600


def test_usage_of_copies_in_shadow_is_theirs(staged: Clone, engine: Engine) -> None:
    with shadowed(staged, engine, beating(staged)) as gateway, gateway.http() as http:
        for _ in range(3):
            http.post("/v1/completions", json=BODY)
        eventually(lambda: count(gateway, "answered") == 3)
    lines = lines_of(staged.root)
    copies = lines[lines["kind"] == "background"]
    assert list(copies["adapter"]) == ["finance@2"] * 3
    assert list(copies["generated_tokens"]) == [4] * 3 and (copies["device_seconds"] > 0).all()
    usage = usage_of(staged.root)
    rows = usage.versions.set_index("version")
    assert rows.loc["finance@2", "shadow_cpu_seconds"] == pytest.approx(copies["device_seconds"].sum())
    assert rows.loc["finance@2", ["requests", "cpu_seconds"]].to_list() == [0, 0]
    assert usage.devices["cpu"].shared >= copies["device_seconds"].sum()
    assert usage.devices["cpu"].busy == pytest.approx(rows.loc["finance@1", "cpu_seconds"])


def test_usage_of_a_killed_gateway_misses_a_heartbeat(clone: Clone) -> None:
    params = clone.root / "params.yaml"
    beat = "serving:\n  usage: {heartbeat_seconds: 0.2}\n"
    params.write_text(params.read_text().replace("serving:\n", beat, 1))
    with serving(clone) as server:
        ask(server.url, "base", 3)
        seen = len(lines_of(clone.root)) if any((clone.root / ".serving/usage").iterdir()) else 0
        eventually(lambda: len(lines_of(clone.root)) > seen + 2)
        at = datetime.now(UTC)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
    now = at + timedelta(seconds=5)
    usage = usage_in(clone.root / ".serving", Window(at - timedelta(hours=1), now), now)
    (run,) = usage.runs
    assert run.ended == "silent" and run.unknown_seconds == 0
    # A heartbeat, and what its way to the disk takes.
    assert timedelta(0) < at - run.last < timedelta(seconds=2)
    assert run.known_seconds == pytest.approx((run.last - run.first).total_seconds(), abs=0.05)
    assert "without saying so: up to 0.2 s after that are unknown and not billed" in usage.notes[0]


def test_usage_lines_are_few_while_nothing_happens(clone: Clone, engine: Engine) -> None:
    """A heartbeat tells of an adapter only where it was used since."""
    with served(clone.root, beating(clone, 0.1), engine) as gateway:
        ask(gateway.url, "finance@1", 1)
        time.sleep(1)
    kinds = lines_of(clone.root)["kind"].value_counts()
    assert kinds["heartbeat"] >= 5 and kinds["held"] <= 3
    assert (kinds["start"], kinds["stop"], kinds["load"]) == (1, 1, 1)


def test_engine_is_busy_while_it_answers_or_loads(clone: Clone, tiny_base: Path) -> None:
    async def run() -> None:
        engine = TorchEngine(tiny_base, max_batch=4, kv_tokens=2048, threads=1)
        await engine.start()
        started = engine.status().busy_seconds
        await asyncio.sleep(0.3)
        assert engine.status().busy_seconds - started < 0.05
        began, spent = time.monotonic(), 0.0
        asked = Generation("one", (5, 6, 7), None, Sampling(max_tokens=400, ignore_eos=True))
        two = replace(asked, id="two")

        async def answer(generation: Generation) -> float:
            async with aclosing(engine.generate(generation)) as chunks:  # type: ignore[type-var]
                return sum([chunk.device_seconds async for chunk in chunks])

        spent = sum(await asyncio.gather(answer(asked), answer(two)))
        took = time.monotonic() - began
        busy = engine.status().busy_seconds - started
        assert 0.5 * took < busy < 1.05 * took
        assert 0 < spent <= busy
        assert (engine.status().device, engine.status().devices) == ("cpu", 1)
        await engine.close()

    asyncio.run(run())
