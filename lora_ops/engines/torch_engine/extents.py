"""Room for tokens in one long KV cache: who has which part of it, and what is free."""

from bisect import insort
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Extent:
    """`length` places of the cache from `start` on, reserved for one sequence."""

    start: int
    length: int

    @property
    def end(self) -> int:
        """The first place after it."""
        return self.start + self.length


class Extents:
    """Reserves and releases parts of `capacity` places; first fit, so low places are used again first.

    A sequence reserves all that it may ever need before it starts: what was admitted can always finish.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._taken: list[Extent] = []

    def reserve(self, length: int) -> Extent | None:
        """A part of `length` places, or None when there is no gap of that size now."""
        start = 0
        for extent in self._taken:
            if extent.start - start >= length:
                break
            start = extent.end
        if start + length > self.capacity:
            return None
        found = Extent(start, length)
        insort(self._taken, found)
        self.used += length
        return found

    def shrink(self, extent: Extent, length: int) -> Extent:
        """Give back all but the first `length` places of a part; what remains of it.

        Raises:
            ValueError: it is not reserved.
        """
        self.release(extent)
        rest = Extent(extent.start, length)
        insort(self._taken, rest)
        self.used += length
        return rest

    def release(self, extent: Extent) -> None:
        """Give a part back.

        Raises:
            ValueError: it is not reserved.
        """
        self._taken.remove(extent)
        self.used -= extent.length
