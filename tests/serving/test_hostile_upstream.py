"""What clients of the gateway see where the server behind it sends what no server should."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.engines.odd_values import odd_events
from tests.engines.scripted_server import DONE, ScriptedServer, event, running, says
from tests.engines.test_openai_engine import EVENT, LAST
from tests.serving.conftest import Clone, Served, eventually, served


@contextmanager
def behind(clone: Clone, server: ScriptedServer, **serving: object) -> Iterator[Served]:
    """A gateway before the server."""
    with running(server):
        engine = OpenAIEngine(OpenAIEngineSettings(url=server.url))
        with served(clone.root, clone.settings(**serving), engine) as gateway:
            yield gateway


def test_any_odd_value_is_a_502_or_an_answer(clone: Clone, caplog: pytest.LogCaptureFixture) -> None:
    server = ScriptedServer()
    body = {"model": "base", "prompt": "A", "max_tokens": 4, "logprobs": 2}
    with behind(clone, server) as gateway, gateway.http() as http:
        for what, line in odd_events(EVENT):
            server.script = says(line, LAST, DONE)
            answer = http.post("/v1/completions", json=body)
            assert answer.status_code in (200, 502), what
            assert answer.json(), what
    assert not [one for one in caplog.records if one.exc_info]


def test_silent_server_keeps_no_slot_beyond_the_requests_time(clone: Clone) -> None:
    server = ScriptedServer()

    async def silent(body: dict[str, Any]) -> AsyncIterator[bytes]:
        if body["max_tokens"] > 2:
            await asyncio.sleep(3600)
        yield event({"choices": [{"text": "a", "finish_reason": "stop"}]}) + DONE

    server.script = silent
    body = {"model": "base", "prompt": "A", "max_tokens": 4}
    with behind(clone, server, max_running=1, request_timeout_seconds=1.0) as gateway:
        http = gateway.http()
        assert http.post("/v1/completions", json=body).status_code == 504
        assert http.post("/v1/completions", json=body | {"max_tokens": 2}).status_code == 200
        eventually(lambda: server.running == 0)


# What the server says, and what its client reads: the status, the code, and the least and most Retry-After.
REFUSALS = [
    (400, None, 400, "unsupported", None),
    (422, "7", 400, "unsupported", None),
    (413, None, 413, "request_too_large", None),
    (429, "7", 429, "overloaded", (7, 14)),
    (429, None, 429, "overloaded", (1, 3)),
    (429, "soon", 429, "overloaded", (1, 3)),
    (429, "86400", 429, "overloaded", (60, 120)),
    (429, "Sun, 06 Nov 1994 08:49:37 GMT", 429, "overloaded", (1, 3)),
    (429, "Sun, 06 Nov 2999 08:49:37 -0000", 429, "overloaded", (60, 120)),
    (429, f"Sun, 06 Nov {10**20} 08:49:37 GMT", 429, "overloaded", (1, 3)),
    (429, f"Sun, 06 Nov 2999 08:49:37 +{10**20}", 429, "overloaded", (1, 3)),
    (408, None, 503, "overloaded", (1, 3)),
    (503, "7", 503, "overloaded", (7, 14)),
    (503, None, 502, "engine_error", None),
    (401, "7", 502, "engine_error", None),
    (500, "7", 502, "engine_error", None),
]


def test_refusal_of_a_server_has_its_meaning(clone: Clone) -> None:
    server = ScriptedServer()
    with behind(clone, server) as gateway, gateway.http() as http:
        for status, retry_after, told, code, bounds in REFUSALS:
            server.refuses, server.retry_after = (status, b'{"error": {"message": "no"}}'), retry_after
            for streamed in (False, True):
                body = {"model": "base", "prompt": "A", "max_tokens": 4, "stream": streamed}
                answer = http.post("/v1/completions", json=body)
                assert (answer.status_code, answer.json()["error"]["code"]) == (told, code), status
                seconds = answer.headers.get("retry-after")
                assert (seconds is None) == (bounds is None), status
                assert bounds is None or bounds[0] <= int(str(seconds)) <= bounds[1], status
        counted = http.get("/metrics").text
    for ended, count in (("refused", 26), ("failed", 6)):
        found = re.findall(rf'request_seconds_count{{.*outcome="{ended}".*}} (\d+)', counted)
        assert list(map(int, found)) == [count], ended
