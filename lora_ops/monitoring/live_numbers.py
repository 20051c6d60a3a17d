"""The weekly page's numbers in the record of each version that was asked, once a day for a window's length.

Nothing is computed here: the record quotes the page, and keeps the page's numbers as the source. It is a later
record of its own kind. No step rests on it, it voids no approval, and it changes no state.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import AwareDatetime

from lora_ops import __version__
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.hashing import sha256_bytes
from lora_ops.line_files import line_files, read_line_files
from lora_ops.monitoring.content_risk import is_version
from lora_ops.monitoring.corrected_risk import version_that_answered
from lora_ops.records.evidence import LiveEvidence, Source
from lora_ops.records.live import LiveNumbers
from lora_ops.records.record import Record
from lora_ops.registry import lifecycle
from lora_ops.registry.counting import CLOCKS_DIFFER
from lora_ops.registry.reports import Report
from lora_ops.registry.steps import marks_of
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.small_files import parse_json, read_small

MARK = "live_numbers"
"""Of an entry's body."""
OF_THE_VERSION = ("same", "worth")
"""Questions that the page asks of the version that answers a tenant, and of no other one."""
WHOLE = "adapter IS NOT NULL AND digest IS NOT NULL"


class LiveMark(Record):
    """What the log's entry of filed numbers says, so that a day's window is filed once."""

    start: AwareDatetime
    end: AwareDatetime


class NamedContent(Record):
    """The fields of an event of the gateway that say whose answer it is; see `serving.events.Event`."""

    id: str
    time: datetime
    adapter: str
    digest: str


class Filed(NamedTuple):
    """What became of a page's numbers: reports on versions, and why others were not filed, in sentences."""

    reports: tuple[Report, ...]
    not_filed: tuple[str, ...]


def file_live_numbers(registry: Registry, page: Path, events: Path, *, actor: str) -> Filed:
    """File the numbers of each version that a page's latency names.

    What can't be filed for one version, since its record or its team refuses it, keeps no other one back.

    Args:
        registry: where.
        page: the file of the page's numbers, as `monitoring.page.keep_numbers` writes it.
        events: `.serving/events` of a gateway, which says what content answered under a name.
        actor: who files them.
    """
    source = read_small(page)
    numbers = parse_json(source)
    if isinstance(numbers["latency"], str):
        return Filed((), (f"The page does not know which versions were asked. {numbers['latency']}",))
    try:
        contents = contents_in(events, datetime.fromisoformat(numbers["start"]))
    except LoraOpsError as error:
        return Filed((), (f"Nobody knows which versions gave these answers. {error}",))
    filed: list[Report] = []
    not_filed: list[str] = []
    for row in numbers["latency"]["adapters"]:
        name = row["adapter"]
        if not is_version(name) or row["tenant"] != name.partition("@")[0]:
            continue  # the base model's, or what exceeds the cap of labels, of which the page's notes speak
        try:
            version = _version(registry, name, contents.get(name, []))
            live = live_numbers(numbers, version)
            report = _report(registry, version, live, page.name, source)
            if _file(registry, version, report, live, actor):
                filed.append(report)
                continue
        except LoraOpsError as error:
            not_filed.append(str(error))
            continue
        not_filed.append(f"{name} has the numbers of a window of this length from {live.end:%Y-%m-%d} already.")
    return Filed(tuple(filed), tuple(not_filed))


def contents_in(events: Path, start: datetime) -> dict[str, list[str]]:
    """Return the digests of the contents that answered or failed under each name since `start`.

    Raises:
        LoraOpsError: the files can't be read.
    """
    if not line_files(events, "events"):
        return {}
    found = read_line_files(events, "events", NamedContent, f"{WHOLE} AND time >= TIMESTAMPTZ '{start}'")
    return {str(name): sorted(set(mine)) for name, mine in found.groupby("adapter")["digest"]}


def _version(registry: Registry, adapter: str, digests: list[str]) -> Version:
    """Return the version that gave all answers under a name.

    Raises:
        NotFound: the registry lacks it, another content gave some of them, or no event says which one did.
    """
    found = [version_that_answered(registry, adapter, digest) for digest in digests]
    if not found or found[0].id != adapter:
        raise NotFound(
            f"No event here says which content answered as {adapter}: file its numbers on its gateway's host."
        )
    return found[0]


