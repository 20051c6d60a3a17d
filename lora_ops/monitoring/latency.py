"""How fast and how reliable each adapter was: percentiles from Prometheus, or from the gateway's event log.

Both count times in the buckets of `lora_ops.histograms`, so that they give the same numbers. The event log also
knows each time, so it gives exact percentiles too.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.histograms import ANSWER, FIRST_TOKEN, PER_TOKEN, cumulative, percentile, share_within
from lora_ops.line_files import line_files, read_line_files
from lora_ops.monitoring.prometheus import Labels, Prometheus
from lora_ops.records.record import Record
from lora_ops.serving.errors import CLIENT_GONE
from lora_ops.serving.label_cap import OTHER
from lora_ops.settings.objectives import ObjectiveSettings

SHARES = (0.5, 0.95, 0.99)
Source = Literal["prometheus", "log"]
Asked = Literal["auto", "prometheus", "log"]
Objective = Literal["availability", "latency"]
AHEAD_SECONDS = 60
GAPS = 168
"""Moments of a window at which Prometheus must have had any data at all."""
MOST_GAPS = 0.01
# Lines that no gateway wrote. NaN is above every number here.
WHOLE = (
    "tenant IS NOT NULL AND adapter IS NOT NULL AND status IS NOT NULL "
    "AND seconds >= 0 AND seconds < 'Infinity'::DOUBLE"
)
NAMES = {"answer": ANSWER, "first_token": FIRST_TOKEN, "per_token": PER_TOKEN, "gone": ANSWER}
METRICS = {
    "answer": ("request_seconds", '{outcome="answered"}'),
    "first_token": ("time_to_first_token_seconds", ""),
    "per_token": ("time_per_token_seconds", ""),
    "gone": ("request_seconds", '{outcome="gone"}'),
}


class TimedEvent(Record):
    """The fields of an event of the gateway that latency is read from; see `serving.events.Event`."""

    id: str
    time: datetime
    request_id: str
    tenant: str
    adapter: str
    status: int
    seconds: float
    first_token_seconds: float | None
    token_seconds: list[float]


@dataclass(frozen=True)
class Times:
    """Times of one kind, in seconds.

    Attributes:
        bounds: of the buckets.
        counts: how many times are at most each bound, and at last all of them.
        exact: P50, P95 and P99 of the times themselves; None where only the buckets are known, or no time is.
    """

    bounds: Sequence[float]
    counts: Sequence[float]
    exact: tuple[float, float, float] | None = None

    @property
    def count(self) -> int:
        """How many there are."""
        return round(self.counts[-1])

    def percentile(self, share: float) -> float | None:
        """Return the percentile that the buckets give, in seconds; None: there is no time."""
        return percentile(self.bounds, self.counts, share)


@dataclass(frozen=True)
class AdapterLatency:
    """One adapter of one tenant in the window.

    Attributes:
        unanswered: requests that ended with a status of 500 or above.
        answer: from a request's arrival to the end of its answer, of those that were answered.
        first_token: from a request's arrival to its first token.
        per_token: the mean from one token to the next, of each answer.
        gone: from a request's arrival until its client left before the answer was whole.
    """

    tenant: str
    adapter: str
    unanswered: int
    answer: Times
    first_token: Times
    per_token: Times
    gone: Times

    @property
    def availability(self) -> float | None:
        """The share of requests that were answered, of those that should have been; None: there was none."""
        total = self.answer.count + self.unanswered
        return self.answer.count / total if total else None

    def within(self, seconds: float) -> float | None:
        """Return the share of answers that took at most so long, which is a bound of the buckets.

        A client that left later than that waited for an answer that was late. None: there was neither.
        """
        ended = self.answer.count + self.gave_up(seconds)
        in_time = share_within(ANSWER, self.answer.counts, seconds) or 0.0
        return in_time * self.answer.count / ended if ended else None

    def gave_up(self, seconds: float) -> int:
        """Return how many clients left after more than so long, which is a bound of the buckets."""
        within = share_within(ANSWER, self.gone.counts, seconds)
        return round((1 - within) * self.gone.count) if within is not None else 0

    def burn(self, objectives: ObjectiveSettings) -> dict[Objective, float | None]:
        """Return how many times faster than its error budget lasts each objective used it up in the window.

        1 uses up exactly what the objective allows (Google, The Site Reliability Workbook, chapter 5). None:
        nothing was asked or answered.
        """
        return {
            name: None if kept is None else (1 - kept) / (1 - least)
            for name, (kept, least) in self.shares(objectives).items()
        }

    def shares(self, objectives: ObjectiveSettings) -> dict[Objective, tuple[float | None, float]]:
        """Return the share of each objective that was kept, and the share that was promised."""
        return {
            "availability": (self.availability, objectives.availability),
            "latency": (self.within(objectives.latency.seconds), objectives.latency.share),
        }


@dataclass(frozen=True)
class LatencyReport:
    """What was read, whence, of which time; `notes` are sentences about what the numbers leave out."""

    source: Source
    start: datetime
    end: datetime
    adapters: tuple[AdapterLatency, ...]
    notes: tuple[str, ...] = ()

    def of(self, tenant: str | None) -> "LatencyReport":
        """Return what the report has of one tenant; None: of all."""
        mine = (one for one in self.adapters if tenant in (None, one.tenant))
        return replace(self, adapters=tuple(mine))


def read_latency(
    folder: Path,
    prometheus: Prometheus,
    window: int,
    now: datetime,
    source: Asked = "auto",
) -> LatencyReport:
    """Read the latency of each adapter that was asked in a window.

    Args:
        folder: `.serving/events` of a gateway.
        prometheus: what scrapes the gateways.
        window: seconds.
        now: when the window ends.
        source: what to read. auto is Prometheus, and the event log where Prometheus can't be asked or has data
            of only a part of the window; a note says so.

    Raises:
        Unavailable: Prometheus can't be asked.
        LoraOpsError: the log has no event at all, or can't be read.
    """
    if source == "log":
        return from_log(folder, window, now)
    try:
        found = from_prometheus(prometheus, window, now)
    except LoraOpsError as error:
        if source == "prometheus":
            raise
        missing = str(error)
    else:
        if source == "prometheus" or not found.notes:
            return found
        missing = found.notes[0]
    try:
        read = from_log(folder, window, now)
    except LoraOpsError as error:
        raise LoraOpsError(f"{missing} {error}") from error
    return replace(read, notes=(f"{missing} So this is the event log of {folder}.", *read.notes))


def from_log(folder: Path, window: int, now: datetime) -> LatencyReport:
    """Read the latency of each adapter from the event log.

    Raises:
        LoraOpsError: there is no event at all, or the files can't be read.
    """
    if not line_files(folder, "events"):
        raise LoraOpsError(f"There are no events in {folder} yet: serve some requests first (`make serve`).")
    start = now - timedelta(seconds=window)
    found = read_line_files(folder, "events", TimedEvent, f"{WHOLE} AND time >= TIMESTAMPTZ '{start}'")
    note = ahead_note(found["time"], now)
    adapters = tuple(
        _of_events(str(tenant), str(adapter), mine)
        for (tenant, adapter), mine in found.groupby(["tenant", "adapter"])
    )
    return LatencyReport("log", start, now, adapters, (note,) if note else ())


def ahead_note(times: pd.Series, now: datetime) -> str | None:
    """Return a sentence about events whose gateway's clock runs ahead, or None where there is none."""
    ahead = int((times > now + timedelta(seconds=AHEAD_SECONDS)).sum())
    if not ahead:
        return None
    return (
        f"{ahead} events are later than now (up to {times.max():%Y-%m-%d %H:%M} UTC): a gateway's clock runs "
        "ahead. They count here."
    )


