"""Calls to an OpenAI-compatible server, whose answers end: each has a limit of bytes and of time.

The server is another process, maybe of somebody else. One that sends without end, or nothing at all, costs the
request that asked it, and neither memory nor anybody else's turn.
"""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, cast

import httpx

from lora_ops.engines.openai_events import refusal
from lora_ops.engines.protocol import EngineError

CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 2.0
# Of a call that is no answer: a server may read a large adapter from a slow disk.
CALL_SECONDS = 300.0
# What follows the last event of an answer is the end of its connection.
END_SECONDS = 1.0
LARGEST_RESPONSE = 16 * 2**20  # bytes: a list of some 50,000 adapters
LARGEST_REFUSAL = 64 * 1024
LARGEST_PORT = 65_535
DONE = b"[DONE]"
DIGITS = re.compile(r"[0-9]{1,9}")


class Refused(EngineError):
    """The server answers, but not what was asked for.

    Attributes:
        status: HTTP's.
        retry_after: seconds, where the server says when to try again.
        headers: of the response.
    """

    def __init__(
        self,
        text: str,
        status: int,
        retry_after: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(text)
        self.status, self.retry_after, self.headers = status, retry_after, headers or {}


class Connection:
    """One server's address and key.

    Args:
        silence_seconds: how long it may say nothing in the middle of an answer.
        headers: of each request, besides its key.

    Raises:
        EngineError: the address, the key, or a proxy or certificate of the environment can't be used.
    """

    def __init__(
        self, url: str, key: str | None, silence_seconds: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self._url = url
        try:
            self._http = httpx.AsyncClient(
                base_url=url,
                # Uncompressed: a few bytes must not become gigabytes here.
                headers={
                    "accept-encoding": "identity",
                    **({"authorization": f"Bearer {key}"} if key else {}),
                    **(headers or {}),
                },
                # None is kept: those of a load balancer would send all answers to one replica, and those of one
                # client's answer would go out with another client's request.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                timeout=httpx.Timeout(silence_seconds, connect=CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            )
            if (self._http.base_url.port or 0) > LARGEST_PORT:
                raise httpx.InvalidURL(f"a port is {LARGEST_PORT} at most")
        # httpx reads the environment's proxies and certificates here, too, which fail in the last three ways.
        except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
            what = f"{url}, its key, or a proxy or certificate of the environment (ALL_PROXY, SSL_CERT_FILE)"
            raise EngineError(f"{what} can't be used: {error}.") from error

    async def close(self) -> None:
        """Close all connections; an answer that still runs ends with `EngineError`."""
        await self._http.aclose()

    async def healthy(self) -> bool:
        """Whether the server says at its /health, within `HEALTH_SECONDS`, that it is well."""
        if self._http.is_closed:
            return False
        try:
            async with asyncio.timeout(HEALTH_SECONDS), self._http.stream("GET", "/health") as response:
                return response.is_success
        except (httpx.HTTPError, TimeoutError):
            return False

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, seconds: float = CALL_SECONDS
    ) -> bytes:
        """Return the body of a response.

        Raises:
            Refused: the server answers with another status than 200.
            EngineError: it can't be reached, or its answer has no end in sight.
        """
        patience = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        try:
            async with (
                asyncio.timeout(seconds),
                self._sent(method, path, json=body, timeout=patience) as response,
            ):
                content = bytearray()
                async for part in response.aiter_raw():
                    content += part
                    self._bounded(len(content), LARGEST_RESPONSE)
        except TimeoutError as error:
            raise EngineError(f"{self._url} does not answer {path} within {seconds:.0f} seconds.") from error
        return bytes(content)

    async def events(
        self,
        path: str,
        content: bytes,
        most: int,
        answers: Callable[[Mapping[str, str]], None] = lambda headers: None,
    ) -> AsyncGenerator[bytes, None]:
        """Yield the data of each server-sent event that answers a body of JSON, up to the last one.

        Args:
            path: of the call.
            content: the body.
            most: how many bytes all of them may have.
            answers: called with the response's headers before the first event; what it raises ends the call.

        Raises:
            Refused: the server answers with another status than 200.
            EngineError: it can't be reached, or sends more than `most`.
        """
        headers = {"content-type": "application/json"}
        async with (
            self._sent("POST", path, content=content, headers=headers) as response,
            aclosing(self._lines(response, most)) as lines,
        ):
            answers(response.headers)
            async for line in lines:
                data = line[5:].strip() if line.startswith(b"data:") else b""
                if data == DONE:
                    break
                if data:
                    yield data
            # A connection can be used again once its response was read to the end.
            with suppress(TimeoutError, EngineError, httpx.HTTPError):
                async with asyncio.timeout(END_SECONDS):
                    async for _ in lines:
                        pass

    async def _lines(self, response: httpx.Response, most: int) -> AsyncGenerator[bytes, None]:
        """Yield lines, which end with a line feed alone; httpx's own end at U+2028 of a text, too."""
        received, rest = 0, bytearray()
        async with aclosing(cast(AsyncGenerator[bytes, None], response.aiter_raw())) as parts:
            async for part in parts:
                received += len(part)
                self._bounded(received, most)
                unread = len(rest)
                rest += part
                if rest.find(b"\n", unread) < 0:
                    continue
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    yield bytes(line)
        if rest:
            yield bytes(rest)

    def _bounded(self, size: int, most: int) -> None:
        if size > most:
            raise EngineError(f"{self._url} sends more than the {most:,} bytes that its answer may have.")

    @asynccontextmanager
    async def _sent(self, method: str, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        if self._http.is_closed:
            raise EngineError("The engine is not running.")
        try:
            async with self._http.stream(method, path, **options) as response:
                if response.status_code != 200:
                    raise await self._refused(response)
                yield response
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise EngineError(f"{self._url} can't be reached ({reason}).") from error

    async def _refused(self, response: httpx.Response) -> Refused:
        content = bytearray()
        async for part in response.aiter_raw():
            content += part
            if len(content) > LARGEST_REFUSAL:
                break
        said = f"{self._url} answers {response.status_code}: {refusal(bytes(content))}"
        seconds = _seconds(response.headers.get("retry-after", ""))
        return Refused(said, response.status_code, seconds, response.headers)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that a Retry-After header names, by number or by date; None: it names none."""
    if DIGITS.fullmatch(retry_after):
        return float(retry_after)
    try:
        until = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):  # a year or a zone of 20 digits is too much for datetime
        return None
    return max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
