"""How an answer goes out: whole, or as server-sent events while it is made."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Send

from lora_ops.serving.answering import Piece
from lora_ops.serving.edge import report
from lora_ops.serving.errors import as_api_error
from lora_ops.serving.rendering import DONE, Rendering, failure

# Tokens with their probabilities that are rendered on the event loop, in about 1 ms.
NAMED = 100

T = TypeVar("T")


async def collected(pieces: AsyncGenerator[Piece, None]) -> list[Piece]:
    """Return all pieces of an answer."""
    async with aclosing(pieces):
        return [piece async for piece in pieces]


async def first(pieces: AsyncGenerator[Piece, None]) -> Piece:
    """Return the first piece of an answer, which is still being made."""
    return await anext(pieces)


async def rendered(pieces: Sequence[Piece], render: Callable[[], T]) -> T:
    """Return what `render` makes of these pieces; one with many probabilities does not stop the event loop."""
    named = sum(1 + len(one.top) for piece in pieces for one in (*piece.chunk.prompt, *piece.chunk.logprobs))
    return render() if named <= NAMED else await asyncio.to_thread(render)


class Stream(StreamingResponse):
    """Server-sent events given up at a deadline (of the event loop's clock), however slow the reader."""

    def __init__(self, events: AsyncGenerator[bytes, None], deadline: float, headers: dict[str, str]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events = events
        self._deadline = deadline

    async def stream_response(self, send: Send) -> None:
        """Send all events.

        Raises:
            TimeoutError: the deadline passed; what was not sent is lost.
        """
        async with aclosing(self._events), asyncio.timeout_at(self._deadline):
            await super().stream_response(send)


async def events(
    first: Piece, pieces: AsyncGenerator[Piece, None], rendering: Rendering, count: int
) -> AsyncGenerator[bytes, None]:
    """Yield the events of `count` answers, whose first piece is known; closing it early ends the answers."""
    async with aclosing(pieces):
        for event in rendering.opening(count):
            yield event
        try:
            yield await rendered([first], partial(rendering.event, first))
            async for piece in pieces:
                yield await rendered([piece], partial(rendering.event, piece))
        except Exception as error:  # noqa: BLE001 - the status is sent already, so the stream must tell
            problem = as_api_error(error)
            report("A stream", problem, error)
            yield failure(problem)
            return
        for event in rendering.closing():
            yield event
        yield DONE
