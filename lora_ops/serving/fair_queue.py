"""Whose turn is next, when more is asked for than the engine can answer at the same time."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from lora_ops.errors import LoraOpsError
from lora_ops.serving.rate_limits import NeverFits

ACTIVE_SECONDS = 10.0
LONG = 2.0  # an answer that takes more slots than this is long
LONG_PART = 0.75  # of the slots, for all long answers together


class Overloaded(LoraOpsError):
    """The gateway as a whole has too much to do; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


@dataclass(eq=False)
class Line:
    """One tenant's tickets, and how far it has been served: its virtual time.

    Attributes:
        used: slots that its answers take now.
        wanted: slots that its waiting tickets would take.
        peak: slots that it wanted at once in the last `ACTIVE_SECONDS`.
    """

    share: float
    waiting: deque["Ticket"] = field(default_factory=deque)
    used: float = 0.0
    wanted: float = 0.0
    time: float = 0.0
    last_seen: float = -math.inf
    peak: float = 0.0
    peak_at: float = -math.inf

    @property
    def busy(self) -> bool:
        """Whether it has tickets that wait or answers that run."""
        return bool(self.waiting or self.used)

    def seen(self, now: float) -> None:
        """Note that it asked, and how much it wants at once."""
        self.last_seen, wanted = now, self.used + self.wanted
        if wanted >= self.peak or now - self.peak_at > ACTIVE_SECONDS:
            self.peak, self.peak_at = wanted, now


@dataclass(eq=False)
class Ticket:
    """A place in the queue for one answer; its turn comes (True) or it is dropped.

    Attributes:
        cost: tokens that the answer takes at most.
        size: slots that it takes.
    """

    tenant: str
    line: Line
    cost: float
    size: float
    turn: asyncio.Future[bool]
    running: bool = False


