"""Quantiles, such as the P95 of latency, with intervals and e-values that may be looked at at any time.

Whether a value lies below the quantile q of order p is a coin with probability p, whatever the values'
distribution. The number of values below a supposed quantile is therefore tested as a mean of coins, by a
mixture of likelihood ratios over a beta distribution (the beta-binomial mixture: Howard, Ramdas, McAuliffe
and Sekhon, 2021, Annals of Statistics 49(2), 1055-1080, propositions 6 and 7). Howard and Ramdas (2022,
"Sequential estimation of quantiles with applications to A/B testing and best-arm identification", Bernoulli
28(3), 1704-1728) make of it the interval of one quantile (theorem 1, with ties) and the test of two arms
(theorem 5).

The values must be independent and keep their quantile. An hour that is slow for both arms breaks that, and a
change after many values is found late. For both, pairs are better: give a `DifferenceSequence` 1 for a request
slower than a limit, and 0 otherwise. By simulation (P95 50 % slower after 2,000 equal pairs) it finds that
after 400 pairs, and this comparison after 975.
"""

import math
from bisect import insort
from collections.abc import Callable, Iterable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaln

from lora_ops.rollout.bets import Floats, checked_alpha, checked_values
from lora_ops.rollout.sequential import Bounds

PLANNED = 1000
"""The number of values for which the mixture is tuned; the error rate holds for any number."""

_BLOCK = 1024
_STEP = 64


