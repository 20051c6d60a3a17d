"""An engine behind the network: any server that speaks OpenAI's completions and vLLM's adapter calls.

Prompts go out as token ids to /v1/completions, which vLLM, SGLang and this gateway take. A chat with tools goes
out as messages to /v1/chat/completions, where the server puts it into the model's form. Adapters are loaded
with /v1/load_lora_adapter: vLLM needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, and the registry's folder mounted at
the same path. The names of adapters in such a server are this gateway's alone: at its start it unloads all that
it finds there, since only files that it verified itself may answer. A server that was restarted has forgotten
its adapters: the first answer that it refuses loads the adapter anew, and is then asked for once more.

What is loaded by path has a name of its own there for each content, so that weights which the server still has
from before can't answer for others. It answers one token before it counts as loaded.
"""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from lora_ops.engines.busy_clock import BusyClock
from lora_ops.engines.openai_connection import CALL_SECONDS, Connection, Refused
from lora_ops.engines.openai_events import (
    ChatEvent,
    CompletionEvent,
    ModelCard,
    ModelList,
    Received,
    reason,
)
from lora_ops.engines.openai_requests import chat_body, completion_body, encoded, most_bytes
from lora_ops.engines.protocol import (
    Chunk,
    EngineBusy,
    EngineError,
    EngineStatus,
    Generation,
    Sampling,
    TooLarge,
    Unsupported,
)
from lora_ops.engines.verified_files import read_files
from lora_ops.hashing import sha256_bytes
from lora_ops.settings.serving import OpenAIEngineSettings

logger = logging.getLogger(__name__)

START_SECONDS = 30.0
REQUEST_REFUSED = (400, 422)
LONGEST_RETRY = 60.0  # seconds: a server may say when its quota of a day begins anew
SHORT_PROMPT = 4096  # tokens whose JSON takes less than 1 ms
COMPLETION = ("/v1/completions", CompletionEvent.model_validate_json)
CHAT = ("/v1/chat/completions", ChatEvent.model_validate_json)
PROBE = (0,)  # a token that every vocabulary has


@dataclass(frozen=True, eq=False)
class _ServedAdapter:
    """An adapter that the server has: its files, and its name there."""

    folder: Path
    digest: str
    served_as: str


