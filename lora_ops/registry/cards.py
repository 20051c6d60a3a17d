"""One version on one page: what it is, who let it where, on what evidence, and whether it may serve today."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.records.evaluation import BiasAssessment
from lora_ops.records.evidence import Evidence, EvidenceKind
from lora_ops.records.manifest import Manifest
from lora_ops.records.registry import AdapterRecord, AuditEntry, Lineage, Ownership, Performance, Risk, Verdict
from lora_ops.registry import packages
from lora_ops.registry.approvals import approvals_of
from lora_ops.registry.demo import demo_notes
from lora_ops.registry.eligibility import UNREVIEWED, expiry_warning, reasons_against
from lora_ops.registry.files import FileStore
from lora_ops.registry.head_acceptance import accepted_heads
from lora_ops.registry.integrity import registry_problem
from lora_ops.registry.looks import looks
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.objections import outvoted
from lora_ops.registry.replay import row_mismatches
from lora_ops.registry.reports import (
    drift_summary,
    filed,
    human_evaluation,
    live_summary,
    policy_checks,
)
from lora_ops.registry.requirements import about_twins
from lora_ops.registry.rollbacks import incidents_in
from lora_ops.registry.rules import signer_notes, weaknesses
from lora_ops.registry.seeds import seed_spread
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import Version

T = TypeVar("T")


class Difference(NamedTuple):
    """One value that two versions do not share; None where one of them lacks it."""

    section: str
    name: str
    left: str | None
    right: str | None


def record(registry: Registry, reference: str) -> AdapterRecord:
    """The whole record of one version, as of now.

    Raises:
        LoraOpsError: unknown version, or a record that no longer fits its schema.
    """
    with registry.db.reading():
        version = registry.get(reference)
        history = registry.log.entries(version.tenant, version.number)
        told = registry.log.about(version.tenant, version.number)
    manifest, summary = version.manifest, version.summary
    reports = filed(version, history)
    notes = [*weaknesses(history, version.id), *signer_notes(registry, version, history)]
    notes += [*demo_notes(registry), *accepted_heads(registry)]
    notes += about_twins(registry, version, Twins(registry))
    notes += [*gate_notes(registry, version), *_gap_notes(version)]
    try:
        notes += outvoted(registry, version, history)
    except LoraOpsError as error:
        notes.append(str(error).rstrip("."))
    counted, spread = None, None
    try:
        counted, spread = looks(registry, version), seed_spread(registry, version)
    except LoraOpsError as error:  # a damaged file of another version must not hide this one
        notes.append(str(error).rstrip("."))
    if counted and counted.too_many:
        notes.append(
            f"it is {counted}, more than {counted.limit} (registry.max_looks): rows that were looked at so "
            "often are hardly held out, so draw others (data.seed) or collect new ones"
        )
    drift = _quoted(registry, reports, "drift", drift_summary, notes)
    if drift and (drift.verdict in ("drifted", "cannot tell") or drift.replaced):
        notes.append(f"{drift.said} ({drift.at.date().isoformat()})")
    return AdapterRecord(
        id=version.id,
        tenant=version.tenant,
        number=version.number,
        state=version.state,
        aliases=list(version.aliases),
        route=registry.route(version.tenant).about(version.number),
        author=summary.author,
        registered_at=summary.registered_at,
        content_digest=summary.content_digest,
        signature_sha256=summary.signature,
        lineage=_lineage(manifest),
        performance=Performance(
            rows=manifest.evaluation.rows,
            primary=manifest.evaluation.primary,
            metrics=manifest.evaluation.metrics,
            verdict=manifest.evaluation.verdict,
            looks=counted,
            seeds=spread,
            report_sha256=manifest.evaluation_report_sha256,
            human_evaluation=_quoted(registry, reports, "human_evaluation", human_evaluation, notes)
            or manifest.human_evaluation,
            policy=_quoted(registry, reports, "policy", policy_checks, notes) or manifest.policy,
        ),
        live=_quoted(registry, reports, "live_numbers", live_summary, notes),
        risk=Risk(
            bias=_bias(manifest),
            incidents=incidents_in(history, version.number),
            fresh_until=manifest.fresh_until,
            drift=drift,
        ),
        ownership=_ownership(registry, version),
        approvals=approvals_of(registry, version, history),
        history=told,
        verdict=verdict(registry, version, history, notes),
    )


def _gap_notes(version: Version) -> list[str]:
    return [
        f"by {name} its {column.between} is clearly above the limit of its evaluation ({column.limit:g})"
        for name, column in version.manifest.evaluation.bias.items()
        if column.exceeds_limit
    ]


def _bias(manifest: Manifest) -> BiasAssessment | None:
    """Return what the gates judge; an older release kept the groups in the manifest alone."""
    report = manifest.evaluation_report_sha256
    return (BiasAssessment.of(manifest.evaluation, report) if report else None) or manifest.bias


def _lineage(manifest: Manifest) -> Lineage:
    return Lineage(
        base_model=manifest.base_model,
        sources=[manifest.data.source],
        splits=manifest.data.splits,
        data_warnings=manifest.data.warnings,
        data_checks=None if manifest.data.own_checks is None else list(manifest.data.own_checks),
        git=manifest.git,
        params=manifest.params,
        dvc_lock_sha256=manifest.dvc_lock_sha256,
        parent=manifest.parent,
        packages=manifest.packages,
    )


def _ownership(registry: Registry, version: Version) -> Ownership | None:
    """Return who answers for a version by today's owners.yaml; None where that is missing."""
    if registry.owners is None:
        return None
    team = registry.owners.team(version.tenant)
    return Ownership(
        team=team.team,
        contacts=list(team.contacts),
        escalation=list(team.escalation),
        review_cadence_days=team.review_cadence_days,
        next_review_due=_moment(version.summary.next_review_due),
    )