class QuantileSequence:
    """A confidence sequence for one quantile of a stream of values."""

    def __init__(self, order: float, alpha: float) -> None:
        """Start without values.

        Args:
            order: of the quantile, such as 0.95, between 0 and 1.
            alpha: the chance that the interval misses the quantile at any time, over all looks.

        Raises:
            ValueError: order or alpha is out of range.
        """
        self.order, self.alpha = _checked_order(order), checked_alpha(alpha)
        self._values: list[float] = []  # ascending
        self._low, self._high = -math.inf, math.inf

    def add(self, values: Iterable[float]) -> None:
        """Add values in their order; nothing is added if one is refused.

        Raises:
            ValueError: a value is not a finite number.
        """
        largest = float(np.finfo(float).max)
        for value in checked_values(values, -largest, largest).tolist():
            insort(self._values, value)
            low, high = self._ranks(len(self._values))
            # Running intersection: a bound that held at an earlier look holds now.
            if low >= 1:
                self._low = max(self._low, self._values[low - 1])
            if high < len(self._values):
                self._high = min(self._high, self._values[high])

    @property
    def count(self) -> int:
        """How many values were added."""
        return len(self._values)

    @property
    def values(self) -> list[float]:
        """The values (n,), ascending."""
        return list(self._values)

    @property
    def estimate(self) -> float | None:
        """The smallest value that a share of `order` of all values doesn't exceed; None without any."""
        if not self._values:
            return None
        return self._values[max(0, math.ceil(self.order * self.count - 1e-9) - 1)]

    @property
    def interval(self) -> Bounds:
        """The quantile lies in it at all times with probability 1 - alpha; without end until values suffice.

        If the quantile has `changed`, there is no such quantile, and the interval is without end again.
        """
        return Bounds(-math.inf, math.inf) if self.changed else Bounds(self._low, self._high)

    @property
    def changed(self) -> bool:
        """Whether the looks contradict each other: the quantile was not the same all the time."""
        return self._low > self._high

    def _ranks(self, count: int) -> tuple[int, int]:
        """Return the fewest and the most values that may lie below the quantile, of so many values."""
        low, high = _accepted(self.order, self.alpha, count // _BLOCK)
        return int(low[count % _BLOCK]), int(high[count % _BLOCK])


class QuantileComparison:
    """One quantile of candidate and baseline: is the candidate's larger than a multiple of the baseline's?

    Values are amounts of which less is better, such as seconds; one of each user (`units.py`).
    """

    def __init__(self, order: float, margin: float, alpha: float) -> None:
        """Start without values.

        Args:
            order: of the quantile, such as 0.95.
            margin: by how much the candidate's may be larger, as a part of the baseline's: 0.1 allows 10 %.
            alpha: error rate of the interval, and of `breach` and `non_inferior` each, over all looks.

        Raises:
            ValueError: order, margin or alpha is out of range.
        """
        if not 0 <= margin < math.inf:
            raise ValueError(f"a margin must be 0 or more, got {margin}")
        self.margin, self.alpha = float(margin), checked_alpha(alpha)
        self.candidate = QuantileSequence(order, alpha / 2)
        self.baseline = QuantileSequence(order, alpha / 2)

    def add(self, candidate: Iterable[float] = (), baseline: Iterable[float] = ()) -> None:
        """Add values of either arm; nothing is added if one is refused.

        Raises:
            ValueError: a value is not a number of 0 or more.
        """
        ours, theirs = (checked_values(values, 0, 1e300) for values in (candidate, baseline))
        self.candidate.add(ours)
        self.baseline.add(theirs)

    @property
    def count(self) -> int:
        """How many values the arm has that has fewer."""
        return min(self.candidate.count, self.baseline.count)

    @property
    def ratio(self) -> Bounds:
        """The interval of candidate's by baseline's quantile: each arm's interval has half of alpha."""
        ours, theirs = self.candidate.interval, self.baseline.interval
        low = max(0.0, ours.low) / theirs.high if theirs.high > 0 else 0.0
        return Bounds(low, ours.high / theirs.low if theirs.low > 0 else math.inf)

    @property
    def breach(self) -> float:
        """The e-value for "larger than the margin allows"."""
        return math.exp(min(self._evidence(breach=True)(1.0), 700.0))

    @property
    def non_inferior(self) -> float:
        """The e-value for "smaller than the margin allows", against "as large or larger"."""
        return math.exp(min(self._evidence(breach=False)(1.0), 700.0))

    def pairs_until(self, threshold: float, *, breach: bool = False) -> int | None:
        """Return about how many more values of each arm raise an e-value to a threshold.

        It supposes that values to come are shared below and above each point as those so far.

        Returns:
            0 if it is reached; None if the values so far don't point there, or an arm has none.
        """
        goal, evidence = math.log(threshold), self._evidence(breach=breach)
        if evidence(1.0) >= goal:
            return 0
        few, many = 1.0, 2.0
        while evidence(many) < goal:
            few, many = many, 2 * many
            if not self.count or many > 1e4:
                return None
        while (many - few) * self.count > 1:
            middle = (few + many) / 2
            few, many = (few, middle) if evidence(middle) >= goal else (middle, many)
        return math.ceil((many - 1) * self.count)

    def _evidence(self, *, breach: bool) -> Callable[[float], float]:
        """Return the log e-value as a function of how many times as large the counts were.

        If the candidate's quantile is at most the baseline's, some point q lies between them. There the
        evidence of each arm, candidate's quantile above q and baseline's below q, is an e-process. So is their
        product, as the arms are independent. The smallest product over all q is at most that one (theorem 5,
        one-sided).
        """
        if not self.count:
            return lambda times: 0.0
        ours = np.asarray(self.candidate.values)
        theirs = np.asarray(self.baseline.values) * (1 + self.margin)
        slower, faster = (ours, theirs) if breach else (theirs, ours)
        points = np.sort(np.concatenate([[-math.inf], slower, faster]))
        order = self.candidate.order
        slower_below = np.searchsorted(slower, points, side="right")
        faster_below = np.searchsorted(faster, points, side="left")

        def above(times: float, places: npt.NDArray[np.int64]) -> Floats:
            return log_evidence(times * slower_below[places], times * len(slower), order, side="fewer")

        def below(times: float, places: npt.NDArray[np.int64]) -> Floats:
            return log_evidence(times * faster_below[places], times * len(faster), order, side="more")

        def smallest(times: float) -> float:
            # `above` falls from point to point and `below` rises. Between two of some points no sum is smaller
            # than the second one's `above` with the first one's `below`: only where that is, all points count.
            some = np.unique(np.append(np.arange(0, len(points), _STEP), len(points) - 1))
            falling, rising = above(times, some), below(times, some)
            best = float((falling + rising).min())
            for cell in np.flatnonzero(falling[1:] + rising[:-1] < best):
                places = np.arange(some[cell], some[cell + 1] + 1)
                best = min(best, float((above(times, places) + below(times, places)).min()))
            return best

        return smallest


def log_evidence(
    below: npt.ArrayLike,
    count: npt.ArrayLike,
    order: float,
    *,
    side: str = "both",
    planned: float = PLANNED,
    alpha: float = 0.05,
) -> Floats:
    """Return the log e-value against "the share of values below is `order`".

    Args:
        below: numbers of values below a point, of any shape.
        count: of all values.
        order: the supposed share, between 0 and 1.
        side: "both", or "fewer" or "more" for the hypothesis that the share is at least or at most `order`.
        planned, alpha: the number of values and the error rate for which the mixture is tuned.
    """
    fewer = np.asarray(below, float)
    more = np.asarray(count, float) - fewer
    a, b = _mixture(order, planned, alpha if side == "both" else 2 * alpha)
    found = betaln(a + fewer, b + more) - betaln(a, b) - fewer * math.log(order) - more * math.log1p(-order)
    # One side uses only the alternatives below, or beyond, `order`.
    if side == "fewer":
        found = found + _log_tail(a + fewer, b + more, order) - _log_tail(a, b, order)
    elif side == "more":
        found = found + _log_tail(b + more, a + fewer, 1 - order) - _log_tail(b, a, 1 - order)
    return np.asarray(found, float)


def _mixture(order: float, planned: float, alpha: float) -> tuple[float, float]:
    """Return the parameters of the beta distribution, whose mean is `order` (section 3.5 of the 2021 paper)."""
    variance = order * (1 - order)
    evidence = 2 * math.log(1 / alpha)
    rho = planned * variance / (evidence + math.log(1 + evidence))
    r = max(rho - variance, 1e-3 * variance)
    return r / (1 - order), r / order


def _log_tail(a: npt.ArrayLike, b: npt.ArrayLike, share: float) -> Floats:
    """Return the log of a beta distribution's probability below `share`.

    Where it is too small for a float, it is the first term of its series, which is less: less evidence.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    tail = betainc(first, second, share)
    term = first * math.log(share) + second * math.log1p(-share) - np.log(first) - betaln(first, second)
    return np.where(tail > 1e-280, np.log(np.maximum(tail, 1e-300)), term)


@lru_cache(maxsize=256)
def _accepted(order: float, alpha: float, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the fewest and most values below the quantile that aren't rejected, for a block of counts.

    Shapes (_BLOCK,): the place n of a block is for block * _BLOCK + n values.
    """
    counts = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
    middle = np.floor(counts * order).astype(np.int64)

    def rejected(below: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return log_evidence(below, counts, order) >= math.log(1 / alpha)

    low = _edge(rejected, middle, np.full_like(counts, -1))
    high = _edge(rejected, np.minimum(middle + 1, counts), counts + 1)
    return low, high


def _edge(
    rejected: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]],
    inside: npt.NDArray[np.int64],
    outside: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """Return the numbers next to `outside` that aren't rejected, by bisection; `outside` itself always is."""
    while (np.abs(outside - inside) > 1).any():
        middle = (inside + outside) // 2
        apart = np.abs(outside - inside) > 1
        out = rejected(middle)
        outside = np.where(apart & out, middle, outside)
        inside = np.where(apart & ~out, middle, inside)
    return inside


def _checked_order(order: float) -> float:
    if not 0 < order < 1:
        raise ValueError(f"the order of a quantile must lie between 0 and 1, got {order}")
    return float(order)
