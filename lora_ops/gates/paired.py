"""Is a candidate worse than a baseline on the same rows: pass, fail, or undecided with these rows.

Two questions have two tests. A gate **passes** where the candidate is shown to be no worse than the baseline
by more than a margin (non-inferiority): the lower bound of the 95 % interval of the difference lies above
-margin. A gate **fails** where the candidate is shown to be worse than the baseline: its p-value, corrected for
all gates, is small. Where neither is shown, the rows don't decide, and nobody may read that as a pass.

The correction goes one way. A version fails if any gate fails, so two equal versions would fail the more often
the more slices there are: Holm's method holds that chance at the level of one test. A version passes only if
all gates pass, which needs no correction (intersection-union test: Berger, 1982).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit

from lora_ops.evaluation.inference import (
    CONFIDENCE,
    Sample,
    difference,
    holm,
    independent_difference,
    interval,
    jackknife,
    mean_sample,
)
from lora_ops.records.evaluation import PairedDifference
from lora_ops.records.regression import Comparison

Floats = npt.NDArray[np.float64]

DRAWS = 2000
POWER = 0.8
FEW_GROUPS = 6
"""Of fewer groups that lose, a bootstrap is too sure: a sample may hold none of the large losses.

By simulation of versions that are worse by the whole margin (20 to 100 groups of 1 to 7 rows, margins 0.05 and
0.15) BCa bounds passed up to 14 of 100, and those by Student's t up to 15, where 2.5 are stated. The widest of
both and, where fewer than 6 groups lose, of Tango's passed up to 3. With 4 instead of 6 it was 4.
"""
Z = float(ndtri((1 + CONFIDENCE) / 2))


def compare_rows(
    candidate: Sequence[float] | Floats,
    baseline: Sequence[float] | Floats,
    groups: Sequence[str],
    margin: float,
    seed: int = 0,
) -> Comparison:
    """Compare two systems by the score, between 0 and 1, of each row.

    Rows of one group are alike, so groups are resampled. Where each row is a group of its own and every score
    is 0 or 1, McNemar's exact test (McNemar, 1947) and Tango's interval (Tango, 1998) need no resampling.
    Where all rows agree, nothing varies, and a bootstrap would claim to be certain: Tango's interval answers
    then, each group counted once. Where few groups lose, it widens the bootstrap's (see `FEW_GROUPS`).

    Raises:
        ValueError: there is no row, the scores don't pair, or one is not between 0 and 1.
    """
    left, right = np.asarray(candidate, float), np.asarray(baseline, float)
    if not len(left) or not len(left) == len(right) == len(groups):
        raise ValueError(f"{len(left)} and {len(right)} scores of {len(groups)} rows don't pair")
    if not all(((scores >= 0) & (scores <= 1)).all() for scores in (left, right)):  # NaN is none either
        raise ValueError("a score is not between 0 and 1")
    gained, lost = int((left > right).sum()), int((left < right).sum())
    many = len(set(groups))
    binary = bool(np.isin(left, (0, 1)).all() and np.isin(right, (0, 1)).all())
    exact = (binary and many == len(left)) or not (gained or lost)
    if exact:
        from scipy.stats import binomtest  # a second to import, for one of the two ways

        low, high = tango(gained, lost, many)
        p_value = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        value = (gained - lost) / len(left)
        found = PairedDifference(
            value=round(value, 4),
            low=low,
            high=high,
            p_value=p_value,
            p_corrected=p_value,
        )
    else:
        ours, theirs = mean_sample(left, groups), mean_sample(right, groups)
        found = _widened(difference(ours, theirs, DRAWS, seed), *_studentized(ours, theirs))
        found = _widened(found, *_of_few_groups(ours, theirs))
    return _decided(
        found,
        exact=exact,
        rows=len(left),
        groups=many,
        candidate=round(float(left.mean()), 4),
        baseline=round(float(right.mean()), 4),
        gained=gained,
        lost=lost,
        margin=margin,
    )


def compare_samples(
    candidate: Sample, baseline: Sample, rows: int, changed: tuple[int, int], margin: float, seed: int = 0
) -> Comparison:
    """Compare two systems by a statistic that is no mean of rows, such as macro-F1.

    Args:
        candidate, baseline: of the same groups.
        rows: how many rows they come from.
        changed: rows on which the candidate is better, and worse.
        margin: by how much the candidate may be worse.
        seed: of the resamples.
    """
    found = _widened(difference(candidate, baseline, DRAWS, seed), *_studentized(candidate, baseline))
    if int((candidate.parts != baseline.parts).any(axis=1).sum()) < FEW_GROUPS:
        # So few groups don't show how the statistic varies: each system by itself does.
        ours, theirs = interval(candidate, DRAWS, seed), interval(baseline, DRAWS, seed)
        apart = independent_difference(ours, theirs)
        found = _widened(found, apart.low, apart.high)
    return _decided(
        found,
        exact=False,
        rows=rows,
        groups=len(candidate.parts),
        candidate=round(candidate.value, 4),
        baseline=round(baseline.value, 4),
        gained=changed[0],
        lost=changed[1],
        margin=margin,
    )


def corrected(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """Return the gates of one version with their p-values corrected for their number (Holm, 1979)."""
    by_name = holm({name: one.difference for name, one in comparisons.items()})
    return {name: one.model_copy(update={"difference": by_name[name]}) for name, one in comparisons.items()}


def tango(gained: float, lost: float, rows: float) -> tuple[float, float]:
    """Return the 95 % score interval of (gained - lost) / rows, of pairs that are right or wrong.

    Its bounds are the differences that the score test of paired proportions does not reject (Tango, 1998,
    Statistics in Medicine 17, 891-908). It holds for few rows and where no pair differs.

    Args:
        gained, lost: pairs in which only the candidate, and only the baseline, is right.
        rows: all pairs.
    """
    value = (gained - lost) / rows
    low, high = (_bound(gained, lost, rows, outside, value) for outside in (-1.0, 1.0))
    return round(low, 4), round(high, 4)


def least_rows(margin: float) -> int:
    """Return how many pairs a margin needs at the least: so many pass if no pair differs, one fewer don't."""
    # Tango's statistic at -margin is sqrt(rows * margin / (1 - margin)) where no pair differs.
    rows = math.floor(Z**2 * (1 - margin) / margin)
    while tango(0, 0, rows)[0] <= -margin:
        rows += 1
    return rows


