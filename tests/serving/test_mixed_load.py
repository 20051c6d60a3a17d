"""An hour's traffic in minutes: mixed requests beside hostile clients, unloads and kills of the gateway.

One request a second is an hour's traffic of a small team. Nothing may be lost: each request is answered once
its client has come back as often as it was refused, and each answer is in the event log. Nothing may cross:
each answer is the one that the same request had alone.
"""

import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, NamedTuple

import httpx
import pytest

from lora_ops.serving.events import read_events
from tests.serving.conftest import Clone, eventually
from tests.serving.test_server import Process

ADAPTERS = {
    "finance": "finance@2",
    "finance@1": "finance@1",
    "healthcare": "healthcare@1",
    "base": "tiny-random",
}
PROMPTS = ("AIRBNB", "Ärzte für 漢字 🙂", "NETFLIX.COM 866-579-7172 " * 12, "a\n\nb")
CLIENTS = 8
KILLS = 2
LEAVES = 0.05
"""The share of requests whose client goes away in the middle of the answer."""
UNWRITTEN_SECONDS = 5.0
"""Before a kill: what was answered since may not be on disk yet. Events are written every 0.2 s, or later where
tests keep the machine busy."""
LARGE = json.dumps({"model": "base", "prompt": "x y " * 250_000}).encode()


class Asked(NamedTuple):
    model: str
    endpoint: str
    prompt: str
    tokens: int

    def body(self, stream: bool) -> dict[str, Any]:
        """Return what is sent."""
        chat = [{"role": "user", "content": self.prompt}]
        what = {"messages": chat} if self.endpoint == "chat/completions" else {"prompt": self.prompt}
        fixed = {"temperature": 0, "ignore_eos": True}
        return {"model": self.model, "max_tokens": self.tokens, "stream": stream, **fixed, **what}


EVERY = tuple(
    Asked(*one) for one in itertools.product(ADAPTERS, ("chat/completions", "completions"), PROMPTS, (8, 24))
)


def ask(client: httpx.Client, asked: Asked, stream: bool, name: str, *, leave: bool = False) -> str | None:
    """Return the answer's text, or None where it was refused for now or the gateway went away."""
    headers = {"x-request-id": name}
    try:
        with client.stream(
            "POST", f"/v1/{asked.endpoint}", json=asked.body(stream), headers=headers
        ) as response:
            if response.status_code in (429, 503):
                return None
            assert response.status_code == 200, response.read()
            if leave:
                next(response.iter_raw(), None)
                return None
            text = response.read().decode()
    except httpx.TransportError:
        return None
    if not stream:
        return _text(json.loads(text)["choices"][0])
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if not lines or lines[-1] != "[DONE]":  # the gateway told in the stream that it stops
        return None
    return "".join(_text(choice) for line in lines[:-1] for choice in json.loads(line).get("choices", ()))


def _text(choice: dict[str, Any]) -> str:
    return choice.get("text") or choice.get("message", choice.get("delta", {})).get("content") or ""


@contextmanager
def without_end(*works: Callable[[], object]) -> Iterator[None]:
    """Run each in a thread, over and over."""
    ended = threading.Event()

    def run(work: Callable[[], object]) -> None:
        while not ended.wait(0.02):
            with suppress(httpx.TransportError, OSError):
                work()

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        thread.join()


class Storm:
    """Clients that ask until they are answered, and what they were told."""

    def __init__(self, url: str, asks: Sequence[Asked], expected: dict[Asked, str], requests: int) -> None:
        self.client = httpx.Client(
            base_url=url, timeout=60, limits=httpx.Limits(max_connections=64), verify=False
        )
        self.asks = asks
        self.expected, self.requests = expected, requests
        self.answered: dict[str, tuple[Asked, float]] = {}
        self.wrong: list[tuple[str, Asked, str]] = []

    def send(self, number: int) -> None:
        """Ask one request until it is answered."""
        chosen = random.Random(number)
        asked, stream = chosen.choice(self.asks), chosen.random() < 0.5
        if chosen.random() < LEAVES:
            ask(self.client, asked, True, f"leaves-{number}", leave=True)
            return
        for again in range(2000):
            name = f"r{number}-{again}"
            text = ask(self.client, asked, stream, name)
            if text is not None:
                self.answered[name] = asked, time.monotonic()
                if text != self.expected[asked]:
                    self.wrong.append((name, asked, text))
                return
            time.sleep(0.05)
        raise AssertionError(f"request {number} was never answered: {asked}")

    def passed(self, share: float) -> bool:
        """Whether so many of its requests were answered."""
        return len(self.answered) >= share * self.requests


@pytest.mark.parametrize("requests", [300, pytest.param(3600, marks=pytest.mark.nightly)])
def test_mixed_load_loses_and_crosses_nothing(clone: Clone, requests: int) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    killed: list[tuple[float, float]] = []
    with ExitStack() as stack:
        server = Process(clone.root, port=port)
        stack.callback(lambda: server.process.kill())
        with httpx.Client(base_url=url, timeout=60, verify=False) as client:
            expected = {one: ask(client, one, False, "alone") or "" for one in EVERY}
        told = tuple(one for one in EVERY if _is_told(one, expected))
        assert len(told) > len(EVERY) / 2
        storm = Storm(url, told, expected, requests)
        half = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
        for one_half in half:
            stack.enter_context(closing(one_half))
            one_half.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")
        names = itertools.cycle(("finance@1", "finance@2", "healthcare@1"))
        hostile = stack.enter_context(httpx.Client(base_url=url, timeout=60, verify=False))
        json_type = {"content-type": "application/json"}
        with (
            without_end(
                lambda: hostile.post("/v1/unload_lora_adapter", json={"lora_name": next(names)}),
                lambda: hostile.post("/v1/completions", content=LARGE, headers=json_type),
                lambda: hostile.get("/metrics"),
            ),
            ThreadPoolExecutor(CLIENTS) as threads,
        ):
            sent = [threads.submit(storm.send, number) for number in range(requests)]
            for part in range(1, KILLS + 1):
                eventually(lambda share=part / (KILLS + 1): storm.passed(share), 600)  # type: ignore[misc]
                since = time.monotonic() - UNWRITTEN_SECONDS
                server.process.kill()
                server.process.wait()
                server.reader.join()
                server = Process(clone.root, port=port)
                killed.append((since, time.monotonic()))  # a client may still read what was sent before
            for one_sent in sent:
                one_sent.result()
        for what in ("running", "waiting", "slots_used"):
            eventually(lambda name=what: _metric(hostile, name) == 0)  # type: ignore[misc]
        server.process.terminate()
        assert server.process.wait(60) == 0
        server.reader.join()
    assert storm.wrong == []
    events = read_events(clone.root / ".serving/events")
    events = events[events.status == 200].set_index("request_id")
    for name, (asked, at) in storm.answered.items():
        if not any(since <= at <= until for since, until in killed):
            assert events.loc[[name], "adapter"].tolist() == [ADAPTERS[asked.model]], name


def _is_told(asked: Asked, expected: dict[Asked, str]) -> bool:
    """Whether another adapter's answer in its place would show."""
    others = [expected[asked._replace(model=model)] for model in ADAPTERS if model != asked.model]
    return bool(expected[asked]) and expected[asked] not in others


def _metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"lora_ops_{name}{{"))
