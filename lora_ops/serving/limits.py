"""How much a tenant may ask for: requests and tokens a minute, requests at a time; and whose turn is next."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from lora_ops.errors import LoraOpsError
from lora_ops.settings import TenantServing

ACTIVE_SECONDS = 10.0


class TooMany(LoraOpsError):
    """A tenant asked for more than its limit; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Overloaded(LoraOpsError):
    """The gateway as a whole has too much to do; `retry_after` is in seconds."""

    def __init__(self, text: str, retry_after: float = 1.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class Bucket:
    """A token bucket: it holds what one minute allows and fills up evenly."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_second = per_minute / 60
        self._capacity = float(per_minute)
        self._level = self._capacity
        self._clock = clock
        self._at = clock()

    def take(self, amount: float) -> float:
        """Take `amount` and give 0, or take nothing and give the seconds until it can be taken (inf: never)."""
        now = self._clock()
        self._level = min(self._capacity, self._level + (now - self._at) * self._per_second)
        self._at = now
        if amount <= self._level:
            self._level -= amount
            return 0.0
        return math.inf if amount > self._capacity else (amount - self._level) / self._per_second

    def give_back(self, amount: float) -> None:
        """Return what was taken and not used."""
        self._level = min(self._capacity, self._level + amount)


class Allowance:
    """What one tenant may still do."""

    def __init__(self, limits: TenantServing, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._requests = Bucket(limits.requests_per_minute, clock) if limits.requests_per_minute else None
        self._tokens = Bucket(limits.tokens_per_minute, clock) if limits.tokens_per_minute else None
        self._open = 0

    @contextmanager
    def spending(self, tenant: str, tokens: int) -> Iterator[Callable[[int], None]]:
        """One request that reads and writes at most `tokens`; call what it gives with how many it was.

        Raises:
            TooMany: it is over one of the tenant's limits; nothing is counted then.
        """
        limits = self._limits
        if limits.concurrency and self._open >= limits.concurrency:
            raise TooMany(f"'{tenant}' has {self._open} requests open, which is its limit: wait for one.", 1.0)
        if self._tokens and (wait := self._tokens.take(tokens)):
            if math.isinf(wait):
                raise TooMany(
                    f"This request may take {tokens} tokens, and '{tenant}' has {limits.tokens_per_minute} a "
                    "minute: ask for fewer with max_tokens.",
                    60.0,
                )
            raise TooMany(f"'{tenant}' has used up its {limits.tokens_per_minute} tokens a minute.", wait)
        if self._requests and (wait := self._requests.take(1)):
            if self._tokens:
                self._tokens.give_back(tokens)
            raise TooMany(f"'{tenant}' has made its {limits.requests_per_minute} requests a minute.", wait)
        self._open += 1
        used = tokens

        def spent(count: int) -> None:
            nonlocal used
            used = count

        try:
            yield spent
        finally:
            self._open -= 1
            if self._tokens:
                self._tokens.give_back(max(0, tokens - used))


@dataclass(eq=False)
class Ticket:
    """A place in the queue for one answer of at most `cost` tokens; its turn comes (True) or it is dropped."""

    tenant: str
    cost: float
    turn: asyncio.Future[bool]
    running: bool = False


@dataclass
class Line:
    """One tenant's tickets, and how far it has been served: its virtual time."""

    share: float
    waiting: deque[Ticket] = field(default_factory=deque)
    running: int = 0
    time: float = 0.0
    last_seen: float = -math.inf
    peak: int = 0
    peak_at: float = -math.inf

    def seen(self, now: float) -> None:
        """Note that it asked, and how much it wants at once: its peak of the last `ACTIVE_SECONDS`."""
        self.last_seen, wanted = now, self.running + len(self.waiting)
        if wanted >= self.peak or now - self.peak_at > ACTIVE_SECONDS:
            self.peak, self.peak_at = wanted, now


class FairQueue:
    """Gives out a number of slots, to each tenant its share.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): the next slot goes to the waiting tenant with the least
    virtual time, which advances by tokens divided by share. Answers are not interrupted, so three rules keep a
    flood of one tenant from the others: slots that a tenant used lately, up to its share, stay free for its
    next answers; the last free slot is for a tenant that has none while others were active lately; and when
    the queue is full the newest ticket of the longest line goes.

    Args:
        slots: answers that are generated at the same time.
        max_waiting: tickets that wait at most, all tenants together.
        timeout: seconds that one waits at most.
        share: gives a tenant's share, in relation to the others'.
        clock: seconds.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int,
        timeout: float,
        share: Callable[[str], float] = lambda tenant: 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free = slots
        self._slots = slots
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._share = share
        self._clock = clock
        self._lines: dict[str, Line] = {}
        self._ready: dict[str, Line] = {}  # those with tickets that wait
        self._now = 0.0

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._slots - self._free

    def waiting(self) -> dict[str, int]:
        """Tickets that wait, by tenant; tenants without any are left out."""
        return {tenant: len(line.waiting) for tenant, line in self._ready.items()}

    def enter(self, tenant: str, costs: Sequence[float]) -> list[Ticket]:
        """Places for the answers of one request, all or none.

        Raises:
            Overloaded: the queue is full, and no other tenant has a longer line.
        """
        line = self._lines.get(tenant)
        if line is None:
            line = self._lines[tenant] = Line(self._share(tenant))
        waiting = sum(self.waiting().values())
        excess = len(costs) - (self._max_waiting + self._free - waiting)
        if excess > 0:
            mine = len(line.waiting) + len(costs)
            if excess > sum(max(0, len(other.waiting) - mine) for other in self._ready.values()):
                raise Overloaded(f"The gateway is busy: {waiting} answers wait already.")
            for _ in range(excess):
                self._drop_newest_of_longest()
        loop = asyncio.get_running_loop()
        tickets = [Ticket(tenant, cost, loop.create_future()) for cost in costs]
        line.waiting.extend(tickets)
        line.seen(self._clock())
        self._ready[tenant] = line
        self._dispatch()
        return tickets

    @asynccontextmanager
    async def slot(self, ticket: Ticket) -> AsyncIterator[Callable[[float], None]]:
        """Wait for the ticket's turn and hold a slot; call what it gives with the tokens that it took.

        Raises:
            Overloaded: its turn did not come in time, or it had to make room for another tenant.
        """
        used = ticket.cost

        def took(tokens: float) -> None:
            nonlocal used
            used = tokens

        try:
            if not ticket.turn.done():
                await asyncio.wait([ticket.turn], timeout=self._timeout)
            if not ticket.turn.done():
                raise Overloaded(
                    f"The gateway is busy: this answer's turn did not come within {self._timeout:.0f} seconds."
                )
            if not ticket.turn.result():
                raise Overloaded(
                    f"The gateway is busy, and '{ticket.tenant}' has the longest queue: send less at once."
                )
            yield took
        finally:
            self.leave(ticket, used)

    def leave(self, ticket: Ticket, used: float = 0.0) -> None:
        """Give a place or a slot back; nothing happens the second time."""
        line = self._lines[ticket.tenant]
        if ticket.running:
            ticket.running = False
            line.running -= 1
            line.time += (used - ticket.cost) / line.share
            self._free += 1
            self._dispatch()
        elif ticket in line.waiting:
            line.waiting.remove(ticket)
            if not line.waiting:
                del self._ready[ticket.tenant]

    def _dispatch(self) -> None:
        while self._free and (tenant := self._next()):
            line = self._lines[tenant]
            ticket = line.waiting.popleft()
            if not line.waiting:
                del self._ready[tenant]
            self._now = max(self._now, line.time)
            line.time = self._now + ticket.cost / line.share
            line.running += 1
            ticket.running = True
            self._free -= 1
            ticket.turn.set_result(True)

    def _next(self) -> str | None:
        able = [tenant for tenant in self._ready if self._may_take(tenant)]
        return min(able, key=lambda tenant: max(self._now, self._lines[tenant].time), default=None)

    def _may_take(self, tenant: str) -> bool:
        mine, since = self._lines[tenant], self._clock() - ACTIVE_SECONDS
        others = [line for name, line in self._lines.items() if name != tenant and line.last_seen > since]
        if not others or not mine.running:
            return True
        each = self._slots / (mine.share + sum(line.share for line in others))
        if mine.running + 1 <= each * mine.share:
            return True
        kept = sum(max(0.0, min(each * line.share, line.peak) - line.running) for line in others)
        return self._free > max(1.0, kept)

    def _drop_newest_of_longest(self) -> None:
        tenant, line = max(self._ready.items(), key=lambda item: len(item[1].waiting))
        line.waiting.pop().turn.set_result(False)
        if not line.waiting:
            del self._ready[tenant]
