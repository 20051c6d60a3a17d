"""A request that waits while its version is closed: the version that took its place answers it."""

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from lora_ops.engines.protocol import Chunk, Generation
from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.registry import lifecycle, routes
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.serving.events import read_events
from lora_ops.settings.serving import TenantServing
from tests.conftest import write_params
from tests.registry.conftest import owners  # noqa: F401 - a fixture
from tests.serving.conftest import Clone, Served, eventually, make_clone, register, served

HELD = {"model": "base", "prompt": "AIRBNB", "max_tokens": 2, "stream": True}
TEXT = {"model": "finance", "prompt": "AIRBNB", "max_tokens": 8, "temperature": 0}
CHAT = {"model": "finance", "messages": [{"role": "user", "content": "AIRBNB"}], "temperature": 0}
WHY: Any = {"actor": "ben", "reason": "It leaks."}
OTHER = {"data": {"system": "Say in one word what was bought, as a bank does.", "labels": ["aa", "bb"]}}


@pytest.fixture(scope="module")
def released_source(tiny_base: Path, owners: Owners, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A clone in which finance@3, with a system prompt of its own, took over from finance@1."""
    folder = tmp_path_factory.mktemp("moving")
    root = make_clone(tiny_base, owners, folder)
    write_params(root, {"registry.evidence": {"rollout": "optional"}})  # people give versions users
    clone = Clone(root, root / "models/base")
    with clone.registry() as registry:
        clone.story(registry).to("finance@1", "production")
        register(registry, clone.base, folder / "f3", "finance", 4, params=OTHER)
        clone.story(registry).to("finance@3", "production")
        clone.story(registry).to("finance@2", "canary")
    return root


@pytest.fixture
def released(released_source: Path, tmp_path: Path) -> Clone:
    root = tmp_path / "clone"
    shutil.copytree(released_source, root)
    return Clone(root, root / "models/base")


def roll_back(clone: Clone) -> int:
    """Give production back to finance@1 and revoke finance@3; return the last entry of the log."""
    with clone.registry() as registry:
        take_back(clone, registry, "finance@3", "finance@1")
        return registry.log.head().seq


def take_back(clone: Clone, registry: Registry, bad: str, good: str) -> None:
    incident = clone.story(registry).evidence("incident", about=bad)
    lifecycle.promote(registry, good, "production", **WHY, evidence=incident)
    lifecycle.revoke(registry, bad, **WHY)


class HeldEngine(TorchEngine):
    """An engine that loads finance@3, and ends an answer of the adapter that is held, only once it may."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, max_batch=16, kv_tokens=8192, threads=1)
        self.may_load, self.may_end = threading.Event(), threading.Event()
        self.loads = 0
        self.held: str | None = None
        self.may_load.set()

    async def load(self, name: str, *args: Any, **more: Any) -> Any:
        if name == "finance@3":
            self.loads += 1
            await _once(self.may_load)
        return await super().load(name, *args, **more)

    async def generate(self, asked: Generation) -> AsyncIterator[Chunk]:
        async for chunk in super().generate(asked):
            yield chunk
            if asked.adapter == self.held:
                await _once(self.may_end)


async def _once(event: threading.Event) -> None:
    while not event.is_set():
        await asyncio.sleep(0.01)


@pytest.fixture
def engine(tiny_base: Path) -> HeldEngine:
    return HeldEngine(tiny_base)


@contextmanager
def busy(gateway: Served) -> Iterator[None]:
    """While the only slot is taken, for no longer than this block."""
    engine = gateway.engine
    assert isinstance(engine, HeldEngine)
    engine.may_end.clear()
    with gateway.http() as http, http.stream("POST", "/v1/completions", json=HELD) as answer:
        lines = answer.iter_lines()  # kept: the connection is closed with it
        next(lines)
        yield
        engine.may_end.set()


class Waiting:
    """Requests that were sent, and wait for the slot one after the other."""

    def __init__(self, gateway: Served, pool: ThreadPoolExecutor) -> None:
        self._gateway, self._pool = gateway, pool
        self.sent: list[Future[httpx.Response]] = []

    def send(self, body: dict[str, Any], answers: int = 1, **headers: str) -> None:
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        before = self._waiting()
        self.sent.append(self._pool.submit(self._gateway.http().post, path, json=body, headers=headers))
        eventually(lambda: self._waiting() == before + answers)

    def _waiting(self) -> int:
        return sum(self._gateway.server.gateway.queue.waiting().values())  # type: ignore[attr-defined]


@contextmanager
def waiting(clone: Clone, engine: HeldEngine, **serving: Any) -> Iterator[tuple[Served, Waiting]]:
    settings = clone.settings(max_running=1, **serving)
    with served(clone.root, settings, engine) as gateway, ThreadPoolExecutor(16) as pool:
        for version in ("finance@1", "finance@2", "finance@3"):  # the load is another wait
            gateway.http().post("/v1/load_lora_adapter", json={"lora_name": version, "lora_path": version})
        yield gateway, Waiting(gateway, pool)


def says(response: httpx.Response) -> tuple[int, str, str, str]:
    names = ("adapter", "route", "epoch")
    adapter, route, epoch = (response.headers[f"x-lora-ops-{name}"] for name in names)
    return response.status_code, adapter, route, epoch


def test_waiting_request_moves_to_what_took_its_place(released: Clone, engine: HeldEngine) -> None:
    """Its answer, headers and event are those of the version that answers, and its turn is the one it had."""
    limits = {"finance": TenantServing(concurrency=5, requests_per_minute=9)}
    with waiting(released, engine, tenants=limits) as (gateway, requests):
        with busy(gateway):
            for body in (
                TEXT,
                CHAT,
                {**TEXT, "model": "finance@3"},
                {**TEXT, "n": 2},
                {**CHAT, "stream": True},
            ):
                requests.send(body, answers=body.get("n", 1))
            epoch = str(roll_back(released))
            refused = gateway.http().post("/v1/completions", json=TEXT)
            assert "5 requests open" in refused.json()["error"]["message"]
        text, chat, exact, two, stream = (one.result() for one in requests.sent)
        for one in (text, chat, two, stream):
            assert says(one) == (200, "finance@1", "production", epoch)
        assert text.json()["model"] == chat.json()["model"] == "finance@1"
        assert text.json()["system_fingerprint"].startswith("finance@1:")
        assert stream.text.endswith("data: [DONE]\n\n")
        assert '"model":"finance@1"' in stream.text and "finance@3" not in stream.text
        assert (exact.status_code, exact.headers["x-lora-ops-adapter"]) == (403, "finance@3")
        assert "finance@3 was revoked" in exact.json()["error"]["message"]
        for left, moved, body in (("3", text, TEXT), ("2", chat, CHAT)):
            fresh = gateway.http().post(moved.request.url.path, json=body)
            assert fresh.headers["x-ratelimit-remaining-requests"] == left  # each counted once
            assert moved.json()["choices"] == fresh.json()["choices"]
            prompts = [one.json()["usage"]["prompt_tokens"] for one in (moved, fresh)]
            assert prompts[0] == prompts[1]
        assert len(two.json()["choices"]) == 2
        assert gateway.server.gateway.answering._allowance("finance").open == 0  # type: ignore[attr-defined]
    found = read_events(released.root / ".serving/events", "tenant = 'finance' AND status <> 429").iloc[:5]
    in_turn = ["finance@1", "finance@1", "finance@3", "finance@1", "finance@1"]
    assert list(found["adapter"]) == in_turn
    assert list(found["status"]) == [200, 200, 403, 200, 200]
    answered = found[found["status"] == 200]
    assert set(answered["epoch"]) == {int(epoch)} and len(set(answered["digest"])) == 1


def test_waiting_canary_moves_to_production_if_stopped(released: Clone, engine: HeldEngine) -> None:
    """Its answer counts for no side of a canary that is over."""
    with released.registry() as registry:
        routes.set_canary(registry, "finance@2", 100, **WHY)
        with waiting(released, engine) as (gateway, requests):
            with busy(gateway):
                requests.send(TEXT)
                routes.stop(registry, "finance@2", **WHY)
            answer = requests.sent[0].result()
        epoch = str(registry.log.head().seq)
    assert says(answer) == (200, "finance@3", "production", epoch)
    [event] = read_events(released.root / ".serving/events", "tenant = 'finance'").itertuples()
    assert (event.adapter, event.arm, event.epoch) == ("finance@3", None, int(epoch))


def test_waiting_request_is_refused_if_nothing_took_its_place(released: Clone, engine: HeldEngine) -> None:
    with waiting(released, engine) as (gateway, requests):
        with busy(gateway):
            requests.send(TEXT)
            with released.registry() as registry:
                lifecycle.revoke(registry, "finance@3", **WHY)
                epoch = str(registry.log.head().seq)
        answer = requests.sent[0].result()
    assert says(answer) == (503, "finance@3", "production", epoch)
    assert "finance@3 was revoked" in answer.json()["error"]["message"]


def test_answers_of_one_request_are_by_one_version(released: Clone, engine: HeldEngine) -> None:
    """One has begun and the other waits: neither another version nor a revoked one may begin."""
    with waiting(released, engine) as (gateway, requests):
        engine.held = "finance@3"
        requests.send({**TEXT, "n": 2})  # one of them has its turn
        roll_back(released)
        engine.may_end.set()
        answer = requests.sent[0].result()
        assert gateway.http().post("/v1/completions", json=TEXT).status_code == 200
    assert (answer.status_code, answer.headers["x-lora-ops-adapter"]) == (503, "finance@3")


def test_request_leaves_the_load_of_a_closed_version(released: Clone, engine: HeldEngine) -> None:
    engine.may_load.clear()
    with (
        served(released.root, released.settings(), engine) as gateway,
        ThreadPoolExecutor(4) as pool,
    ):
        bodies = [TEXT, TEXT, {**TEXT, "model": "finance@3"}]
        sent = [pool.submit(gateway.http().post, "/v1/completions", json=body) for body in bodies]
        cache = gateway.server.gateway.answering  # type: ignore[attr-defined]
        eventually(lambda: engine.loads == 1 and cache._loading["finance"] == 3)
        epoch = str(roll_back(released))
        answers = [one.result(30) for one in sent]
        assert not engine.may_load.is_set()
        assert [says(one)[:2] for one in answers] == [(200, "finance@1")] * 2 + [(403, "finance@3")]
        assert {says(one)[3] for one in answers[:2]} == {epoch}
        engine.may_load.set()
        eventually(lambda: not cache._loading)
        entries = gateway.server.gateway.cache.entries  # type: ignore[attr-defined]
        eventually(lambda: not any(one.wanted for one in entries()))


def test_move_asks_as_the_version_that_answers(released: Clone, engine: HeldEngine) -> None:
    """A tenant with labels alone gets a label of the version that answers."""
    only = {"finance": TenantServing(labels_only=True)}
    with waiting(released, engine, tenants=only) as (gateway, requests):
        with busy(gateway):
            requests.send(TEXT)
            roll_back(released)
        moved = requests.sent[0].result()
        fresh = gateway.http().post("/v1/completions", json=TEXT)
    assert moved.headers["x-lora-ops-adapter"] == fresh.headers["x-lora-ops-adapter"] == "finance@1"
    assert moved.json()["choices"] == fresh.json()["choices"]
    assert moved.json()["choices"][0]["text"] not in OTHER["data"]["labels"]
    events = read_events(released.root / ".serving/events", "tenant = 'finance'")
    assert list(events["answer_task"]) == [1, 1]
