"""One tenant's part of the fair queue: its tickets, its virtual time, and the slots that it may take."""

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field

ACTIVE_SECONDS = 10.0  # a tenant that asked within these is active


@dataclass(eq=False)
class TenantQueue:
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

    def kept(self, each: float) -> float:
        """Return the slots that stay free for the tenant's next answers, where a share of 1 is `each` slots.

        Slots that a tenant used lately are kept for its next answers, up to its share in whole slots. So a
        tenant whose answers come one after the other finds a free slot in the middle of another's flood.
        """
        return max(0.0, min(math.floor(each * self.share), self.peak) - self.used)

    def may_start(self, each: float, free: float, kept: float) -> bool:
        """Return whether the tenant's next answer may start while other tenants are active.

        Args:
            each: slots of a share of 1.
            free: slots that the tenant's answers may still take.
            kept: slots that stay free for the next answers of the others.
        """
        ticket = self.waiting[0]
        # Within its share a tenant may always start, and its first answer in any case.
        if not self.running or self.used + ticket.size <= each * self.share:
            return True
        # Beyond its share it borrows. What it borrows must end soon, so a long answer borrows nothing, and it
        # leaves what is kept for the others, at least the last free slot: that is for a tenant that has none.
        return not ticket.long and free - ticket.size >= max(1.0, kept)


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
    queue: TenantQueue
    cost: float
    size: float
    long: bool
    turn: asyncio.Future[bool]
    running: bool = False
    passed: int = 0

    def __post_init__(self) -> None:
        self.started = self.size
