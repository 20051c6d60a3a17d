"""From requests to units: one user is one unit, however many requests they send.

The requests of one user are alike. A test that counts each of them is too sure, and one busy user decides it. A
user's unit closes a fixed time after their first request and keeps its value: evidence that was counted at one
look never changes at the next. Units are counted in the order in which they close, so that a controller that
starts again counts the same units in the same order.

A service has its regular users. If each counted once in a rollout, nobody would see a version that gets worse
after all of them came: a user who comes back in a later period is a unit again. A client names its users
itself, so that one API key can be any number of them: `by_key` limits its part, and says what that is.
"""

import math
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Literal, NamedTuple

KEY_SECONDS = 60
"""In shadow, requests that name nobody are one unit for each key in each of so many seconds. A canary assigns
them by their key, so that a key is one unit a period there."""
MOST = 0.5
"""People read it where one key brings more than this part of the units."""


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


class Opening(NamedTuple):
    """One request, by what its unit is counted."""

    at: float
    unit: str
    arm: str
    key: str | None
    """Id of the API key; None: the gateway asks for none."""


class KeyShare(NamedTuple):
    """The part that the busiest API key has of the units.

    Attributes:
        units: those that count.
        left_out: how many don't, since their key already brings as many as one may.
        said: the busiest key's part in words, where that is most units or some are left out; else empty.
    """

    units: frozenset[str]
    left_out: int
    said: str


def in_period(unit: str, at: datetime, begun: datetime, hours: float) -> str:
    """Return the name of a unit in the period of a request; periods of so many hours follow one another."""
    return f"{unit} {int((at - begun).total_seconds() / 3600 // hours)}"


def of_key(unit: str, at: datetime) -> str:
    """Return the name of the unit of a key's request that names nobody, where no unit keeps its version."""
    return f"{unit} {int(at.timestamp() // KEY_SECONDS)}"


def by_key(openings: Iterable[Opening], most_percent: float) -> KeyShare:
    """Return the units that count if no key may bring more than a part of them, in either arm.

    A unit belongs to the key and the arm of its first request. It counts or not by what came before it alone:
    neither what it shows nor what comes later changes that, as the tests demand.

    Args:
        openings: requests in any order.
        most_percent: of the units that one key may bring; 100: all.
    """
    firsts: dict[str, Opening] = {}
    for one in sorted(openings, key=lambda one: (one.at, one.unit)):
        firsts.setdefault(one.unit, one)
    counted: Counter[tuple[str, str | None]] = Counter()
    arms: Counter[str] = Counter()
    kept = set()
    for one in firsts.values():
        if counted[one.arm, one.key] + 1 <= math.ceil(most_percent / 100 * (arms[one.arm] + 1)):
            counted[one.arm, one.key] += 1
            arms[one.arm] += 1
            kept.add(one.unit)
    left_out = len(firsts) - len(kept)
    return KeyShare(frozenset(kept), left_out, _said(firsts, left_out, most_percent))


def _said(firsts: dict[str, Opening], left_out: int, most_percent: float) -> str:
    keys = Counter(one.key for one in firsts.values())
    if not keys:
        return ""
    key, many = keys.most_common(1)[0]
    part = many / len(firsts)
    if part <= MOST and not left_out:
        return ""
    said = f"{part:.0%} of the units come by {f'one key ({key})' if key else 'a gateway without keys'}"
    if left_out:
        said += f"; {left_out} don't count: a key may bring {most_percent:g} % (rollout.key_percent)"
    return said


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
