"""A shared registry under a gateway: what other machines change is taken in a thread, off the event loop."""

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from lora_ops.registry.closing import settle
from lora_ops.registry.shared import SharedRegistry

logger = logging.getLogger(__name__)


class Refresher:
    """Refreshes this machine's copy every few seconds; its changes look like another process's.

    Args:
        opened: opens the registry, in the thread that uses it.
        seconds: between two refreshes.
    """

    def __init__(self, opened: Callable[[], SharedRegistry], seconds: float) -> None:
        self._opened, self._seconds = opened, seconds
        self._closing = threading.Event()
        self._said: list[str] = []
        # It may wait for W&B when the gateway ends, and holds nothing that must be finished.
        self._thread = threading.Thread(target=self._work, name="registry-refresh", daemon=True)

    def start(self) -> None:
        """Begin; the first refresh comes after the first pause."""
        self._thread.start()

    def close(self) -> None:
        """Take nothing more; a refresh that is under way ends by itself."""
        self._closing.set()

    def _settle(self) -> None:
        # Opened again: a change tells the log of owners.yaml, which may be another one since the gateway began.
        with closing(self._opened()) as registry:
            waiting = settle(registry)
        for text in waiting:
            if text not in self._said:
                logger.warning("%s.", text)
        self._said = waiting

    def _work(self) -> None:
        with closing(self._opened()) as registry:
            while not self._closing.wait(self._seconds):
                try:
                    if registry.refresh() and (registry.holds.all() or registry.stops.all()):
                        self._settle()
                except Exception:  # the next round tries again; without it a revocation would never be seen
                    logger.exception("The registry could not be refreshed.")
