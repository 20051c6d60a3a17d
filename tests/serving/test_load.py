"""Too many requests, clients that leave, answers that take too long: nothing hangs, and nothing is lost."""

import asyncio
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.registry import lifecycle
from lora_ops.settings.serving import TenantServing
from tests.serving.conftest import Clone, Served, eventually, served

LONG = {"model": "base", "prompt": "AIRBNB", "max_tokens": 1900}
SHORT = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 8}


def idle(gateway: Served) -> bool:
    return gateway.engine.status().running == 0 and gateway.metric("lora_ops_running") == 0


def test_at_four_times_its_capacity_every_request_is_answered_or_refused(
    clone: Clone, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    settings = clone.settings(max_running=4, max_waiting=8)
    with served(clone.root, settings, engine) as gateway, ThreadPoolExecutor(48) as pool:

        def ask(number: int) -> tuple[int, str | None]:
            model = ("finance", "healthcare", "base")[number % 3]
            answer = gateway.http().post("/v1/completions", json={**SHORT, "model": model, "max_tokens": 40})
            return answer.status_code, answer.headers.get("retry-after")

        answers = list(pool.map(ask, range(192)))
        statuses = Counter(status for status, _ in answers)
        assert set(statuses) == {200, 503} and sum(statuses.values()) == 192
        assert statuses[200] >= 12
        assert all(retry for status, retry in answers if status == 503)
        eventually(lambda: idle(gateway))
        assert gateway.metric("lora_ops_requests_total") == 192
        assert gateway.metric("lora_ops_errors_total", code="503") == statuses[503]
    refused = [record for record in caplog.records if "gateway is busy" in record.getMessage()]
    assert len(refused) == statuses[503]
    assert not [record for record in caplog.records if record.exc_info or record.levelname == "ERROR"]


def test_over_its_limit_a_tenant_gets_429_with_a_time_and_others_do_not(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(tenants={"finance": TenantServing(requests_per_minute=2)})
    with served(clone.root, settings, engine) as gateway:
        http = gateway.http()
        answers = [http.post("/v1/completions", json=SHORT) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        with pytest.raises(openai.RateLimitError, match="2 requests a minute"):
            gateway.client().completions.create(**SHORT)  # type: ignore[call-overload]
        assert http.post("/v1/completions", json={**SHORT, "model": "healthcare"}).status_code == 200


def test_a_request_that_the_queue_refused_used_no_tokens(clone: Clone, engine: Engine) -> None:
    tenants = {"finance": TenantServing(tokens_per_minute=2000)}
    settings = clone.settings(max_running=1, max_waiting=0, tenants=tenants)
    with served(clone.root, settings, engine) as gateway:
        body = {**SHORT, "max_tokens": 1200}
        with long_answer(gateway):
            assert gateway.http().post("/v1/completions", json=body).status_code == 503
            assert gateway.http().post("/v1/completions", json=body).status_code == 503
        eventually(lambda: idle(gateway))
        assert gateway.http().post("/v1/completions", json=body).status_code == 200


def test_a_request_that_never_fits_is_told_so_instead_of_to_come_back(gateway: Served) -> None:
    answer = gateway.http().post("/v1/completions", json={**SHORT, "prompt": ["x"] * 6, "n": 16})
    assert answer.status_code == 400 and "96 answers of one request" in answer.json()["error"]["message"]
    assert "retry-after" not in answer.headers


def test_long_answers_of_one_tenant_stop_no_other(gateway: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        long = [pool.submit(gateway.http().post, "/v1/completions", json=LONG) for _ in range(6)]
        eventually(lambda: gateway.metric("lora_ops_running") >= 3)
        assert gateway.metric("lora_ops_engine_waiting") == 0
        assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200
        assert sum(one.done() for one in long) < 6
        assert {one.result().status_code for one in long} == {200}


def test_a_load_counts_towards_the_time_of_a_request(clone: Clone, engine: Engine) -> None:
    loading, load = threading.Event(), engine.load

    async def slow(name: str, folder: Path, digests: dict[str, str]) -> int:
        loading.set()
        await asyncio.sleep(4)
        return await load(name, folder, digests)

    engine.load = slow  # type: ignore[method-assign]
    with served(clone.root, clone.settings(request_timeout_seconds=1.5), engine) as gateway:
        assert gateway.http().post("/v1/completions", json=SHORT).status_code == 504
        assert loading.is_set()
        eventually(lambda: gateway.metric("lora_ops_adapter_loaded") == 1)
        assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200


def held_loads(engine: Engine) -> threading.Event:
    """Let loads wait until the event is set."""
    go_on, load = threading.Event(), engine.load

    async def slow(name: str, folder: Path, digests: dict[str, str]) -> int:
        await asyncio.to_thread(go_on.wait, 20)
        return await load(name, folder, digests)

    engine.load = slow  # type: ignore[method-assign]
    return go_on


# Puts a copy in the database's place, as a restore does, and keeps it locked.
HOLD = """
import os, sqlite3, sys, threading
there = sys.argv[1]
copy = sqlite3.connect(f"{there}.copy", isolation_level=None)
sqlite3.connect(there).backup(copy)
for sql in ("PRAGMA journal_mode = WAL", "PRAGMA locking_mode = EXCLUSIVE", "BEGIN EXCLUSIVE"):
    copy.execute(sql)
os.replace(f"{there}.copy", there)
print("held", flush=True)
threading.Timer(10, os._exit, [0]).start()
sys.stdin.read()
os._exit(0)
"""


def test_a_registry_that_is_held_stops_no_other_client(clone: Clone, gateway: Served) -> None:
    """Each request waited for the lock on the event loop, for up to 30 s, and with it everybody."""
    with clone.registry() as registry:
        database = registry.db.path
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, database], **pipes, text=True) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == "held\n"
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(gateway.http().post, "/v1/completions", json=SHORT) for _ in range(4)]
            assert gateway.http().get("/health").status_code == 200
            for one in asked:
                assert one.result().status_code == 503
                assert "The registry in … is busy" in one.result().json()["error"]["message"]
        assert holder.poll() is None, "they were answered only after the lock was gone"
        holder.stdin.close()
    eventually(lambda: gateway.http().post("/v1/completions", json=SHORT).status_code == 200)


def test_a_slow_load_holds_no_slot(clone: Clone, engine: Engine) -> None:
    """The slot came first: with all of them waiting for loads, nobody was answered."""
    go_on = held_loads(engine)
    with served(clone.root, clone.settings(max_running=2), engine) as gateway, ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(gateway.http().post, "/v1/completions", json=SHORT) for _ in range(4)]
        eventually(lambda: gateway.metric("lora_ops_adapter_cache_misses_total") == 4)
        assert gateway.metric("lora_ops_slots_used") == 0
        assert gateway.http().post("/v1/completions", json={**SHORT, "model": "base"}).status_code == 200
        go_on.set()
        assert {one.result().status_code for one in waiting} == {200}


