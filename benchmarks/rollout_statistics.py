"""The parts of `rollout.py` that simulate decisions: each run is one rollout whose truth is known.

Every user sends one request, which fails or not. Pair i is the i-th new user of the canary and of the control
group. Each method looks after each pair, or at each interval as its documentation has it.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.table import Table
from scipy.special import ndtr, ndtri

from lora_ops.rollout.bets import FRACTIONS, Bets
from lora_ops.rollout.quantile_sequence import QuantileComparison

Floats = npt.NDArray[np.float64]

ALPHA, POWER = 0.05, 0.8
MARGIN = 0.02
PAIRS = 4000
NEVER = np.iinfo(np.int64).max
BURN_IN = 100  # pairs before the test that is looked at too often begins, to its advantage
PER_MINUTE = 20  # canary requests a minute, where a rule counts minutes
RULES = (
    f"Argo and Flagger: examples of their documentation, the canary gets {PER_MINUTE} requests a minute; "
    "Argo's analysis ends after 600, Flagger's after 200 to 380"
)


class Errors(NamedTuple):
    """Failed requests of canary and control, (pairs, runs), 1 where one failed."""

    canary: Floats
    control: Floats


def sequential_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `sequential`."""
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--pairs", type=int, default=PAIRS, help="of canary and control, in each run")


