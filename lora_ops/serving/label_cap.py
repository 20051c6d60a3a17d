"""How many tenants and adapters have series of their own in the metrics.

Prometheus keeps each series in memory, so whoever can make names without end could fill it.
"""

import threading
from collections import defaultdict
from collections.abc import Callable

OTHER = "other"
"""The label of everything above the cap; no tenant may have this name, and every adapter's has an @."""
NOBODY = "-"
"""The tenant of a request whose key belongs to no tenant."""


class LabelCap:
    """Keeps the first names of each label, and gives all later ones the same name; for any thread.

    Args:
        most: names of each label.
        over: called with the label whenever something is counted under `other`.
    """

    def __init__(self, most: int, over: Callable[[str], None]) -> None:
        self._most = most
        self._over = over
        self._kept: defaultdict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def counted(self, label: str, value: str) -> str:
        """Return the name under which something is counted, and note where that is `other`."""
        shown = self.shown(label, value)
        if shown == OTHER:
            self._over(label)
        return shown

    def shown(self, label: str, value: str) -> str:
        """Return the name under which a state is shown: the value itself, or `other`."""
        kept = self._kept[label]
        if value in kept or value in (NOBODY, OTHER):
            return value
        with self._lock:  # two threads must not both take the last place
            if len(kept) >= self._most and value not in kept:
                return OTHER
            kept.add(value)
        return value

    def forget(self, label: str, value: str) -> None:
        """Make room for another name: the series of this one have ended."""
        self._kept[label].discard(value)