def _of_events(tenant: str, adapter: str, mine: pd.DataFrame) -> AdapterLatency:
    per_token = [
        one for each in mine["token_seconds"] if isinstance(each, Sequence | np.ndarray) for one in each
    ]
    return AdapterLatency(
        tenant,
        adapter,
        int((mine["status"] >= 500).sum()),
        _times(mine.loc[mine["status"] == 200, "seconds"], ANSWER),
        _times(mine["first_token_seconds"], FIRST_TOKEN),
        _times(per_token, PER_TOKEN),
        _times(mine.loc[mine["status"] == CLIENT_GONE, "seconds"], ANSWER),
    )


def _times(values: Any, bounds: Sequence[float]) -> Times:
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known) & (known >= 0)]
    exact = np.quantile(known, SHARES).tolist() if known.size else None
    return Times(bounds, cumulative(known.tolist(), bounds), tuple(exact) if exact else None)


def from_prometheus(prometheus: Prometheus, window: int, now: datetime) -> LatencyReport:
    """Read the latency of each adapter from Prometheus, as of its last scrape before `now`.

    Raises:
        Unavailable: Prometheus can't be asked.
        LoraOpsError: it refuses a query.
    """
    at = now.timestamp()
    counts: defaultdict[tuple[str, str], dict[str, dict[float, float]]] = defaultdict(dict)
    for name, (metric, selector) in METRICS.items():
        metric = f"lora_ops_{metric}"
        risen = prometheus.rise(f"{metric}_bucket{selector}", f"{metric}_created{selector}", window, at)
        for labels, value in risen.items():
            who, bound = _who(labels), float(dict(labels).get("le", "nan"))
            buckets = counts[who].setdefault(name, {})
            buckets[bound] = buckets.get(bound, 0) + value
    unanswered: defaultdict[tuple[str, str], float] = defaultdict(float)
    for labels, value in prometheus.rise(
        "lora_ops_unanswered_total", "lora_ops_unanswered_created", window, at
    ).items():
        unanswered[_who(labels)] += value
    adapters = [
        AdapterLatency(*who, round(unanswered[who]), *(_counted(each.get(name, {}), name) for name in NAMES))
        for who, each in sorted(counts.items())
    ]
    # What was asked before the window alone has series that did not rise in it.
    asked = tuple(
        one for one in adapters if one.answer.count or one.unanswered or one.first_token.count or one.gone.count
    )
    return LatencyReport(
        "prometheus", now - timedelta(seconds=window), now, asked, _gaps(prometheus, window, at, asked)
    )


