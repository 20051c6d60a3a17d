"""Seconds in which something was under way, however many things were so at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class BusyClock:
    """Counts each second once in which at least one thing is under way; safe to use from several threads.

    Args:
        clock: gives seconds, and never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = clock()
        self._seconds = 0.0
        self._share = 0.0
        self.running = 0
        """Things that are under way."""

    def enter(self) -> None:
        """One more thing is under way."""
        with self._lock:
            self._advance()
            self.running += 1

    def leave(self) -> None:
        """One thing less is under way."""
        with self._lock:
            self._advance()
            self.running -= 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count what runs inside as under way."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    @property
    def seconds(self) -> float:
        """Seconds until now in which anything was under way."""
        with self._lock:
            self._advance()
            return self._seconds

    @property
    def share(self) -> float:
        """The share in `seconds` of a thing that was under way all the time, where all share alike.

        What it is later, less what it was before, is the share of one thing that was under way in between. The
        shares of all things add up to `seconds`. It is the virtual time of generalized processor sharing
        (Parekh and Gallager 1993).
        """
        with self._lock:
            self._advance()
            return self._share

    def _advance(self) -> None:
        now = self._clock()
        if self.running:
            self._seconds += now - self._since
            self._share += (now - self._since) / self.running
        self._since = now
