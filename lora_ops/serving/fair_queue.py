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
LONG = 2.0  # an answer that may take more slots than this is long
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
        running: how many answers run.
        started: slots that they were expected to take when they started.
        used: slots that they take now. It is more where an answer is longer than expected.
        wanted: slots that its waiting tickets would take.
        peak: slots that it wanted at once in the last `ACTIVE_SECONDS`.
    """

    share: float
    waiting: deque["Ticket"] = field(default_factory=deque)
    running: int = 0
    started: float = 0.0
    used: float = 0.0
    wanted: float = 0.0
    time: float = 0.0
    last_seen: float = -math.inf
    peak: float = 0.0
    peak_at: float = -math.inf

    @property
    def busy(self) -> bool:
        """Whether it has tickets that wait or answers that run."""
        return bool(self.waiting or self.running)

    def seen(self, now: float) -> None:
        """Note that it asked, and how much it wants at once."""
        self.last_seen, wanted = now, self.used + self.wanted
        if wanted >= self.peak or now - self.peak_at > ACTIVE_SECONDS:
            self.peak, self.peak_at = wanted, now

    def counted(self, each: float) -> float:
        """Return the slots that its answers keep from the other tenants, where a share of 1 is `each` slots.

        What answers take beyond what was expected counts up to the tenant's share. Beyond that the engine lets
        them give way to others.
        """
        return max(self.started, min(self.used, each * self.share))


@dataclass(eq=False)
class Ticket:
    """A place in the queue for one answer; its turn comes (True) or it is dropped.

    Attributes:
        cost: tokens that the answer is expected to take, or has taken if these are more.
        size: slots for these.
        started: what `size` was at first.
        long: whether it may become long, whatever is expected.
        passed: how many tickets of other tenants got their turn while this one did not fit.
    """

    tenant: str
    line: Line
    cost: float
    size: float
    long: bool
    turn: asyncio.Future[bool]
    running: bool = False
    passed: int = 0

    def __post_init__(self) -> None:
        self.started = self.size


class FairQueue:
    """Gives out a number of slots, to each tenant its share.

    An answer takes one slot, or more where it is expected to take more than a slot's part of the engine's
    `tokens`: then as many slots as hold its tokens. So what runs is not expected to need more tokens than there
    are, and the engine needs no queue of its own, in which long answers of one tenant stood before all others.
    Where an answer becomes longer than expected, its tenant pays for it at once: in virtual time, and in slots
    of its share. The other tenants keep theirs: where the engine's tokens run out, it makes an answer of the
    tenant that holds most give way.

    Start-time fair queueing (Goyal, Vin, Cheng 1996): the next slot goes to the waiting tenant with the least
    virtual time, which advances by tokens divided by share. Answers are not interrupted, so these rules keep a
    flood of one tenant from the others: slots that a tenant used lately, up to its share (whole ones), stay
    free for its next answers; the last free slot is for a tenant that has none while others were active
    lately; answers that may become long stay within their tenant's share while others were active lately, and
    leave a part of all slots to short ones, which end soon; and when the queue is full the newest ticket of the
    longest line goes. An answer whose turn it is and that does not fit holds its own tenant back. It holds all
    others back, too, once as many of their answers as there are slots have passed it: so it gets its turn.

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
        self._started = 0.0  # slots that running answers were expected to take when they started
        self._long = 0.0  # of these, for those that may become long
        self._running = 0
        self._running_long = 0
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
        return sum(line.used for line in self._lines.values())

    def waiting(self) -> dict[str, int]:
        """Tickets that wait, by tenant; tenants without any are left out."""
        return {tenant: len(line.waiting) for tenant, line in self._ready.items()}

    def enter(
        self, tenant: str, costs: Sequence[float], expected: Sequence[float] | None = None
    ) -> list[Ticket]:
        """Places for the answers of one request, all or none.

        Args:
            tenant: whose answers they are.
            costs: tokens that each answer takes at most.
            expected: tokens that each one will probably take; None: as many as it can.

        Raises:
            NeverFits: they would not fit an empty queue, or one of them not an idle engine.
            Overloaded: the queue is full, and no other tenant has a longer line.
        """
        most = self._sizes(costs)
        self._check(costs, most)
        expected = expected or costs
        sizes = self._sizes(expected)
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
            Ticket(tenant, line, cost, size, at_most > LONG, loop.create_future())
            for cost, size, at_most in zip(expected, sizes, most, strict=True)
        ]
        line.waiting.extend(tickets)
        line.wanted += sum(sizes)
        line.seen(self._clock())
        self._ready[tenant] = line
        self._dispatch()
        return tickets

    @asynccontextmanager
    async def slot(self, ticket: Ticket) -> AsyncIterator[Callable[[float], None]]:
        """Wait for the ticket's turn and hold its slots; call what it gives with the tokens taken so far.

        Raises:
            Overloaded: its turn did not come in time, or it had to make room for another tenant.
        """
        used = ticket.cost

        def took(tokens: float) -> None:
            nonlocal used
            used = tokens
            self._grow(ticket, tokens)

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

    def _sizes(self, costs: Sequence[float]) -> list[float]:
        return [max(1.0, cost * self._slots / self.tokens) for cost in costs]

    def _grow(self, ticket: Ticket, tokens: float) -> None:
        """Charge the tenant for what an answer takes beyond what was expected."""
        if not ticket.running or tokens <= ticket.cost:
            return
        line, (size,) = ticket.line, self._sizes([tokens])
        line.time += (tokens - ticket.cost) / line.share
        line.used += size - ticket.size
        ticket.cost, ticket.size = tokens, size

    @property
    def _free(self) -> float:
        return self._slots - self._started + 1e-9  # sizes are fractions, and their sums are not exact

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
        line, started = ticket.line, sign * ticket.started
        line.running += sign
        line.started += started
        line.used += sign * ticket.size
        if not line.running:  # no rounding error outlives what caused it
            line.started = line.used = 0.0
        self._running += sign
        self._started += started
        if ticket.long:
            self._running_long += sign
            self._long += started
        if not self._running_long:
            self._long = 0.0
        if not self._running:
            self._started = 0.0

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
        counted = sum(line.counted(each) for line in active)
        kept = sum(_kept(line, each) for line in active)
        alone = len(active) == 1
        while self._ready:
            # Who is over its share pays for all that its answers take, also for what does not count for others.
            free = self._slots - counted + 1e-9
            rooms = {line: free - line.used + line.counted(each) for line in self._ready.values()}
            able = [
                line
                for line in self._ready.values()
                if alone or _may_take(line, each, rooms[line], kept - _kept(line, each))
            ]
            line = self._next(able, rooms)
            if line is None:
                return
            counted -= line.counted(each)
            kept -= _kept(line, each)
            self._start(line)
            counted += line.counted(each)
            kept += _kept(line, each)

    def _next(self, able: list[Line], rooms: dict[Line, float]) -> Line | None:
        """Return the line whose first ticket starts now, or None: the first that fits, by virtual time."""
        held: list[tuple[Ticket, bool]] = []  # with whether only long answers are in its way
        only_short = False
        for line in sorted(able, key=lambda line: max(self._now, line.time)):
            ticket = line.waiting[0]
            if only_short and ticket.long:
                continue
            behind_long = not self._leaves_room_for_short_ones(ticket)
            if not behind_long and ticket.size <= rooms[line]:
                for other, waits_for_long in held:
                    other.passed += ticket.long or not waits_for_long
                return line
            held.append((ticket, behind_long))
            # It was passed often enough: what is in its way ends, and nothing new of that kind starts.
            if ticket.passed >= self._slots:
                if not behind_long:
                    return None
                only_short = True
        return None

    def _start(self, line: Line) -> None:
        ticket = line.waiting.popleft()
        self._no_longer_waits(ticket)
        self._now = max(self._now, line.time)
        line.time = self._now + ticket.cost / line.share
        ticket.running = True
        self._take(ticket, 1)
        ticket.turn.set_result(True)

    def _leaves_room_for_short_ones(self, ticket: Ticket) -> bool:
        # The first long one may always run: else an answer of most of the engine's tokens never could.
        may_be_long = self._long + ticket.size
        return not ticket.long or not self._running_long or may_be_long <= LONG_PART * self._slots

    def _drop_newest_of_longest(self) -> None:
        line = max(self._ready.values(), key=lambda line: len(line.waiting))
        ticket = line.waiting.pop()
        self._no_longer_waits(ticket)
        ticket.turn.set_result(False)


def _may_take(line: Line, each: float, free: float, kept: float) -> bool:
    """Return whether a tenant may start its next answer beside others; `kept` is what stays free for these."""
    ticket = line.waiting[0]
    if not line.running or line.used + ticket.size <= each * line.share:
        return True
    return not ticket.long and free - ticket.size >= max(1.0, kept)


def _kept(line: Line, each: float) -> float:
    """Slots that stay free for a tenant's next answers."""
    return max(0.0, min(math.floor(each * line.share), line.peak) - line.used)
