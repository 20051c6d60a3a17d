"""A broken budget of risky answers becomes an incident of its version, once in each window of the budget.

The entry of the log has a mark (`RiskMark`), by which a later run knows it. An incident that a person files has
none, whatever file it names: else a harmless one would keep a broken budget silent.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.monitoring.content_risk import Risk, RiskReport, is_version
from lora_ops.monitoring.corrected_risk import version_that_answered
from lora_ops.records.risk import RiskIncident, RiskMark
from lora_ops.registry import lifecycle
from lora_ops.registry.counting import CLOCKS_DIFFER
from lora_ops.registry.reports import make
from lora_ops.registry.steps import marks_of
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

FILE = "risk.json"
MARK = "risk_budget"
"""Of an entry's body."""


class Filed(NamedTuple):
    """What became of the broken budgets: incidents by version, and why others were not filed, in sentences."""

    incidents: tuple[RiskIncident, ...]
    not_filed: tuple[str, ...]


def file_incidents(registry: Registry, report: RiskReport, *, actor: str) -> Filed:
    """File each broken budget on the version that broke it.

    Where all versions of a tenant together broke one and none of them did alone, it goes to the version with
    the most risky answers that the detector's errors don't explain. A version that has an incident of the same
    kind from within the window gets no second one, so that a later run, or one beside it, adds nothing. What
    can't be filed for one version, since its record or its team refuses it, keeps no other one back.
    """
    filed, not_filed = [], []
    for one in _whose(report):
        if one.adapter is None:
            not_filed.append(f"No version alone is above the budget by its corrected share. {one.said}.")
            continue
        try:
            version = version_that_answered(registry, one.adapter, one.digest or "")
            incident = _incident(report, one)
            if not _told(registry, version, incident) and _link(registry, version, incident, actor):
                filed.append(incident)
                continue
        except LoraOpsError as error:
            not_filed.append(str(error))
            continue
        days = (report.end - report.start).days
        not_filed.append(f"{version.id} has an incident of its {one.kind} from within {days} days already.")
    return Filed(tuple(filed), tuple(not_filed))


def _whose(report: RiskReport) -> Iterator[Risk]:
    """Yield each broken budget with the version that it falls to; without one where it falls to none."""
    for one in report.broken:
        alike = [
            other
            for other in report.risks
            if (other.tenant, other.kind) == (one.tenant, one.kind) and is_version(other.adapter or "")
        ]
        if one.adapter is not None:
            yield one
        elif not any(other.verdict == "broken" for other in alike):
            # An incident voids approvals: a version gets none for what may be false alarms alone.
            may = [other for other in alike if other.corrected is None or other.corrected.low > one.budget]
            most = max(may, key=lambda other: other.flagged, default=one)
            # Its own verdict says that nobody can tell of it alone; what is filed says whose budget broke.
            yield replace(one, adapter=most.adapter, digest=most.digest)


def _incident(report: RiskReport, one: Risk) -> RiskIncident:
    assert one.adapter and one.digest and one.share  # a broken budget has scored answers
    return RiskIncident(
        tenant=one.tenant,
        adapter=one.adapter,
        digest=one.digest,
        kind=one.kind,
        start=report.start,
        end=report.end,
        budget=one.budget,
        scored=one.scored,
        flagged=one.flagged,
        share=one.share,
        corrected=one.corrected,
        threshold=report.threshold if one.kind == "insults" else None,
        said=one.said,
    )


def _link(registry: Registry, version: Version, incident: RiskIncident, actor: str) -> bool:
    """File an incident, and return whether it is new."""
    was_told: list[bool] = []

    def is_told(now: Version) -> bool:
        was_told.append(_told(registry, now, incident))
        return was_told[-1]

    said = f"risk budget broken: {incident.said}"
    with tempfile.TemporaryDirectory(prefix="risk-") as folder:
        path = Path(folder) / FILE
        path.write_text(incident.model_dump_json(indent=2) + "\n", encoding="utf-8")
        report = make(registry, version.id, "incident", path, said)
    mark = RiskMark(kind=incident.kind, end=incident.end)
    lifecycle.link_incident(
        registry,
        version.id,
        actor=actor,
        reason=said,
        evidence=[report],
        unless=is_told,
        marks={MARK: mark.model_dump(mode="json")},
    )
    return not was_told[-1]


def _told(registry: Registry, version: Version, incident: RiskIncident) -> bool:
    """Return whether this command filed an incident of the same kind whose window overlaps this one's.

    One whose window ends later than this one's, or later than its own entry, came from a clock that ran ahead.
    It keeps nothing silent.
    """
    latest = incident.end + CLOCKS_DIFFER
    return any(
        mark.kind == incident.kind
        and incident.start < mark.end <= min(latest, datetime.fromisoformat(at) + CLOCKS_DIFFER)
        for at, mark in marks_of(registry, version, "incident", MARK, RiskMark)
    )
