"""How many live answers were risky, and what that leaves of a tenant's budget; from the gateway's event log.

The gateway scored the answers by the gates' detectors, and a budget counts what the policy suite counts: an
identifier that no user gave, and an insult that is no label of the version. A share has Clopper and
Pearson's exact interval. Where the version's policy report says how well the detector finds identifiers, the
share is also corrected for its errors (Rogan and Gladen), and both must be on the same side of the budget.
A tenant's budget is for the answers of its versions. What the base model said is shown apart.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel

from lora_ops.detectors.measure import corrected_rate, proportion
from lora_ops.detectors.risky import HAS_ANSWER, insults, leaks
from lora_ops.errors import LoraOpsError
from lora_ops.line_files import LINE_BYTES, line_files, read_line_files
from lora_ops.monitoring.latency import ahead_note
from lora_ops.monitoring.rules import windows
from lora_ops.records.detectors import Measured
from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record
from lora_ops.settings.objectives import BurnRate, seconds
from lora_ops.settings.risk import RISK_KINDS, RiskBudgetSettings, RiskKind

RiskVerdict = Literal["kept", "broken", "cannot tell"]
MOST_UNSCORED = 0.5
"""Of the answers: above it the scored ones may be the wrong ones to judge by."""
ROTATED = timedelta(days=1)
"""A gateway's log file holds less, unless `serving.events.rotate_seconds` says otherwise."""
# Not of lines that no gateway wrote.
WHOLE = f"tenant IS NOT NULL AND adapter IS NOT NULL AND digest IS NOT NULL AND {HAS_ANSWER}"
Detectors = Callable[[str, str], Mapping[RiskKind, Measured]]
"""How well each detector works, by what a version's policy report says; given its name and its digest."""
PLAIN = (
    "tenant",
    "adapter",
    "digest",
    "kind",
    "answered",
    "scored",
    "flagged",
    "budget",
    "burnt",
    "verdict",
    "said",
)


class ScoredEvent(Record):
    """The fields of an event of the gateway that risk is read from; see `serving.events.Event`."""

    id: str
    time: datetime
    request_id: str
    tenant: str
    adapter: str
    digest: str
    generated_tokens: int
    answer_is_label: bool | None
    answer_new_identifiers: int | None
    answer_has_text: bool | None
    answer_insults: float | None
    insult_detector: str | None


@dataclass(frozen=True)
class Risk:
    """One kind of risk in the answers of a version, of a whole tenant, or of the base model.

    Attributes:
        adapter, digest: of the version or the base model; None for all versions of the tenant together.
        answered, scored, flagged: answers, of them those that were scored, of these those that are risky.
        share: of the scored answers that are risky; None where none was scored.
        corrected: the share without the detector's errors; None where nobody measured them well enough.
        budget: the share that may be risky.
        burnt: the part of the tenant's budget that these answers used up; 1 is all of it. None for the base
            model, whose answers use up none.
        burn_rates: window -> how many times faster than the budget lasts; None where none was scored in it.
    """

    tenant: str
    adapter: str | None
    digest: str | None
    kind: RiskKind
    answered: int
    scored: int
    flagged: int
    share: Interval | None
    corrected: Interval | None
    budget: float
    burnt: float | None
    burn_rates: Mapping[str, float | None]
    verdict: RiskVerdict
    said: str


@dataclass(frozen=True)
class RiskReport:
    """What was read of which time; `notes` are sentences about what the numbers leave out."""

    start: datetime
    end: datetime
    risks: tuple[Risk, ...]
    threshold: float
    notes: tuple[str, ...] = ()

    @property
    def broken(self) -> tuple[Risk, ...]:
        """The budgets that are broken."""
        return tuple(one for one in self.risks if one.verdict == "broken")

    def of(self, tenant: str | None) -> "RiskReport":
        """Return what the report has of one tenant; None: of all."""
        return replace(self, risks=tuple(one for one in self.risks if tenant in (None, one.tenant)))


@dataclass(frozen=True)
class Counting:
    """How one kind is counted of a tenant; `scored` are the scored answers of its versions."""

    tenant: str
    kind: RiskKind
    budgets: RiskBudgetSettings
    rates: Sequence[BurnRate]
    now: datetime
    scored: int

    @property
    def budget(self) -> float:
        """The share that may be risky."""
        return self.budgets.budget(self.tenant, self.kind)


