"""What the canary's users show beside the control group of the same time: guardrails and their verdict.

Where no version is in production, the others get no answer, so that they are no control group. Then the canary
is compared with one that makes no mistake, and its latency with a limit (`canary.first_p95_seconds`).
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple

from lora_ops.detectors.risky import insults, leaks
from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.guardrails import P95, LatencyGuardrail, MeanGuardrail, Measured, Shown
from lora_ops.rollout.sample_ratio import Phase, SampleRatio, sample_ratio
from lora_ops.rollout.sequential import excess_margin, relative_excess
from lora_ops.rollout.units import Arrivals, KeyQuota, OpenUnits, period
from lora_ops.rollout.verdicts import Verdict, by_whom, verdict

Arm = Literal["canary", "control"]
ARMS: tuple[Arm, Arm] = ("canary", "control")
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
        insults: the detector's score of the answer, or None where there is none, or nobody scored it.
        identifiers: how many the answer has that no user gave, or None.
        is_label: whether the whole answer is a label of its version.
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
    is_label: bool = False
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
    found = looks(plan, requests, [now], since=since, waiting_since=waiting_since, insults_from=insults_from)
    return next(found)


def looks(
    plan: RolloutPlan,
    requests: Iterable[CanaryRequest],
    moments: Iterable[datetime],
    *,
    since: datetime,
    waiting_since: datetime | None = None,
    insults_from: float = 0.5,
) -> Iterator[Look]:
    """Yield what `look` finds at each of some moments, which ascend; each request is counted once.

    Raises:
        ValueError: a request's time or value is not a number.
    """
    evidence = CanaryEvidence(plan, since, insults_from, waiting_since)
    ordered = in_order(one for one in requests if one.at >= since)
    times, done = [one.at.timestamp() for one in ordered], 0
    for until in map(counted_until, moments):
        end = bisect_right(times, until)
        evidence.add(ordered[done:end])
        done = end
        yield evidence.look(until)


def counted_until(now: datetime) -> float:
    """Return until when a look counts requests, in seconds."""
    return now.timestamp() - LAG_SECONDS


def in_order(requests: Iterable[CanaryRequest]) -> list[CanaryRequest]:
    """Return requests in the order in which `CanaryEvidence` counts them."""
    return sorted(requests, key=lambda one: (one.at, one.unit))


class CanaryEvidence:
    """What the requests of an attempt show up to a moment. Each is counted once; many looks may follow.

    It keeps units, not requests. Adding the same requests in one piece or in many gives the same verdict, to
    the last bit: a controller that starts again finds what one that ran on has.
    """

    def __init__(
        self, plan: RolloutPlan, since: datetime, insults_from: float, waiting_since: datetime | None = None
    ) -> None:
        """Start without requests; the arguments are those of `look`."""
        self._plan = plan
        self._is_alone = plan.is_alone
        self._since = since
        self._waiting_since = waiting_since
        self._insults_from = insults_from
        self._last: datetime | None = None
        self._turn: tuple[bool, int] | None = None
        """Whether approvals are awaited, and the period, of the last request: part of a unit's name."""
        self._next_closing = -math.inf
        window = plan.canary.window_seconds
        self._assigned = OpenUnits(window)
        self._assigned_to: Counter[tuple[bool, str]] = Counter()
        self._quota = KeyQuota(plan.key_percent)
        shares = [
            MeanGuardrail(name, margin, plan.alpha, OpenUnits(window), is_alone=plan.is_alone)
            for name, margin in _margins(plan)
        ]
        self._errors, self._insults, self._identifiers, self._task = shares
        self._any_task = False
        # Without a control group, nothing says which amounts are usual.
        slow = MeanGuardrail(SLOW, 1 - P95, plan.alpha, OpenUnits(window, "first"), is_alone=True)
        excess = excess_margin(plan.margins.tokens)
        tokens = MeanGuardrail("tokens", excess, plan.alpha, OpenUnits(window), worse=relative_excess)
        latency = LatencyGuardrail(plan.margins.p95_latency, plan.alpha, window)
        self._slow, self._tokens, self._latency = slow.units, tokens.units, latency.units
        self._guardrails: list[Measured] = [*shares, *([slow] if plan.is_alone else [tokens, latency])]
        self._arrivals = Arrivals(ARMS[:1] if plan.is_alone else ARMS)

    def waits_since(self, moment: datetime | None) -> bool:
        """Take the moment since when approvals are awaited; False: a request that it concerns is counted."""
        if moment == self._waiting_since:
            return True
        earliest = min(one for one in (moment, self._waiting_since) if one is not None)
        if self._last is not None and self._last >= earliest:
            return False
        self._waiting_since = moment
        return True

    def add(self, requests: Iterable[CanaryRequest]) -> None:
        """Count requests of both arms, which come `in_order` and are later than the last look's end.

        Raises:
            ValueError: a request's time or value is not a number.
        """
        for one in requests:
            self._last = one.at
            # What a client got wrong comes to both arms alike. Without a control group it would be the canary's
            # fault.
            if not (one.says_nothing or (self._is_alone and one.status in THE_CLIENTS_FAULT)):
                self._add(one)

    def _add(self, one: CanaryRequest) -> None:
        plan, at, arm = self._plan, one.at.timestamp(), one.arm
        if at > self._next_closing:
            self._close(math.nextafter(at, -math.inf))  # another request may come at this very moment
            self._next_closing = at + plan.canary.window_seconds
        unit = f"{one.unit} {self._turn_of(one)}"
        self._assigned.add(at, unit, arm, 0.0)
        # After the check of the assignment, which is about everybody.
        if not self._quota.counts(at, unit, arm, one.key):
            return
        is_own = _is_own(plan, one)
        # Each gateway loads a canary once. It is no error, and no evidence that there are none. Nor is an
        # answer of another version to the control group: as errors they would hide those of the canary. A
        # canary that can't be loaded gives its users no error, since production answers them. It is one here.
        if not (one.is_loading or _is_of_others(plan, one)):
            self._errors.units.add(at, unit, arm, 0.0 if is_own else 1.0)
        if not is_own:
            return
        if one.insults is not None:
            insulting = insults(one.insults, one.is_label, self._insults_from)
            self._insults.units.add(at, unit, arm, float(insulting))
        if one.identifiers is not None:
            self._identifiers.units.add(at, unit, arm, float(leaks(one.identifiers)))
        if one.is_task is not None:
            self._any_task = True
            self._task.units.add(at, unit, arm, float(not one.is_task))
        if self._is_alone:
            self._slow.add(at, unit, arm, float(one.seconds > plan.canary.first_p95_seconds))
        else:
            self._tokens.add(at, unit, arm, float(one.tokens))
            self._latency.add(at, unit, arm, one.seconds)

    def _turn_of(self, one: CanaryRequest) -> str:
        """Return the end of a unit's name: its period. Where the shares change, one period ends, too."""
        waits = self._waiting_since is not None and one.at >= self._waiting_since
        begun = self._waiting_since if waits and self._waiting_since else self._since
        turn = (waits, period(one.at, begun, self._plan.canary.period_hours))
        if turn != self._turn:
            self._turn = turn
            self._quota.forget()
            for units in (self._assigned, *(one.units for one in self._guardrails)):
                units.forget()
        return f"{'waiting' if waits else 'steps'} {turn[1]}"

    def _close(self, until: float) -> None:
        waiting = self._waiting_since
        # A unit closes one window after its first request.
        edge = waiting.timestamp() + self._plan.canary.window_seconds if waiting else math.inf
        self._assigned_to.update((one.closed_at >= edge, one.arm) for one in self._assigned.close(until))
        for guardrail in self._guardrails:
            closed = guardrail.close(until)
            if guardrail is self._errors:
                self._arrivals.add(closed)

    def look(self, until: float) -> Look:
        """Judge what was counted, where every request up to `until` (seconds) was added."""
        self._close(until)
        plan = self._plan
        ratio = sample_ratio([] if plan.is_alone else self._phases())
        shown = [one for one in self._guardrails if one is not self._task or self._any_task]
        found = verdict(
            {one.name: one.test for one in shown},
            alpha=plan.alpha,
            least_users=plan.canary.users,
            users_per_hour=self._arrivals.per_hour(until),
            ratio=None if plan.is_alone else ratio,
        )
        found = by_whom(found, self._quota.share)
        users = self._errors.users
        return Look(found, tuple(one.shown() for one in shown), users["canary"], users["control"], ratio)

    def _phases(self) -> list[Phase]:
        """Return how many users each arm got, and what the route gave them.

        Until the last step both arms have the same share, and the control group has fewer from then on.
        """
        waiting = self._plan.canary.waiting / 100
        phases = []
        for late, shares in ((False, (0.5, 0.5)), (True, (waiting, 1 - waiting))):
            counts = [self._assigned_to[late, arm] for arm in ARMS]
            if sum(counts):
                phases.append(Phase(counts, shares))
        return phases


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


def _margins(plan: RolloutPlan) -> Iterator[tuple[str, float]]:
    """Yield name and margin of each guardrail that is a share of a user's requests, with or without control."""
    yield "errors", plan.margins.errors
    yield "insults", plan.margins.insults
    yield "identifiers", plan.margins.identifiers
    yield "task", plan.margins.task
