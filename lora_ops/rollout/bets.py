"""Bets against supposed means, whose capital is evidence that may be looked at after every observation.

A bettor starts with one unit of capital and bets against a supposed mean m of values in [0, 1]. They stake a
fixed fraction f of their capital on each observation x. The stake pays x / m for one unit, so the capital
grows by the factor 1 - f + f * x / m. If the mean is at most m, the capital doesn't grow on average. By
Ville's inequality it then reaches 1 / alpha at any time with a probability of at most alpha, so that every
look is allowed. A mirrored bettor, who gets (1 - x) / (1 - m), tests means of at least m. Ten bettors with
fractions from 0.05 to 0.95 share the capital (Waudby-Smith and Ramdas, 2023, "Estimating means of bounded
random variables by betting", JRSS B 86(1), 1-27: diversified Kelly betting).

Part of the capital is held back. Every `RESTART` observations some of it starts a new series of bets (a
mixture of e-processes that start at different times: Shin, Ramdas and Rinaldo, 2024, "E-detectors"). A
version that gets worse after weeks in which it was good is found by the series that begins then. `python
benchmarks/rollout.py bets` measures what this gains and costs, and compares these bets with the predictable
plug-in bets of the paper.

The capital is multiplied and added only. The same observations in the same order give the same bits on every
machine, added one by one or all at once. A controller that starts again adds its stored observations again (3
seconds for 100,000), so that the observations are the only state to keep.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FRACTIONS: Floats = (np.arange(10) + 0.5) / 10
RESTART = 250
"""Observations after which a new series of bets starts."""
FIRST = 0.8
"""The capital of the first series; the later series k = 1, 2, ... share the rest by 1 / (k * (k + 1))."""
LEAST, MOST = 0.001, 0.999
"""The means that can be tested: nearer to 0 or 1 one observation could multiply the capital beyond a float."""

_SETTLED = 32  # so many factors of at most 1 / LEAST fit between the ceiling and the largest float
_CEILING, _FLOOR = 1e100, 1e-250


class Bets:
    """The capital of bets against each of several supposed means."""

    def __init__(self, means: Sequence[float] | Floats) -> None:
        """Start with a capital of 1 against each of `means` (m,), ascending, on both sides."""
        self.means = np.asarray(means, float)  # (m,)
        if not ((self.means >= LEAST) & (self.means <= MOST)).all():
            raise ValueError(f"a mean to test must lie between {LEAST} and {MOST}, got {list(means)}")
        self.count = 0
        shape = (2, len(FRACTIONS), len(self.means))
        self._capital = np.zeros(shape)  # side, fraction, mean; side 0 bets on larger means, side 1 on smaller
        self._factors = np.empty(shape)
        self._odds = np.stack([1 / self.means, 1 / (1 - self.means)])  # (side, mean)
        self._pays = np.empty_like(self._odds)
        self.value = np.ones((2, len(self.means)))  # e-values after the last observation
        self.peak = np.ones((2, len(self.means)))  # and the largest of them so far

    def add(self, values: Floats) -> None:
        """Bet on each of `values`, which lie in [0, 1], in their order.

        Args:
            values: (n,) for all means, or (n, m) with a column of observations for each mean: a simulation runs
                many sequences at once.
        """
        stakes = FRACTIONS[None, :, None]
        rest = 1 - stakes
        for value in values:
            if self.count % RESTART == 0:
                series = self.count // RESTART
                weight = (1 - FIRST) / (series * (series + 1)) if series else FIRST
                self._capital += weight / len(FRACTIONS)
            np.multiply(self._odds[0], value, out=self._pays[0])
            np.multiply(self._odds[1], 1 - value, out=self._pays[1])
            np.multiply(stakes, self._pays[:, None, :], out=self._factors)
            self._factors += rest
            self._capital *= self._factors
            self.count += 1
            if self.count % _SETTLED == 0:
                # Both lower the capital, so that it stays an e-process.
                np.minimum(self._capital, _CEILING, out=self._capital)
                self._capital[self._capital < _FLOOR] = 0
            np.add.reduce(self._capital, axis=1, out=self.value)
            self.value += self._unspent
            np.maximum(self.peak, self.value, out=self.peak)

    def by_fraction(self, side: int, place: int) -> Floats:
        """Return the capital (f,) of each fraction against one mean."""
        return self._capital[side, :, place]

    def keep(self, kept: npt.NDArray[np.bool_]) -> None:
        """Bet no more against the means (m,) that are not kept."""
        self.means = self.means[kept]
        self.value, self.peak, self._odds, self._pays, self._capital, self._factors = (
            np.ascontiguousarray(array[..., kept])
            for array in (self.value, self.peak, self._odds, self._pays, self._capital, self._factors)
        )

    @property
    def _unspent(self) -> float:
        """The capital that waits for later series: 1 less the weights of those that have begun."""
        return (1 - FIRST) / ((self.count - 1) // RESTART + 1)


def checked_alpha(alpha: float) -> float:
    """Return an error rate.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    return float(alpha)


def checked_values(values: Iterable[float], low: float, high: float) -> Floats:
    """Return observations (n,) as floats.

    Raises:
        ValueError: one is not a number between `low` and `high`.
    """
    observed = np.asarray(list(values), float)
    if observed.ndim != 1:
        raise ValueError("observations must be numbers in one sequence")
    outside = np.flatnonzero(~((observed >= low) & (observed <= high)))  # NaN is outside, too
    if len(outside):
        place = int(outside[0])
        raise ValueError(
            f"an observation must lie between {low} and {high}, got {observed[place]} at place {place + 1}"
        )
    return observed
