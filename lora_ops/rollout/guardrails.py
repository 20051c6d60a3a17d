"""The guardrails of a canary while its users come: each one's units, its test, and what people read of it."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from lora_ops.rollout.quantile_sequence import QuantileComparison
from lora_ops.rollout.sequential import Bounds, DifferenceSequence
from lora_ops.rollout.units import OpenUnits, Partners, Unit

CANARY, CONTROL = "canary", "control"
P95 = 0.95


class Shown(NamedTuple):
    """One guardrail as people read it.

    Attributes:
        canary, control: mean over the users of that arm, of latency its P95 in seconds; None without users.
        difference: interval of canary less control at every look; of latency their ratio. Without a control
            group that of the canary.
        margin: how much worse is allowed, on the scale of `difference`.
    """

    name: str
    canary: float | None
    control: float | None
    difference: Bounds
    margin: float
    breach: float
    non_inferior: float
    users: int


class MeanGuardrail:
    """The mean of what users show, such as the share of a user's requests that failed.

    Attributes:
        units: of both arms; requests are added to them.
        users: of each arm, those that have closed.
        test: of the pairs of users; without a control group of the canary's users.
    """

    def __init__(
        self,
        name: str,
        margin: float,
        alpha: float,
        units: OpenUnits,
        *,
        is_alone: bool = False,
        worse: Callable[[float, float], float] = operator.sub,
    ) -> None:
        """Start without users.

        Args:
            name: of the guardrail.
            margin: by how much the canary may be worse, on the scale of `worse`.
            alpha: error rate of its test.
            units: without requests.
            is_alone: whether there is no control group, so that the canary's values are tested as they are.
            worse: of canary and control, by how much the canary is worse, in [-1, 1].
        """
        self.name = name
        self.units = units
        self.users: Counter[str] = Counter()
        self.test = DifferenceSequence(margin, alpha)
        self._sums = {CANARY: 0.0, CONTROL: 0.0}
        self._is_alone = is_alone
        self._worse = worse
        self._partners = Partners(CANARY, CONTROL)

    def close(self, now: float) -> list[Unit]:
        """Count the units that have closed by `now`, and return them."""
        closed = self.units.close(now)
        for one in closed:
            self.users[one.arm] += 1
            self._sums[one.arm] += one.value
        if self._is_alone:
            self.test.add([one.value for one in closed if one.arm == CANARY])
        else:
            self.test.add([self._worse(*both) for both in self._partners.add(closed)])
        return closed

    def shown(self) -> Shown:
        """Return what people read."""
        test = self.test
        return Shown(
            self.name,
            self._mean(CANARY),
            self._mean(CONTROL),
            test.interval,
            test.margin,
            test.breach,
            test.non_inferior,
            test.count,
        )

    def _mean(self, arm: str) -> float | None:
        return self._sums[arm] / self.users[arm] if self.users[arm] else None


class LatencyGuardrail:
    """The P95 of the users' first answers, canary beside control; attributes as those of `MeanGuardrail`."""

    def __init__(self, margin: float, alpha: float, window: float) -> None:
        """Start without users; the canary's P95 may be larger by `margin`, as a part of the control group's."""
        self.name = "P95 latency"
        self.units = OpenUnits(window, "first")
        self.test = QuantileComparison(P95, margin, alpha)

    def close(self, now: float) -> list[Unit]:
        """Count the units that have closed by `now`, and return them."""
        closed = self.units.close(now)
        self.test.add(*([one.value for one in closed if one.arm == arm] for arm in (CANARY, CONTROL)))
        return closed

    def shown(self) -> Shown:
        """Return what people read."""
        test = self.test
        return Shown(
            self.name,
            test.candidate.estimate,
            test.baseline.estimate,
            test.ratio,
            1 + test.margin,
            test.breach,
            test.non_inferior,
            test.count,
        )


Measured = MeanGuardrail | LatencyGuardrail
