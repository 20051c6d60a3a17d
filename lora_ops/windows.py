"""Windows of time: from when to when something is counted."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from lora_ops.errors import LoraOpsError

SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
LONGEST = timedelta(days=3660)


@dataclass(frozen=True)
class Window:
    """From `start` on, up to `end` and without it; both are in UTC."""

    start: datetime
    end: datetime

    @property
    def hours(self) -> float:
        """Its length."""
        return (self.end - self.start).total_seconds() / 3600

    @property
    def text(self) -> str:
        """It for people, to the minute."""
        return f"{self.start:%Y-%m-%d %H:%M} to {self.end:%Y-%m-%d %H:%M} UTC"


def last(length: str, until: datetime) -> Window:
    """Return the window of this length that ends at a moment.

    Args:
        length: a whole number and a unit, such as `30m`, `24h`, `7d` or `2w`.
        until: where it ends, with its zone.

    Raises:
        LoraOpsError: it is no length, or one of no time or of more than ten years.
    """
    match = re.fullmatch(r"([0-9]{1,9})([mhdw])", length)
    took = timedelta(seconds=int(match[1]) * SECONDS[match[2]]) if match else timedelta(0)
    if not timedelta(0) < took <= LONGEST:
        raise LoraOpsError(
            f"'{length}' is no window: write a whole number and m, h, d or w, such as 24h or 7d (ten years at "
            "most)."
        )
    end = until.astimezone(UTC)
    return Window(end - took, end)
