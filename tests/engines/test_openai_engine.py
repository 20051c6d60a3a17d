"""The `openai` engine before a server that sends what no server should."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lora_ops.engines import openai_connection
from lora_ops.engines.openai_engine import OpenAIEngine
from lora_ops.engines.protocol import Chunk, EngineError, Generation, Sampling
from lora_ops.settings.serving import OpenAIEngineSettings
from tests.engines.odd_values import odd_events
from tests.engines.scripted_server import DONE, Script, ScriptedServer, event, running, says

PROMPT = (5, 9, 70)
MEGABYTE = 2**20


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as made:
        yield made


async def started(server: ScriptedServer, silence: float = 5.0) -> OpenAIEngine:
    engine = OpenAIEngine(OpenAIEngineSettings(url=server.url, silence_seconds=silence))
    await engine.start()
    return engine


async def answer(engine: OpenAIEngine, **sampling: Any) -> list[Chunk]:
    asked = Generation("test", PROMPT, None, Sampling(**{"max_tokens": 4, **sampling}))
    async with asyncio.timeout(60):
        return [chunk async for chunk in engine.generate(asked)]


def answers(server: ScriptedServer, count: int = 1, silence: float = 5.0) -> list[list[Chunk]]:
    """Ask for so many answers, one after the other, from a started engine."""

    async def run() -> list[list[Chunk]]:
        engine = await started(server, silence)
        try:
            return [await answer(engine) for _ in range(count)]
        finally:
            assert engine.status().running == 0
            await engine.close()

    return asyncio.run(run())


def test_device_seconds_add_up_to_busy_seconds(server: ScriptedServer) -> None:
    """Two answers at the same time took more device time together than had passed."""

    async def slow(_: dict[str, Any]) -> AsyncIterator[bytes]:
        for _ in range(4):
            await asyncio.sleep(0.05)
            yield event(EVENT)
        yield LAST
        yield DONE

    async def run() -> tuple[list[float], float, float]:
        engine = await started(server)
        began = time.monotonic()
        found = await asyncio.gather(*(answer(engine, max_tokens=8) for _ in range(3)))
        busy, took = engine.status().busy_seconds, time.monotonic() - began
        await engine.close()
        return [sum(chunk.device_seconds for chunk in chunks) for chunks in found], busy, took

    server.script = slow
    shares, busy, took = asyncio.run(run())
    assert sum(shares) <= busy <= took
    assert sum(shares) > 0.8 * busy


def test_a_cookie_of_one_answer_is_sent_with_no_other(server: ScriptedServer) -> None:
    server.headers = {"set-cookie": "replica=a; Path=/"}
    answers(server, count=2)
    assert server.cookies == [{}, {}]


def test_any_odd_value_is_an_engine_error_or_an_answer(server: ScriptedServer) -> None:
    async def run() -> set[bool]:
        engine, outcomes = await started(server), set()
        for what, line in odd_events(EVENT):
            server.script = says(line, LAST, DONE)
            try:
                chunks = await answer(engine)
            except EngineError as error:
                assert "is no part of a completion" in str(error) or "says: " in str(error), what
                outcomes.add(False)
            else:
                assert sum(chunk.tokens for chunk in chunks) in range(5), what
                assert all(0 <= chunk.prompt_tokens < 2**31 for chunk in chunks), what
                outcomes.add(True)
        await engine.close()
        return outcomes

    assert asyncio.run(run()) == {False, True}


EVENT = {
    "choices": [
        {
            "index": 0,
            "text": "a",
            "finish_reason": None,
            "logprobs": {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -2.0}]},
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}},
}
LAST = event(
    {
        "choices": [{"text": "b", "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    }
)


def test_a_text_may_hold_any_line_separator(server: ScriptedServer) -> None:
    text = "one\u2028two\u2029three\x85four\x0bfive\r\nsix"
    server.script = says(event({"choices": [{"text": text, "finish_reason": "stop"}]}), DONE)
    assert [chunk.text for chunk in answers(server)[0]] == [text]


def test_an_event_may_come_in_any_parts(server: ScriptedServer) -> None:
    whole = b": a comment\r\n\r\nevent: x\r\ndata:" + event(EVENT)[6:] + LAST + b"data: [DONE]"

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        for at in range(0, len(whole), 7):
            yield whole[at : at + 7]
            await asyncio.sleep(0)

    server.script = script
    assert [chunk.text for chunk in answers(server)[0]] == ["a", "b"]


async def endless_line(_: dict[str, Any]) -> AsyncIterator[bytes]:
    yield b"data: "
    while True:
        yield b"x" * 65_536


async def endless_comments(_: dict[str, Any]) -> AsyncIterator[bytes]:
    while True:
        yield b": nothing\n" * 1000


async def endless_events(_: dict[str, Any]) -> AsyncIterator[bytes]:
    while True:
        yield event({"choices": [{"text": "", "finish_reason": None}]}) * 100


async def endless_text(_: dict[str, Any]) -> AsyncIterator[bytes]:
    while True:
        yield event({"choices": [{"text": "ab", "finish_reason": None}]})


async def endless_end(_: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "ab", "finish_reason": "stop"}]})
    while True:
        yield event({"choices": [{"text": "ab", "finish_reason": "stop"}]}) * 100


@pytest.mark.parametrize("script", [endless_line, endless_comments, endless_events, endless_text, endless_end])
def test_an_answer_without_end_is_given_up(server: ScriptedServer, script: Script) -> None:
    server.script = script
    with pytest.raises(EngineError, match="more than the"):
        answers(server)
    assert server.sent < 64 * MEGABYTE
    _until(lambda: server.running == 0)


async def silent(_: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "a", "finish_reason": None}]})
    await asyncio.sleep(3600)


async def silent_from_the_beginning(_: dict[str, Any]) -> AsyncIterator[bytes]:
    await asyncio.sleep(3600)
    yield b""


async def silent_after_its_end(_: dict[str, Any]) -> AsyncIterator[bytes]:
    yield event({"choices": [{"text": "a", "finish_reason": "stop"}]})
    await asyncio.sleep(3600)


@pytest.mark.parametrize("script", [silent, silent_from_the_beginning, silent_after_its_end])
def test_an_answer_that_stops_coming_is_given_up(server: ScriptedServer, script: Script) -> None:
    server.script = script
    with pytest.raises(EngineError, match="can't be reached"):
        answers(server, silence=0.3)
    _until(lambda: server.running == 0)


def test_an_answer_is_whole_once_the_server_says_so(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the server keeps the connection open, or sends on."""
    monkeypatch.setattr(openai_connection, "END_SECONDS", 0.2)

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        yield event({"choices": [{"text": "a", "finish_reason": "stop"}]}) + DONE
        while True:
            yield b"data: {}\n\n"
            await asyncio.sleep(0.01)

    server.script = script
    assert [[chunk.text for chunk in one] for one in answers(server, count=3)] == [["a"]] * 3


