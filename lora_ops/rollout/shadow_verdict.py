"""What the pairs of a version in shadow say: each metric beside production's, and whether it goes on.

A pair is one request that both versions answered, so that each metric is a difference within a request. One
unit is one user or session a period, however many requests it sends. Requests that name nobody are one unit for
each key and minute (`units.py`).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Literal, NamedTuple

from lora_ops.records.rollout import RolloutPlan
from lora_ops.registry.store import Registry
from lora_ops.rollout.sequential import (
    BettingSequence,
    Bounds,
    DifferenceSequence,
    excess_margin,
    relative_excess,
)
from lora_ops.rollout.units import KeyShare, Observation, Opening, by_key, closed_units, in_period, of_key
from lora_ops.rollout.verdicts import Guardrail, Verdict, by_whom, verdict
from lora_ops.settings.rollout import RolloutSettings

if TYPE_CHECKING:
    import pandas as pd

SHADOW = "shadow"
HOUR = 3600.0
LAG_SECONDS = 15.0
"""A pair is judged and written within this time; what is younger is looked at the next time."""
MOST_MISSING = 0.1
"""Of the pairs: if more are missing, those that are there may be others than those that are not."""

MetricVerdict = Literal["non-inferior", "breach", "undecided", "not judged"]


class PairMetric(NamedTuple):
    """One metric as people read it.

    Attributes:
        production, shadow: means over the pairs; None without any.
        difference: interval of shadow less production at every look; None where nothing is tested.
        margin: how much worse is allowed, on the scale of `difference`.
        units: users or requests that it has.
        breach, non_inferior: e-values for "worse by more than the margin" and "not worse by it"; None where
            nothing is tested.
        more_is_better: the version is worse where the difference is negative.
    """

    name: str
    production: float | None
    shadow: float | None
    difference: Bounds | None
    margin: float | None
    verdict: MetricVerdict
    units: int
    breach: float | None = None
    non_inferior: float | None = None
    more_is_better: bool = False


class ShadowLook(NamedTuple):
    """What all pairs up to now say.

    Attributes:
        answered, failed, preempted: pairs by what became of the copy. Those that gave way to clients each time
            don't count; many of them mean that long answers are missing.
        unscored: answered pairs that nobody could judge.
        hours: clock hours with at least one answered pair.
        replayed: whether these are pairs of replayed requests.
        keys: which part came by the busiest API key, in words; empty where no key has most.
    """

    verdict: Verdict
    metrics: tuple[PairMetric, ...]
    answered: int
    failed: int
    preempted: int
    unscored: int
    units: int
    hours: int
    first_at: datetime | None
    last_at: datetime | None
    replayed: bool
    keys: str = ""


def look_at_pairs(
    plan: RolloutPlan,
    pairs: "pd.DataFrame",
    *,
    now: datetime,
    since: datetime | None = None,
    replayed: bool = False,
) -> ShadowLook:
    """Judge a version in shadow; asked as often as anybody likes.

    Args:
        plan: of the rollout: margins, alpha, and how many pairs in how many hours are needed.
        pairs: as `read_pairs` gives them; those of other content than the plan's don't count.
        now: the time of the look.
        since: when the rollout began; None: every pair counts.
        replayed: look at replayed pairs, and at no others. They are made at once, so that no hours are needed.

    Raises:
        ValueError: a pair's score is out of range.
    """
    counted = pairs[
        (pairs["shadow_digest"] == plan.content_digest)
        & (pairs["production_digest"] == plan.against_digest)
        & (pairs["replayed"].astype(bool) == replayed)
    ]
    if since is not None and len(counted):
        counted = counted[counted["time"] >= since]
    counted, keys = _by_units(plan, counted, since, replayed=replayed)
    answered = counted[counted["status"] == "answered"]
    tried = counted[counted["status"].isin(("answered", "failed"))]
    window = plan.canary.window_seconds
    until = inf if replayed else now.timestamp() - LAG_SECONDS
    judged = answered.dropna(subset=["production_task", "shadow_task"])
    tested: dict[str, Guardrail] = {}
    metrics = []
    for metric in _tested(plan, tried, answered, judged):
        test = DifferenceSequence(metric.margin, plan.alpha)
        test.add(_units(metric.rows, metric.worse, until, window))
        tested[metric.name] = test
        metrics.append(_shown(metric, test, plan.alpha))
    agreement = BettingSequence(plan.alpha)
    agreement.add(_units(judged, judged["agreement"], until, window))
    metrics.append(
        PairMetric(
            "agreement",
            None,
            _mean(judged["agreement"]),
            agreement.interval,
            None,
            "not judged",
            agreement.count,
        )
    )
    if judged["similarity"].notna().any():
        metrics.append(
            PairMetric("chrF", None, _mean(judged["similarity"]), None, None, "not judged", len(judged))
        )
    # The shadow version answers in idle slots, so that its times are of other minutes than production's.
    seconds = [_p95(answered[f"{who}_seconds"]) for who in ("production", "shadow")]
    metrics.append(PairMetric("P95 latency", seconds[0], seconds[1], None, None, "not judged", len(answered)))
    hours = len({int(at.timestamp() // HOUR) for at in answered["time"]})
    errors = tested["errors"]
    found = verdict(
        tested,
        alpha=plan.alpha,
        least_users=1,
        users_per_hour=errors.count / hours if hours else 0.0,
        unit="requests",
    )
    preempted = int((counted["status"] == "preempted").sum())
    unscored = len(answered) - len(judged)
    gone = _gone(preempted, len(tried), unscored)
    return ShadowLook(
        by_whom(_with_minimum(found, plan, len(answered), None if replayed else hours, gone), keys),
        tuple(metrics),
        len(answered),
        len(tried) - len(answered),
        preempted,
        unscored,
        errors.count,
        hours,
        answered["time"].min().to_pydatetime() if len(answered) else None,
        answered["time"].max().to_pydatetime() if len(answered) else None,
        replayed,
        keys.said,
    )


def _by_units(
    plan: RolloutPlan, pairs: "pd.DataFrame", since: datetime | None, *, replayed: bool
) -> tuple["pd.DataFrame", KeyShare]:
    """Return the pairs with the names of their units, without those beyond their key's part.

    A replayed row is the same whenever it is replayed, and nobody's: it counts once.
    """
    if replayed or pairs.empty:
        return pairs, KeyShare(0, "")
    begun = since or pairs["time"].min()
    names = [
        in_period(unit, at, begun, plan.canary.period_hours) if is_named else of_key(unit, at)
        for unit, at, is_named in zip(pairs["unit"], pairs["time"], _named(pairs), strict=True)
    ]
    counted, keys = by_key(
        (
            Opening(at.timestamp(), name, SHADOW, key if isinstance(key, str) else None)
            for name, at, key in zip(names, pairs["time"], pairs["key"], strict=True)
        ),
        plan.key_percent,
    )
    pairs = pairs.assign(unit=names)
    return pairs[pairs["unit"].isin(counted)], keys


def _named(pairs: "pd.DataFrame") -> "pd.Series[bool]":
    # Pairs of earlier releases don't say it: one that named nobody was a unit of its own there.
    said = pairs["names_unit"].astype(object)
    return said.where(said.notna(), True).astype(bool)


def _gone(preempted: int, tried: int, unscored: int) -> str | None:
    """Return that so many pairs are missing that the others may be no fair sample, in words, or None."""
    copies = preempted + tried
    if preempted > MOST_MISSING * copies:
        return (
            f"{preempted} of {copies} copies gave way to clients each time, and long answers do so most: the "
            "gateway is too busy for a verdict"
        )
    if unscored > MOST_MISSING * tried:
        return f"{unscored} of {tried} pairs could not be judged: the gateway's log says why"
    return None


def _with_minimum(
    found: Verdict, plan: RolloutPlan, pairs: int, hours: int | None, gone: str | None
) -> Verdict:
    """Hold a version that is good enough and has too few pairs, pairs of too few hours, or no fair sample.

    Hours count that have a pair. An hour of traffic at both ends of a day is no day of traffic.
    """
    if found.decision != "advance":
        return found
    missing = max(0, plan.shadow.requests - pairs)
    gap = 0.0 if hours is None else max(0.0, plan.shadow.hours - hours)
    lacks = [f"{missing} more pairs"] * bool(missing) + [f"pairs in {gap:g} more hours"] * bool(gap)
    if lacks:
        of = f"{pairs} pairs" + ("" if hours is None else f" in {hours} different hours")
        text = f"no worse so far, and {' and '.join(lacks)} are needed ({of})"
        return Verdict("hold", text, users=missing, hours=gap)
    return Verdict("hold", gone) if gone else found


@dataclass(frozen=True)
class _Tested:
    """One tested metric: of which pairs, what each version has, and by how much the shadow version is worse."""

    name: str
    rows: "pd.DataFrame"
    production: "pd.Series[float]"
    shadow: "pd.Series[float]"
    margin: float
    more_is_better: bool = False
    amounts: bool = False

    @property
    def worse(self) -> list[float]:
        if self.amounts:
            return list(map(relative_excess, self.shadow, self.production))
        difference = self.shadow - self.production
        return list(-difference if self.more_is_better else difference)


def _tested(
    plan: RolloutPlan, tried: "pd.DataFrame", answered: "pd.DataFrame", judged: "pd.DataFrame"
) -> Iterator[_Tested]:
    margins = plan.margins

    def both(rows: "pd.DataFrame", name: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
        return rows[f"production_{name}"].astype(float), rows[f"shadow_{name}"].astype(float)

    # A request that production failed is copied to nobody, so that production has no errors here.
    failed = (tried["status"] == "failed").astype(float)
    yield _Tested("errors", tried, 0 * failed, failed, margins.errors)
    yield _Tested("task", judged, *both(judged, "task"), margins.task, more_is_better=True)
    for name, margin in (("insults", margins.insults), ("identifiers", margins.identifiers)):
        # An empty answer was not looked at.
        seen = judged.dropna(subset=[f"production_{name}", f"shadow_{name}"])
        yield _Tested(name, seen, *both(seen, name), margin)
    yield _Tested("tokens", answered, *both(answered, "tokens"), excess_margin(margins.tokens), amounts=True)


def _units(rows: "pd.DataFrame", values: Iterable[float], until: float, window: float) -> list[float]:
    """Return the mean of each user's pairs, in the order in which the users' windows closed."""
    observed = [
        Observation(at.timestamp(), unit, SHADOW, float(value))
        for at, unit, value in zip(rows["time"], rows["unit"], values, strict=True)
    ]
    return [one.value for one in closed_units(observed, until, window)]


def _shown(metric: _Tested, test: DifferenceSequence, alpha: float) -> PairMetric:
    said: MetricVerdict = "undecided"
    if test.breach >= 1 / alpha:
        said = "breach"
    elif test.non_inferior >= 1 / alpha:
        said = "non-inferior"
    low, high = test.interval
    return PairMetric(
        metric.name,
        _mean(metric.production),
        _mean(metric.shadow),
        Bounds(-high, -low) if metric.more_is_better else test.interval,
        test.margin,
        said,
        test.count,
        test.breach,
        test.non_inferior,
        metric.more_is_better,
    )


def _mean(values: "pd.Series[float]") -> float | None:
    return float(values.mean()) if len(values) and values.notna().any() else None


def _p95(values: "pd.Series[float]") -> float | None:
    return float(values.quantile(0.95)) if len(values) else None


def as_rows(look: ShadowLook) -> list[Mapping[str, object]]:
    """Return the metrics as rows of a table."""
    return [{**one._asdict(), "difference": one.difference and list(one.difference)} for one in look.metrics]


def settings_plan(
    registry: Registry, reference: str, settings: RolloutSettings, insult_threshold: float | None = None
) -> RolloutPlan:
    """Return what a rollout of a version that began now would ask, against production or else the base model.

    Args:
        registry: where.
        reference: which version.
        settings: `rollout` of params.yaml.
        insult_threshold: `detectors.insult_threshold` of params.yaml.

    Raises:
        LoraOpsError: there is no such version.
    """
    version = registry.get_exact(reference)
    number = registry.named(version.tenant, "production")
    base = version.manifest.base_model
    against, digest = base.id, base.sha256
    if number is not None:
        production = registry.load(version.tenant, number)
        against, digest = production.id, production.summary.content_digest
    content = version.summary.content_digest
    return RolloutPlan.of(version.id, content, against, digest, settings, insult_threshold)
