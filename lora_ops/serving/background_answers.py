"""Answers that nobody waits for: they run in idle slots, and end as soon as those are needed."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from lora_ops.errors import LoraOpsError


class Preempted(LoraOpsError):
    """An answer in the background had to end, because somebody waits or needs its slots."""


@dataclass(eq=False)
class BackgroundTicket:
    """The idle slots that an answer takes.

    Attributes:
        size: slots.
        ended: whether the answer has to end.
        timeout: what ends the answer where it runs already.
    """

    size: float
    ended: bool = False
    timeout: asyncio.Timeout | None = None

    def end(self) -> None:
        """End the answer now, or as soon as it begins."""
        self.ended = True
        if self.timeout:
            self.timeout.reschedule(asyncio.get_running_loop().time())


class BackgroundAnswers:
    """The answers that run in the background."""

    def __init__(self) -> None:
        self._tickets: list[BackgroundTicket] = []  # the oldest first

    @property
    def used(self) -> float:
        """Slots that they take."""
        return sum(ticket.size for ticket in self._tickets)

    def start(self, sizes: Sequence[float]) -> list[BackgroundTicket]:
        """Take so many slots for each answer."""
        tickets = [BackgroundTicket(size) for size in sizes]
        self._tickets += tickets
        return tickets

    def leave(self, ticket: BackgroundTicket) -> None:
        """Give the slots back; nothing happens the second time."""
        if ticket in self._tickets:
            self._tickets.remove(ticket)

    def keep_within(self, slots: float) -> None:
        """End the newest answers until the others take no more than these slots."""
        while self._tickets and self.used > slots + 1e-9:
            self._tickets.pop().end()

    @asynccontextmanager
    async def slot(
        self, ticket: BackgroundTicket, grown: Callable[[float], None]
    ) -> AsyncIterator[Callable[[float], None]]:
        """Hold the ticket's slots; call what it gives with the tokens taken so far, which `grown` is told.

        Raises:
            Preempted: the slots are needed.
        """
        try:
            async with asyncio.timeout(0 if ticket.ended else None) as ticket.timeout:
                yield grown
        except TimeoutError as error:
            if not ticket.ended:
                raise
            raise Preempted("An answer in the background gave way to others.") from error
        finally:
            ticket.timeout = None
            self.leave(ticket)