class FairQueue:
    """Gives out a number of slots, to each tenant its share.

    An answer takes one slot, or more where it reserves more than a slot's part of the engine's `tokens`: then
    as many slots as hold its tokens. So what runs never reserves more tokens than there are, and the engine
    has no queue of its own in which one tenant's long answers stand before everybody else's.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): the next slot goes to the waiting tenant with the least
    virtual time, which advances by tokens divided by share. Answers are not interrupted, so these rules keep a
    flood of one tenant from the others: slots that a tenant used lately, up to its share (whole ones), stay
    free for its next answers; the last free slot is for a tenant that has none while others were active
    lately; long answers stay within their tenant's share while others were active lately, and leave a part of
    all slots to short ones, which end soon; and when the queue is full the newest ticket of the longest line
    goes. An answer whose turn it is and that needs more slots than are free holds the others back until they
    are.

    Args:
        slots: answers that are generated at the same time.
        max_waiting: tickets that wait at most, all tenants together.
        timeout: seconds that one waits at most.
        tokens: how many the engine holds for all answers together.
        share: gives a tenant's share, in relation to the others'.
        clock: seconds.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int,
        timeout: float,
        tokens: float = math.inf,
        share: Callable[[str], float] = lambda tenant: 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.tokens = tokens
        self._slots = slots
        self._used = 0.0
        self._long = 0.0  # of these, taken by long answers
        self._running = 0
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._share = share
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._ready: dict[str, Line] = {}  # those with tickets that wait
        self._now = 0.0

    @property
    def running(self) -> int:
        """Answers whose turn has come."""
        return self._running

    @property
    def used(self) -> float:
        """Slots that they take."""
        return self._used

    def waiting(self) -> dict[str, int]:
        """Tickets that wait, by tenant; tenants without any are left out."""
        return {tenant: len(line.waiting) for tenant, line in self._ready.items()}

    def enter(self, tenant: str, costs: Sequence[float]) -> list[Ticket]:
        """Places for the answers of one request, all or none.

        Raises:
            NeverFits: they would not fit an empty queue, or one of them not an idle engine.
            Overloaded: the queue is full, and no other tenant has a longer line.
        """
        sizes = [max(1.0, cost * self._slots / self.tokens) for cost in costs]
        self._check(costs, sizes)
        waiting = sum(len(line.waiting) for line in self._ready.values())
        excess = len(costs) - (self._max_waiting + int(self._free // max(sizes)) - waiting)
        if excess > 0:
            mine = len(self._ready[tenant].waiting if tenant in self._ready else ()) + len(costs)
            if excess > sum(max(0, len(other.waiting) - mine) for other in self._ready.values()):
                raise Overloaded(f"The gateway is busy: {waiting} answers wait already.")
            for _ in range(excess):
                self._drop_newest_of_longest()
        line = self._line(tenant)
        loop = asyncio.get_running_loop()
        tickets = [
            Ticket(tenant, line, cost, size, loop.create_future())
            for cost, size in zip(costs, sizes, strict=True)
        ]
        line.waiting.extend(tickets)
        line.wanted += sum(sizes)
        line.seen(self._clock())
        self._ready[tenant] = line
        self._dispatch()
        return tickets

    @asynccontextmanager
    async def slot(self, ticket: Ticket) -> AsyncIterator[Callable[[float], None]]:
        """Wait for the ticket's turn and hold its slots; call what it gives with the tokens that it took.

        Raises:
            Overloaded: its turn did not come in time, or it had to make room for another tenant.
        """
        used = ticket.cost

        def took(tokens: float) -> None:
            nonlocal used
            used = tokens

        try:
            try:
                async with asyncio.timeout(self._timeout):
                    while not ticket.turn.done():
                        await asyncio.wait([ticket.turn], timeout=1)
                        self._dispatch()  # what was kept for others may be free by now
            except TimeoutError as error:
                raise Overloaded(
                    f"The gateway is busy: this answer's turn did not come within {self._timeout:.0f} seconds."
                ) from error
            if not ticket.turn.result():
                raise Overloaded(
                    f"The gateway is busy, and '{ticket.tenant}' has the longest queue: send less at once."
                )
            yield took
        finally:
            self.leave(ticket, used)

    def leave(self, ticket: Ticket, used: float = 0.0) -> None:
        """Give a place or slots back; nothing happens the second time."""
        line = ticket.line
        if ticket.running:
            ticket.running = False
            line.time += (used - ticket.cost) / line.share
            self._take(ticket, -1)
        elif ticket in line.waiting:
            line.waiting.remove(ticket)
            self._no_longer_waits(ticket)
        else:
            return
        self._dispatch()

    @property
    def _free(self) -> float:
        return self._slots - self._used + 1e-9  # sizes are fractions, and their sums are not exact

    def _check(self, costs: Sequence[float], sizes: Sequence[float]) -> None:
        if max(costs) > self.tokens:
            raise NeverFits(
                f"Prompt and answer may take {max(costs):.0f} tokens together, and the engine has room for "
                f"{self.tokens:.0f}: ask for fewer with max_tokens."
            )
        most = self._max_waiting + int(self._slots // max(sizes))
        if len(costs) > most:
            raise NeverFits(
                f"These are {len(costs)} answers of one request, and {most} of this length fit the gateway's "
                "queue: ask for fewer at once, or shorter ones."
            )

    def _line(self, tenant: str) -> Line:
        line = self._lines.get(tenant)
        if line is None:
            since = self._clock() - ACTIVE_SECONDS
            # One that is still ahead of the others must not come back as if it had taken nothing.
            self._lines = {
                name: old
                for name, old in self._lines.items()
                if old.busy or old.last_seen > since or old.time > self._now
            }
            line = self._lines[tenant] = Line(self._share(tenant))
        return line

    def _take(self, ticket: Ticket, sign: int) -> None:
        size = sign * ticket.size
        ticket.line.used = max(0.0, ticket.line.used + size)
        self._used += size
        self._running += sign
        if ticket.size > LONG:
            self._long += size
        if not self._running:  # no rounding error outlives what caused it
            self._used = self._long = 0.0

    def _no_longer_waits(self, ticket: Ticket) -> None:
        line = ticket.line
        line.wanted -= ticket.size
        if not line.waiting:
            line.wanted = 0.0
            del self._ready[ticket.tenant]

    def _dispatch(self) -> None:
        if not self._ready or self._free < 1:
            return
        since = self._clock() - ACTIVE_SECONDS
        active = [line for line in self._lines.values() if line.busy or line.last_seen > since]
        each = self._slots / sum(line.share for line in active)
        kept = sum(_kept(line, each) for line in active)
        alone = len(active) == 1
        while self._ready:
            able = [line for line in self._ready.values() if alone or self._may_take(line, each, kept)]
            able = [line for line in able if self._leaves_room_for_short_ones(line.waiting[0])]
            line = min(able, key=lambda line: max(self._now, line.time), default=None)
            if line is None or line.waiting[0].size > self._free:
                return
            kept -= _kept(line, each)
            self._start(line)
            kept += _kept(line, each)

    def _start(self, line: Line) -> None:
        ticket = line.waiting.popleft()
        self._no_longer_waits(ticket)
        self._now = max(self._now, line.time)
        line.time = self._now + ticket.cost / line.share
        ticket.running = True
        self._take(ticket, 1)
        ticket.turn.set_result(True)

    def _may_take(self, line: Line, each: float, kept: float) -> bool:
        size = line.waiting[0].size
        if not line.used or line.used + size <= each * line.share:
            return True
        return size <= LONG and self._free - size >= max(1.0, kept - _kept(line, each))

    def _leaves_room_for_short_ones(self, ticket: Ticket) -> bool:
        # The first long one may always run: else an answer of most of the engine's tokens never could.
        return ticket.size <= LONG or not self._long or self._long + ticket.size <= LONG_PART * self._slots

    def _drop_newest_of_longest(self) -> None:
        line = max(self._ready.values(), key=lambda line: len(line.waiting))
        ticket = line.waiting.pop()
        self._no_longer_waits(ticket)
        ticket.turn.set_result(False)


def _kept(line: Line, each: float) -> float:
    """Slots that stay free for a tenant's next answers."""
    return max(0.0, min(math.floor(each * line.share), line.peak) - line.used)
