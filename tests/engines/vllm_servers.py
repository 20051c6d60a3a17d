"""Servers that speak vLLM's adapter calls: vLLM itself, and the embedded engine behind as strict a door.

The door refuses what vLLM 0.32 refuses, with its codes: a name that is loaded, a name that is not, a path
without an adapter. So what depends on that is tested where there is no vLLM, too.
"""

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from lora_ops.engines.protocol import EngineError, Generation, Sampling
from lora_ops.engines.torch_engine import TorchEngine

START_SECONDS = 240
# It writes tools and calls, in the manner of Qwen's.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}"
    "</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Server(Protocol):
    """One that can be stopped and started on the same port, with the base model in `base`."""

    base: Path
    url: str

    def start(self) -> None:
        """Return once it answers."""

    def stop(self) -> None:
        """Return once it is gone, and all that it had in memory."""


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Vllm:
    """vLLM in its own environment and process."""

    def __init__(self, python: str, base: Path, log: Path) -> None:
        self.base, self._python, self._log = base, python, log
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = os.environ | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{(os.cpu_count() or 1) - 1}",
        }
        for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
            environment.pop(name, None)
        command = [self._python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.base)]
        command += ["--dtype", "float32", "--max-model-len", "1024", "--port", str(self._port)]
        # One more than the tests load: on a CPU vLLM applies the adapter in the last place to rows without one,
        # if they share a batch with others (https://github.com/vllm-project/vllm/pull/48421).
        command += ["--host", "127.0.0.1", "--enable-lora", "--max-lora-rank", "8", "--max-loras", "3"]
        # The real base model's own template shows no tools.
        template = self._log.parent / "template.jinja"
        template.write_text(TOOL_TEMPLATE)
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        command += ["--chat-template", str(template)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self._log.parent
            )
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"vLLM did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.5)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class StrictDoor:
    """The embedded engine, as strict about adapters as vLLM."""

    def __init__(self, base: Path) -> None:
        self.base, self._port = base, free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.loads: list[str] = []
        self.salts: list[str] = []
        self.fail_after_next_load = False
        self.answers_with_adapters = True
        self.counts_cached = True
        self.counts_tokens = True
        self.says_first: str | None = None  # an event before those of the answer
        self.logprobs: dict[str, Any] | None = None  # of each event, whatever its token is
        self.forgets = True  # what it unloads; else a name that it has had keeps its weights
        self._running: tuple[uvicorn.Server, threading.Thread] | None = None

    def start(self) -> None:
        config = uvicorn.Config(self._app(), port=self._port, log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        self._running = server, thread
        deadline = time.monotonic() + START_SECONDS
        while not _answers(self.url):
            assert thread.is_alive() and time.monotonic() < deadline, "the door did not open"
            time.sleep(0.02)

    def stop(self) -> None:
        if self._running:
            server, thread = self._running
            server.should_exit = True
            thread.join(60)
            self._running = None

    def _app(self) -> Starlette:
        engine = TorchEngine(self.base, threads=1, kv_tokens=8192, device="cpu")
        paths: dict[str, str] = {}

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            await engine.start()
            yield
            await engine.close()

        async def health(_: Request) -> Response:
            return Response()

        async def models(_: Request) -> Response:
            base = {"id": "tiny", "parent": None, "max_model_len": engine.context_length}
            adapters = [{"id": n, "parent": "tiny", "root": p, "max_model_len": None} for n, p in paths.items()]
            return JSONResponse({"object": "list", "data": [base, *adapters]})

        async def load(request: Request) -> Response:
            body = await request.json()
            name, path = body.get("lora_name"), body.get("lora_path")
            if not name or not path:
                return _error(400, "Both 'lora_name' and 'lora_path' must be provided.")
            if name in paths:
                return _error(400, f"The lora adapter '{name}' has already been loaded.")
            self.loads.append(name)
            try:
                if name not in engine.status().adapters:
                    await engine.load(name, Path(path))
            except EngineError as error:
                return _error(404, f"Loading lora {name} failed: {error}")
            paths[name] = path
            if self.fail_after_next_load:
                self.fail_after_next_load = False
                return _error(502, "The answer was lost on its way.")
            return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

        async def unload(request: Request) -> Response:
            name = (await request.json())["lora_name"]
            if name not in paths:
                return _error(404, f"The lora adapter '{name}' cannot be found.")
            del paths[name]
            if self.forgets:
                await engine.unload(name)
            return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

        async def complete(request: Request) -> Response:
            body = await request.json()
            name = body["model"]
            if name != "tiny" and name not in paths:
                return _error(404, f"The model `{name}` does not exist.")
            if name != "tiny" and not self.answers_with_adapters:
                return _error(500, "The adapter's kernel failed.")
            salt = body.get("cache_salt", "none")
            if not salt or len(salt) > 128 or set(salt) & set("@/\\\0"):
                return _error(400, "Parameter 'cache_salt' must be at most 128 characters without '@' and '/'.")
            self.salts.append(salt)
            sampling = Sampling(body["max_tokens"], temperature=body["temperature"])
            asked = Generation("x", tuple(body["prompt"]), None if name == "tiny" else name, sampling)

            async def events() -> AsyncIterator[str]:
                written = 0
                if self.says_first:
                    yield f"data: {self.says_first}\n\n"
                async for chunk in engine.generate(asked):
                    written += chunk.tokens
                    usage = {"prompt_tokens": len(asked.prompt), "completion_tokens": written}
                    choice = {"index": 0, "text": chunk.text, "finish_reason": chunk.finish}
                    choice["logprobs"] = self.logprobs
                    told = {"usage": usage} if self.counts_tokens else {}
                    yield f"data: {json.dumps({'choices': [choice], **told})}\n\n"
                if self.counts_cached:
                    usage["prompt_tokens_details"] = {"cached_tokens": len(asked.prompt) - 1}
                if self.counts_tokens:
                    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\n"
                yield "data: [DONE]\n\n"

            return StreamingResponse(events(), media_type="text/event-stream")

        routes = [
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/load_lora_adapter", load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", unload, methods=["POST"]),
            Route("/v1/completions", complete, methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=life)


def _error(status: int, message: str) -> Response:
    error: dict[str, Any] = {"message": message, "type": "Error", "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).is_success
    except httpx.HTTPError:
        return False