def _quoted(
    registry: Registry,
    evidence: Mapping[str, Evidence],
    kind: EvidenceKind,
    read: Callable[[FileStore, Evidence], T | None],
    notes: list[str],
) -> T | None:
    """What the latest report of one kind says; if its file is not what it was, a note says so instead."""
    try:
        return read(registry.files, evidence[kind]) if kind in evidence else None
    except LoraOpsError as error:
        notes.append(str(error).rstrip("."))
        return None


def verdict(
    registry: Registry, version: Version, history: Sequence[AuditEntry], notes: Sequence[str] = ()
) -> Verdict:
    """Decide whether a version may serve at this moment: log, stage, freshness, files and signature.

    The log is verified up to its signed head first, and the rows are compared with it, so that a changed row, a
    moved alias or a cut log changes no answer. `notes` are warnings that were found before.
    """
    summary, now = version.summary, registry.clock()
    damage = registry_problem(registry)
    reasons = [damage] if damage else []
    reasons += row_mismatches(version, history)
    reasons += reasons_against(registry, summary, now)
    warnings = []
    expires = expiry_warning(summary, now)
    if expires:
        warnings.append(expires)
    if summary.next_review_due and summary.next_review_due <= utc(now):
        warnings.append(f"its review has been due since {summary.next_review_due[:10]}")
    try:
        packages.check_kept(registry, version)
    except LoraOpsError as error:
        reasons.append(str(error).rstrip("."))
    if not reasons and summary.state in UNREVIEWED:
        warnings.append(
            "nobody has approved it: the gateway serves it because serving.allow_candidates is on in "
            f"params.yaml and '{version.tenant}' never had a version in production"
        )
    return Verdict(may_serve=not reasons, reasons=reasons, warnings=[*warnings, *notes])


def differences(left: Version, right: Version) -> list[Difference]:
    """What differs between two versions: data, parameters, metrics, everything else that was recorded."""
    found = []
    for section, pick in SECTIONS.items():
        a, b = _flat(pick(left)), _flat(pick(right))
        found += [
            Difference(section, name, a.get(name), b.get(name))
            for name in dict.fromkeys([*a, *b])
            if a.get(name) != b.get(name)
        ]
    return found


SECTIONS = {
    "data": lambda version: version.manifest.data.model_dump(mode="json"),
    "params": lambda version: version.manifest.params,
    "metrics": lambda version: {
        name: {system: str(interval) for system, interval in metric.items()}
        for name, metric in version.manifest.evaluation.metrics.items()
    },
    "training": lambda version: version.manifest.training.model_dump(
        mode="json", include={"steps", "tokens", "final_loss", "validation_loss", "device"}
    ),
    "base model": lambda version: version.manifest.base_model.model_dump(mode="json"),
    "code": lambda version: {
        **version.manifest.git.model_dump(),
        "dvc_lock_sha256": version.manifest.dvc_lock_sha256,
        **version.manifest.packages,
    },
    "package": lambda version: {
        "size_bytes": version.manifest.size_bytes,
        "license": version.manifest.license,
        "fresh_until": utc(version.manifest.fresh_until),
        "parent": version.manifest.parent,
    },
}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= _flat(inner, f"{name}.{key}" if name else str(key))
        return flat
    return {name: "-" if value is None else str(value)}


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
