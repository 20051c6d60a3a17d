"""What the canary's users show beside the control group of the same time: guardrails and their verdict.

Where no version is in production, the others get no answer, so that they are no control group. Then the canary
is compared with one that makes no mistake, and its latency with a limit (`canary.first_p95_seconds`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal, NamedTuple

from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.quantile_sequence import QuantileComparison
from lora_ops.rollout.sample_ratio import Phase, SampleRatio, sample_ratio
from lora_ops.rollout.sequential import Bounds, DifferenceSequence, excess_margin, relative_excess
from lora_ops.rollout.units import (
    Observation,
    Opening,
    Unit,
    by_key,
    closed_units,
    in_period,
    paired_differences,
)
from lora_ops.rollout.verdicts import Guardrail, Verdict, by_whom, verdict

Arm = Literal["canary", "control"]
P95 = 0.95
SLOW = "slow answers"
"""The guardrail of latency without a control group: a P95 is within a limit where at most 5 % are slower."""
THE_CLIENTS_FAULT = (400, 413)
MAY_BE_ITS_FAULT = (*THE_CLIENTS_FAULT, 499)
"""Of the statuses below 500: bad or too long prompts, and clients that went away."""
LAG_SECONDS = 5.0
"""An event is written within this time of its answer; what is younger is looked at the next time."""


@dataclass(frozen=True)
class CanaryRequest:
    """One request of a unit in the canary or the control group, from the event log.

    Attributes:
        at: when it was answered.
        unit: a salted hash of the user, session or key that keeps its version.
        arm: what the unit was assigned to.
        adapter, digest: who answered; production does in the canary's place while that is not loaded.
        status: HTTP status.
        seconds: until the answer was whole.
        tokens: of all its answers.
        insults: the detector's score of the answer, or None where nobody scored it.
        identifiers: how many the answer has, or None.
        is_task: whether each of its answers does the task, or None where nobody checked.
        key: id of the API key; None: the gateway asks for none.
    """

    at: datetime
    unit: str
    arm: Arm
    adapter: str
    digest: str
    status: int
    seconds: float
    tokens: int
    insults: float | None = None
    identifiers: int | None = None
    is_task: bool | None = None
    key: str | None = None
    is_loading: bool = False
    """Whether production answered because the canary's adapter was being loaded."""

    @property
    def says_nothing(self) -> bool:
        """Whether the request was refused before any adapter had to do with it, such as by a rate limit.

        A client that gave up waiting is no such case, nor is a prompt that is too long: both may be the new
        version's fault, and what is not comes to both arms alike.
        """
        return 400 <= self.status < 500 and self.status not in MAY_BE_ITS_FAULT


class Shown(NamedTuple):
    """One guardrail as people read it.

    Attributes:
        canary, control: mean over the users of that arm, of latency its P95 in seconds; None without users.
        difference: interval of canary less control at every look; of latency their ratio. Without a control
            group that of the canary.
        margin: how much worse is allowed, on the scale of `difference`.
    """

    name: str
    canary: float | None
    control: float | None
    difference: Bounds
    margin: float
    breach: float
    non_inferior: float
    users: int


TITLES = {"task": "task missed"}
"""What tables call a guardrail: a shadow has the share that did its task, a canary the share that did not."""


class Look(NamedTuple):
    """What all requests up to now say."""

    verdict: Verdict
    guardrails: tuple[Shown, ...]
    canary_users: int
    control_users: int
    ratio: SampleRatio


