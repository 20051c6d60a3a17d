"""How an answer goes out: whole, or as server-sent events while it is made."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Send

from lora_ops.serving.errors import as_api_error
from lora_ops.serving.middleware import report
from lora_ops.serving.rendering import DONE, Rendering, failure
from lora_ops.serving.requests import AnswerChunk

# Tokens with their probabilities that are rendered on the event loop, in about 1 ms.
NAMED = 100

T = TypeVar("T")


async def collected(chunks: AsyncGenerator[AnswerChunk, None]) -> list[AnswerChunk]:
    """Return all chunks of an answer."""
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


async def first(chunks: AsyncGenerator[AnswerChunk, None]) -> AnswerChunk:
    """Return the first chunk of an answer, which is still being made."""
    return await anext(chunks)


async def rendered(chunks: Sequence[AnswerChunk], render: Callable[[], T]) -> T:
    """Return what `render` makes of these chunks; one with many probabilities does not stop the event loop."""
    contents = [chunk.content for chunk in chunks]
    named = sum(1 + len(token.top) for one in contents for token in (*one.prompt, *one.logprobs))
    return render() if named <= NAMED else await asyncio.to_thread(render)


class Stream(StreamingResponse):
    """Server-sent events given up at a deadline (of the event loop's clock), however slow the reader.

    Args:
        after: called once the last event has left.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        deadline: float,
        headers: dict[str, str],
        after: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._after = after
        self._events = events
        self._deadline = deadline

    async def stream_response(self, send: Send) -> None:
        """Send all events.

        Raises:
            TimeoutError: the deadline passed; what was not sent is lost.
        """
        async with aclosing(self._events), asyncio.timeout_at(self._deadline):
            await super().stream_response(send)
        # Not `background`, which Starlette runs also where the client has left.
        await self._after()


async def events(
    first: AnswerChunk, chunks: AsyncGenerator[AnswerChunk, None], rendering: Rendering, count: int
) -> AsyncGenerator[bytes, None]:
    """Yield the events of `count` answers, whose first chunk is known; closing it early ends the answers."""
    async with aclosing(chunks):
        for event in rendering.opening(count):
            yield event
        try:
            yield await rendered([first], partial(rendering.event, first))
            async for chunk in chunks:
                yield await rendered([chunk], partial(rendering.event, chunk))
        except Exception as error:  # noqa: BLE001 - the status is sent already, so the stream must tell
            problem = as_api_error(error)
            report("A stream", problem, error)
            yield failure(problem)
            return
        for event in rendering.closing():
            yield event
        yield DONE