def bets_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `bets`."""
    parser.add_argument("--runs", type=int, default=400)


def sequential(given: argparse.Namespace) -> Iterator[Table]:
    """Yield false alarms of equal versions, pairs until a fault is found, and pairs until a version passes."""
    yield false_alarms(given.runs, given.pairs)
    yield detections(given.runs, given.pairs)
    yield passes(given.runs, given.pairs)
    yield quantiles(max(1, given.runs // 10))


def bets(given: argparse.Namespace) -> Iterator[Table]:
    """Yield the median pairs that our bets need beside others."""
    methods: dict[str, Callable[[Floats, float], Floats]] = {
        "ours": lambda drawn, mean: _ours(drawn, mean, side=0),
        "without restarts": fixed_bets,
        "plug-in c=1/2": lambda drawn, mean: plug_in(drawn, mean, 0.5),
        "plug-in c=3/4": lambda drawn, mean: plug_in(drawn, mean, 0.75),
    }
    title = f"median pairs (80 % of runs) until worse by more than the margin, {given.runs} runs"
    table = Table("errors", "margin", *methods, title=title)
    for name, rates, margin in (
        ("2 % : 6 %", _rates(0.06, 6000), 0.02),
        ("2 % : 6 %", _rates(0.06, 6000), 0.0),
        ("2 % : 20 %", _rates(0.2, 1000), 0.02),
        ("2 % : 100 %", _rates(1.0, 200), 0.02),
        ("2 % : 2 %, after 500 pairs 20 %", _rates(0.2, 3000, 500), 0.02),
        ("2 % : 2 %, after 2,000 pairs 20 %", _rates(0.2, 6000, 2000), 0.02),
        ("2 % : 2 %, after 2,000 pairs 6 %", _rates(0.06, 9000, 2000), 0.02),
    ):
        errors = drawn_errors(np.random.default_rng(3), given.runs, rates, np.full(len(rates), 0.02))
        change = int(np.argmax(rates > 0.02))
        cells = []
        for method in methods.values():
            times = method((errors.canary - errors.control + 1) / 2, (1 + margin) / 2)
            cells.append(_spread(np.where(times == NEVER, NEVER, times - change)))
        table.add_row(name, f"{margin:g}", *cells)
    yield table


def false_alarms(runs: int, pairs: int) -> Table:
    """How often each method rolls back a version that is equal to the one in production."""
    title = f"share of {runs} runs in which an equal version is rolled back within {pairs} pairs, alpha {ALPHA}"
    table = Table("errors of both versions", *METHODS, title=title, caption=RULES)
    burst = np.full(pairs, 0.02)
    burst[100 : 100 + 15 * PER_MINUTE] = 0.2
    for name, rates in (
        ("0.5 %", np.full(pairs, 0.005)),
        ("2 %", np.full(pairs, 0.02)),
        ("4 %", np.full(pairs, 0.04)),
        ("10 %", np.full(pairs, 0.1)),
        ("2 %, 20 % in 15 minutes", burst),
    ):
        errors = drawn_errors(np.random.default_rng(1), runs, rates, rates)
        shares = [f"{(found(errors) != NEVER).mean():.3f}" for found in METHODS.values()]
        table.add_row(name, *shares)
    return table


def detections(runs: int, pairs: int) -> Table:
    """How many pairs each method needs until it rolls a worse version back."""
    title = f"worse versions, control 2 %: share rolled back, pairs until then: median (80 % of {runs} runs)"
    shown = [name for name in METHODS if not name.startswith("z-test")]
    planned = ("test planned for 6 %", "test planned for this effect")
    table = Table(
        "canary's errors", *shown, *planned, title=title, caption=f"{RULES}; planned: power {POWER:g}"
    )
    fixed = planned_pairs(0.02, 0.06)
    for name, worse, change in (
        ("4 %", 0.04, 0),
        ("6 %", 0.06, 0),
        ("10 %", 0.1, 0),
        ("20 %", 0.2, 0),
        ("50 %", 0.5, 0),
        ("100 %", 1.0, 0),
        ("2 %, after 1,000 pairs 20 %", 0.2, 1000),
    ):
        rates = _rates(worse, pairs, change)
        errors = drawn_errors(np.random.default_rng(2), runs, rates, np.full(pairs, 0.02))
        cells = []
        for method in shown:
            times = METHODS[method](errors)
            times = np.where(times == NEVER, NEVER, times - change)
            share = ((times > 0) & (times != NEVER)).mean()
            cells.append(f"{share:.0%}: {_spread(times)}")
        if change:
            cells += ["ended before", ""]
        else:
            share = found_by(fixed, 0.02, worse)
            cells += [f"{share:.0%}: {fixed}", str(planned_pairs(0.02, worse))]
        table.add_row(name, *cells)
    return table


def passes(runs: int, pairs: int) -> Table:
    """How many pairs an equal version needs until it is shown not to be worse by the margin."""
    title = f"pairs until an equal version may advance: median (80 % of runs), {runs} runs"
    table = Table("errors of both", "margin", "ours", f"planned test, power {POWER:g}", title=title)
    for rate, margin in ((0.005, 0.02), (0.02, 0.02), (0.02, 0.05), (0.1, 0.05)):
        rates = np.full(pairs, rate)
        errors = drawn_errors(np.random.default_rng(4), runs, rates, rates)
        times = _ours((errors.canary - errors.control + 1) / 2, (1 + margin) / 2, side=1)
        variance = 2 * rate * (1 - rate)
        planned = math.ceil((ndtri(1 - ALPHA) + ndtri(POWER)) ** 2 * variance / margin**2)
        table.add_row(f"{rate:.1%}", f"{margin:g}", _spread(times), str(planned))
    return table


def quantiles(runs: int) -> Table:
    """How often and when the P95 of a version is found to be slower by more than 10 %."""
    pairs, step = 2000, 50
    title = f"P95 of latency (lognormal, sigma 0.5), margin 10 %, a look each {step} pairs, {runs} runs"
    table = Table("canary slower by", "rolled back", "pairs: median (80 % of runs)", title=title)
    for slower in (0.0, 0.1, 0.3, 0.5, 1.0):
        generator = np.random.default_rng(5)
        times = []
        for _ in range(runs):
            comparison = QuantileComparison(0.95, 0.1, ALPHA)
            while comparison.count < pairs and comparison.breach < 1 / ALPHA:
                drawn = generator.lognormal(0, 0.5, (2, step))
                comparison.add((1 + slower) * drawn[0], drawn[1])
            times.append(comparison.count if comparison.breach >= 1 / ALPHA else NEVER)
        found = np.array(times)
        table.add_row(f"{slower:.0%}", f"{(found != NEVER).mean():.3f}", _spread(found))
    return table


def drawn_errors(generator: np.random.Generator, runs: int, canary: Floats, control: Floats) -> Errors:
    """Return failed requests by the error rates (pairs,) of both arms."""
    shape = (len(canary), runs)
    return Errors(
        (generator.random(shape) < canary[:, None]).astype(float),
        (generator.random(shape) < control[:, None]).astype(float),
    )


def ours(errors: Errors, margin: float) -> npt.NDArray[np.int64]:
    """Return the pairs (runs,) after which the canary is shown to be worse by more than the margin."""
    return _ours((errors.canary - errors.control + 1) / 2, (1 + margin) / 2, side=0)


def tested_each_look(errors: Errors) -> npt.NDArray[np.int64]:
    """Return when the z-test of two proportions first has a one-sided p-value below alpha."""
    seen = np.arange(1, len(errors.canary) + 1)[:, None]
    p_values = _z_test(errors.canary.cumsum(axis=0), errors.control.cumsum(axis=0), seen)
    p_values[:BURN_IN] = 1
    return _first(p_values < ALPHA)


def tested_once(errors: Errors) -> npt.NDArray[np.int64]:
    """Return the last pair where the z-test, looked at there alone, has a p-value below alpha."""
    pairs = len(errors.canary)
    rejected = _z_test(errors.canary.sum(axis=0), errors.control.sum(axis=0), np.array(pairs)) < ALPHA
    return np.where(rejected, pairs, NEVER)


def argo(errors: Errors) -> npt.NDArray[np.int64]:
    """Return when Argo Rollouts aborts by the example of its documentation.

    docs/features/analysis.md, background analysis: a success rate measured at 5 minute intervals. "If the
    metric is measured to be less than 95%, and there are three such measurements, the analysis is considered
    Failed." It begins with the second of four steps of 10 minutes, so that there are six measurements.
    """
    failed = _failed_intervals(errors.canary, 5 * PER_MINUTE, most=0.05)[:6]
    times = _first(failed.cumsum(axis=0) >= 3)
    return np.where(times == NEVER, NEVER, times * 5 * PER_MINUTE)


def flagger(errors: Errors) -> npt.NDArray[np.int64]:
    """Return when Flagger rolls back by the example of its documentation.

    usage/how-it-works: `interval: 1m`, `threshold: 10` ("max number of failed metric checks before rollback"),
    and a `request-success-rate` of at least 99 %. Each check that passes adds a `stepWeight` of 5 %. The
    version is promoted at a `maxWeight` of 50 %, after ten of them.
    """
    failed = _failed_intervals(errors.canary, PER_MINUTE, most=0.01)
    times = _first(failed.cumsum(axis=0) >= 10)
    promoted = _first((~failed).cumsum(axis=0) >= 10)
    return np.where((times == NEVER) | (promoted < times), NEVER, times * PER_MINUTE)


METHODS: dict[str, Callable[[Errors], npt.NDArray[np.int64]]] = {
    f"ours, margin {MARGIN:g}, each look": lambda errors: ours(errors, MARGIN),
    "ours, margin 0, each look": lambda errors: ours(errors, 0.0),
    "z-test, each look": tested_each_look,
    "z-test, at the end": tested_once,
    "Argo's example": argo,
    "Flagger's example": flagger,
}


def fixed_bets(drawn: Floats, mean: float) -> npt.NDArray[np.int64]:
    """Return when our bets reach 1 / alpha if none of the capital is held back."""
    logs = np.stack([np.log(1 - f + f * drawn / mean).cumsum(axis=0) for f in FRACTIONS.tolist()])
    return _first(np.logaddexp.reduce(logs, axis=0) - math.log(len(FRACTIONS)) >= math.log(1 / ALPHA))


def plug_in(drawn: Floats, mean: float, c: float) -> npt.NDArray[np.int64]:
    """Return when the predictable plug-in bets reach 1 / alpha (Waudby-Smith and Ramdas, 2023, section 4)."""
    seen = np.arange(1, len(drawn) + 1)[:, None]
    means = (0.5 + drawn.cumsum(axis=0)) / (seen + 1)
    variances = (0.25 + np.square(drawn - means).cumsum(axis=0)) / (seen + 1)
    before = np.vstack([np.full((1, drawn.shape[1]), 0.25), variances[:-1]])
    stakes = np.minimum(np.sqrt(2 * math.log(2 / ALPHA) / (before * seen * np.log(seen + 1))), c / mean)
    return _first(np.log1p(stakes * (drawn - mean)).cumsum(axis=0) >= math.log(1 / ALPHA))


def planned_pairs(control: float, canary: float) -> int:
    """Return how many pairs a planned z-test of two proportions needs, one-sided (Fleiss, 1981, chapter 3)."""
    middle = (control + canary) / 2
    under = ndtri(1 - ALPHA) * math.sqrt(2 * middle * (1 - middle))
    over = ndtri(POWER) * math.sqrt(control * (1 - control) + canary * (1 - canary))
    return math.ceil(((under + over) / (canary - control)) ** 2)


def found_by(pairs: int, control: float, canary: float) -> float:
    """Return the power of that test with so many pairs."""
    middle = (control + canary) / 2
    under = ndtri(1 - ALPHA) * math.sqrt(2 * middle * (1 - middle))
    over = math.sqrt(control * (1 - control) + canary * (1 - canary))
    return float(ndtr((math.sqrt(pairs) * (canary - control) - under) / over))


def _ours(drawn: Floats, mean: float, side: int) -> npt.NDArray[np.int64]:
    """Return when the bets on one side reach 1 / alpha, for observations (pairs, runs); a look after each."""
    running = Bets([mean] * drawn.shape[1])
    times = np.full(drawn.shape[1], NEVER)
    for place, row in enumerate(drawn, start=1):
        running.add(row[None])
        times[(running.value[side] >= 1 / ALPHA) & (times == NEVER)] = place
    return times


def _failed_intervals(canary: Floats, interval: int, most: float) -> npt.NDArray[np.bool_]:
    """Return which intervals (intervals, runs) had an error rate above `most`, a constant."""
    whole = len(canary) // interval * interval
    return np.asarray(canary[:whole].reshape(-1, interval, canary.shape[1]).mean(axis=1) > most)


def _z_test(canary: Floats, control: Floats, seen: npt.NDArray[np.int64]) -> Floats:
    """Return one-sided p-values of "the canary fails more often", by pooled variance."""
    pooled = (canary + control) / (2 * seen)
    spread = np.sqrt(2 * pooled * (1 - pooled) / seen)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(spread > 0, 1 - ndtr((canary - control) / seen / spread), 1.0), float)


def _first(hit: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return the place, from 1, of the first hit of each run (places, runs), or `NEVER`."""
    return np.where(hit.any(axis=0), hit.argmax(axis=0) + 1, NEVER)


def _rates(worse: float, pairs: int, change: int = 0) -> Floats:
    """Return the canary's error rates: 2 % for `change` pairs, then worse."""
    rates = np.full(pairs, worse)
    rates[:change] = 0.02
    return rates


def _spread(times: Iterable[int]) -> str:
    """Return the median and the 80 % quantile; "never" where so many runs found nothing.

    Times of 0 or less are alarms before the version got worse.
    """
    found = np.sort(np.asarray(list(times)))
    median, most = (int(found[math.ceil(share * len(found)) - 1]) for share in (0.5, POWER))
    return f"{'never' if median == NEVER else median} ({'never' if most == NEVER else most})"