@pytest.mark.parametrize(
    ("counts", "said"),
    [((1, 5), "more than the 4 tokens"), ((2, 1), "1 tokens after 2"), ((1, 2**30), "more than the 4 tokens")],
)
def test_counts_that_can_not_be_are_an_engine_error(
    server: ScriptedServer, counts: tuple[int, ...], said: str
) -> None:
    parts = [
        event({"choices": [{"text": "a", "finish_reason": None}], "usage": {"completion_tokens": count}})
        for count in counts
    ]
    server.script = says(*parts, DONE)
    with pytest.raises(EngineError, match=said):
        answers(server)


def test_an_answer_that_the_server_broke_off_is_no_answer(server: ScriptedServer) -> None:
    for said in ("abort", "error"):
        server.script = says(event({"choices": [{"text": "a", "finish_reason": said}]}), DONE)
        with pytest.raises(EngineError, match=f"whose end is '{said}'"):
            answers(server)


def test_a_compressed_answer_is_not_unpacked(server: ScriptedServer) -> None:
    server.script = says(gzip.compress(b"data: " + b"x" * 64 * MEGABYTE))
    with pytest.raises(EngineError, match="without its end"):
        answers(server)


@pytest.mark.parametrize("body", [b"", b"\xff", b"[" * 20_000, b'{"error": 5}', b'{"error": {"message": []}}'])
def test_any_refusal_is_one_sentence(server: ScriptedServer, body: bytes) -> None:
    server.refuses = (500, body)
    with pytest.raises(EngineError, match="answers 500: "):
        answers(server)
    server.refuses = (400, body)
    with pytest.raises(EngineError, match="refuses the request"):
        answers(server)


ODD_MODELS = [
    b"",
    b"\xff",
    b"[]",
    b"{}",
    b'{"data": null}',
    b'{"data": [null]}',
    b'{"data": [{"id": 5}]}',
    b'{"data": [{"id": "tiny", "max_model_len": "many"}]}',
    b'{"data": [{"id": "tiny", "max_model_len": -5}]}',
    b'{"data": [{"id": "tiny", "parent": {}, "max_model_len": 5}]}',
    b"[" * 20_000,
]


@pytest.mark.parametrize("models", ODD_MODELS)
def test_an_odd_list_of_models_is_one_sentence(server: ScriptedServer, models: bytes) -> None:
    server.models = models
    with pytest.raises(EngineError, match="is no list of models"):
        answers(server)


def test_a_list_of_models_without_end_is_given_up(server: ScriptedServer) -> None:
    server.models = b" " * (openai_connection.LARGEST_RESPONSE + 1)
    with pytest.raises(EngineError, match="sends more than the"):
        answers(server)


@pytest.mark.parametrize("url", ["localhost:8001", "http://[", "http://127.0.0.1:99999", "http://x y"])
def test_an_address_that_is_none_is_one_sentence(url: str) -> None:
    with pytest.raises(EngineError):
        asyncio.run(OpenAIEngine(OpenAIEngineSettings(url=url)).start())


def test_a_key_that_no_header_can_hold_is_one_sentence(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("é", "a\nb"):
        monkeypatch.setenv("UPSTREAM_API_KEY", key)
        with pytest.raises(EngineError):
            answers(server)


@pytest.mark.parametrize(
    ("name", "value"), [("ALL_PROXY", "socks5://x:1"), ("HTTP_PROXY", "foo://x"), ("SSL_CERT_FILE", "/none")]
)
def test_a_wrong_proxy_or_certificate_is_one_sentence(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(EngineError, match="a proxy or certificate of the environment"):
        answers(server)


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
