"""An engine behind the network: any server that speaks OpenAI's completions and vLLM's adapter calls.

Prompts go out as token ids to /v1/completions, which vLLM, SGLang and this gateway take. Adapters are loaded
with /v1/load_lora_adapter: vLLM needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and the registry's folder mounted at
the same path. The names of adapters in such a server are this gateway's alone: at its start it unloads all that
it finds there, since only files that it verified itself may answer. A server that was restarted has forgotten
its adapters: the first answer that it refuses loads the adapter anew, and is then asked for once more.

What is loaded by path has a name of its own there for each content, so that weights which the server still has
from before can't answer for others. It answers one token before it counts as loaded.
"""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from lora_ops.engines.protocol import (
    Chunk,
    EngineError,
    EngineStatus,
    FinishReason,
    Generation,
    Sampling,
    Structure,
    TokenLogprob,
    Unsupported,
)
from lora_ops.escaping import shortened
from lora_ops.hashing import canonical, sha256_text
from lora_ops.paths import ADAPTER_FILES
from lora_ops.settings.serving import OpenAIEngineSettings
from lora_ops.small_files import parse_json

logger = logging.getLogger(__name__)

# Between two pieces of an answer; the gateway's own limits end a request long before.
TIMEOUT = httpx.Timeout(600, connect=5)
HEALTH_SECONDS = 2.0
REQUEST_REFUSED = (400, 413, 422)
JSON_TYPE = {"content-type": "application/json"}
PROBE = (0,)  # a token that every vocabulary has