def live_numbers(numbers: Mapping[str, Any], version: Version) -> LiveNumbers:
    """Return what a page says of a version.

    Args:
        numbers: of the page, as `monitoring.page.numbers` gives them; its latency has the version.
        version: whose content answered.
    """
    latency, risk, costs = numbers["latency"], numbers["risk"], numbers["costs"]
    (row,) = _of(version, latency["adapters"], "adapter")
    answers = version.id in numbers["drift"]
    has_risk, has_costs = not isinstance(risk, str), not isinstance(costs, str)
    digest = version.summary.content_digest
    risks = _of(version, risk["risks"], "adapter") if has_risk else ()
    return LiveNumbers.model_validate(
        {
            **row,
            **{name: row[f"{name}_seconds"] for name in ("answer", "first_token", "per_token", "gone")},
            "start": latency["start"],
            "end": latency["end"],
            "source": latency["source"],
            "objectives": tuple(_of(version, latency["objectives"], "adapter")),
            "risk_start": risk["start"] if has_risk else None,
            "risk_end": risk["end"] if has_risk else None,
            "risks": tuple(one for one in risks if one["digest"] == digest),
            "currency": costs["currency"] if has_costs else None,
            "cost": next(_of(version, costs["versions"], "version"), None) if has_costs else None,
            "verdicts": tuple(
                one
                for one in numbers["verdicts"]
                if one["tenant"] == version.tenant and (answers or one["question"] not in OF_THE_VERSION)
            ),
            "notes": tuple(numbers["notes"]),
        }
    )


def _of(version: Version, rows: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    return (row for row in rows if (row["tenant"], row[name]) == (version.tenant, version.id))


def _report(registry: Registry, version: Version, live: LiveNumbers, name: str, source: bytes) -> Report:
    document = LiveEvidence(
        tenant=version.tenant,
        adapter=version.id,
        content_digest=version.summary.content_digest,
        made_by=f"lora-ops {__version__} monitor report",
        made_at=registry.clock(),
        source=Source(name=name, sha256=sha256_bytes(source), bytes=len(source)),
        numbers=live,
    )
    asked, days = live.answered + live.unanswered, f"{live.start:%Y-%m-%d} to {live.end:%Y-%m-%d}"
    return Report(document, source, ", ".join((days, f"{asked:,} requests", *_own_verdicts(live))))


def _own_verdicts(live: LiveNumbers) -> Iterator[str]:
    """Yield what is said of the version itself; fast and safe are asked of all versions of its tenant."""
    yield from (f"{one.objective} {one.verdict}" for one in live.objectives)
    yield from (f"{one.kind} {one.verdict}" for one in live.risks)
    yield from (f"{one.question} {one.state}" for one in live.verdicts if one.question in OF_THE_VERSION)


def _file(registry: Registry, version: Version, report: Report, live: LiveNumbers, actor: str) -> bool:
    """File a report, and return whether it is new; asked inside the transaction, since two jobs may run."""
    was_told: list[bool] = []

    def is_told(now: Version) -> bool:
        was_told.append(_is_told(registry, now, live))
        return was_told[-1]

    marks = {MARK: LiveMark(start=live.start, end=live.end).model_dump(mode="json")}
    lifecycle.file_evidence(registry, version.id, report, actor=actor, unless=is_told, marks=marks)
    return not was_told[-1]


def _is_told(registry: Registry, version: Version, live: LiveNumbers) -> bool:
    """Return whether numbers of a window of the same length that ended on the same day (UTC) were filed.

    A window that ends later than this one, or later than its own entry, came from a clock that ran ahead. It
    keeps nothing silent.
    """
    return any(
        mark.end.date() == live.end.date()
        and mark.end - mark.start == live.end - live.start
        and mark.end <= min(live.end, datetime.fromisoformat(at)) + CLOCKS_DIFFER
        for at, mark in marks_of(registry, version, "evidence", MARK, LiveMark)
    )