def test_a_queue_keeps_no_adapter_from_another_tenant(clone: Clone, engine: Engine) -> None:
    """Its answers that waited for a slot kept their adapters in memory."""
    with served(clone.root, clone.settings(), engine) as gateway:
        for model in ("finance@1", "finance@2", "healthcare@1"):
            assert gateway.http().post("/v1/completions", json={**SHORT, "model": model}).status_code == 200
        sizes = engine.status().adapters
    memory = sizes["finance@1"] + max(sizes["finance@2"], sizes["healthcare@1"])
    settings = clone.settings(max_running=1, adapter_memory=memory, drain_timeout_seconds=0.5)
    with served(clone.root, settings, engine) as gateway, ThreadPoolExecutor(3) as pool:
        gateway.http().post("/v1/completions", json={**SHORT, "model": "finance@2"})
        long = pool.submit(gateway.http().post, "/v1/completions", json={**LONG, "model": "finance@1"})
        eventually(lambda: gateway.metric("lora_ops_running") == 1)
        others = [
            pool.submit(gateway.http().post, "/v1/completions", json={**SHORT, "model": model})
            for model in ("finance@2", "healthcare@1")
        ]
        assert {one.result().status_code for one in (long, *others)} == {200}


def test_requests_that_wait_for_loads_have_a_limit(clone: Clone, engine: Engine) -> None:
    go_on = held_loads(engine)
    with (
        served(clone.root, clone.settings(max_running=1, max_waiting=1), engine) as gateway,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(gateway.http().post, "/v1/completions", json=SHORT) for _ in range(2)]
        eventually(lambda: gateway.metric("lora_ops_adapter_cache_misses_total") == 2)
        refused = gateway.http().post("/v1/completions", json=SHORT)
        assert (
            refused.status_code == 503 and "2 requests wait for finance@2" in refused.json()["error"]["message"]
        )
        go_on.set()
        assert {one.result().status_code for one in waiting} == {200}


def test_unloading_a_busy_adapter_refuses_none_of_its_requests(gateway: Served) -> None:
    """Its tenant was down for 30 s, and held slots that nobody used."""
    admin = gateway.http()
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(gateway.http().post, "/v1/completions", json={**LONG, "model": "finance"})
        eventually(lambda: gateway.metric("lora_ops_running") == 1)
        name = {"lora_name": "finance"}
        unloading = pool.submit(admin.post, "/v1/unload_lora_adapter", json=name)
        for _ in range(5):
            assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200
        assert not long.done() and not unloading.done()
        assert long.result().status_code == unloading.result().status_code == 200


def test_nothing_begins_with_a_version_that_was_revoked(clone: Clone, engine: Engine) -> None:
    """Requests that waited for their turn were answered by it, up to half a minute after its revocation."""
    with (
        served(clone.root, clone.settings(max_running=1), engine) as gateway,
        ThreadPoolExecutor(2) as pool,
        clone.registry() as registry,
    ):
        with long_answer(gateway):
            waiting = pool.submit(gateway.http().post, "/v1/completions", json=SHORT)
            other = pool.submit(gateway.http().post, "/v1/completions", json={**SHORT, "model": "healthcare"})
            eventually(lambda: gateway.metric("lora_ops_waiting") == 2)
            lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks card numbers")
        answer = waiting.result()
        assert "finance@2 was revoked" in answer.json()["error"]["message"]
        assert other.result().status_code == 200


