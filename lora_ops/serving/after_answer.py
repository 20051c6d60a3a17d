"""What runs once the last byte of an answer has left, such as asking another version the same."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from lora_ops.serving.logs import OncePerMinute
from lora_ops.serving.requests import AnswerRequest, RequestStats

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 1000  # answers whose hooks run, each with its prompt and its text


@dataclass(frozen=True)
class Answered:
    """A request whose answer was sent, whole."""

    request: AnswerRequest
    stats: RequestStats


Hook = Callable[[Answered], Awaitable[None]]


class AfterAnswer:
    """Runs the hooks of each answer in a task of its own, so that no client waits for them or sees them fail.

    A hook that fails is logged and counted, and the others run. An answer that failed, or whose client left
    while it was made, has no hooks.

    Args:
        failed: called for each hook that fails, and for each answer whose hooks are left out because those of
            `MOST_AT_ONCE` others still run.
    """

    def __init__(self, failed: Callable[[], None]) -> None:
        self._failed = failed
        self._hooks: list[Hook] = []
        self._running: set[asyncio.Task[None]] = set()
        self._report_left_out = OncePerMinute(
            lambda count: logger.error("The hooks of %d answers were left out: too many still run.", count)
        )

    def add(self, hook: Hook) -> None:
        """Call a hook after each answer from now on."""
        self._hooks.append(hook)

    async def start(self, request: AnswerRequest, stats: RequestStats) -> None:
        """Start the hooks of a request whose last byte has left; does not wait for them."""
        whole = len(stats.finish) == len(request.costs)
        if not self._hooks or not whole:
            return
        if len(self._running) >= MOST_AT_ONCE:
            self._failed()
            self._report_left_out()
            return
        task = asyncio.create_task(self._run(Answered(request, stats)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def close(self) -> None:
        """Cancel the hooks that still run."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, answered: Answered) -> None:
        for hook in self._hooks:
            try:
                await hook(answered)
            except Exception:  # whatever a hook does wrong, the client has its answer
                self._failed()
                logger.exception("A hook failed after the answer of %s.", answered.request.request_id)