def look(
    plan: RolloutPlan,
    requests: Iterable[CanaryRequest],
    *,
    now: datetime,
    since: datetime,
    waiting_since: datetime | None = None,
    insults_from: float = 0.5,
) -> Look:
    """Judge the canary; asked as often as anybody likes.

    Args:
        plan: of the rollout.
        requests: of both arms since the canary began, in any order.
        now: the time of the look.
        since: when the canary's first step began; periods are counted from there.
        waiting_since: since when approvals are awaited and the control group is small; None: they are not.
        insults_from: score from which an answer counts as insulting.

    Raises:
        ValueError: a request's time or value is not a number.
    """
    window = plan.canary.window_seconds
    until = now.timestamp() - LAG_SECONDS
    counted = [
        replace(one, unit=_of_period(plan, one, since, waiting_since))
        for one in requests
        if _says_something(plan, one) and one.at >= since and one.at.timestamp() <= until
    ]
    assigned = closed_units(_observed(counted, lambda one: 0.0), until, window)
    ratio = sample_ratio([]) if plan.is_alone else _ratio(plan, assigned, window, waiting_since)
    # After the check of the assignment, which is about everybody.
    keys = by_key(
        (Opening(one.at.timestamp(), one.unit, one.arm, one.key) for one in counted), plan.key_percent
    )
    counted = [one for one in counted if one.unit in keys.units]
    # Each gateway loads a canary once. It is no error, and no evidence that there are none. Nor is an answer of
    # another version to the control group: as errors they would hide those of the canary.
    told = [one for one in counted if not (one.is_loading or _is_of_others(plan, one))]
    failed = closed_units(_errors(plan, told), until, window)
    answered = [one for one in counted if _is_own(plan, one)]
    shown, tested = [], dict[str, Guardrail]()
    for name, margin, units in _shares(plan, answered, failed, until, window, insults_from):
        test = DifferenceSequence(margin, plan.alpha)
        if plan.is_alone:
            test.add(_values(units, "canary"))
        else:
            test.add(paired_differences(units, "canary", "control"))
        tested[name] = test
        shown.append(_shown(name, units, test.interval, margin, test))
    if not plan.is_alone:
        for name, amount, one in _amounts(plan, answered, until, window):
            tested[name] = amount
            shown.append(one)
    found = verdict(
        tested,
        alpha=plan.alpha,
        least_users=plan.canary.users,
        users_per_hour=_per_hour(plan, failed, until),
        ratio=None if plan.is_alone else ratio,
    )
    found = by_whom(found, keys)
    return Look(found, tuple(shown), len(_values(failed, "canary")), len(_values(failed, "control")), ratio)


def _amounts(
    plan: RolloutPlan, answered: Sequence[CanaryRequest], until: float, window: float
) -> Iterator[tuple[str, Guardrail, Shown]]:
    """Yield the guardrails that compare amounts with those of the control group: tokens and latency."""
    tokens = closed_units(_observed(answered, lambda one: float(one.tokens)), until, window)
    excess = DifferenceSequence(excess_margin(plan.margins.tokens), plan.alpha)
    excess.add(map(relative_excess, *_partners(tokens)))
    yield "tokens", excess, _shown("tokens", tokens, excess.interval, excess.margin, excess)
    first = closed_units(_observed(answered, lambda one: one.seconds), until, window, "first")
    latency = QuantileComparison(P95, plan.margins.p95_latency, plan.alpha)
    latency.add(_values(first, "canary"), _values(first, "control"))
    shown = Shown(
        "P95 latency",
        latency.candidate.estimate,
        latency.baseline.estimate,
        latency.ratio,
        1 + plan.margins.p95_latency,
        latency.breach,
        latency.non_inferior,
        latency.count,
    )
    yield shown.name, latency, shown


def _of_period(
    plan: RolloutPlan, request: CanaryRequest, since: datetime, waiting_since: datetime | None
) -> str:
    """Return a unit's name in the period of a request; where the shares change, a period ends, too."""
    waits = waiting_since is not None and request.at >= waiting_since
    begun = waiting_since if waits and waiting_since else since
    return in_period(
        f"{request.unit} {'waiting' if waits else 'steps'}", request.at, begun, plan.canary.period_hours
    )


def _says_something(plan: RolloutPlan, request: CanaryRequest) -> bool:
    # What a client got wrong comes to both arms alike. Without a control group it would be the canary's fault.
    return not (request.says_nothing or (plan.is_alone and request.status in THE_CLIENTS_FAULT))


def _is_own(plan: RolloutPlan, request: CanaryRequest) -> bool:
    """Whether the version of its arm gave the answer, and not another one in its place or under its name."""
    if not 200 <= request.status < 300:
        return False
    if request.arm == "canary":
        return (request.adapter, request.digest) == (plan.adapter, plan.content_digest)
    return (request.adapter, request.digest) == (plan.against, plan.against_digest)


