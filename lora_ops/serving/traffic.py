"""The requests of the last five minutes, in memory, for the console."""

import time
from collections import deque

from lora_ops.serving.events import Event

WINDOW_SECONDS = 300


class RecentTraffic:
    """Requests that have ended lately, at most `limit` of them."""

    def __init__(self, limit: int = 50_000) -> None:
        self._events: deque[tuple[float, Event]] = deque(maxlen=limit)

    def add(self, event: Event) -> None:
        """Remember a request that has ended; its texts are not kept."""
        kept = event.model_copy(update={"prompt_text": None, "answer_text": None})
        self._events.append((time.monotonic(), kept))

    def since(self, seconds: float) -> list[tuple[float, Event]]:
        """(Seconds ago, request), oldest first."""
        now = time.monotonic()
        while self._events and now - self._events[0][0] > WINDOW_SECONDS:
            self._events.popleft()
        return [(now - at, event) for at, event in self._events if now - at <= seconds]
