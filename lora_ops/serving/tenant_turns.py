"""One piece of work at a time on an event loop, by turns of the tenants.

`engines.tenant_threads` does the same for work that blocks its thread.
"""

import asyncio
from collections import deque


class TenantTurns:
    """Gives out one turn at a time: a tenant's next one comes after those of the other tenants that wait."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # the tenant whose turn is next comes first
        self._taken = False

    async def take(self, tenant: str) -> None:
        """Wait for a turn, which `end` ends; who is cancelled meanwhile has none."""
        if not self._taken:
            self._taken = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self.end()
            line = self._lines.get(tenant)
            if line and turn in line:
                line.remove(turn)
                if not line:
                    del self._lines[tenant]
            raise

    def end(self) -> None:
        """Give the turn to the next that still waits."""
        while self._lines:
            tenant = next(iter(self._lines))
            line = self._lines.pop(tenant)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line  # behind the others
            if not turn.done():  # else it is being cancelled
                turn.set_result(None)
                return
        self._taken = False