def read_risk(
    folder: Path,
    budgets: RiskBudgetSettings,
    rates: Sequence[BurnRate],
    threshold: float,
    now: datetime,
    detectors: Detectors = lambda adapter, digest: {},
) -> RiskReport:
    """Read what was risky in the window of the budgets, of each version and of each tenant.

    Args:
        folder: `.serving/events` of a gateway.
        budgets: of params.yaml.
        rates: whose windows have a burn rate.
        threshold: score from which an answer counts as insulting.
        now: when the window ends.
        detectors: how well they work on each version; a LoraOpsError of it becomes a note.

    Raises:
        LoraOpsError: there is no event at all, or the files can't be read.
    """
    if not line_files(folder, "events"):
        raise LoraOpsError(f"There are no events in {folder} yet: serve some requests first (`make serve`).")
    start = now - timedelta(days=budgets.days)
    found = read_line_files(folder, "events", ScoredEvent, f"{WHOLE} AND time >= TIMESTAMPTZ '{start}'")
    marked = _marked(found, threshold)
    unread: dict[str, str] = {}

    def measurements(adapter: str, digest: str) -> Mapping[RiskKind, Measured]:
        try:
            return detectors(adapter, digest)
        except LoraOpsError as error:
            unread[adapter] = f"The shares of {adapter} are not corrected: {error}"
            return {}

    risks: list[Risk] = []
    for tenant, mine in marked.groupby("tenant"):
        own = mine[mine["adapter"].map(is_version)]
        for kind in RISK_KINDS:
            counting = Counting(str(tenant), kind, budgets, rates, now, int(own[f"{kind}_scored"].sum()))
            counted = []
            for (adapter, digest), part in mine.groupby(["adapter", "digest"]):
                measured = measurements(str(adapter), str(digest)).get(kind)
                scored, flagged = _counts(part, kind)
                corrected = _corrected(flagged, scored, measured)
                risks.append(_risk(counting, part, corrected, str(adapter), str(digest)))
                if is_version(str(adapter)):
                    counted.append((flagged, scored, measured))
            if counted:
                risks.append(_risk(counting, own, _corrected_together(counted)))
    notes = (ahead_note(found["time"], now), behind_note(folder, start), *unread.values())
    return RiskReport(start, now, tuple(risks), threshold, tuple(note for note in notes if note))


def is_version(adapter: str) -> bool:
    """Return whether an answer's adapter is a version such as `finance@1`; else it is the base model."""
    return "@" in adapter


def behind_note(folder: Path, start: datetime) -> str | None:
    """Return a sentence about files of events that were written in the window and begin before it, or None.

    Args:
        folder: `.serving/events` of a gateway.
        start: of the window.
    """
    begin = []
    for path in line_files(folder, "events"):
        with suppress(OSError, ValueError):  # swept, torn or no event's: whoever reads the events says it
            if path.stat().st_mtime < (start + ROTATED).timestamp():
                continue
            with path.open("rb") as file:
                first = _Timed.model_validate_json(file.readline(LINE_BYTES)).time
            if first.tzinfo and first < start:
                begin.append(first)
    if not begin:
        return None
    return (
        f"{len(begin)} files of events were written in this window and begin before it (the first at "
        f"{min(begin):%Y-%m-%d %H:%M} UTC): a gateway's clock is behind, or they are copies. What is dated "
        f"before {start:%Y-%m-%d %H:%M} UTC does not count here."
    )


class _Timed(BaseModel):
    """The time of an event; its other fields are left alone."""

    time: datetime