def test_the_wait_of_a_refused_request_is_counted_apart(clone: Clone, engine: Engine) -> None:
    """Whoever waited for its turn in vain was said to have waited for 0 s, and later mixed with answers."""
    settings = clone.settings(max_running=1, queue_timeout_seconds=0.3)
    with served(clone.root, settings, engine) as gateway:
        with long_answer(gateway):
            assert gateway.http().post("/v1/completions", json=SHORT).status_code == 503
        assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200
        for metric in ("queue", "request"):
            name = f"lora_ops_{metric}_seconds"
            assert gateway.metric(f"{name}_sum", tenant="finance", outcome="refused") >= 0.3
            for outcome in ("answered", "refused"):
                assert gateway.metric(f"{name}_count", tenant="finance", outcome=outcome) == 1


@contextmanager
def long_answer(gateway: Served) -> Iterator[None]:
    """While an answer of two seconds is streamed."""
    with (
        gateway.http() as http,
        http.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
        yield


def test_slots_are_taken_by_what_answers_took_lately(gateway: Served) -> None:
    brief = {**LONG, "structured_outputs": {"choice": ["a"]}}
    gateway.http().post("/v1/completions", json=brief).raise_for_status()
    with long_answer(gateway):
        early = gateway.metric("lora_ops_slots_used")
        eventually(lambda: gateway.metric("lora_ops_slots_used") > 2)
        assert early < 2 and gateway.metric("lora_ops_running") == 1
    eventually(lambda: idle(gateway))
    assert gateway.metric("lora_ops_slots_used") == 0


def test_a_client_that_leaves_takes_its_generation_with_it(gateway: Served) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/completions", json={**LONG, "n": 4}, timeout=0.3, verify=False)
    eventually(lambda: idle(gateway), 2)
    assert gateway.metric("lora_ops_errors_total", code="499") == 1


def test_a_client_that_leaves_a_stream_takes_its_generation_with_it(gateway: Served) -> None:
    with long_answer(gateway):
        assert gateway.metric("lora_ops_running") == 1
    eventually(lambda: idle(gateway), 1)
    assert gateway.metric("lora_ops_errors_total", code="499") == 1


def test_a_client_that_leaves_the_queue_takes_its_place_with_it(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(max_running=1, max_waiting=1), engine) as gateway:
        with long_answer(gateway):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{gateway.url}/v1/completions", json=SHORT, timeout=0.2, verify=False)
            eventually(lambda: gateway.metric("lora_ops_waiting") == 0)
        assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200


def test_a_request_whose_turn_does_not_come_is_told_to_come_back(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(max_running=1, queue_timeout_seconds=0.1)
    with served(clone.root, settings, engine) as gateway, long_answer(gateway):
        answer = gateway.http().post("/v1/completions", json=SHORT)
        assert answer.status_code == 503 and "did not come within" in answer.json()["error"]["message"]
        assert answer.headers["retry-after"] in "123"


def test_an_answer_that_takes_too_long_is_ended(clone: Clone, engine: Engine) -> None:
    with served(clone.root, clone.settings(request_timeout_seconds=0.2), engine) as gateway:
        answer = gateway.http().post("/v1/completions", json={**LONG, "n": 8})
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with pytest.raises(openai.APIError, match="not finished in time"):
            list(gateway.client().completions.create(**LONG, n=8, stream=True))  # type: ignore[call-overload]
        eventually(lambda: idle(gateway))


def test_a_flood_of_one_tenant_does_not_shut_another_out(clone: Clone, engine: Engine) -> None:
    settings = clone.settings(max_running=4, max_waiting=12)
    with served(clone.root, settings, engine) as gateway:
        stop = threading.Event()

        def flood() -> None:
            with gateway.http() as http:
                while not stop.is_set():
                    http.post("/v1/completions", json={**SHORT, "max_tokens": 30})

        threads = [threading.Thread(target=flood) for _ in range(24)]
        for thread in threads:
            thread.start()
        with gateway.http() as http:
            answers = [
                http.post("/v1/completions", json={**SHORT, "model": "healthcare"}).status_code
                for _ in range(25)
            ]
        stop.set()
        for thread in threads:
            thread.join()
        assert answers == [200] * 25


def test_an_engine_that_breaks_is_told_and_the_gateway_goes_on(gateway: Served) -> None:
    class Broken(Exception):
        pass

    original = gateway.engine.generate

    async def generate(generation):  # type: ignore[no-untyped-def]
        raise Broken("secret detail")
        yield

    gateway.engine.generate = generate  # type: ignore[method-assign]
    answer = gateway.http().post("/v1/completions", json=SHORT)
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.headers["x-request-id"]
    gateway.engine.generate = original  # type: ignore[method-assign]
    assert gateway.http().post("/v1/completions", json=SHORT).status_code == 200
    assert gateway.metric("lora_ops_running") == 0
