"""The mean of bounded values and the mean difference of pairs, looked at after every observation.

`bets.py` says how the evidence is made. An interval holds the means against which the bets on either side have
never won 2 / alpha (the hedged confidence sequence: Waudby-Smith and Ramdas, 2023, JRSS B 86(1), 1-27,
theorem 3).
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lora_ops.rollout.bets import FRACTIONS, Bets, Floats, checked_alpha, checked_values

_NARROWED = 64  # observations after which rejected means are dropped


class Bounds(NamedTuple):
    """A closed interval."""

    low: float
    high: float


class BettingSequence:
    """A confidence sequence for the mean of values in [0, 1], updated with each observation.

    The observations may depend on each other, as long as each has the same mean given those before it.
    """

    def __init__(
        self, alpha: float, means: Sequence[float] | Floats | None = None, tested: Sequence[float] = ()
    ) -> None:
        """Start without observations.

        Args:
            alpha: the chance that the interval misses the mean at any time, over all looks.
            means: the candidates (m,); the interval's bounds are two of them, or 0 and 1.
            tested: means of which `e_value` is asked.

        Raises:
            ValueError: alpha or a mean is out of range.
        """
        self.alpha = checked_alpha(alpha)
        self._tested = np.asarray(tested, float)
        self._bets = Bets(np.union1d(np.arange(1, 1000) / 1000 if means is None else means, self._tested))
        self._bounds = Bounds(0.0, 1.0)
        self._sum = 0.0

    def add(self, values: Iterable[float]) -> None:
        """Add observations in their order; nothing is added if one is refused.

        Raises:
            ValueError: a value is not a number in [0, 1].
        """
        observed = checked_values(values, 0, 1)
        for value in observed.tolist():
            self._sum += value
        done = 0
        while done < len(observed):
            step = _NARROWED - self.count % _NARROWED
            self._bets.add(observed[done : done + step])
            done += step
            self._narrow(drop=self.count % _NARROWED == 0)

    @property
    def count(self) -> int:
        """How many observations were added."""
        return self._bets.count

    @property
    def mean(self) -> float | None:
        """The mean of the observations, or None without any."""
        return self._sum / self.count if self.count else None

    @property
    def interval(self) -> Bounds:
        """The means that no look so far rejects: at all times the true mean with probability 1 - alpha.

        Each look can only narrow it (running intersection). If the mean has `changed`, there is no such mean:
        the interval is then all of [0, 1], which claims nothing.
        """
        return Bounds(0.0, 1.0) if self.changed else self._bounds

    @property
    def changed(self) -> bool:
        """Whether every mean was rejected: the mean was not the same all the time (error rate alpha)."""
        return self._bounds.low >= self._bounds.high

    def e_value(self, *, at_most: float | None = None, at_least: float | None = None) -> float:
        """Return the evidence, after the last observation, against a mean of at most or at least a tested one.

        Raises:
            ValueError: it isn't tested, or not exactly one of both is given.
        """
        if (at_most is None) == (at_least is None):
            raise ValueError("give either at_most or at_least")
        side, mean = (0, at_most) if at_most is not None else (1, at_least)
        return float(self._bets.value[side, self._place(mean)])

    def capital(self, side: int, mean: float) -> Floats:
        """Return the capital (f,) of each fraction against a tested mean; side 0 bets on larger means."""
        return self._bets.by_fraction(side, self._place(mean))

    def _place(self, mean: float | None) -> int:
        if mean not in self._tested:
            raise ValueError(f"{mean} is not tested by this sequence: name it in `tested`")
        return int(np.flatnonzero(self._bets.means == mean)[0])

    def _narrow(self, *, drop: bool) -> None:
        """Intersect the interval with the means that aren't rejected now, half of alpha for each side.

        The capital falls with m on side 0 and rises with it on side 1, so that the means that are left form an
        interval. It is rounded outwards to the last mean that is rejected. Means outside of it stay rejected:
        nobody bets against them any more, which is most of the work.
        """
        rejected, means = self._bets.peak >= 2 / self.alpha, self._bets.means
        low = float(means[rejected[0]].max(initial=self._bounds.low))
        high = float(means[rejected[1]].min(initial=self._bounds.high))
        self._bounds = Bounds(low, high)
        if drop:
            self._bets.keep(((means > low) & (means < high)) | np.isin(means, self._tested))


class DifferenceSequence:
    """The mean difference of pairs, tested against a margin after each pair.

    A difference is how much worse the candidate did than the baseline, in [-1, 1]: shadow pairs are the same
    request asked twice; canary pairs are the i-th new user of the canary and of the control group. One user is
    one pair (`units.py`), however many requests they send.
    """

    def __init__(self, margin: float, alpha: float) -> None:
        """Start without pairs.

        Args:
            margin: by how much the candidate may be worse on average, in [0, 0.99].
            alpha: error rate of the interval, and of `breach` and `non_inferior` each, over all looks.

        Raises:
            ValueError: margin or alpha is out of range.
        """
        if not 0 <= margin <= 0.99:
            raise ValueError(f"a margin must lie between 0 and 0.99, got {margin}")
        self.margin, self.alpha = float(margin), checked_alpha(alpha)
        self._edge = (1 + self.margin) / 2
        self._mean = BettingSequence(alpha, _difference_means(), tested=[self._edge])
        # The sum of the logarithms of all factors (side, fraction): for forecasts, never for verdicts.
        self._growth = np.zeros((2, len(FRACTIONS)))

    def add(self, differences: Iterable[float]) -> None:
        """Add pairs in their order; nothing is added if one is refused.

        Raises:
            ValueError: a difference is not a number in [-1, 1].
        """
        values = (checked_values(differences, -1, 1) + 1) / 2  # (n,)
        self._mean.add(values)
        for side, pays in enumerate((values / self._edge, (1 - values) / (1 - self._edge))):
            factors = 1 - FRACTIONS + FRACTIONS * pays[:, None]  # (n, f)
            # One after the other: the sum is the same to the last bit in however many pieces they come.
            self._growth[side] = np.cumsum(np.vstack([self._growth[side], np.log(factors)]), axis=0)[-1]

    @property
    def count(self) -> int:
        """How many pairs were added."""
        return self._mean.count

    @property
    def mean(self) -> float | None:
        """The mean difference, or None without pairs."""
        return None if self._mean.mean is None else 2 * self._mean.mean - 1

    @property
    def interval(self) -> Bounds:
        """The interval of the mean difference (see `BettingSequence.interval`)."""
        low, high = self._mean.interval
        return Bounds(2 * low - 1, 2 * high - 1)

    @property
    def changed(self) -> bool:
        """Whether the mean difference was not the same all the time (see `BettingSequence.changed`)."""
        return self._mean.changed

    @property
    def breach(self) -> float:
        """The e-value for "worse by more than the margin", against a mean difference of at most the margin."""
        return self._mean.e_value(at_most=self._edge)

    @property
    def non_inferior(self) -> float:
        """The e-value for "not worse by the margin", against a mean difference of at least the margin."""
        return self._mean.e_value(at_least=self._edge)

    def pairs_until(self, threshold: float, *, breach: bool = False) -> int | None:
        """Return about how many more pairs raise an e-value to a threshold, if they are like those so far.

        The logarithm of each bettor's capital grows by its mean so far with each pair. Without luck, the sum of
        the capitals passes the threshold after that many pairs.

        Returns:
            0 if it is reached; None if the pairs so far don't point there, or there are none.
        """
        side = 0 if breach else 1
        if (self.breach if breach else self.non_inferior) >= threshold:
            return 0
        if not self.count:
            return None
        rates = self._growth[side] / self.count  # (f,)
        held = self._mean.capital(side, self._edge)
        growing = (rates > 0) & (held > 0)
        if not growing.any():
            return None
        few, many = 0, 1
        starts, rates = np.log(held[growing]), rates[growing]
        while np.logaddexp.reduce(starts + many * rates) < math.log(threshold):
            few, many = many, 2 * many
        while many - few > 1:
            middle = (few + many) // 2
            reached = np.logaddexp.reduce(starts + middle * rates) >= math.log(threshold)
            few, many = (few, middle) if reached else (middle, many)
        return many


def relative_excess(candidate: float, baseline: float) -> float:
    """Return how much larger an amount of the candidate is, in [-1, 1]: (c - b) / (c + b).

    It bounds amounts without a bound of their own, such as tokens. Its mean is 0 for two equal versions. An
    amount that is r times the other's gives (r - 1) / (r + 1): 10 % more are 0.048.

    Raises:
        ValueError: an amount is negative or not a number.
    """
    for amount in (candidate, baseline):
        if not 0 <= amount < math.inf:
            raise ValueError(f"an amount must be 0 or more, got {amount}")
    return (candidate - baseline) / (candidate + baseline) if candidate + baseline else 0.0


def excess_margin(part: float) -> float:
    """Return on the scale of `relative_excess` what `part` more of an amount is: 0.25 gives 0.111."""
    return part / (2 + part)


def excess_part(excess: float) -> float:
    """Return which part more of an amount a `relative_excess` is: 0.111 gives 0.25, and 1 infinity."""
    return 2 * excess / (1 - excess) if excess < 1 else math.inf


def _difference_means() -> Floats:
    """Return the candidates (m,) of mean differences, on the scale of [0, 1].

    Their distance, in differences, is 0.0004 around 0 and 0.005 at the ends.
    """
    places = np.arange(-499, 500) / 500
    return (1 + places * (0.2 + 0.8 * places * places)) / 2
