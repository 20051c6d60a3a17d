"""From requests to units: one user is one unit, however many requests they send.

The requests of one user are alike. A test that counts each of them is too sure, and one busy user decides it. A
user's unit closes a fixed time after their first request and keeps its value: evidence that was counted at one
look never changes at the next. Units are counted in the order in which they close, so that a controller that
starts again counts the same units in the same order.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple


class Observation(NamedTuple):
    """What one request adds to a metric."""

    at: float
    """When the request came, in seconds."""
    user: str
    """The user, session or key by which requests are assigned; a hash will do."""
    arm: str
    """The group that the user was assigned to, such as canary or control."""
    value: float


class Unit(NamedTuple):
    """One user of one arm, after their window has closed."""

    closed_at: float
    user: str
    arm: str
    value: float


def closed_units(
    observations: Iterable[Observation], now: float, window: float, value: Literal["mean", "first"] = "mean"
) -> list[Unit]:
    """Return the units that have closed by `now`, in the order of their closing.

    Args:
        observations: in any order. A request that arrives here after its unit was counted would change the
            count, so `now` should lag the clock by the longest delay of an event.
        now: in seconds.
        window: seconds from a user's first request in which their requests count; later ones don't.
        value: the mean over the window's requests, or the first request alone, as quantiles need: the P95 of
            means is not the P95 of requests.

    Raises:
        ValueError: the window is negative, or a time or value is not a finite number.
    """
    if not 0 <= window < math.inf:
        raise ValueError(f"the window of a user must be 0 seconds or more, got {window}")
    users: dict[str, list[Observation]] = {}
    for observation in sorted(observations, key=lambda one: (one.at, one.user)):
        if not (math.isfinite(observation.at) and math.isfinite(observation.value)):
            raise ValueError(f"a time or value of user {observation.user!r} is not a finite number")
        seen = users.setdefault(observation.user, [])
        # A user belongs to the arm of their first request; what another arm answered them doesn't count.
        if not seen or (observation.at <= seen[0].at + window and observation.arm == seen[0].arm):
            seen.append(observation)
    units = []
    for user, seen in users.items():
        values = [one.value for one in seen] if value == "mean" else [seen[0].value]
        if seen[0].at + window <= now:
            units.append(Unit(seen[0].at + window, user, seen[0].arm, math.fsum(values) / len(values)))
    return sorted(units)


def paired_differences(units: Iterable[Unit], candidate: str, baseline: str) -> list[float]:
    """Return candidate less baseline of the i-th units of both arms; what has no partner yet waits."""
    values: dict[str, list[float]] = {candidate: [], baseline: []}
    for unit in units:
        if unit.arm in values:
            values[unit.arm].append(unit.value)
    return [ours - theirs for ours, theirs in zip(values[candidate], values[baseline], strict=False)]
