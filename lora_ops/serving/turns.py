"""Long work beside answers: by turns with them, and not all the time."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

TURN_SECONDS = 0.002
# What is made in less time than this holds up nobody.
SHORT_SECONDS = 0.1
REST = 4  # times as long as making took

T = TypeVar("T")


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items; others get their turn each time that `TURN_SECONDS` were spent on items."""
    began = time.monotonic()
    for item in items:
        yield item
        if time.monotonic() - began >= TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()


class Kept:
    """A page that many ask for. Making it takes a fifth of the time at most, however often they ask.

    Args:
        make: makes it.
        seconds: how long it is kept at least.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[bytes]],
        seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make, self._seconds, self._clock = make, seconds, clock
        self._until = -math.inf
        self._page = b""
        self._making = asyncio.Lock()

    async def page(self) -> bytes:
        """Return the page, made now or not long ago; what making it raises is not kept."""
        async with self._making:
            began = self._clock()
            if began >= self._until:
                self._page = await self._make()
                ended = self._clock()
                took = ended - began
                self._until = ended + max(self._seconds, REST * took if took >= SHORT_SECONDS else 0.0)
            return self._page
