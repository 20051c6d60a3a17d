"""Copies for a version in shadow that go to another gateway, such as a staging cluster's.

That gateway may be slow, away, or answer what no gateway should. This costs the copy alone: each has a limit of
time and of bytes, and a gateway that can't be reached is left alone for a while. It is sent the prompt and how
tokens are chosen. It is not sent who asked: no user, no key, no salt and no id of the client's request.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import replace

from lora_ops.engines.openai_connection import Connection, Refused
from lora_ops.engines.openai_engine import CHAT, COMPLETION
from lora_ops.engines.openai_events import Received, reason
from lora_ops.engines.openai_requests import chat_body, completion_body, encoded, most_bytes
from lora_ops.engines.protocol import Chunk, EngineError
from lora_ops.errors import LoraOpsError
from lora_ops.serving.adapters import BACK_OFF_SECONDS
from lora_ops.serving.logs import OncePerMinute
from lora_ops.serving.requests import SHADOW_COPY, AnswerRequest, RequestStats, generation
from lora_ops.settings.rollout import ShadowSettings

logger = logging.getLogger(__name__)

# What a gateway answers whose keys, limits or load are in the way: it says nothing of the version.
NOT_THE_VERSION = frozenset({401, 403, 404, 408, 429, 503})
DIGEST = "x-lora-ops-digest"


class TargetUnavailable(LoraOpsError):
    """The other gateway can't be asked now; a copy may wait for it."""


class OtherContent(TargetUnavailable):
    """The other gateway has other content under the version's name."""


class AskTarget:
    """Asks copies of the gateway that `rollout.shadow.target` names.

    Raises:
        LoraOpsError: its address or key can't be used.
    """

    def __init__(self, settings: ShadowSettings) -> None:
        assert settings.target
        self._url = settings.target
        self._seconds = settings.timeout_seconds
        key = os.environ.get(settings.api_key_env)
        try:
            self._server = Connection(self._url, key, settings.timeout_seconds, headers={SHADOW_COPY: "1"})
        except EngineError as error:
            raise LoraOpsError(f"rollout.shadow.target: {error}") from error
        self._failures = 0
        self._away_until = 0.0
        self._reason = ""
        self._report = OncePerMinute(
            lambda count: logger.warning(
                "rollout.shadow.target can't be asked (%d times): %s", count, self._reason
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    async def __call__(self, request: AnswerRequest, stats: RequestStats) -> None:
        """Fill `stats` with the whole answer.

        Raises:
            TargetUnavailable: it can't be reached, refuses the key, or is busy; or it was so a moment ago.
            EngineError, TimeoutError: it answered with what is no answer, or not in time.
        """
        if time.monotonic() < self._away_until:
            raise TargetUnavailable(self._reason)
        try:
            async with asyncio.timeout(self._seconds):
                for index in range(len(request.costs)):
                    await self._one(request, index, stats)
        except TargetUnavailable as error:
            self._leave_alone(error)
            raise
        self._failures = 0
        stats.seconds = time.perf_counter() - request.started

    def _leave_alone(self, error: BaseException) -> None:
        wait = BACK_OFF_SECONDS[min(self._failures, len(BACK_OFF_SECONDS) - 1)]
        self._failures += 1
        self._away_until = time.monotonic() + wait
        self._reason = str(error)
        self._report()

    async def _one(self, request: AnswerRequest, index: int, stats: RequestStats) -> None:
        asked = replace(generation(request, index, request.route.name), tenant=None, cache_salt=None)
        path, read = CHAT if asked.chat else COMPLETION
        content = encoded((chat_body if asked.chat else completion_body)(asked, request.route.name))
        received, texts, reached = Received(asked), list[str](), False

        def answers(headers: Mapping[str, str]) -> None:
            nonlocal reached
            reached = True
            if headers.get(DIGEST) != request.route.digest:
                raise OtherContent(
                    f"{self._url} has other content as {request.route.name}, or is no gateway of lora-ops: "
                    "give it the same registry."
                )

        def add(chunk: Chunk) -> None:
            stats.add(chunk, time.perf_counter() - request.started)
            texts.append(chunk.written)

        try:
            async with aclosing(
                self._server.events(path, content, most_bytes(asked.sampling), answers)
            ) as events:
                async for data in events:
                    event = read(data)
                    if event.failure is not None:
                        raise EngineError(f"{self._url} says: {event.failure}")
                    if chunk := received.add(event, 0.0):
                        add(chunk)
            add(received.end())
        except Refused as error:
            # A gateway names the version that failed. A proxy before it sends redirects and pages of its own.
            by_proxy = not 400 <= error.status < 500 and DIGEST not in error.headers
            if error.status in NOT_THE_VERSION or by_proxy:
                raise TargetUnavailable(str(error)) from error
            raise
        except EngineError as error:
            if not reached:
                raise TargetUnavailable(str(error)) from error
            raise
        except ValueError as error:
            raise EngineError(f"{self._url} sends what is no answer: {reason(error)}.") from error
        stats.texts[index] = "".join(texts)
