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
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

HOUR = 3600.0
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
        left_out: how many units don't count, since their key already brings as many as one may.
        said: the busiest key's part in words, where that is most units or some are left out; else empty.
    """

    left_out: int
    said: str


class OpenUnits:
    """Units that are counted while their requests come, one after the other in the order of their times.

    What a unit shows is kept until its window has closed, and its name after that: its later requests don't
    count. So the memory grows with the users of one period (`forget`), not with requests.
    """

    def __init__(self, window: float, value: Literal["mean", "first"] = "mean") -> None:
        """Start without requests; window and value are those of `closed_units`.

        Raises:
            ValueError: the window is negative or not a finite number.
        """
        if not 0 <= window < math.inf:
            raise ValueError(f"the window of a user must be 0 seconds or more, got {window}")
        self._window = window
        self._takes_all = value == "mean"
        # User to (when it closes, arm, values); in the order in which they close.
        self._open: dict[str, tuple[float, str, list[float]]] = {}
        self._closed: set[str] = set()

    def add(self, at: float, user: str, arm: str, value: float) -> None:
        """Add one request, which is no earlier than those before it and later than the last closing.

        Raises:
            ValueError: the time or value is not a finite number.
        """
        if not (math.isfinite(at) and math.isfinite(value)):
            raise ValueError(f"a time or value of user {user!r} is not a finite number")
        unit = self._open.get(user)
        if unit is not None:
            # A user belongs to the arm of their first request; what another arm answered them doesn't count.
            if self._takes_all and at <= unit[0] and arm == unit[1]:
                unit[2].append(value)
        elif user not in self._closed:
            self._open[user] = (at + self._window, arm, [value])

    def close(self, now: float) -> list[Unit]:
        """Return the units that have closed by `now` and not before, in the order of their closing."""
        units = []
        for user, (closes_at, arm, values) in self._open.items():
            if closes_at > now:
                break
            units.append(Unit(closes_at, user, arm, math.fsum(values) / len(values)))
        for unit in units:
            del self._open[unit.user]
            self._closed.add(unit.user)
        return sorted(units)

    def forget(self) -> None:
        """Forget the names of closed units, of which no request comes any more: their period is over."""
        self._closed.clear()


class KeyQuota:
    """Which units count if no key may bring more than a part of them, in either arm; decided as they come.

    A unit belongs to the key and the arm of its first request. It counts or not by what came before it alone:
    neither what it shows nor what comes later changes that, as the tests demand.
    """

    def __init__(self, most_percent: float) -> None:
        """Start without units; `most_percent` of them may one key bring; 100: all."""
        self._most = most_percent
        self._decided: dict[str, bool] = {}
        self._counted: Counter[tuple[str, str | None]] = Counter()
        self._arms: Counter[str] = Counter()
        self._keys: Counter[str | None] = Counter()
        self._left_out = 0

    def counts(self, at: float, unit: str, arm: str, key: str | None) -> bool:
        """Return whether the unit of a request counts; the request is no earlier than those before it."""
        decided = self._decided.get(unit)
        if decided is not None:
            return decided
        mine = self._counted[arm, key] + 1
        counts = self._decided[unit] = mine <= math.ceil(self._most / 100 * (self._arms[arm] + 1))
        self._keys[key] += 1
        if counts:
            self._counted[arm, key] = mine
            self._arms[arm] += 1
        else:
            self._left_out += 1
        return counts

    @property
    def share(self) -> KeyShare:
        """The part that the busiest key has of all units up to now."""
        return KeyShare(self._left_out, _said(self._keys, self._left_out, self._most))

    def forget(self) -> None:
        """Forget the names of units, of which no request comes any more: their period is over."""
        self._decided.clear()


class Partners:
    """The i-th units of two arms, which make a pair; what has no partner yet waits."""

    def __init__(self, candidate: str, baseline: str) -> None:
        """Start without units; those of other arms have no partner."""
        self._waiting: tuple[deque[float], deque[float]] = (deque(), deque())
        self._of_arm = dict(zip((candidate, baseline), self._waiting, strict=True))

    def add(self, units: Iterable[Unit]) -> list[tuple[float, float]]:
        """Return the values of the pairs, candidate and baseline, that these units complete."""
        for unit in units:
            if unit.arm in self._of_arm:
                self._of_arm[unit.arm].append(unit.value)
        ours, theirs = self._waiting
        return [(ours.popleft(), theirs.popleft()) for _ in range(min(len(ours), len(theirs)))]


class Arrivals:
    """How many units an arm gets in an hour, by those of the last hour."""

    def __init__(self, arms: Sequence[str]) -> None:
        """Start without units; where there are several arms, that with the fewest units counts."""
        self._lately: dict[str, deque[float]] = {arm: deque() for arm in arms}
        self._first: float | None = None

    def add(self, units: Iterable[Unit]) -> None:
        """Add units in the order in which they closed."""
        for unit in units:
            if self._first is None:
                self._first = unit.closed_at
            if unit.arm in self._lately:
                self._lately[unit.arm].append(unit.closed_at)

    def per_hour(self, until: float) -> float:
        """Return the rate in the hour before `until` (seconds), which never goes back."""
        for times in self._lately.values():
            while times and times[0] <= until - HOUR:
                times.popleft()
        if self._first is None:
            return 0.0
        hours = max((until - self._first) / HOUR, 1 / 60)
        return min(map(len, self._lately.values())) / min(1.0, hours)


def in_period(unit: str, at: datetime, begun: datetime, hours: float) -> str:
    """Return the name of a unit in the period of a request; periods of so many hours follow one another."""
    return f"{unit} {period(at, begun, hours)}"


def period(at: datetime, begun: datetime, hours: float) -> int:
    """Return which period a request is in; the first one is 0."""
    return int((at - begun).total_seconds() / HOUR // hours)


def of_key(unit: str, at: datetime) -> str:
    """Return the name of the unit of a key's request that names nobody, where no unit keeps its version."""
    return f"{unit} {int(at.timestamp() // KEY_SECONDS)}"


def by_key(openings: Iterable[Opening], most_percent: float) -> tuple[frozenset[str], KeyShare]:
    """Return the units that count if no key may bring more than a part of them (`KeyQuota`), and its part.

    Args:
        openings: requests in any order.
        most_percent: of the units that one key may bring; 100: all.
    """
    quota = KeyQuota(most_percent)
    seen = sorted(openings, key=lambda one: (one.at, one.unit))
    return frozenset([one.unit for one in seen if quota.counts(*one)]), quota.share


def _said(keys: Counter[str | None], left_out: int, most_percent: float) -> str:
    if not keys:
        return ""
    key, many = keys.most_common(1)[0]
    part = many / keys.total()
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
    units = OpenUnits(window, value)
    for one in sorted(observations, key=lambda one: (one.at, one.user)):
        units.add(*one)
    return units.close(now)