class Refused(EngineError):
    """The server answers, but not what was asked for; `status` is HTTP's."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, eq=False)
class _ServedAdapter:
    """An adapter that the server has: its files, and its name there."""

    folder: Path
    digest: str
    served_as: str


class OpenAIEngine:
    """An `Engine` over HTTP.

    `device_seconds` can't be told from outside: a request's share is the time between its chunks divided by the
    number of requests that ran meanwhile.
    """

    context_length: int = 0

    def __init__(self, settings: OpenAIEngineSettings) -> None:
        self._settings = settings
        self._model = settings.model
        self._adapters: dict[str, _ServedAdapter] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._running = 0
        self._http: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Find the server's base model and its context length, and unload what an earlier gateway left there.

        Raises:
            EngineError: it can't be reached, refuses the key, or does not serve the model.
        """
        key = os.environ.get(self._settings.api_key_env)
        self._http = httpx.AsyncClient(
            base_url=self._settings.url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )
        models = (await self._request("GET", "/v1/models")).json()["data"]
        bases = [card for card in models if card.get("parent") is None]
        found = next((card for card in bases if self._model in (None, card["id"])), None)
        if found is None:
            there = ", ".join(card["id"] for card in bases) or "none"
            raise EngineError(
                f"{self._settings.url} does not serve '{self._model}' (base models there: {there})."
            )
        self._model = found["id"]
        if not found.get("max_model_len"):
            raise EngineError(f"{self._settings.url} does not say the max_model_len of '{self._model}'.")
        self.context_length = found["max_model_len"]
        if self._settings.adapters == "path":
            for card in models:
                if card.get("parent") is not None:
                    await self._unload_there(card["id"])

    async def close(self) -> None:
        """Close the connections; a generation that still runs ends with `EngineError`."""
        if self._http:
            await self._http.aclose()

    async def size(self, folder: Path) -> int:
        """Not known: the memory is the server's."""
        return 0

    async def load(self, name: str, folder: Path) -> int:
        """Ask the server to load an adapter; how much memory it takes there is not known, so 0.

        Raises:
            EngineError: the server refuses it or doesn't answer with it, or the name is taken by other files.
        """
        async with self._locks[name]:
            digest = await asyncio.to_thread(_digest, folder)
            known = self._adapters.get(name)
            if known is None:
                served_as = f"{name}-{digest[:12]}" if self._settings.adapters == "path" else name
                await self._load_there(served_as, folder)
                self._adapters[name] = _ServedAdapter(folder, digest, served_as)
            elif known.digest != digest:
                raise EngineError(f"'{name}' is loaded already, from other files: unload it first.")
        return 0

    async def unload(self, name: str) -> None:
        """Ask the server to forget an adapter; if that fails, it counts as loaded still.

        Raises:
            EngineError: the server refuses, or can't be reached.
        """
        async with self._locks[name]:
            if known := self._adapters.get(name):
                await self._unload_there(known.served_as)
                del self._adapters[name]

    async def generate(self, generation: Generation) -> AsyncIterator[Chunk]:
        """The answer, piece by piece; closing the iterator early closes the connection, which cancels it there.

        Raises:
            Unsupported: the server refuses this request, or it asks for what is not passed on.
            EngineError: the server fails, or can't be reached.
        """
        if generation.sampling.prompt_logprobs:
            raise Unsupported("The engine of this gateway does not say how likely a prompt's tokens are.")
        self._running += 1
        try:
            async with aclosing(self._answer(generation)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except Refused as error:
            if error.status not in REQUEST_REFUSED:
                raise
            logger.warning("%s", error)
            raise Unsupported("The engine of this gateway refuses the request; its log says why.") from error
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        finally:
            self._running -= 1

    async def healthy(self) -> bool:
        """Whether the server says at its /health, within `HEALTH_SECONDS`, that it is well."""
        if self._http is None or self._http.is_closed:
            return False
        try:
            return (await self._http.get("/health", timeout=HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    def status(self) -> EngineStatus:
        """What was sent and is not answered yet; the server's own queue is on its /metrics."""
        return EngineStatus(running=self._running, adapters=dict.fromkeys(self._adapters, 0))

    async def _load_there(self, name: str, folder: Path) -> None:
        body = {"lora_name": name}
        if self._settings.adapters == "path":
            body["lora_path"] = str(folder.resolve())
        try:
            await self._request("POST", "/v1/load_lora_adapter", body)
        except Refused as error:
            # vLLM refuses a name that it has, as after a load whose answer never came.
            if error.status != 400 or not await self._unload_there(name):
                raise
            await self._request("POST", "/v1/load_lora_adapter", body)
        # A load that the server only says it made must not become an answer to a client.
        try:
            await self._probe(name)
        except (EngineError, httpx.HTTPError) as error:
            logger.warning(
                "%s does not answer with %s, which it has loaded: %s", self._settings.url, name, error
            )
            await self._unload_there(name)
            raise EngineError(f"{self._settings.url} does not answer with the adapter '{name}'.") from error

    async def _probe(self, served_as: str) -> None:
        """Ask for one token of an adapter's answer."""
        asked = Generation("probe", PROBE, None, Sampling(max_tokens=1))
        async with aclosing(self._chunks(asked, served_as)) as chunks:
            async for _ in chunks:
                pass

    async def _unload_there(self, name: str) -> bool:
        """Whether the server had it."""
        try:
            await self._request("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    async def _load_again(self, name: str, known: _ServedAdapter) -> None:
        async with self._locks[name]:
            if self._adapters.get(name) is not known:
                return  # another request was quicker
            logger.warning("%s has lost %s, and loads it again.", self._settings.url, name)
            if await asyncio.to_thread(_digest, known.folder) != known.digest:
                raise EngineError(
                    f"The files of '{name}' are not those that were verified: it is not loaded again."
                )
            await self._load_there(known.served_as, known.folder)
            self._adapters[name] = replace(known)

    async def _answer(self, generation: Generation) -> AsyncGenerator[Chunk, None]:
        name = generation.adapter
        known = self._adapters.get(name) if name else None
        if name and not known:
            raise EngineError(f"There is no adapter '{name}' in the engine.")
        model = known.served_as if known else self._model
        try:
            async with aclosing(self._chunks(generation, model)) as chunks:
                async for chunk in chunks:
                    yield chunk
            return
        except Refused as error:  # which comes instead of the first chunk
            if not (name and known and error.status == 404):
                raise
        await self._load_again(name, known)
        async with aclosing(self._chunks(generation, model)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _chunks(self, generation: Generation, model: str | None) -> AsyncGenerator[Chunk, None]:
        written, read, at = 0, 0, time.monotonic()
        pieces, counted = 0, False
        last: Chunk | None = None
        cached: int | None = None
        async with aclosing(self._events(self._body(generation, model))) as events:
            async for event in events:
                if not (last or event["choices"]):
                    continue  # what a filter says of the prompt
                usage, now = event.get("usage") or {}, time.monotonic()
                counted = counted or bool(usage)
                tokens = usage.get("completion_tokens", written) - written
                written, read = written + tokens, usage.get("prompt_tokens", read)
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", cached)
                if last:  # its end is told; what comes now is the count of its tokens
                    tokens += last.tokens
                    last = replace(last, tokens=tokens, prompt_tokens=read, cached_tokens=cached)
                    continue
                choice = event["choices"][0]
                pieces += bool(choice["text"])
                chunk = Chunk(
                    text=choice["text"] or "",
                    tokens=tokens,
                    logprobs=_logprobs(choice.get("logprobs")),
                    finish=_finish(choice.get("finish_reason")),
                    device_seconds=(now - at) / max(1, self._running),
                    prompt_tokens=read,
                    cached_tokens=cached,
                )
                at = now
                if chunk.finish:
                    last = chunk
                else:
                    yield replace(chunk, prompt_tokens=0, cached_tokens=None)
        if last is None:
            raise EngineError(f"{self._settings.url} broke an answer off.")
        if not counted:  # a piece of text is one token at least
            last = replace(last, tokens=pieces, prompt_tokens=len(generation.prompt))
        yield last

    def _body(self, generation: Generation, model: str | None) -> dict[str, Any]:
        sampling = generation.sampling
        body: dict[str, Any] = {
            "model": model,
            "prompt": list(generation.prompt),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            # Neutral values, too: vLLM takes what is missing from its model's generation config.
            "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p,
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "repetition_penalty": sampling.repetition_penalty,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            body["logprobs"] = sampling.logprobs
        if sampling.logit_bias:
            body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
        if sampling.stop_token_ids:
            body["stop_token_ids"] = sorted(sampling.stop_token_ids)
        if sampling.min_tokens:
            body["min_tokens"] = sampling.min_tokens
        if sampling.structure:
            body["structured_outputs"] = _structured(sampling.structure)
        if sampling.ignore_eos:
            body["ignore_eos"] = True
        if generation.tenant or generation.cache_salt:
            # Else vLLM's prefix cache would tell one tenant by its speed what another one asked. A salt has at
            # most 128 characters there, and neither "/" nor "@".
            body["cache_salt"] = sha256_text(canonical([generation.tenant, generation.cache_salt]))
        return body

    async def _events(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        http, content = self._client(), _encoded(body)
        async with http.stream("POST", "/v1/completions", content=content, headers=JSON_TYPE) as response:
            if response.status_code != 200:
                await response.aread()
                raise self._refused(response)
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                yield self._event(line[6:])

    def _event(self, text: str) -> dict[str, Any]:
        try:
            event: dict[str, Any] = parse_json(text)
            if "error" in event:
                said = shortened(str(event["error"].get("message")))
                raise EngineError(f"{self._settings.url} says: {said}")
            if not all("text" in choice for choice in event["choices"]):
                raise ValueError("a choice without a text")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EngineError(f"{self._settings.url} sends what is no part of a completion.") from error
        return event

    async def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = await self._client().request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise self._refused(response)
        return response

    def _client(self) -> httpx.AsyncClient:
        if self._http is None or self._http.is_closed:
            raise EngineError("The engine is not running.")
        return self._http

    def _refused(self, response: httpx.Response) -> Refused:
        try:
            text = shortened(str(response.json()["error"]["message"]))  # it may quote all of a prompt
        except (ValueError, KeyError, TypeError):
            text = response.text[:200]
        return Refused(f"{self._settings.url} answers {response.status_code}: {text}", response.status_code)

    def _unreachable(self, error: httpx.HTTPError) -> EngineError:
        return EngineError(f"{self._settings.url} can't be reached ({error or type(error).__name__}).")


def _structured(structure: Structure) -> dict[str, Any]:
    """Return a form as vLLM and this gateway read it.

    Raises:
        Unsupported: it is a schema, and no JSON.
    """
    text = structure.text
    try:
        return {structure.kind: parse_json(text) if structure.kind in ("choice", "json") else text}
    except ValueError as error:
        raise Unsupported(f"The answer's form can't be read: {error}") from error


def _encoded(body: dict[str, Any]) -> bytes:
    """Return a body as JSON.

    Raises:
        Unsupported: the answer's form has what JSON can't say: an infinite number or half a character.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Unsupported(f"The answer's form can't be passed on: {error}") from error


def _finish(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    return "stop" if reason == "stop" else "length"


def _logprobs(found: dict[str, Any] | None) -> tuple[TokenLogprob, ...]:
    if not found:
        return ()
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return tuple(
        TokenLogprob(
            token.encode(), logprob, tuple((one.encode(), p) for one, p in (top or {}).items() if p is not None)
        )
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    )


def _digest(folder: Path) -> str:
    """Of the adapter's two files; runs in a thread.

    Raises:
        EngineError: they can't be read.
    """
    try:
        return hashlib.sha256(b"".join((folder / name).read_bytes() for name in ADAPTER_FILES)).hexdigest()
    except OSError as error:
        raise EngineError(f"The adapter in {folder} can't be read: {error}") from error
