"""Has an adapter moved since a reference, more than its base did: divergences, tests and one verdict.

Significance alone cries wolf: of 100 rows any steady change is significant, however small. So a shift counts
where it is both significant and at least as large as a minimum (Wasserstein and Lazar, 2016, on p-values
without effect sizes; Murphy and Myors, 1999, on minimum effects).

The base model is the control. It is asked the same in both weeks by the same engines, and no change of an
adapter can move it. Its shift is taken off the adapter's, row by row (difference in differences: Card and
Krueger, 1994). Where the base itself moved by as much as would count, nobody can tell what moved the adapter.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap, permutation_test

from lora_ops.evaluation.inference import CONFIDENCE, holm
from lora_ops.monitoring.drift_measurement import ADAPTER, BASE, NO_TOKEN, SMALLEST, Measurement, Side
from lora_ops.records.drift import DriftMetric, DriftMetricName, DriftVerdict
from lora_ops.records.evaluation import PairedDifference
from lora_ops.settings.drift import DriftSettings

Floats = npt.NDArray[np.float64]

RESAMPLES = 9999
DRAWS = 2000
DIGITS = 6
RESOLUTION = 1e-6
"""Smaller distances are rounding: of float16 states, and of float32 sums in another order."""


class Shift(NamedTuple):
    """How far each row moved between two measurements, by one metric.

    Attributes:
        adapter, base: (rows), how far each system moved since the reference.
        beside_base: (rows), how far the adapter is from its base now.
        changed: share of rows whose likeliest token is another one; None for states.
        least: the smallest mean difference that counts.
        is_judged: whether the metric counts for the verdict.
    """

    adapter: Floats
    base: Floats
    beside_base: Floats
    changed: float | None
    least: float
    is_judged: bool = True


def shifts(reference: Measurement, now: Measurement, settings: DriftSettings) -> dict[DriftMetricName, Shift]:
    """Return how far adapter and base moved since a reference; no states where an engine tells none.

    One version is always the same weights, so that little of a shift counts already. States are judged of one
    version alone: two trainings that differ by their seeds find other states for the same answers
    (benchmarks/drift.py).
    """
    is_same = reference.facts.content_digest == now.facts.content_digest
    before, after = reference.sides, now.sides
    found: dict[DriftMetricName, Shift] = {
        "next token": Shift(
            divergences(before[ADAPTER], after[ADAPTER]),
            divergences(before[BASE], after[BASE]),
            divergences(after[ADAPTER], after[BASE]),
            _changed(before[ADAPTER], after[ADAPTER]),
            settings.kl if is_same else settings.other_version,
        )
    }
    if all(side.states.shape[1] for one in (before, after) for side in one.values()):
        found["hidden state"] = Shift(
            cosine_distances(before[ADAPTER], after[ADAPTER]),
            cosine_distances(before[BASE], after[BASE]),
            cosine_distances(after[ADAPTER], after[BASE]),
            None,
            settings.cosine,
            is_same,
        )
    return found


def divergences(one: Side, other: Side) -> Floats:
    """Return the symmetric divergence of next-token probabilities of each row, in nats: (rows).

    It is KL(one, other) + KL(other, one) (Kullback and Leibler, 1951; Jeffreys, 1946), halved so that it
    compares with a KL divergence. Tokens that only one side names count among the others.
    """
    return _resolved(np.array([_divergence(one, other, row) for row in range(len(one.rest))]))


def cosine_distances(one: Side, other: Side) -> Floats:
    """Return 1 minus the cosine of the mean states of each row: (rows), from 0 to 2."""
    left, right = one.states.astype(np.float64), other.states.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    same = np.divide((left * right).sum(1), norms, out=np.ones_like(norms), where=norms > 0)
    return _resolved(1 - same)


def tested(found: Sequence[Mapping[DriftMetricName, Shift]], alpha: float) -> list[tuple[DriftMetric, ...]]:
    """Return the metrics of every version of a run, their p-values corrected for all of them (Holm, 1979).

    The p-value is of the hypothesis that a row's adapter moved as its base did, so that the sign of their
    difference is by chance: signs are flipped at random (Fisher, 1935; Good, 2005, section 3.2; one-sided). So
    many flips are drawn that a clear shift stays clear after the correction.
    """
    tests = sum(map(len, found))
    resamples = max(RESAMPLES, int(10 * tests / alpha))
    values = {
        (place, name): _difference(shift, resamples)
        for place, version in enumerate(found)
        for name, shift in version.items()
    }
    corrected = holm({f"{place} {name}": value for (place, name), value in values.items()})
    return [
        tuple(_metric(name, shift, corrected[f"{place} {name}"]) for name, shift in version.items())
        for place, version in enumerate(found)
    ]


def verdict(metrics: Sequence[DriftMetric], alpha: float) -> DriftVerdict:
    """Return what the metrics of one version say together."""
    if any(one.base_moved for one in metrics):
        return "cannot tell"
    return "drifted" if any(one.is_drift(alpha) for one in metrics) else "none"


def _resolved(distances: Floats) -> Floats:
    return np.where(distances < RESOLUTION, 0.0, distances)


def _divergence(one: Side, other: Side, row: int) -> float:
    _, left, right = np.intersect1d(one.tokens[row], other.tokens[row], return_indices=True)
    shared = one.tokens[row][left] != NO_TOKEN
    p, q = (_partition(side, row, chosen[shared]) for side, chosen in ((one, left), (other, right)))
    return float(((np.exp(p) - np.exp(q)) * (p - q)).sum() / 2)


def _partition(side: Side, row: int, chosen: npt.NDArray[np.intp]) -> Floats:
    """Return the log-probabilities of the chosen tokens, and of all others together."""
    logprobs = np.maximum(side.logprobs[row].astype(np.float64), SMALLEST)
    others = np.ones(len(logprobs), bool)
    others[chosen] = False
    others &= side.tokens[row] != NO_TOKEN
    rest = np.logaddexp.reduce([*logprobs[others], float(side.rest[row])])
    return np.append(logprobs[chosen], max(rest, SMALLEST))


def _changed(one: Side, other: Side) -> float:
    """Return on how many rows the likeliest token is another one, as a share."""
    first, second = (_likeliest(side) for side in (one, other))
    return float(np.mean(first != second))


def _likeliest(side: Side) -> npt.NDArray[np.int32]:
    return np.take_along_axis(side.tokens, side.logprobs.argmax(1)[:, None], 1)[:, 0]


def _difference(shift: Shift, resamples: int) -> PairedDifference:
    difference = shift.adapter - shift.base
    value = float(difference.mean())
    if np.ptp(difference) < RESOLUTION:  # no row differs from another one: nothing to resample
        p_value = 1.0 if value <= 0 else 0.5 ** len(difference)
        return PairedDifference(value=value, low=value, high=value, p_value=p_value, p_corrected=p_value)
    flipped = permutation_test(
        (difference,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=2000,
        alternative="greater",
        rng=np.random.default_rng(0),
    )
    drawn = bootstrap(
        (difference,), _mean, n_resamples=DRAWS, confidence_level=CONFIDENCE, rng=np.random.default_rng(0)
    ).confidence_interval
    p_value = float(flipped.pvalue)
    low, high = (value if np.isnan(bound) else float(bound) for bound in drawn)
    return PairedDifference(value=value, low=low, high=high, p_value=p_value, p_corrected=p_value)


def _mean(values: Floats, axis: int = -1) -> Floats:
    return np.asarray(values.mean(axis=axis))


def _metric(name: DriftMetricName, shift: Shift, found: PairedDifference) -> DriftMetric:
    def rounded(value: float) -> float:
        return round(float(value), DIGITS)

    return DriftMetric(
        name=name,
        adapter=rounded(shift.adapter.mean()),
        base=rounded(shift.base.mean()),
        difference=rounded(found.value),
        low=rounded(found.low),
        high=rounded(found.high),
        p_value=found.p_value,
        p_corrected=found.p_corrected,
        least=shift.least,
        beside_base=rounded(shift.beside_base.mean()),
        changed=shift.changed,
        is_judged=shift.is_judged,
    )