def _is_of_others(plan: RolloutPlan, request: CanaryRequest) -> bool:
    """Whether the control group was answered by another version than the one that is compared with."""
    compared = (plan.against, plan.against_digest)
    return request.arm == "control" and (request.adapter, request.digest) != compared


def _errors(plan: RolloutPlan, requests: Sequence[CanaryRequest]) -> list[Observation]:
    # A canary that can't be loaded gives its users no error, since production answers them. It is one here.
    return _observed(requests, lambda one: 0.0 if _is_own(plan, one) else 1.0)


def _shares(
    plan: RolloutPlan,
    answered: Sequence[CanaryRequest],
    failed: list[Unit],
    until: float,
    window: float,
    insults_from: float,
) -> Iterator[tuple[str, float, list[Unit]]]:
    """Yield name, margin and units of each guardrail that is a share of a user's requests."""
    yield "errors", plan.margins.errors, failed
    scored = [one for one in answered if one.insults is not None and one.identifiers is not None]
    insults = _observed(scored, lambda one: float((one.insults or 0.0) >= insults_from))
    yield "insults", plan.margins.insults, closed_units(insults, until, window)
    identifiers = _observed(scored, lambda one: float(bool(one.identifiers)))
    yield "identifiers", plan.margins.identifiers, closed_units(identifiers, until, window)
    tasks = [one for one in answered if one.is_task is not None]
    if tasks:  # requests with tools have no such check, nor have events of earlier releases
        missed = _observed(tasks, lambda one: float(not one.is_task))
        yield "task", plan.margins.task, closed_units(missed, until, window)
    if plan.is_alone:
        slow = _observed(answered, lambda one: float(one.seconds > plan.canary.first_p95_seconds))
        yield SLOW, 1 - P95, closed_units(slow, until, window, "first")


def _observed(requests: Iterable[CanaryRequest], value: Callable[[CanaryRequest], float]) -> list[Observation]:
    return [Observation(one.at.timestamp(), one.unit, one.arm, value(one)) for one in requests]


def _partners(units: Sequence[Unit]) -> tuple[list[float], list[float]]:
    """Return the values of the i-th units of both arms; what has no partner yet is left out."""
    ours, theirs = _values(units, "canary"), _values(units, "control")
    both = min(len(ours), len(theirs))
    return ours[:both], theirs[:both]


def _values(units: Iterable[Unit], arm: Arm) -> list[float]:
    return [one.value for one in units if one.arm == arm]


def _shown(name: str, units: Sequence[Unit], interval: Bounds, margin: float, test: Guardrail) -> Shown:
    means = (_mean(_values(units, "canary")), _mean(_values(units, "control")))
    return Shown(name, *means, interval, margin, test.breach, test.non_inferior, test.count)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ratio(
    plan: RolloutPlan, units: Sequence[Unit], window: float, waiting_since: datetime | None
) -> SampleRatio:
    """Compare how many users each arm got with what the route gave them.

    Until the last step both arms have the same share, and the control group has fewer from then on.
    """
    # A unit closes one window after its first request.
    edge = waiting_since.timestamp() + window if waiting_since else None
    phases = []
    for late, shares in (
        (False, (0.5, 0.5)),
        (True, (plan.canary.waiting / 100, 1 - plan.canary.waiting / 100)),
    ):
        of_phase = [one for one in units if (edge is not None and one.closed_at >= edge) == late]
        counts = [sum(one.arm == arm for one in of_phase) for arm in ("canary", "control")]
        if sum(counts):
            phases.append(Phase(counts, shares))
    return sample_ratio(phases)


def _per_hour(plan: RolloutPlan, units: Sequence[Unit], until: float) -> float:
    """Return how many pairs of users came in the last hour; users, where there is no control group."""
    lately = [one for one in units if one.closed_at > until - 3600]
    if not lately:
        return 0.0
    hours = max((until - min(one.closed_at for one in units)) / 3600, 1 / 60)
    arms = ("canary",) if plan.is_alone else ("canary", "control")
    return min(sum(one.arm == arm for one in lately) for arm in arms) / min(1.0, hours)
