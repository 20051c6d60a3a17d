"""The buckets in which a gateway counts times, and the percentiles that are read from such counts.

The gateway's metrics, the reader of its event log and the alert rules use the same bounds, so that a percentile
is the same number wherever it is read. All bounds are in seconds.
"""

from bisect import bisect_left
from collections.abc import Sequence

FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a request's arrival to its first token, and of its wait for a slot."""
PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
"""From one token of an answer to the next."""
ANSWER = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
"""From a request's arrival to the end of its answer."""


def cumulative(values: Sequence[float], bounds: Sequence[float]) -> list[float]:
    """Return how many values are at most each bound, and last how many there are, as Prometheus counts."""
    counts = [0.0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    for place in range(1, len(counts)):
        counts[place] += counts[place - 1]
    return counts


def percentile(bounds: Sequence[float], counts: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of all values is, as Prometheus' `histogram_quantile` estimates it.

    Values are taken as spread evenly in their bucket. A percentile above the last bound is that bound
    (https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile).

    Args:
        bounds: of the buckets, in seconds, from the lowest.
        counts: as `cumulative` gives them, one more than there are bounds.
        share: such as 0.95.

    Returns:
        Seconds; None where nothing was counted.
    """
    total = counts[-1]
    if total <= 0:
        return None
    rank = share * total
    place = next(index for index, count in enumerate(counts) if count >= rank)
    if place == len(bounds):
        return float(bounds[-1])
    below = counts[place - 1] if place else 0.0
    start = bounds[place - 1] if place else 0.0
    return start + (bounds[place] - start) * (rank - below) / (counts[place] - below)


def share_within(bounds: Sequence[float], counts: Sequence[float], limit: float) -> float | None:
    """Return the share of all values that are at most `limit`, which is one of the bounds; None: no value."""
    return counts[list(bounds).index(limit)] / counts[-1] if counts[-1] > 0 else None
