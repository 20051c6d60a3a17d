"""How fast one sender's large bodies are read, since the event loop parses them while everybody waits."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from lora_ops.serving.rate_limits import TooMany

LARGE = 64 * 1024
"""Bytes from which a body waits for its turn; no chat and no prompt of a small context is as long."""
BYTES_PER_SECOND = 4 * 2**20
"""Of one sender. Reading and parsing 1 MB of text keeps the event loop for some milliseconds."""
VALUE = 64  # bytes for which each value of a JSON body counts: 1 MB of empty lists is parsed in 0.2 s
MOST_WAITING = 64  # bodies of one sender; each keeps a connection, and all senders share these
REMEMBERED = 1000  # senders, before those whose turn has passed are forgotten


def weight(body: bytes | bytearray) -> int:
    """Return how many bytes of text take as long to parse as this JSON body."""
    return len(body) + VALUE * sum(map(body.count, (b",", b"[", b"{")))


@dataclass(eq=False)
class _Waiting:
    """A body that waits: when it may begin by the clock, and the word that this has changed."""

    begins: float
    moved: asyncio.Event = field(default_factory=asyncio.Event)


class BodyPace:
    """Large bodies of one sender begin one after the other, each when the ones before it are paid for.

    A single one never waits. A sender who sends them without end gets `BYTES_PER_SECOND`, whatever its limits
    of requests and tokens are: these are counted only once a body is parsed.

    Args:
        patience: seconds that a body may wait.
        clock: gives the time in seconds.
    """

    def __init__(self, patience: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience = patience
        self._clock = clock
        self._next: dict[str, float] = {}  # sender -> when its next large body may begin
        self._waiting: defaultdict[str, list[_Waiting]] = defaultdict(list)

    async def turn(self, sender: str, size: int) -> None:
        """Wait until a body of `size` bytes may be read; cancelling it gives the place back.

        Raises:
            TooMany: as `take`, or too many bodies of this sender wait already.
        """
        if size > LARGE and len(self._waiting.get(sender, ())) >= MOST_WAITING:
            raise TooMany(
                f"{MOST_WAITING} bodies of more than {LARGE:,} bytes wait to be read: send fewer at once.", 1.0
            )
        if not (wait := self.take(sender, size)):
            return
        mine, queue = _Waiting(self._clock() + wait), self._waiting[sender]
        queue.append(mine)
        try:
            while (left := mine.begins - self._clock()) > 0:
                mine.moved.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await mine.moved.wait()
        except asyncio.CancelledError:
            # What is not read is not paid for: whoever waits behind it begins earlier.
            seconds = size / BYTES_PER_SECOND
            self._next[sender] -= seconds
            for other in queue[queue.index(mine) + 1 :]:
                other.begins -= seconds
                other.moved.set()
            raise
        finally:
            queue.remove(mine)
            if not queue:
                del self._waiting[sender]

    def add(self, sender: str, size: int) -> None:
        """Let the sender's next large body wait for so many bytes more."""
        self._next[sender] = max(self._clock(), self._next.get(sender, 0.0)) + size / BYTES_PER_SECOND

    def take(self, sender: str, size: int) -> float:
        """Return the seconds until a body of `size` bytes may be read.

        Raises:
            TooMany: it would wait longer than anybody may; nothing is counted then.
        """
        if size <= LARGE:
            return 0.0
        now = self._clock()
        begins = max(now, self._next.get(sender, now))
        wait = begins - now
        if wait > self._patience:
            raise TooMany(
                f"Bodies of more than {LARGE:,} bytes are read at {BYTES_PER_SECOND:,} bytes a second of one "
                f"sender, where each value counts as {VALUE} bytes: send fewer at once.",
                wait,
            )
        if len(self._next) > REMEMBERED:
            self._next = {one: at for one, at in self._next.items() if at > now}
        self._next[sender] = begins + size / BYTES_PER_SECOND
        return wait
