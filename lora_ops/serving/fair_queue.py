"""Whose turn is next, when more is asked for than the engine can answer at the same time."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from lora_ops.errors import LoraOpsError
from lora_ops.serving.background_answers import BackgroundAnswers, BackgroundTicket
from lora_ops.serving.rate_limits import NeverFits
from lora_ops.serving.tenant_queue import ACTIVE_SECONDS, TenantQueue, Ticket

LONG = 2.0  # an answer that may take more slots than this is long
LONG_PART = 0.75  # of the slots, for all long answers together


class Overloaded(LoraOpsError):
    """The gateway as a whole has too much to do.

    Attributes:
        retry_after: seconds until it is worth trying again at the earliest.
        spread: seconds over which those who are refused now should come back.
    """

    def __init__(self, text: str, retry_after: float = 1.0, spread: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after, self.spread = retry_after, spread


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
    longest queue goes. An answer whose turn it is and that does not fit holds its own tenant back. It holds all
    others back, too, once as many of their answers as there are slots have passed it: so it gets its turn.

    Answers in the background take what all of this leaves idle. All other answers are given their turns as if
    there were none in the background, which end as soon as anybody waits or needs their slots.

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
        self._queues: dict[str, TenantQueue] = {}
        self._ready: dict[str, TenantQueue] = {}  # those with tickets that wait
        self._background = BackgroundAnswers()
        self._now = 0.0

    @property
    def running(self) -> int:
        """Answers whose turn has come."""
        return self._running

    @property
    def used(self) -> float:
        """Slots that they take."""
        return sum(queue.used for queue in self._queues.values())

    def waiting(self) -> dict[str, int]:
        """Tickets that wait, by tenant; tenants without any are left out."""
        return {tenant: len(queue.waiting) for tenant, queue in self._ready.items()}

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
            Overloaded: the queue is full, and no other tenant has a longer queue.
        """
        most = self._sizes(costs)
        self._check(costs, most)
        expected = expected or costs
        sizes = self._sizes(expected)
        waiting = sum(len(queue.waiting) for queue in self._ready.values())
        excess = len(costs) - (self._max_waiting + int(self._free // max(sizes)) - waiting)
        if excess > 0:
            mine = len(self._ready[tenant].waiting if tenant in self._ready else ()) + len(costs)
            if excess > sum(max(0, len(other.waiting) - mine) for other in self._ready.values()):
                raise self._overloaded(f"The gateway is busy: {waiting} answers wait already.")
            for _ in range(excess):
                self._drop_newest_of_longest()
        queue = self._queue(tenant)
        loop = asyncio.get_running_loop()
        tickets = [
            Ticket(tenant, queue, cost, size, at_most > LONG, loop.create_future())
            for cost, size, at_most in zip(expected, sizes, most, strict=True)
        ]
        queue.waiting.extend(tickets)
        queue.wanted += sum(sizes)
        queue.seen(self._clock())
        self._ready[tenant] = queue
        self._dispatch()
        return tickets

    def enter_background(self, costs: Sequence[float], expected: Sequence[float]) -> list[BackgroundTicket]:
        """Start answers in idle slots, all or none; they never wait.

        Args:
            costs, expected: as `enter` takes them.

        Raises:
            NeverFits: as `enter`.
            Overloaded: there are not so many idle slots.
        """
        self._check(costs, self._sizes(costs))
        sizes = self._sizes(expected)
        active, each = self._active()
        # A slot is idle where nobody waits, no answer takes it, and no tenant's next answer finds it kept.
        kept = sum(queue.kept(each) for queue in active)
        idle = self._slots - self.used - self._background.used - kept
        if self._ready or sum(sizes) > idle + 1e-9:
            raise Overloaded("The gateway has no idle slots for answers in the background.")
        return self._background.start(sizes)

    @asynccontextmanager
    async def slot(self, ticket: Ticket | BackgroundTicket) -> AsyncIterator[Callable[[float], None]]:
        """Wait for the ticket's turn and hold its slots; call what it gives with the tokens taken so far.

        Raises:
            Overloaded: its turn did not come in time, or it had to make room for another tenant.
            Preempted: it runs in the background, and its slots are needed.
        """
        if isinstance(ticket, BackgroundTicket):
            async with self._background.slot(ticket, partial(self._grow_background, ticket)) as took:
                yield took
            return
        used = ticket.cost

        def grown(tokens: float) -> None:
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
                raise self._overloaded(
                    f"The gateway is busy: this answer's turn did not come within {self._timeout:.0f} seconds."
                ) from error
            if not ticket.turn.result():
                raise self._overloaded(
                    f"The gateway is busy, and '{ticket.tenant}' has the longest queue: send less at once."
                )
            yield grown
        finally:
            self.leave(ticket, used)

    def leave(self, ticket: Ticket | BackgroundTicket, used: float = 0.0) -> None:
        """Give a place or slots back; nothing happens the second time."""
        if isinstance(ticket, BackgroundTicket):
            self._background.leave(ticket)
            return
        queue = ticket.queue
        if ticket.running:
            ticket.running = False
            queue.time += (used - ticket.cost) / queue.share
            self._take(ticket, -1)
        elif ticket in queue.waiting:
            queue.waiting.remove(ticket)
            self._no_longer_waits(ticket)
        else:
            return
        self._dispatch()

    def _overloaded(self, text: str) -> Overloaded:
        """Return the refusal of an answer: the more wait for each slot, the longer all stay away."""
        waiting = sum(len(queue.waiting) for queue in self._ready.values())
        return Overloaded(text, spread=waiting / self._slots)

    def _sizes(self, costs: Sequence[float]) -> list[float]:
        return [max(1.0, cost * self._slots / self.tokens) for cost in costs]

    def _grow(self, ticket: Ticket, tokens: float) -> None:
        """Charge the tenant for what an answer takes beyond what was expected."""
        if not ticket.running or tokens <= ticket.cost:
            return
        queue, (size,) = ticket.queue, self._sizes([tokens])
        queue.time += (tokens - ticket.cost) / queue.share
        queue.used += size - ticket.size
        ticket.cost, ticket.size = tokens, size
        self._end_background()

    def _grow_background(self, ticket: BackgroundTicket, tokens: float) -> None:
        (size,) = self._sizes([tokens])
        ticket.size = max(ticket.size, size)
        self._end_background()

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

    def _queue(self, tenant: str) -> TenantQueue:
        queue = self._queues.get(tenant)
        if queue is None:
            since = self._clock() - ACTIVE_SECONDS
            # One that is still ahead of the others must not come back as if it had taken nothing.
            self._queues = {
                name: old
                for name, old in self._queues.items()
                if old.busy or old.last_seen > since or old.time > self._now
            }
            queue = self._queues[tenant] = TenantQueue(self._share(tenant))
        return queue

    def _take(self, ticket: Ticket, sign: int) -> None:
        queue, started = ticket.queue, sign * ticket.started
        queue.running += sign
        queue.started += started
        queue.used += sign * ticket.size
        if not queue.running:  # no rounding error outlives what caused it
            queue.started = queue.used = 0.0
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
        queue = ticket.queue
        queue.wanted -= ticket.size
        if not queue.waiting:
            queue.wanted = 0.0
            del self._ready[ticket.tenant]

    def _dispatch(self) -> None:
        """Start every answer that may start now, and end those in the background that are in the way.

        It runs at each change: when tickets come, when an answer ends, and each second, because slots that are
        kept for a tenant become free as time passes.
        """
        self._start_all()
        self._end_background()

    def _end_background(self) -> None:
        # Whoever waits would not wait for an answer in the background, but shares the engine with it.
        self._background.keep_within(0 if self._ready else self._slots - self.used)

    def _active(self) -> tuple[list[TenantQueue], float]:
        """Return the tenants that were active lately, and the slots of a share of 1 among them."""
        since = self._clock() - ACTIVE_SECONDS
        active = [queue for queue in self._queues.values() if queue.busy or queue.last_seen > since]
        return active, self._slots / (sum(queue.share for queue in active) or 1.0)

    def _start_all(self) -> None:
        """Start answers as long as a tenant may start one: that of the tenant whose turn it is comes first."""
        if not self._ready or self._free < 1:
            return
        active, each = self._active()
        counted = sum(queue.counted(each) for queue in active)
        kept = sum(queue.kept(each) for queue in active)
        alone = len(active) == 1
        while self._ready:
            # A tenant over its share pays for all that its answers take, also for what others needn't count.
            free = self._slots - counted + 1e-9
            rooms = {queue: free - queue.used + queue.counted(each) for queue in self._ready.values()}
            # A tenant that is alone may use every slot: nothing is kept for others that don't come.
            able = [
                queue
                for queue in self._ready.values()
                if alone or queue.may_start(each, rooms[queue], kept - queue.kept(each))
            ]
            queue = self._next_queue(able, rooms)
            if queue is None:
                return
            counted -= queue.counted(each)
            kept -= queue.kept(each)
            self._start(queue)
            counted += queue.counted(each)
            kept += queue.kept(each)

    def _next_queue(self, able: list[TenantQueue], rooms: dict[TenantQueue, float]) -> TenantQueue | None:
        """Return the queue whose first ticket starts now, or None where none may.

        Args:
            able: the tenants that may start an answer.
            rooms: the slots that each one's answer may take.
        """
        held: list[tuple[Ticket, bool]] = []  # with whether only long answers are in its way
        only_short = False
        # The turn goes to the tenant with the least virtual time. One that was away starts at the present.
        for queue in sorted(able, key=lambda queue: max(self._now, queue.time)):
            ticket = queue.waiting[0]
            if only_short and ticket.long:
                continue
            behind_long = not self._leaves_room_for_short_ones(ticket)
            if not behind_long and ticket.size <= rooms[queue]:
                # Whoever had its turn before and did not fit was passed once more. A short answer does not pass
                # one that waits only for long answers to end: it takes nothing that the other could have.
                for other, waits_for_long in held:
                    other.passed += ticket.long or not waits_for_long
                return queue
            held.append((ticket, behind_long))
            # A ticket that was passed as often as there are slots holds the others back. What is in its way
            # ends, and nothing new of that kind starts: no answer at all, or no long one.
            if ticket.passed >= self._slots:
                if not behind_long:
                    return None
                only_short = True
        return None

    def _start(self, queue: TenantQueue) -> None:
        """Give the first ticket of a tenant its turn."""
        ticket = queue.waiting.popleft()
        self._no_longer_waits(ticket)
        # Virtual time is that of the answer that started last, and a tenant's advances by tokens over share.
        self._now = max(self._now, queue.time)
        queue.time = self._now + ticket.cost / queue.share
        ticket.running = True
        self._take(ticket, 1)
        ticket.turn.set_result(True)

    def _leaves_room_for_short_ones(self, ticket: Ticket) -> bool:
        """Return whether all long answers together stay within their part of the slots if this one starts."""
        # The first long one may always run: else an answer of most of the engine's tokens never could.
        may_be_long = self._long + ticket.size
        return not ticket.long or not self._running_long or may_be_long <= LONG_PART * self._slots

    def _drop_newest_of_longest(self) -> None:
        """Make room in a full queue: the newest ticket of the tenant with the most of them is dropped."""
        queue = max(self._ready.values(), key=lambda queue: len(queue.waiting))
        ticket = queue.waiting.pop()
        self._no_longer_waits(ticket)
        ticket.turn.set_result(False)