def _marked(found: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """Return the events with what was scored and what is risky of each kind, as `Event.risks` says it."""
    is_scored = found["insult_detector"].notna()
    new, scores = found["answer_new_identifiers"], found["answer_insults"]
    is_label = found["answer_is_label"].eq(True).fillna(False).astype(bool)
    return found.assign(
        # An earlier release counted identifiers that the prompt has, too: its events say nothing here.
        identifiers_scored=is_scored & new.notna(),
        identifiers=is_scored & leaks(new.fillna(0)),
        insults_scored=is_scored & scores.notna(),
        insults=is_scored & insults(scores.fillna(0), is_label, threshold),
    )


def _counts(part: pd.DataFrame, kind: RiskKind) -> tuple[int, int]:
    """Return how many answers were scored, and how many of them are risky."""
    return int(part[f"{kind}_scored"].sum()), int(part[kind].sum())


def _corrected(flagged: int, scored: int, measured: Measured | None) -> Interval | None:
    return corrected_rate(flagged, scored, measured).corrected if measured and scored else None


def _corrected_together(counted: Sequence[tuple[int, int, Measured | None]]) -> Interval | None:
    """Return the corrected share of several versions together; None where no version has one.

    Versions with the same measurement are corrected as one. Groups are then added by their share of the
    answers, bound to bound: their errors may be alike, so that adding squares could be too narrow. A group
    that nobody measured well enough counts as it was found.

    Args:
        counted: of each version the risky answers, the scored ones, and how good its detector is.
    """
    groups: dict[str, tuple[int, int, Measured | None]] = {}
    for flagged, scored, measured in counted:
        able = measured if measured and measured.can_correct else None
        key = able.model_dump_json() if able else ""
        before = groups.get(key, (0, 0, able))
        groups[key] = before[0] + flagged, before[1] + scored, able
    parts = []
    for flagged, scored, able in groups.values():
        interval = _corrected(flagged, scored, able) or proportion(flagged, scored)
        if interval:
            parts.append((scored, interval))
    if not parts or not any(able and scored for _, scored, able in groups.values()):
        return None
    everything = sum(scored for scored, _ in parts)

    def mean(bound: str) -> float:
        return min(1.0, sum(scored * float(getattr(each, bound)) for scored, each in parts) / everything)

    return Interval(value=mean("value"), low=mean("low"), high=mean("high"))


def _risk(
    counting: Counting,
    part: pd.DataFrame,
    corrected: Interval | None,
    adapter: str | None = None,
    digest: str | None = None,
) -> Risk:
    tenant, kind, budget = counting.tenant, counting.kind, counting.budget
    scored, flagged = _counts(part, kind)
    share = proportion(flagged, scored)
    who, is_base = adapter or "All versions", adapter is not None and not is_version(adapter)
    verdict, said = _judged(len(part), scored, flagged, share, corrected, budget, counting.budgets)
    return Risk(
        tenant=tenant,
        adapter=adapter,
        digest=digest,
        kind=kind,
        answered=len(part),
        scored=scored,
        flagged=flagged,
        share=share,
        corrected=corrected,
        budget=budget,
        burnt=flagged / (budget * counting.scored) if counting.scored and not is_base else None,
        burn_rates={window: _burn(counting, part, window) for window in windows(counting.rates)},
        verdict=verdict,
        said=f"{who}{' (base model)' if is_base else ''} of {tenant}, {kind}: {said}",
    )


def _burn(counting: Counting, part: pd.DataFrame, window: str) -> float | None:
    late = part[part["time"] >= counting.now - timedelta(seconds=seconds(window))]
    scored = int(late[f"{counting.kind}_scored"].sum())
    return int(late[counting.kind].sum()) / scored / counting.budget if scored else None


def _judged(
    answered: int,
    scored: int,
    flagged: int,
    share: Interval | None,
    corrected: Interval | None,
    budget: float,
    budgets: RiskBudgetSettings,
) -> tuple[RiskVerdict, str]:
    """Return the verdict and a sentence without its full stop.

    A budget is broken where the whole interval is above it, and kept where the whole interval is within it.
    The share as it was found and the corrected one must agree: what false alarms alone explain breaks nothing,
    and what misses may hide is not kept.
    """
    if share is None or scored < budgets.minimum_scored:
        return (
            "cannot tell",
            f"{scored} of {answered} answers were scored, and {budgets.minimum_scored} are needed",
        )
    intervals = [share, *([corrected] if corrected else [])]
    numbers = f"{flagged} of {scored} scored answers ({share.value:.2%}, {share.low:.2%} to {share.high:.2%})"
    if corrected:
        numbers += f", {corrected.low:.2%} to {corrected.high:.2%} without the detector's errors"
    limit = f"the budget is {budget:.2%}"
    if all(one.low > budget for one in intervals):
        if flagged < budgets.minimum_flagged:
            return "cannot tell", f"{numbers}; {limit}, and {budgets.minimum_flagged} risky answers are needed"
        return "broken", f"{numbers}; {limit}"
    if scored < MOST_UNSCORED * answered:
        return "cannot tell", f"{numbers}; most of {answered} answers were not scored"
    if all(one.high <= budget for one in intervals):
        return "kept", f"{numbers}; {limit}"
    return "cannot tell", f"{numbers}; {limit}, so that more answers must be scored"


def as_json(report: RiskReport) -> dict[str, Any]:
    """Return a report for programs; shares and budgets are parts of 1."""
    return {
        "start": report.start.astimezone(UTC).isoformat(),
        "end": report.end.astimezone(UTC).isoformat(),
        "insult_threshold": report.threshold,
        "notes": list(report.notes),
        "broken": [one.said for one in report.broken],
        "risks": [
            {
                **{name: getattr(one, name) for name in PLAIN},
                **{name: _as_json(getattr(one, name)) for name in ("share", "corrected")},
                "burn_rates": dict(one.burn_rates),
            }
            for one in report.risks
        ],
    }


def _as_json(interval: Interval | None) -> dict[str, Any] | None:
    return interval.model_dump() if interval else None
