"""Which version answers whom where several share a model's requests: by weight, and always the same one."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Arm(Generic[T]):
    """One side of a split; `name` is what a client is assigned to, and `weight` is relative to the others."""

    name: str
    target: T
    weight: float = 1.0


@dataclass(frozen=True)
class TrafficSplit(Generic[T]):
    """Arms that share a model's requests; a unit (a user, a session or a key) stays with its arm.

    The pick is weighted rendezvous hashing (Schindelhauer, Schomaker 2005): each arm draws a number for a unit,
    exponentially distributed with the arm's weight as rate, and the least number wins. An arm's draw depends on
    its own name and weight alone. So raising an arm's weight brings units to it and takes none away: those that
    had it at 5 % have it at 25 %. Another salt assigns all units independently of the first.

    Raises:
        ValueError: a weight is negative or not finite, none is positive, or two arms have the same name.
    """

    arms: Sequence[Arm[T]]
    salt: str = ""

    def __post_init__(self) -> None:
        weights = [arm.weight for arm in self.arms]
        if not all(0 <= weight < math.inf for weight in weights) or not sum(weights) > 0:
            raise ValueError(f"A split needs weights of at least 0, and one above it, not {weights}.")
        if len({arm.name for arm in self.arms}) < len(self.arms):
            raise ValueError("Two arms of a split have the same name.")

    def pick(self, unit: str) -> T:
        """Return the target that answers this user, session or key."""
        chosen = [arm for arm in self.arms if arm.weight > 0]
        if len(chosen) == 1:  # as long as nothing is split, no hash is computed
            return chosen[0].target
        return min(chosen, key=lambda arm: -math.log(self._drawn(arm.name, unit)) / arm.weight).target

    def _drawn(self, name: str, unit: str) -> float:
        """Return a number between 0 and 1, both excluded, that stands for an arm and a unit."""
        text = "\0".join((self.salt, name, unit))
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return ((int.from_bytes(digest[:8]) >> 11) + 0.5) / 2**53
