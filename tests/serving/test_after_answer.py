"""What runs after an answer never reaches the client that got it."""

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import ModuleType

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from lora_ops.serving import after_answer
from lora_ops.serving.after_answer import Answered
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.sending import Stream
from tests.serving.conftest import Served, eventually

BODY = {"model": "finance", "prompt": ["AIRBNB", "UBER"], "max_tokens": 4}
FAILED = "lora_ops_after_answer_failures_total"


def hooked(gateway: Served, hook: Callable[[Answered], Awaitable[None]]) -> None:
    """Add a hook to a gateway that runs."""
    gateway.server.gateway.after_answer.add(hook)  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
def test_hook_gets_the_request_and_its_texts(gateway: Served, stream: bool) -> None:
    seen: list[Answered] = []

    async def keep(answered: Answered) -> None:
        seen.append(answered)

    hooked(gateway, keep)
    with gateway.http() as http:
        answer = http.post("/v1/completions", json=BODY).json()
        if stream:
            http.post("/v1/completions", json={**BODY, "stream": True})
    eventually(lambda: len(seen) == 1 + stream)
    for one in seen:
        assert one.request.route.name == "finance@2" and one.stats.generated == 8
        assert [one.stats.texts[choice["index"]] for choice in answer["choices"]] == [
            choice["text"] for choice in answer["choices"]
        ]


@pytest.mark.parametrize("endpoint", ["completions", "chat/completions"])
def test_hook_gets_no_more_of_the_body_than_its_prompt(gateway: Served, endpoint: str) -> None:
    """256 copies for a version in shadow wait for minutes, and each kept the megabytes that nobody counted."""
    seen: list[Answered] = []

    async def keep(answered: Answered) -> None:
        seen.append(answered)

    hooked(gateway, keep)
    large = "m" * 300_000
    body = {"model": "finance", "max_tokens": 1, "user": large, "metadata": {"a": large}}
    body |= {"prompt": "x"} if endpoint == "completions" else {"messages": [{"role": "user", "content": "x"}]}
    with gateway.http() as http:
        assert http.post(f"/v1/{endpoint}", json=body, headers={"x-session-id": "s"}).status_code == 200
    eventually(lambda: len(seen) == 1)
    assert not [one for one in _reached(seen[0].request) if isinstance(one, str | bytes) and len(one) > 100_000]


def _reached(first: object) -> list[object]:
    """Return what one object keeps in memory, without modules, classes and the gateway."""
    found, left = {id(first): first}, [first]
    while left:
        for one in gc.get_referents(left.pop()):
            shared = isinstance(one, type | ModuleType | Gateway) or (
                isinstance(one, dict) and "__spec__" in one
            )
            if id(one) not in found and not shared:
                found[id(one)] = one
                left.append(one)
    return list(found.values())


@pytest.mark.parametrize("stream", [False, True])
def test_hook_that_fails_is_counted_and_reaches_nobody(gateway: Served, stream: bool) -> None:
    seen: list[str] = []

    async def breaks(answered: Answered) -> None:
        raise RuntimeError("no shadow")

    async def keep(answered: Answered) -> None:
        seen.append(answered.request.request_id)

    hooked(gateway, breaks)
    hooked(gateway, keep)
    with gateway.http() as http:
        for _ in range(2):  # on the same connection
            answer = http.post("/v1/completions", json={**BODY, "stream": stream})
            assert answer.status_code == 200 and ("[DONE]" in answer.text) == stream
    eventually(lambda: len(seen) == 2)
    assert gateway.metric(FAILED) == 2


def test_hook_that_hangs_holds_up_no_answer(gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(after_answer, "MOST_AT_ONCE", 2)
    started = threading.Semaphore(0)

    async def hangs(answered: Answered) -> None:
        started.release()
        await asyncio.Event().wait()

    hooked(gateway, hangs)
    with gateway.http() as http:
        for _ in range(4):
            assert http.post("/v1/completions", json=BODY).status_code == 200
    assert started.acquire(timeout=10) and started.acquire(timeout=10)
    assert gateway.metric(FAILED) == 2  # those beyond the bound were left out


def test_hook_is_not_called_without_a_whole_answer(gateway: Served) -> None:
    seen: list[str] = []

    async def keep(answered: Answered) -> None:
        seen.append(answered.request.request_id)

    hooked(gateway, keep)
    long = {"model": "finance", "prompt": "x", "max_tokens": 1500, "stream": True, "ignore_eos": True}
    with gateway.http() as http:
        assert http.post("/v1/completions", json={**BODY, "max_tokens": 10**6}).status_code == 400
        with http.stream("POST", "/v1/completions", json=long) as answer:
            next(answer.iter_lines())  # and the client leaves
    with gateway.http() as http:
        http.post("/v1/completions", json=BODY, headers={"x-request-id": "whole"})
    eventually(lambda: gateway.server.gateway.queue.running == 0)  # type: ignore[attr-defined]
    eventually(lambda: seen == ["whole"])


@pytest.mark.parametrize("leaves", [False, True])
def test_hook_begins_when_the_last_event_has_left(leaves: bool) -> None:
    order: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1"
        yield b"data: 2"

    async def after() -> None:
        order.append("after")

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        if leaves and message.get("body") == b"data: 2":
            raise OSError("the client left")
        order.append(message["type"].removeprefix("http.response.") + message.get("body", b"").decode())

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def main() -> None:
        stream = Stream(events(), asyncio.get_running_loop().time() + 60, {}, after)
        await stream({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)

    if leaves:
        with pytest.raises(ClientDisconnect):
            asyncio.run(main())
    else:
        asyncio.run(main())
    sent = ["start", "bodydata: 1", "bodydata: 2", "body", "after"]
    assert order == (sent[:2] if leaves else sent)
