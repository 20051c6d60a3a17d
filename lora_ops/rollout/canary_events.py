"""A canary as the events of its gateways show it. Each event is read and counted once."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from lora_ops.detectors.risky import has_answer
from lora_ops.new_lines import NewLines, Row
from lora_ops.records.record import Record
from lora_ops.records.rollout import RolloutPlan
from lora_ops.rollout.canary import Arm, CanaryEvidence, CanaryRequest, Look, counted_until
from lora_ops.rollout.units import HOUR

Stops = Sequence[tuple[datetime, datetime | None]]
"""From when until when production answered nobody, each time; None: it still does not."""

EVENTS = "events"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIELDS = (
    "unit",
    "key",
    "arm",
    "fallback",
    "adapter",
    "digest",
    "status",
    "seconds",
    "generated_tokens",
    "answer_is_label",
    "answer_has_text",
    "answer_task",
    "answer_insults",
    "answer_new_identifiers",
)
# A line that no gateway wrote must not stop a rollout's way back. NaN is above every number here.
WHOLE = (
    "unit IS NOT NULL AND status IS NOT NULL AND seconds >= 0 AND seconds < 'Infinity'::DOUBLE "
    "AND generated_tokens >= 0 AND adapter IS NOT NULL AND digest IS NOT NULL"
)
# Production that was stopped, or has expired, was asked nothing. As its errors such refusals would make any
# canary look good.
ASKED = "NOT (arm = 'control' AND coalesce(code, '') = 'model_not_served')"


class ArmEvent(Record):
    """The fields of an event of the gateway that say something of a canary; see `serving.events.Event`."""

    id: str
    time: datetime
    tenant: str
    route: str | None = None
    key: str | None = None
    unit: str | None = None
    arm: Arm | None = None
    fallback: str | None = None
    adapter: str
    digest: str
    status: int
    code: str | None = None
    seconds: float
    generated_tokens: int
    answer_is_label: bool | None = None
    answer_has_text: bool | None = None
    answer_task: float | None = None
    answer_insults: float | None = None
    answer_new_identifiers: int | None = None


def of_arms(plan: RolloutPlan, since: datetime) -> str:
    """Return the condition for the requests of canary and control group from a moment on."""
    tenant = plan.adapter.rpartition("@")[0]
    return f"tenant = '{tenant}' AND arm IS NOT NULL AND time >= '{since.isoformat()}' AND {WHOLE} AND {ASKED}"


def by_name(plan: RolloutPlan, since: datetime) -> str:
    """Return the condition for the requests from a moment on that asked for the version by its name."""
    return (
        f"route = 'pinned' AND adapter = '{plan.adapter}' AND digest = '{plan.content_digest}' "
        f"AND arm IS NULL AND time >= '{since.isoformat()}' AND {WHOLE}"
    )


class CanaryEvents:
    """The requests of one attempt, and what they show up to the last look.

    Attributes:
        answered: the requests up to the last look that were answered, by the hour.
    """

    def __init__(
        self, folder: Path, where: str, plan: RolloutPlan, since: datetime, insults_from: float
    ) -> None:
        """Start before the first event.

        Args:
            folder: of the events.
            where: the condition for those that count, which also has `since`.
            plan: of the rollout.
            since: when the attempt's canary began.
            insults_from: score from which an answer counts as insulting.
        """
        self._folder = folder
        self._where = where
        self._plan = plan
        self._since = since
        self._insults_from = insults_from
        self._stops: Stops = ()
        self._until = -math.inf
        self._begin(None)

    def _begin(self, waiting_since: datetime | None) -> None:
        self._lines = NewLines(self._folder, EVENTS, ArmEvent, self._where, FIELDS)
        self._count_anew(waiting_since)

    def _count_anew(self, waiting_since: datetime | None) -> None:
        self._evidence = CanaryEvidence(self._plan, self._since, self._insults_from, waiting_since)
        self.answered: Counter[int] = Counter()

    def look(self, now: datetime, *, waiting_since: datetime | None = None, stops: Stops = ()) -> Look:
        """Judge the requests up to now, of which those of earlier looks are counted already.

        After an error this object must not be asked again.

        Args:
            now: the time of the look.
            waiting_since: since when approvals are awaited; None: they are not.
            stops: while production answers nobody the canary says nothing.

        Raises:
            LoraOpsError: the events can't be read.
        """
        until = counted_until(now)
        if not self._evidence.waits_since(waiting_since) or self._counted(stops) != self._counted(self._stops):
            self._begin(waiting_since)
        reading = self._lines.read(until)
        if reading.is_anew:
            self._count_anew(waiting_since)
        self._stops, self._until = stops, until
        self._evidence.add(self._noted(requests_of(reading.rows, stops)))
        return self._evidence.look(until)

    def _counted(self, stops: Stops) -> list[tuple[datetime, datetime | None]]:
        """Return the stops as they were at the time of the last look."""
        return [
            (start, end if end and end.timestamp() <= self._until else None)
            for start, end in stops
            if start.timestamp() <= self._until
        ]

    def _noted(self, requests: Iterable[CanaryRequest]) -> Iterator[CanaryRequest]:
        for one in requests:
            if 200 <= one.status < 300:
                self.answered[int(one.at.timestamp() // HOUR)] += 1
            yield one


def read_requests(folder: Path, where: str, stops: Stops) -> Iterator[CanaryRequest]:
    """Yield all requests of a condition, oldest first.

    Raises:
        LoraOpsError: the events can't be read.
    """
    return requests_of(NewLines(folder, EVENTS, ArmEvent, where, FIELDS).read(math.inf).rows, stops)


def requests_of(rows: Iterable[Row], stops: Stops) -> Iterator[CanaryRequest]:
    """Yield the requests that lines tell of, without those while production answered nobody."""
    for _, time, unit, key, arm, fallback, adapter, digest, status, seconds, tokens, *answer, _ in rows:
        at = EPOCH + timedelta(microseconds=time)
        if stops and any(start <= at and (end is None or at <= end) for start, end in stops):
            continue
        is_label, has_text, *scores = answer
        task, insults, identifiers = map(_number, scores)
        if not has_answer(tokens, has_text):  # it can't be risky, and whether it does the task is known
            insults = identifiers = None
        yield CanaryRequest(
            at=at,
            unit=unit,
            arm=arm or "canary",  # who asks for it by its name is in no arm
            adapter=adapter,
            digest=digest,
            status=status,
            seconds=seconds,
            tokens=tokens,
            insults=insults,
            identifiers=None if identifiers is None else int(identifiers),
            is_label=bool(is_label),
            is_task=None if task is None else task >= 1,
            key=key,
            is_loading=fallback == "loading",
        )


def _number(value: float | None) -> float | None:
    """Return a number; one that is not a number is none."""
    return None if value is None or math.isnan(value) else value
