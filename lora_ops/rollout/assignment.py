"""Who gets which version: a pinned user, a pinned segment, a part of all units by hash; else production."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lora_ops.hashing import sha256_bytes
from lora_ops.records.route import CanaryRoute, RouteRecord

LONGEST = 256  # characters of a name that is kept or sent as it is
ShareDecision = Literal["production", "canary", "pinned_user", "segment"]
Arm = Literal["canary", "control"]
# Nobody has agreed that what is in shadow may answer a client that did not ask for it.
ANSWER_USERS = frozenset({"canary", "production"})


@dataclass(frozen=True)
class Requester:
    """For whom a request is.

    Attributes:
        unit: the user, session or key that keeps its version for as long as the route keeps its canary.
        user: the user that the client names, as a route pins users; None for a session or a key.
        segment: the segment that the client names.
    """

    unit: str = ""
    user: str | None = None
    segment: str | None = None


@dataclass(frozen=True)
class Assignment:
    """The version that a requester gets.

    Attributes:
        number: None is production, whichever version that is.
        arm: the side of the comparison that its measurements count for: the canary's units, or as many units of
            production. None while the canary doesn't count, and for a pin.
    """

    number: int | None
    decision: ShareDecision
    arm: Arm | None = None


PRODUCTION = Assignment(None, "production")


def assign(route: RouteRecord, state: Callable[[int], str | None], who: Requester) -> Assignment:
    """Return which version answers a requester, by the route alone.

    A pin comes before the canary, and a user's before a segment's. Where the version that is found may not
    answer, production does: nothing else takes its place.

    Args:
        state: gives the state of a version that may answer, else None; the canary's must be `canary`.
    """

    def answers(number: int) -> bool:
        return number not in route.stopped and state(number) in ANSWER_USERS

    if route.users and who.user is not None:
        pinned = route.users.get(route.user_hash(who.user))
        if pinned is not None:
            return Assignment(pinned, "pinned_user") if answers(pinned) else PRODUCTION
    if who.segment is not None and who.segment in route.segments:
        pinned = route.segments[who.segment]
        return Assignment(pinned, "segment") if answers(pinned) else PRODUCTION
    canary = route.canary
    if canary is None or canary.number in route.stopped or state(canary.number) != "canary":
        return PRODUCTION
    arm = _arm(canary, who.unit)
    return Assignment(canary.number, "canary", arm) if arm == "canary" else Assignment(None, "production", arm)


def _arm(canary: CanaryRoute, unit: str) -> Arm | None:
    # A unit's fraction depends on the salt alone. So a higher percentage keeps all that had the canary, and a
    # lower one takes it only from those above. The control group grows from the other end in the same way.
    place, part = fraction(canary.salt, unit), canary.percent / 100
    if place < part:
        return "canary"
    return "control" if place >= 1 - part else None


def short_name(name: str) -> str:
    """Return a name as it is, or its SHA-256 where it is long or no text: a client may send a megabyte."""
    if len(name) <= LONGEST and not any("\ud800" <= one <= "\udfff" for one in name):
        return name
    return f"sha256:{sha256_bytes(name.encode('utf-8', 'surrogatepass'))}"


def fraction(salt: str, unit: str) -> float:
    """Return where between 0 (included) and 1 (excluded) a unit is; with another salt it is elsewhere."""
    digest = hashlib.sha256(f"{salt}\0{unit}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8]) >> 11) / 2**53
