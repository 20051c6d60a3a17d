"""The rules of a look at a canary once more, over all requests at once: plain, slow, and with nothing kept."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.canary import LAG_SECONDS, SLOW, CanaryRequest, Look
from lora_ops.rollout.guardrails import P95, Shown
from lora_ops.rollout.quantile_sequence import QuantileComparison
from lora_ops.rollout.sample_ratio import Phase, sample_ratio
from lora_ops.rollout.sequential import DifferenceSequence, excess_margin, relative_excess
from lora_ops.rollout.units import KeyShare, Unit
from lora_ops.rollout.verdicts import Guardrail, by_whom, verdict

Named = tuple[str, CanaryRequest]  # with the name of the request's unit


def plain_look(
    plan: RolloutPlan,
    requests: Sequence[CanaryRequest],
    now: datetime,
    since: datetime,
    waiting: datetime | None,
) -> Look:
    """Return what `look` must find; an answer counts as insulting from 0.5."""
    until, window = now.timestamp() - LAG_SECONDS, plan.canary.window_seconds
    told = [one for one in requests if one.at >= since and one.at.timestamp() <= until]
    told = [one for one in told if not (one.says_nothing or (plan.is_alone and one.status in (400, 413)))]
    named = sorted(((_name(plan, one, since, waiting), one) for one in told), key=lambda it: (it[1].at, it[0]))
    assigned = _closed(named, lambda one: 0.0, until, window)
    counting, left_out, keys = _by_key(named, plan.key_percent)
    named = [it for it in named if it[0] in counting]

    def is_own(one: CanaryRequest) -> bool:
        ours = (
            (plan.adapter, plan.content_digest) if one.arm == "canary" else (plan.against, plan.against_digest)
        )
        return 200 <= one.status < 300 and (one.adapter, one.digest) == ours

    def is_theirs(one: CanaryRequest) -> bool:
        return one.arm == "control" and (one.adapter, one.digest) != (plan.against, plan.against_digest)

    errors = [it for it in named if not (it[1].is_loading or is_theirs(it[1]))]
    own = [it for it in named if is_own(it[1])]
    scored = [it for it in own if it[1].insults is not None]
    searched = [it for it in own if it[1].identifiers is not None]
    tasks = [it for it in own if it[1].is_task is not None]
    margins = plan.margins
    failed = _closed(errors, lambda one: float(not is_own(one)), until, window)
    shares = [
        ("errors", margins.errors, failed),
        (
            "insults",
            margins.insults,
            _closed(scored, lambda one: float((one.insults or 0) >= 0.5 and not one.is_label), until, window),
        ),
        (
            "identifiers",
            margins.identifiers,
            _closed(searched, lambda one: float(bool(one.identifiers)), until, window),
        ),
    ]
    if tasks:
        shares.append(("task", margins.task, _closed(tasks, lambda one: float(not one.is_task), until, window)))
    if plan.is_alone:
        limit = plan.canary.first_p95_seconds
        slow = _closed(own, lambda one: float(one.seconds > limit), until, window, first=True)
        shares.append((SLOW, 1 - P95, slow))
    tested, shown = dict[str, Guardrail](), []
    for name, margin, units in shares:
        test = DifferenceSequence(margin, plan.alpha)
        ours, theirs = _values(units, "canary"), _values(units, "control")
        test.add(ours if plan.is_alone else [a - b for a, b in zip(ours, theirs, strict=False)])
        tested[name] = test
        shown.append(_shown(name, ours, theirs, test))
    if not plan.is_alone:
        units = _closed(own, lambda one: float(one.tokens), until, window)
        ours, theirs = _values(units, "canary"), _values(units, "control")
        tokens = DifferenceSequence(excess_margin(margins.tokens), plan.alpha)
        tokens.add(relative_excess(a, b) for a, b in zip(ours, theirs, strict=False))
        units = _closed(own, lambda one: one.seconds, until, window, first=True)
        p95 = QuantileComparison(P95, margins.p95_latency, plan.alpha)
        p95.add(_values(units, "canary"), _values(units, "control"))
        tested |= {"tokens": tokens, "P95 latency": p95}
        of_arms = (p95.candidate.estimate, p95.baseline.estimate)
        shown.append(_shown("tokens", ours, theirs, tokens))
        shown.append(
            Shown("P95 latency", *of_arms, p95.ratio, 1 + p95.margin, p95.breach, p95.non_inferior, p95.count)
        )
    edge = waiting.timestamp() + window if waiting else math.inf
    few, many = (
        [one for one in assigned if one.closed_at < edge],
        [one for one in assigned if one.closed_at >= edge],
    )
    last = plan.canary.waiting / 100
    phases = [
        Phase([len(_values(units, arm)) for arm in ("canary", "control")], shared)
        for units, shared in ((few, (0.5, 0.5)), (many, (last, 1 - last)))
        if units
    ]
    ratio = sample_ratio([] if plan.is_alone else phases)
    found = verdict(
        tested,
        alpha=plan.alpha,
        least_users=plan.canary.users,
        users_per_hour=_per_hour(failed, until, ("canary",) if plan.is_alone else ("canary", "control")),
        ratio=None if plan.is_alone else ratio,
    )
    users = [len(_values(failed, arm)) for arm in ("canary", "control")]
    return Look(by_whom(found, _share(plan, left_out, keys)), tuple(shown), users[0], users[1], ratio)


def _name(plan: RolloutPlan, one: CanaryRequest, since: datetime, waiting: datetime | None) -> str:
    begun, phase = (waiting, "waiting") if waiting and one.at >= waiting else (since, "steps")
    return f"{one.unit} {phase} {int((one.at - begun).total_seconds() / 3600 // plan.canary.period_hours)}"


def _by_key(named: Sequence[Named], most: float) -> tuple[set[str], int, Counter[str | None]]:
    firsts: dict[str, CanaryRequest] = {}
    for name, one in named:
        firsts.setdefault(name, one)
    counted, arms, kept = Counter[tuple[str, str | None]](), Counter[str](), set()
    for name, one in firsts.items():
        if counted[one.arm, one.key] + 1 <= math.ceil(most / 100 * (arms[one.arm] + 1)):
            counted[one.arm, one.key] += 1
            arms[one.arm] += 1
            kept.add(name)
    return kept, len(firsts) - len(kept), Counter(one.key for one in firsts.values())


def _share(plan: RolloutPlan, left_out: int, keys: Counter[str | None]) -> KeyShare:
    if not keys:
        return KeyShare(0, "")
    key, many = keys.most_common(1)[0]
    if many / keys.total() <= 0.5 and not left_out:
        return KeyShare(0, "")
    by = f"one key ({key})" if key else "a gateway without keys"
    said = f"{many / keys.total():.0%} of the units come by {by}"
    if left_out:
        said += f"; {left_out} don't count: a key may bring {plan.key_percent:g} % (rollout.key_percent)"
    return KeyShare(left_out, said)


def _closed(
    named: Sequence[Named],
    value: Callable[[CanaryRequest], float],
    until: float,
    window: float,
    *,
    first: bool = False,
) -> list[Unit]:
    users: dict[str, list[CanaryRequest]] = {}
    for name, one in named:
        seen = users.setdefault(name, [])
        if not seen or (one.at.timestamp() <= seen[0].at.timestamp() + window and one.arm == seen[0].arm):
            seen.append(one)
    units = []
    for name, seen in users.items():
        closes = seen[0].at.timestamp() + window
        values = [value(one) for one in (seen[:1] if first else seen)]
        if closes <= until:
            units.append(Unit(closes, name, seen[0].arm, math.fsum(values) / len(values)))
    return sorted(units)


def _values(units: Sequence[Unit], arm: str) -> list[float]:
    return [one.value for one in units if one.arm == arm]


def _shown(name: str, ours: Sequence[float], theirs: Sequence[float], test: DifferenceSequence) -> Shown:
    canary, control = (sum(values) / len(values) if values else None for values in (ours, theirs))
    return Shown(name, canary, control, test.interval, test.margin, test.breach, test.non_inferior, test.count)


def _per_hour(units: Sequence[Unit], until: float, arms: Sequence[str]) -> float:
    lately = [one for one in units if one.closed_at > until - 3600]
    if not lately:
        return 0.0
    hours = max((until - min(one.closed_at for one in units)) / 3600, 1 / 60)
    return min(len(_values(lately, arm)) for arm in arms) / min(1.0, hours)
