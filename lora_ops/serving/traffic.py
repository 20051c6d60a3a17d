"""The requests of the last five minutes, in memory, for the console."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, fields

from lora_ops.serving.events import Event

WINDOW_SECONDS = 300


@dataclass(frozen=True)
class Window:
    """Requests that have ended lately, the oldest first: one value of each in each column; times in seconds."""

    ago: Sequence[float] = ()
    request_id: Sequence[str] = ()
    tenant: Sequence[str] = ()
    adapter: Sequence[str] = ()
    route: Sequence[str] = ()
    status: Sequence[int] = ()
    code: Sequence[str | None] = ()
    seconds: Sequence[float] = ()
    first_token_seconds: Sequence[float | None] = ()
    generated_tokens: Sequence[int] = ()
    device_seconds: Sequence[float] = ()


REMEMBERED = tuple(column.name for column in fields(Window))[1:]


class RecentTraffic:
    """Requests that have ended lately, at most `limit` of them."""

    def __init__(self, limit: int = 50_000) -> None:
        # Plain tuples of texts and numbers, which Python's garbage collector leaves out: it stops the whole
        # process while it goes through what is kept, which took 0.4 s with 50,000 events.
        self._ended: deque[tuple[float, tuple[object, ...]]] = deque(maxlen=limit)

    def add(self, event: Event) -> None:
        """Remember a request that has ended; its texts are not kept."""
        now = time.monotonic()
        self._ended.append((now, tuple(getattr(event, name) for name in REMEMBERED)))
        while now - self._ended[0][0] > WINDOW_SECONDS:
            self._ended.popleft()

    def copy(self) -> "Recent":
        """Return what is remembered at this moment; it takes less than a millisecond."""
        return Recent(time.monotonic(), list(self._ended))


class Recent:
    """The requests that were remembered at one moment, for any thread."""

    def __init__(self, now: float, ended: list[tuple[float, tuple[object, ...]]]) -> None:
        self._now, self._ended = now, ended

    def since(self, seconds: float) -> Window:
        """Return the requests of the last `seconds`; no object is made for each of them."""
        kept = [one for one in self._ended if self._now - one[0] <= seconds]
        if not kept:
            return Window()
        columns = zip(*(values for _, values in kept), strict=True)
        return Window([self._now - at for at, _ in kept], *columns)  # type: ignore[arg-type]