class OpenAIEngine:
    """An `Engine` over HTTP.

    `device_seconds` can't be told from outside: the requests that run at a moment share it alike, so that all
    of them together take no more than the time that passes.
    """

    context_length: int = 0

    def __init__(self, settings: OpenAIEngineSettings) -> None:
        self.takes_tools = settings.tools
        self._settings = settings
        self._model = settings.model
        self._adapters: dict[str, _ServedAdapter] = {}
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._answers, self._busy = BusyClock(), BusyClock()
        self._server: Connection | None = None

    async def start(self) -> None:
        """Find the server's base model and its context length, and unload what an earlier gateway left there.

        Raises:
            EngineError: it can't be reached, refuses the key, or does not serve the model.
        """
        key = os.environ.get(self._settings.api_key_env)
        self._server = Connection(self._settings.url, key, self._settings.silence_seconds)
        models = await self._models()
        bases = [card for card in models if card.parent is None]
        found = next((card for card in bases if self._model in (None, card.id)), None)
        if found is None:
            there = ", ".join(card.id for card in bases) or "none"
            raise EngineError(
                f"{self._settings.url} does not serve '{self._model}' (base models there: {there})."
            )
        self._model = found.id
        if not found.max_model_len:
            raise EngineError(f"{self._settings.url} does not say the max_model_len of '{self._model}'.")
        self.context_length = found.max_model_len
        if self._settings.adapters == "path":
            for card in models:
                if card.parent is not None:
                    await self._unload_there(card.id)

    async def close(self) -> None:
        """Close the connections; a generation that still runs ends with `EngineError`."""
        if self._server:
            await self._server.close()

    async def size(self, folder: Path) -> int:
        """Not known: the memory is the server's."""
        return 0

    async def load(self, name: str, folder: Path, digests: Mapping[str, str] | None = None) -> int:
        """Ask the server to load an adapter; how much memory it takes there is not known, so 0.

        Args:
            name: of the adapter in this engine.
            folder: where its files are.
            digests: the SHA-256 that each file was verified with; None takes the files as they are.

        Raises:
            EngineError: the server refuses it or doesn't answer with it, its files changed since they were
                verified, or the name is taken by other files.
        """
        async with self._locks[name]:
            digest = await asyncio.to_thread(_digest, folder, digests)
            known = self._adapters.get(name)
            if known is None:
                served_as = f"{name}-{digest[:12]}" if self._settings.adapters == "path" else name
                with self._busy.working():
                    await self._load_there(served_as, folder)
                loaded = _ServedAdapter(folder, digest, served_as)
                await self._require_unchanged(name, loaded)
                self._adapters[name] = loaded
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
            EngineBusy: the server takes no more requests now.
            EngineError: the server fails, or can't be reached.
        """
        if generation.sampling.prompt_logprobs:
            raise Unsupported("The engine of this gateway does not say how likely a prompt's tokens are.")
        try:
            with self._answers.working(), self._busy.working():
                async with aclosing(self._answer(generation)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        except Refused as error:
            logger.warning("%s", error)
            raise _meaning(error) from error

    async def healthy(self) -> bool:
        """Whether the server says quickly at its /health that it is well."""
        return self._server is not None and await self._server.healthy()

    def status(self) -> EngineStatus:
        """What was sent and is not answered yet; the server's own queue is on its /metrics."""
        return EngineStatus(
            running=self._answers.running,
            adapters=dict.fromkeys(self._adapters, 0),
            busy_seconds=self._busy.seconds,
            device=self._settings.device,
            devices=self._settings.devices,
        )

    async def _load_there(self, name: str, folder: Path) -> None:
        body = {"lora_name": name}
        if self._settings.adapters == "path":
            body["lora_path"] = str(folder.resolve())
        try:
            await self._running_server().call("POST", "/v1/load_lora_adapter", body)
        except Refused as error:
            # vLLM refuses a name that it has, as after a load whose answer never came.
            if error.status != 400 or not await self._unload_there(name):
                raise
            await self._running_server().call("POST", "/v1/load_lora_adapter", body)
        # A load that the server only says it made must not become an answer to a client.
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._probe(name)
        except (EngineError, TimeoutError) as error:
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
            await self._running_server().call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
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
            await self._require_unchanged(name, known)
            self._adapters[name] = replace(known)

    async def _require_unchanged(self, name: str, loaded: _ServedAdapter) -> None:
        """Let the server forget an adapter whose files were changed while it read them."""
        if await asyncio.to_thread(_digest, loaded.folder) != loaded.digest:
            await self._unload_there(loaded.served_as)
            raise EngineError(f"The files of '{name}' were changed while {self._settings.url} loaded them.")

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
        before, received = self._answers.share, Received(generation)
        path, read = CHAT if generation.chat else COMPLETION
        content = await _content(generation, model)
        events = self._running_server().events(path, content, most_bytes(generation.sampling))
        try:
            async with aclosing(events):
                async for data in events:
                    event, share = read(data), self._answers.share
                    if event.failure is not None:
                        raise EngineError(f"{self._settings.url} says: {event.failure}")
                    chunk = received.add(event, share - before)
                    before = share
                    if chunk:
                        yield chunk
            yield received.end()
        except ValueError as error:
            what = "chat" if generation.chat else "completion"
            raise EngineError(
                f"{self._settings.url} sends what is no part of a {what}: {reason(error)}."
            ) from error

    async def _models(self) -> list[ModelCard]:
        content = await self._running_server().call("GET", "/v1/models", seconds=START_SECONDS)
        try:
            return ModelList.model_validate_json(content).data
        except ValueError as error:
            raise EngineError(f"{self._settings.url}/v1/models is no list of models.") from error

    def _running_server(self) -> Connection:
        if self._server is None:
            raise EngineError("The engine is not running.")
        return self._server


def _meaning(refused: Refused) -> EngineError:
    """Return what a server's refusal of a request means to the client that sent it."""
    match refused.status:
        case status if status in REQUEST_REFUSED:
            return Unsupported("The engine of this gateway refuses the request; its log says why.")
        case 413:
            return TooLarge("The engine of this gateway takes no request of this size: send a shorter one.")
        case 429:
            limited = True
        # The server did not read this body in time: nothing is wrong with the request.
        case 408:
            limited = False
        # Without Retry-After it says that it is broken, not that it is busy.
        case 503 if refused.retry_after is not None:
            limited = False
        case _:
            return refused
    seconds = 1.0 if refused.retry_after is None else min(refused.retry_after, LONGEST_RETRY)
    return EngineBusy("The engine of this gateway is busy: send the request again.", seconds, limited=limited)


async def _content(generation: Generation, model: str | None) -> bytes:
    """Return the body of a request; a long one does not stop the event loop."""

    def make() -> bytes:
        return encoded((chat_body if generation.chat else completion_body)(generation, model))

    return make() if len(generation.prompt) <= SHORT_PROMPT else await asyncio.to_thread(make)


def _digest(folder: Path, digests: Mapping[str, str] | None = None) -> str:
    """Of the adapter's two files; runs in a thread.

    Raises:
        EngineError: they can't be read, or are not those with these digests.
    """
    return sha256_bytes(b"".join(read_files(folder, digests).values()))
