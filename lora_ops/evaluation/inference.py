"""How sure a metric is: intervals, paired differences and corrected tests over held-out rows that come in
groups.

Rows of one group (a merchant code, an article) are alike, so a group, not a row, is what was drawn at random.
Each function says whose method it is; `tests/evaluation/test_inference.py` holds them against scipy and
published values.

A statistic is given by what each group adds to it. `means` needs the sum and the number of its values,
`macro_f1` three counts for each label. Resampling groups is then one matrix product, whatever the statistic.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri, stdtrit

from lora_ops.records.evaluation import Interval, PairedDifference

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

CONFIDENCE = 0.95
# Fewer groups than this can't tell the shape of their distribution: a bootstrap of them is too narrow.
BOOTSTRAP_GROUPS = 20
# Fewer permutations leave a small p-value to chance.
PERMUTATIONS = 4999


class Sample(NamedTuple):
    """What each group adds, (groups, parts), and the statistic of sums of such: (draws, parts) -> (draws,)."""

    parts: Floats
    statistic: Statistic

    @property
    def value(self) -> float:
        """The statistic of all groups."""
        return float(self.statistic(self.parts.sum(axis=0, keepdims=True))[0])


def mean_sample(values: Floats, groups: Sequence[str]) -> Sample:
    """Return the sample of a mean of `values` (rows,)."""
    return ratio_sample(values, np.ones(len(values)), groups)


def ratio_sample(part: Floats, whole: Floats, groups: Sequence[str]) -> Sample:
    """Return the sample of the sum of `part` (rows,) divided by that of `whole` (rows,)."""
    return Sample(_by_group(np.stack([part, whole], axis=1), groups), _mean)


def macro_f1_sample(
    targets: Sequence[str], predictions: Sequence[str], labels: Sequence[str], groups: Sequence[str]
) -> Sample:
    """Return the sample of macro-F1 over the labels that occur in `targets`.

    A prediction outside `labels` counts as wrong for its target and for no other label. In a resample a label
    that was not drawn is left out of the mean; the bias that this brings is what `interval` corrects.
    """
    index = {label: number for number, label in enumerate(labels)}
    identity = np.eye(len(labels) + 1)[:, :-1]
    truth = identity[[index[target] for target in targets]]
    guess = identity[[index.get(prediction, len(labels)) for prediction in predictions]]
    return Sample(_by_group(np.hstack([truth * guess, truth, guess]), groups), _macro_f1)


def interval(sample: Sample, draws: int, seed: int) -> Interval:
    """Return a statistic between 0 and 1 with its 95 % interval.

    Groups are resampled with replacement (cluster bootstrap: Davison and Hinkley, 1997, section 3.8; Field and
    Welsh, 2007), and the interval is corrected for bias and acceleration (BCa: Efron, 1987). Where all
    resamples agree or the groups are few the bootstrap claims too much; `wilson` answers then, each group
    counted once.
    """
    groups, value = len(sample.parts), sample.value
    drawn = _resampled(sample, draws, seed)
    if groups < BOOTSTRAP_GROUPS or np.ptp(drawn) == 0:
        return wilson(value, groups)
    return _interval(value, *_bounds(value, drawn, jackknife(sample)))


def odds_interval(share: Sample, draws: int, seed: int) -> Interval:
    """Return share / (1 - share) with its 95 % interval, for a ratio that has no upper limit.

    BCa bounds and those of `wilson` go over to any increasing function of the statistic.
    """
    of_share = interval(share, draws, seed)
    exact = share.value / (1 - share.value)
    # What is rounded to 1 would have no odds.
    low, high = (min(bound, 0.9999) / (1 - min(bound, 0.9999)) for bound in (of_share.low, of_share.high))
    return _interval(exact, min(low, exact), max(high, exact))


def difference(left: Sample, right: Sample, draws: int, seed: int) -> PairedDifference:
    """Return left minus right on the same rows, with its 95 % interval and its p-value.

    The interval is that of `interval`, with both systems resampled by the same groups. Where it can't be had
    (few groups, all resamples agree) it is recovered from both marginal intervals (MOVER: Zou and Donner,
    2008). The p-value is of the hypothesis that it makes no difference which system answered: in each
    permutation the two swap their answers in about half of the groups (approximate randomization: Noreen, 1989;
    two-sided).
    """
    value, groups = left.value - right.value, len(left.parts)
    generator = np.random.default_rng(seed)
    swap = generator.integers(0, 2, (PERMUTATIONS, groups)).astype(float)
    swapped = _statistic_of(left, right, swap) - _statistic_of(right, left, swap)
    # A tie with the observed difference counts against it, whatever the last bits say.
    extreme = int((np.abs(swapped) >= abs(value) - 1e-9).sum())
    p_value = (extreme + 1) / (PERMUTATIONS + 1)
    drawn = _resampled(left, draws, seed) - _resampled(right, draws, seed)
    if groups < BOOTSTRAP_GROUPS or np.ptp(drawn) == 0:
        bounds = _mover(interval(left, draws, seed), interval(right, draws, seed))
    else:
        bounds = _bounds(value, drawn, jackknife(left) - jackknife(right))
    low, high = (round(bound, 4) for bound in bounds)
    return PairedDifference(value=round(value, 4), low=low, high=high, p_value=p_value, p_corrected=p_value)


def wilson(share: float, trials: float, confidence: float = CONFIDENCE) -> Interval:
    """Return a mean of values between 0 and 1 with its score interval (Wilson, 1927).

    It holds for any such values: none vary more than zeros and ones of the same mean.
    """
    z2 = ndtri((1 + confidence) / 2) ** 2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(z2) / (1 + z2 / trials) * np.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    low, high = max(0.0, float(centre - half)), min(1.0, float(centre + half))
    # At the edges rounding would leave a bound that excludes the value itself.
    return _interval(share, min(low, share), max(high, share))


def independent_difference(left: Interval, right: Interval) -> Interval:
    """Return left minus right of two independent means (Newcombe, 1998, method 10)."""
    return _interval(left.value - right.value, *_mover(left, right))


def holm(differences: Mapping[str, PairedDifference]) -> dict[str, PairedDifference]:
    """Return `differences` with their p-values corrected for their number (step-down: Holm, 1979).

    The chance that any of the clear ones is there by accident is then at most the level of one test.
    """
    corrected, largest = dict(differences), 0.0
    for rank, name in enumerate(sorted(differences, key=lambda name: differences[name].p_value)):
        largest = max(largest, min(1.0, differences[name].p_value * (len(differences) - rank)))
        corrected[name] = differences[name].model_copy(update={"p_corrected": largest})
    return corrected


def seed_noise(recipes: Sequence[Sequence[float]]) -> float | None:
    """Return how much two trainings of one recipe differ by their seeds alone, in 95 of 100 cases.

    The variance between seeds is pooled over recipes, and the factor is Student's t for as many degrees of
    freedom as it has: two seeds say little, and then the bound is wide.

    Args:
        recipes: for each recipe the metric of each of its seeds.

    Returns:
        The bound; None where no recipe has two seeds.
    """
    freedom = sum(len(values) - 1 for values in recipes)
    if freedom < 1:
        return None
    squares = sum(float(np.square(np.asarray(values) - np.mean(values)).sum()) for values in recipes)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(2 * squares / freedom))


def _by_group(parts: Floats, groups: Sequence[str]) -> Floats:
    """Sum rows of `parts` (rows, parts) by group: (groups, parts)."""
    names, place = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), parts.shape[1]))
    np.add.at(sums, place, parts)
    return sums


def _mean(sums: Floats) -> Floats:
    return np.asarray(sums[:, 0] / sums[:, 1])


def _macro_f1(sums: Floats) -> Floats:
    hits, support, guessed = np.split(sums, 3, axis=1)  # each (draws, labels)
    present = support > 0
    f1 = np.divide(2 * hits, support + guessed, out=np.zeros_like(hits), where=present)
    return np.asarray(f1.sum(axis=1) / present.sum(axis=1))


def _resampled(sample: Sample, draws: int, seed: int) -> Floats:
    """Return the statistic of `draws` resamples; the same seed draws the same groups."""
    groups = len(sample.parts)
    times = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return sample.statistic(times @ sample.parts)  # (draws, groups) @ (groups, parts)


def _statistic_of(left: Sample, right: Sample, swap: Floats) -> Floats:
    """Return the statistic of `left`, with the groups of `right` where `swap` (draws, groups) is 1."""
    return left.statistic(swap @ right.parts + (1 - swap) @ left.parts)


def jackknife(sample: Sample) -> Floats:
    """Return the statistic without each group: (groups,)."""
    rest = sample.parts.sum(axis=0) - sample.parts
    return np.nan_to_num(sample.statistic(rest), nan=sample.value)


def _interval(value: float, low: float, high: float) -> Interval:
    return Interval(value=round(value, 4), low=round(low, 4), high=round(high, 4))


def _bounds(value: float, drawn: Floats, jackknife: Floats) -> tuple[float, float]:
    """Return the BCa bounds (Efron, 1987, sections 2 and 6)."""
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / len(drawn)
    bias = ndtri(np.clip(below, 1 / (len(drawn) + 1), len(drawn) / (len(drawn) + 1)))
    spread = jackknife.mean() - jackknife
    skew = (spread**2).sum() ** 1.5
    acceleration = (spread**3).sum() / (6 * skew) if skew else 0.0
    z = bias + ndtri([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    low, high = np.quantile(drawn, ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


def _mover(left: Interval, right: Interval) -> tuple[float, float]:
    value = left.value - right.value
    low = value - float(np.hypot(left.value - left.low, right.high - right.value))
    high = value + float(np.hypot(left.high - left.value, right.value - right.low))
    return low, high