def _who(labels: Labels) -> tuple[str, str]:
    found = dict(labels)
    return found.get("tenant", ""), found.get("adapter", "")


def _counted(buckets: Mapping[float, float], name: str) -> Times:
    bounds = NAMES[name]
    if buckets and sorted(buckets) != [*bounds, float("inf")]:
        raise LoraOpsError(
            f"Prometheus has other buckets of lora_ops_{METRICS[name][0]} than this release, so it scrapes "
            "a gateway of another release: read the event log (--source log)."
        )
    return Times(bounds, [buckets.get(bound, 0) for bound in (*bounds, float("inf"))])


def _gaps(
    prometheus: Prometheus, window: int, at: float, adapters: Sequence[AdapterLatency]
) -> tuple[str, ...]:
    step = window / GAPS
    seen = len(prometheus.series("count(up)", at - window, at, step))
    notes = []
    if seen <= GAPS * (1 - MOST_GAPS):
        missing = timedelta(seconds=round((GAPS + 1 - seen) * step))
        notes.append(
            f"Prometheus at {prometheus.url} has no data of {missing} of these {timedelta(seconds=window)}."
        )
    if any(OTHER in (one.tenant, one.adapter) for one in adapters):
        notes.append(f"'{OTHER}' is what exceeds serving.metric_labels; the event log names each.")
    return tuple(notes)


class Missed(NamedTuple):
    """An objective that an adapter missed; `said` is a sentence."""

    tenant: str
    adapter: str
    objective: Objective
    said: str


def missed(report: LatencyReport, objectives: ObjectiveSettings) -> list[Missed]:
    """Return each objective that an adapter missed, by `objectives.minimum_events` requests at least."""
    found = []
    for one in report.adapters:
        total, limit = one.answer.count + one.unanswered, objectives.latency
        available = one.availability
        if one.unanswered >= objectives.minimum_events and (available or 0) < objectives.availability:
            said = (
                f"{one.adapter} of {one.tenant} left {one.unanswered} of {total} requests unanswered: "
                f"{available or 0:.2%} were answered, and the objective is {objectives.availability:.2%}."
            )
            found.append(Missed(one.tenant, one.adapter, "availability", said))
        share, left = one.within(limit.seconds), one.gave_up(limit.seconds)
        ended = one.answer.count + left
        late = round((1 - share) * ended) if share is not None else 0
        if share is not None and share < limit.share and late >= objectives.minimum_events:
            gone = f", and {left} clients left after as long without one" if left else ""
            said = (
                f"{one.adapter} of {one.tenant} gave {late - left} of {one.answer.count} answers after more "
                f"than {limit.seconds:g} s{gone}: {share:.2%} were in time, and the objective is "
                f"{limit.share:.2%}."
            )
            found.append(Missed(one.tenant, one.adapter, "latency", said))
    return found


def judged(report: LatencyReport, objectives: ObjectiveSettings) -> list[dict[str, Any]]:
    """Return what became of each objective of each adapter, as plain values.

    `cannot tell`: nothing was asked, or fewer than `objectives.minimum_events` requests missed it.
    """
    misses = {(one.tenant, one.adapter, one.objective) for one in missed(report, objectives)}
    found = []
    for one in report.adapters:
        for objective, (share, least) in one.shares(objectives).items():
            is_kept = share is not None and share >= least
            verdict = "kept" if is_kept else "cannot tell"
            if (one.tenant, one.adapter, objective) in misses:
                verdict = "missed"
            found.append(
                {
                    "tenant": one.tenant,
                    "adapter": one.adapter,
                    "objective": objective,
                    "share": share,
                    "least": least,
                    "verdict": verdict,
                }
            )
    return found


def as_json(report: LatencyReport, objectives: ObjectiveSettings) -> dict[str, Any]:
    """Return a report for programs; times are in seconds, and `exact` is of the event log."""
    return {
        "source": report.source,
        "start": report.start.astimezone(UTC).isoformat(),
        "end": report.end.astimezone(UTC).isoformat(),
        "notes": list(report.notes),
        "missed": [one.said for one in missed(report, objectives)],
        "objectives": judged(report, objectives),
        "adapters": [
            {
                "tenant": one.tenant,
                "adapter": one.adapter,
                "answered": one.answer.count,
                "unanswered": one.unanswered,
                "availability": one.availability,
                "within_objective": one.within(objectives.latency.seconds),
                "burn": one.burn(objectives),
                **{f"{name}_seconds": _as_json(getattr(one, name)) for name in NAMES},
            }
            for one in report.adapters
        ],
    }


def _as_json(times: Times) -> dict[str, Any]:
    names = [f"p{share * 100:g}" for share in SHARES]
    return {
        "count": times.count,
        **{name: times.percentile(share) for name, share in zip(names, SHARES, strict=True)},
        "exact": dict(zip(names, times.exact, strict=True)) if times.exact else None,
    }
