"""Long work on the event loop, by turns with everything else that happens there."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

TURN_SECONDS = 0.002

T = TypeVar("T")


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items; others get their turn each time that `TURN_SECONDS` were spent on items."""
    began = time.monotonic()
    for item in items:
        yield item
        if time.monotonic() - began >= TURN_SECONDS:
            await asyncio.sleep(0)
            began = time.monotonic()