def _widened(found: PairedDifference, low: float, high: float) -> PairedDifference:
    wider = {"low": round(min(found.low, low), 4), "high": round(max(found.high, high), 4)}
    return found.model_copy(update=wider)


def _studentized(left: Sample, right: Sample) -> tuple[float, float]:
    """Return the bounds of a difference by its jackknifed standard error and Student's t."""
    many, value = len(left.parts), left.value - right.value
    if many < 2:
        return -1.0, 1.0
    rest = jackknife(left) - jackknife(right)  # (groups,): the difference without each group
    error = math.sqrt((many - 1) / many * float(np.square(rest - rest.mean()).sum()))
    half = float(stdtrit(many - 1, (1 + CONFIDENCE) / 2)) * error
    return value - half, value + half


def _of_few_groups(left: Sample, right: Sample) -> tuple[float, float]:
    """Return Tango's bound on a side on which few groups differ, else the difference itself.

    A group counts as the part of a whole gain or loss that it makes. No values between -1 and 1 vary more than
    -1, 0 and 1 with the same mean gain and loss, so the bounds hold for them. Groups of unequal size count as
    fewer (Kish, 1965).
    """
    sizes, rows = left.parts[:, 1], float(left.parts[:, 1].sum())
    apart = left.parts[:, 0] - right.parts[:, 0]
    groups = rows**2 / float(np.square(sizes).sum())
    gained, lost = (groups * float(part.clip(min=0).sum()) / rows for part in (apart, -apart))
    low, high = tango(gained, lost, groups)
    value = left.value - right.value
    return (
        low if int((apart < 0).sum()) < FEW_GROUPS else value,
        high if int((apart > 0).sum()) < FEW_GROUPS else value,
    )


def _decided(found: PairedDifference, *, exact: bool, **counts: Any) -> Comparison:
    width = (found.high - found.low) / 2
    return Comparison(
        **counts,
        difference=found,
        method="exact" if exact else "bootstrap",
        detectable=round(min(1.0, width * (Z + float(ndtri(POWER))) / Z), 4),
        more_rows=_more_rows(
            found, exact, **{name: counts[name] for name in ("rows", "gained", "lost", "margin")}
        ),
    )


def _more_rows(
    found: PairedDifference, exact: bool, *, rows: int, gained: int, lost: int, margin: float
) -> int | None:
    if found.low > -margin:
        return 0
    if found.value <= -margin:
        return None
    if exact:
        return max(1, _rows_to_pass(gained, lost, rows, margin) - rows)
    # An interval narrows with the square root of the rows.
    return max(1, math.ceil(rows * ((found.value - found.low) / (found.value + margin)) ** 2) - rows)


def _bound(gained: float, lost: float, rows: float, outside: float, value: float) -> float:
    """Return the difference from `value` towards `outside` (-1 or 1) where the score test begins to reject."""
    inside = value
    for _ in range(60):
        middle = (inside + outside) / 2
        if abs(_score(gained, lost, rows, middle)) <= Z:
            inside = middle
        else:
            outside = middle
    return inside


def _score(gained: float, lost: float, rows: float, supposed: float) -> float:
    """Return Tango's statistic of the hypothesis that the true difference is `supposed`."""
    distance = gained - lost - rows * supposed
    a = 2 * rows
    b = -gained - lost + (2 * rows - gained + lost) * supposed
    c = -lost * supposed * (1 - supposed)
    # The share of pairs that only the baseline has right, at its most likely under the hypothesis.
    share = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = rows * (2 * share + supposed * (1 - supposed))
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def _rows_to_pass(gained: int, lost: int, rows: int, margin: float) -> int:
    """Return how many rows like these put Tango's lower bound above -margin; their difference lies above it."""
    few, many = 1.0, 2.0
    while tango(gained * many, lost * many, rows * many)[0] <= -margin:
        many *= 2
    for _ in range(40):
        middle = (few + many) / 2
        if tango(gained * middle, lost * middle, rows * middle)[0] > -margin:
            many = middle
        else:
            few = middle
    return math.ceil(rows * many)
