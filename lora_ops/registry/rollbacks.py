"""What a rollback rests on: a fresh incident of what leaves, and nothing against what returns."""

from collections.abc import Iterator, Sequence

from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.approvals import PRODUCTION_RESTS_ON, SINCE_GATES
from lora_ops.registry.objections import kept_lacks, later_speaks_against
from lora_ops.registry.report_lacks import evaluation_lacks, failing
from lora_ops.registry.reports import BEFORE_GATES, filed, load, recorded_minimums
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.registry import EvidenceSettings


def incidents_in(history: Sequence[AuditEntry], number: int) -> list[Evidence]:
    """Return the incidents of version `number` that its history tells of, each report once."""
    told = {
        one.sha256: one
        for entry in history
        if entry.body.get("concerns", entry.number) == number
        for one in entry.evidence
        if one.kind == "incident"
    }
    return list(told.values())


def incidents_since_production(history: Sequence[AuditEntry], number: int) -> list[Evidence]:
    """Return the incidents of version `number` since it entered production last, or all if it never did."""
    since = entered_production(history, number)
    return incidents_in([entry for entry in history if entry.seq >= since], number)


def fresh_incidents(
    history: Sequence[AuditEntry], number: int, offered: Sequence[Evidence] = ()
) -> list[Evidence]:
    """Return the incidents of version `number` that were told since it entered production last.

    One that was told before, or that an earlier rollback rested on, is not told anew by filing its text again.

    Args:
        history: the version's entries.
        number: the version that leaves production.
        offered: incidents that are not filed yet.
    """
    since = entered_production(history, number)
    before = {_text(one) for one in incidents_in([e for e in history if e.seq <= since], number)}
    told = [*incidents_in([e for e in history if e.seq > since], number), *offered]
    return [one for one in told if _text(one) not in before]


def no_incident(leaves: str, *, told_before: bool) -> str:
    """Say which incident a rollback lacks."""
    said = "; what was given was told before that" if told_before else ""
    return (
        f"evidence of kind 'incident' on {leaves}, which leaves production, told since it entered production "
        f"last{said}"
    )


def against_return(
    registry: Registry,
    version: Version,
    history: Sequence[AuditEntry] | None = None,
) -> Iterator[str]:
    """Yield why a version may not return to production, as what it lacks.

    The evidence that let it into production is judged by the minimums of that day: in an incident, stricter
    ones of today must not keep a version out that served well. What speaks against it counts whenever it was
    filed. A report that was filed since and is too small, or leaves out checks that passed, says nothing
    against it. A version that an older release promoted has no minimums, and may have reports of another form.
    The step into production compared the dates of the reports with its clock. Nobody asks for them again: a
    clock that was ahead then, or is behind now, must not stop a rollback.

    Args:
        registry: where.
        version: what returns.
        history: its entries before the rollback; default: all.

    Raises:
        LoraOpsError: a kept file is missing or was changed, or the minimums can't be read.
    """
    if history is None:
        history = registry.log.entries(version.tenant, version.number)
    since = _was_let_in(history, version.number)
    least = _minimums(history, since)
    told = incidents_since_production(history, version.number)
    if told:
        yield f"a version without an incident since it entered production last ('{told[-1].summary}')"
    found = filed(version, history)
    then = filed(version, [entry for entry in history if entry.seq <= since])
    for kind in PRODUCTION_RESTS_ON:
        if kind not in found:
            if least and (kind not in SINCE_GATES or getattr(least, kind)):
                yield f"evidence of kind '{kind}' on {version.id}, which returns"
        elif found[kind] != then.get(kind):
            # A suite of today, or a lost report on it, must not keep out a version that served well.
            if kind in SINCE_GATES:
                continue
            yield from later_speaks_against(registry, version, history, found[kind], least)
        elif kind != "evaluation" and (least or load(registry.files, found[kind])):
            asked = least or registry.least.model_copy(update=BEFORE_GATES)
            yield from kept_lacks(registry, version, history, found[kind], asked)
    # A gap between groups, and how the base model was asked, were judged on the day that let it in.
    yield from evaluation_lacks(version.manifest, max_gap=None, fair_opponent=False)
    if "policy" not in found:
        yield from failing(version.manifest.policy)


def _minimums(history: Sequence[AuditEntry], seq: int) -> EvidenceSettings | None:
    """Return what evidence had to say when entry `seq` let a version into production, or None."""
    entry = next((one for one in history if one.seq == seq), None)
    return recorded_minimums(entry) if entry else None


def entered_production(history: Sequence[AuditEntry], number: int) -> int:
    """Return the entry that let version `number` into production last; 0 without one."""
    entries = [entry.seq for entry in history if entry.number == number and entry.action == "production"]
    return entries[-1] if entries else 0


def _was_let_in(history: Sequence[AuditEntry], number: int) -> int:
    """Return the entry that promoted version `number` into production last, on evidence; 0 without one.

    A rollback brings a version back without asking for its evidence again, so its day's minimums say nothing.
    """
    return entered_production([entry for entry in history if "concerns" not in entry.body], number)


def _text(one: Evidence) -> str:
    return one.source_sha256 or one.sha256
