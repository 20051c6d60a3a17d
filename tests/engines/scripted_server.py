"""A server on loopback that speaks as much of vLLM's calls as the gateway asks for, and answers by a script."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.engines.vllm_servers import free_port

Script = Callable[[dict[str, Any]], AsyncIterator[bytes]]


def event(value: Any) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


class ScriptedServer:
    """What it was asked is in `asked`, and how many bytes of answers it sent in `sent`."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.models: bytes = json.dumps({"data": [{"id": "tiny", "max_model_len": 2048}]}).encode()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.missing: set[str] = set()  # adapters that it answers 404 for, until they are loaded
        self.refuses: tuple[int, bytes] | None = None
        self.retry_after: str | None = None  # what it says where it refuses
        self.script: Script = says(event({"choices": [{"text": "a", "finish_reason": "stop"}]}), DONE)
        self.headers: dict[str, str] = {}  # of its answers
        self.cookies: list[dict[str, str]] = []  # that it was sent with each request for one
        self.sent = 0
        self.running = 0

    async def _answer(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append((request.url.path, body))
        self.cookies.append(request.cookies)
        if body["model"] in self.missing:
            return JSONResponse({"error": {"message": "The model does not exist."}}, status_code=404)
        if self.refuses and body["max_tokens"] > 1:
            later = {} if self.retry_after is None else {"retry-after": self.retry_after}
            return Response(self.refuses[1], self.refuses[0], {**self.headers, **later})

        async def parts() -> AsyncIterator[bytes]:
            self.running += 1
            try:
                async for part in self.script(body):
                    self.sent += len(part)
                    yield part
                    await asyncio.sleep(0)  # else it never learns that the client has gone
            finally:
                self.running -= 1

        return StreamingResponse(parts(), headers=self.headers, media_type="text/event-stream")

    def app(self) -> Starlette:
        async def models(_: Request) -> Response:
            return Response(self.models)

        async def load(request: Request) -> Response:
            self.missing.discard((await request.json())["lora_name"])
            return Response()

        async def nothing(_: Request) -> Response:
            return Response()

        return Starlette(
            routes=[
                Route("/health", nothing),
                Route("/v1/models", models),
                Route("/v1/load_lora_adapter", load, methods=["POST"]),
                Route("/v1/unload_lora_adapter", nothing, methods=["POST"]),
                Route("/v1/completions", self._answer, methods=["POST"]),
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
            ]
        )


def says(*parts: bytes) -> Script:
    """A script that sends these, whatever it is asked."""

    async def script(_: dict[str, Any]) -> AsyncIterator[bytes]:
        for part in parts:
            yield part

    return script


@contextmanager
def running(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """Run it in a thread of its own."""
    config = uvicorn.Config(
        server.app(), port=server.port, log_config=None, lifespan="off", timeout_graceful_shutdown=1
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not running.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield server
    finally:
        running.should_exit = running.force_exit = True
        thread.join(60)
