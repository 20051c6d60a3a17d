"""Whether each step had what the rules of its day asked for, from the audit log and kept files alone."""

from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import Evidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.approvals import PRODUCTION_RESTS_ON, ground_at, judged, missing_approvals
from lora_ops.registry.lifecycle import EVIDENCE, STAGES
from lora_ops.registry.owners_log import owners_before
from lora_ops.registry.reports import lacks, load
from lora_ops.registry.roles import MAY
from lora_ops.registry.rollbacks import fresh_incidents, no_incident
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.registry import EvidenceSettings


def broken_rules(registry: Registry, entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what each promotion in the log lacked, in words.

    A promotion by an older release, whose entry names no rules, is not judged: `weaknesses` tells of it.
    """
    for entry in entries:
        if entry.subject.kind != "version" or entry.action not in STAGES or "rules" not in entry.body:
            continue
        try:
            version = registry.get(entry.subject.id)
            manifest = version.manifest
        except LoraOpsError:
            continue  # the replay has named it
        said = f"entry {entry.seq} makes {version.id} '{entry.action}'"
        try:
            owners = owners_before(registry, entry)
        except LoraOpsError as error:
            yield f"{said}, and {str(error).rstrip('.')[0].lower()}{str(error).rstrip('.')[1:]}"
            continue
        team = owners.team(version.tenant)
        if team.person(entry.actor) not in team.with_role(MAY[entry.action]):
            yield f"{said} by {entry.actor}, whom owners.yaml of that day does not let"
        if entry.body.get("before") == "superseded":
            lacking = list(_rollback_lacks(registry, version, entry))
        else:
            lacking = list(_evidence_lacks(registry, version, entry))
            if not manifest.evaluation.beats_base:
                lacking.append("an evaluation in which it beats its base model")
        if entry.action == "production" and entry.body.get("before") == "canary":
            history = registry.log.entries(version.tenant, version.number)
            ground = ground_at(registry, version, entry)
            before = [one for one in history if one.seq < entry.seq]
            lacking += missing_approvals(ground, judged(ground, before))
        if lacking:
            yield f"{said} without {'; '.join(lacking)}"


def _evidence_lacks(registry: Registry, version: Version, entry: AuditEntry) -> Iterator[str]:
    found = {one.kind: one for one in entry.evidence}
    required: Sequence[str] = PRODUCTION_RESTS_ON
    if entry.action != "production":
        required = sorted(EVIDENCE.get((entry.body.get("before"), entry.action), ()))  # type: ignore[arg-type, call-overload]
    for kind in required:
        if kind not in found:
            yield f"evidence of kind '{kind}'"
        elif kind == "evaluation":
            if found[kind].sha256 != version.manifest.evaluation_report_sha256:
                yield "the evaluation of its package"
        else:
            yield from _document_lacks(registry, version, found[kind], entry)


def _document_lacks(registry: Registry, version: Version, one: Evidence, entry: AuditEntry) -> Iterator[str]:
    try:
        document = load(registry.files, one)
        least = EvidenceSettings.model_validate(entry.body["rules"]["least"])
    except LoraOpsError:
        return  # the file is lost or was changed, and is named as such
    except (ValidationError, KeyError, TypeError):
        yield "rules that can be read"
        return
    if document is None or document.kind != one.kind:
        yield f"a {one.kind} report that lora-ops counted"
    elif document.content_digest != version.summary.content_digest:
        yield f"a {one.kind} report on it (that one is about {document.adapter})"
    else:
        yield from lacks(document, least)


def _rollback_lacks(registry: Registry, version: Version, entry: AuditEntry) -> Iterator[str]:
    leaves = registry.get(f"{version.tenant}@{entry.body.get('concerns')}")
    incidents = [one for one in entry.evidence if one.kind == "incident"]
    if not incidents:
        yield f"an incident of {leaves.id}"
        return
    history = registry.log.entries(leaves.tenant, leaves.number)
    before = [one for one in history if one.seq < entry.seq]
    if not fresh_incidents(before, leaves.number, incidents[:1]):
        yield no_incident(leaves.id, told_before=True)
    try:
        document = load(registry.files, incidents[0])
    except LoraOpsError:
        return
    if document is None or document.content_digest != leaves.summary.content_digest:
        yield f"an incident of {leaves.id}"


def weaknesses(entries: Sequence[AuditEntry], version: str) -> list[str]:
    """Return where a version's promotions were held to less than this release asks by default, in words."""
    default, found = EvidenceSettings().model_dump(mode="json"), list[str]()
    for entry in entries:
        before = entry.body.get("before")
        if entry.subject.id != version or entry.action not in STAGES or before == "superseded":
            continue
        rules = entry.body.get("rules")
        if rules is None:
            if entry.action == "production":
                found.append(
                    "it went into production by the rules of an older release, whose approvals name nothing"
                )
            continue
        least = rules.get("least", {})
        less = [
            f"{name} {least[name]:g}, not {value:g}"
            for name, value in default.items()
            if name in least and (least[name] > value if name == "error_share" else least[name] < value)
        ]
        if less:
            found.append(f"it was promoted by rules that ask for less evidence than usual ({', '.join(less)})")
        if entry.action == "production" and rules.get("approvals") == "unsigned":
            found.append("it was promoted by rules that let approvals go unsigned")
    return list(dict.fromkeys(found))
