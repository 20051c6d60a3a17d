"""Whether each step had what the rules of its day asked for, from the audit log and kept files alone."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import AnyEvidence, Evidence
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.approvals import (
    PRODUCTION_RESTS_ON,
    SINCE_GATES,
    approvals_of,
    ground_at,
    judged,
    missing_approvals,
    promotion_in,
)
from lora_ops.registry.earlier_policies import Policies
from lora_ops.registry.earlier_suites import Suites
from lora_ops.registry.eligibility import expiry_reason
from lora_ops.registry.inherited import closed_twins, twin_objections, twin_objections_to_return
from lora_ops.registry.objections import objections, review_objections
from lora_ops.registry.owners import Team
from lora_ops.registry.owners_log import owners_before
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import load, own_evidence, recorded_minimums
from lora_ops.registry.requirements import EVIDENCE, STAGES, other_baseline
from lora_ops.registry.roles import APPROVE, MAY
from lora_ops.registry.rollbacks import against_return, fresh_incidents, no_incident
from lora_ops.registry.rollouts import rollout_of
from lora_ops.registry.ssh_signatures import fingerprint
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import Version
from lora_ops.settings.registry import EvidenceSettings

DID: dict[str, str] = dict.fromkeys(STAGES, "promoted")
DID |= {"approved": "approved", "evidence": "given evidence"}


def broken_rules(registry: Registry, entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what each promotion in the log lacked, in words.

    A promotion by an older release, whose entry names no rules, is not judged: `weaknesses` tells of it.
    """
    twins = Twins(registry)
    for entry in entries:
        if entry.subject.kind != "version" or entry.action not in STAGES or "rules" not in entry.body:
            continue
        try:
            version = registry.get(entry.subject.id)
            _ = version.manifest  # must be readable below
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
            lacking = list(_rollback_lacks(registry, version, entry, twins))
        else:
            lacking = [
                *_evidence_lacks(registry, version, entry),
                *_objections(registry, version, entry, twins),
            ]
        if entry.action == "production" and entry.body.get("before") == "canary":
            history = registry.log.entries(version.tenant, version.number)
            ground = ground_at(registry, version, entry)
            before = [one for one in history if one.seq < entry.seq]
            lacking += missing_approvals(ground, judged(ground, before))
        if lacking:
            yield f"{said} without {'; '.join(dict.fromkeys(lacking))}"


def _evidence_lacks(registry: Registry, version: Version, entry: AuditEntry) -> Iterator[str]:
    found = {one.kind: one for one in entry.evidence}
    required: Sequence[str] = PRODUCTION_RESTS_ON
    if entry.action != "production":
        required = sorted(EVIDENCE.get((entry.body.get("before"), entry.action), ()))  # type: ignore[arg-type, call-overload]
    # Earlier releases asked for fewer kinds, and wrote nothing of the others into their rules.
    least = entry.body["rules"].get("least", {})
    for kind in (one for one in required if one not in SINCE_GATES or least.get(one)):
        if kind not in found:
            yield f"evidence of kind '{kind}'"
        elif kind == "evaluation":
            if found[kind].sha256 != version.manifest.evaluation_report_sha256:
                yield "the evaluation of its package"
        else:
            yield from _document_lacks(registry, version, found[kind], entry)
    if entry.action == "production" and least.get("rollout") == "required" and _replaces(registry, entry):
        found_then = rollout_of(registry, version.id, before=entry.seq)
        if found_then is None or found_then.phase != "ready" or found_then.paused:
            yield "a rollout that was ready and not paused"
    if least.get("regression"):
        yield from _baseline_lacks(registry, version, found.get("regression"), entry)


def _replaces(registry: Registry, entry: AuditEntry) -> bool:
    """Return whether an entry put a version out of production whose age let it answer then."""
    out = [number for number, state in entry.effects.get("states", {}).items() if state == "superseded"]
    with suppress(LoraOpsError):  # a lost row is named by others
        at = datetime.fromisoformat(entry.at)
        found = [registry.get(f"{entry.tenant}@{number}", whole=False) for number in out]
        return any(expiry_reason(one.summary, at) is None for one in found)
    return False


def _baseline_lacks(
    registry: Registry, version: Version, one: Evidence | None, entry: AuditEntry
) -> Iterator[str]:
    """Yield that a step rests on a regression report against another version than production of that day."""
    number = registry.log.last_unrevoked_in_production(
        version.tenant, other_than=version.number, before=entry.seq
    )
    with suppress(LoraOpsError):  # a lost report or row is named by others
        then = registry.get(f"{version.tenant}@{number}", whole=False).summary if number else None
        yield from other_baseline(registry, one, then, "was in production then")


def _document_lacks(registry: Registry, version: Version, one: Evidence, entry: AuditEntry) -> Iterator[str]:
    try:
        document = load(registry.files, one)
    except LoraOpsError:
        return  # the file is lost or was changed, and is named as such
    try:
        least = recorded_minimums(entry)
    except LoraOpsError:
        yield "rules that can be read"
        return
    assert least is not None  # an entry without rules is not judged
    if document is None or document.kind != one.kind:
        yield f"a {one.kind} report that lora-ops counted"
    elif document.content_digest != version.summary.content_digest:
        yield f"a {one.kind} report on it (that one is about {document.adapter})"
    else:
        yield from lacks(document, least)


def _objections(registry: Registry, version: Version, entry: AuditEntry, twins: Twins) -> list[str]:
    """Return what spoke against a step on its day: also reports that the step itself does not name."""
    history = [one for one in registry.log.entries(version.tenant, version.number) if one.seq < entry.seq]
    before = {one.sha256 for one in own_evidence(history, version.number)}
    found = []
    # A kept file that is lost, and rules that can't be read, are named by others.
    with suppress(LoraOpsError):
        least = recorded_minimums(entry)
        documents = [load(registry.files, one) for one in entry.evidence if one.sha256 not in before]
        given: dict[str, AnyEvidence] = {one.kind: one for one in documents if one}
        at, max_gap = datetime.fromisoformat(entry.at), entry.body.get("max_gap")  # no limit in older releases
        for objection in objections(registry, version, history, given, least, at, max_gap=max_gap):
            found.append(objection)
        # Earlier releases looked at neither twins nor the suites of earlier reports, nor at opponents.
        if entry.body["rules"].get("opponents"):
            found += review_objections(registry, version, history, given, entry.seq)
        suites = None
        if entry.body["rules"].get("suites"):
            suites = Suites.of(registry, version, history, given, least, lost_counts=False)
        policies = None
        if entry.body["rules"].get("policies"):
            policies = Policies.of(registry, version, history, given, least, lost_counts=False)
        if entry.body["rules"].get("twins"):
            found += closed_twins(registry, version, twins, entry.seq)
            found += twin_objections(
                registry, version, history, given, twins, suites, policies, max_gap=max_gap, before=entry.seq
            )
        found += suites.unanswered() if suites else ()
        found += policies.unanswered() if policies else ()
    return found


def _rollback_lacks(registry: Registry, version: Version, entry: AuditEntry, twins: Twins) -> Iterator[str]:
    try:
        leaves = registry.get(f"{version.tenant}@{entry.body.get('concerns')}", whole=False)
    except LoraOpsError:
        return  # its row was lost, which the replay has named
    incidents = [one for one in entry.evidence if one.kind == "incident"]
    if not incidents:
        yield f"an incident of {leaves.id}"
        return
    history = registry.log.entries(leaves.tenant, leaves.number)
    before = [one for one in history if one.seq < entry.seq]
    if not fresh_incidents(before, leaves.number, incidents[:1]):
        yield no_incident(leaves.id, told_before=True)
    returning = [one for one in registry.log.entries(version.tenant, version.number) if one.seq < entry.seq]
    with suppress(LoraOpsError):  # named by others: a lost file, rules that can't be read
        yield from against_return(registry, version, returning)
    yield from _same_weights_return(registry, version, leaves, entry, twins)
    try:
        document = load(registry.files, incidents[0])
    except LoraOpsError:
        return
    if document is None or document.content_digest != leaves.summary.content_digest:
        yield f"an incident of {leaves.id}"


def _same_weights_return(
    registry: Registry, version: Version, leaves: Version, entry: AuditEntry, twins: Twins
) -> Iterator[str]:
    """Yield what a rollback lacked because of the weights that came back, by what the log states of them.

    Weights that the log does not state are left out: they may have been lost on that day and restored since.
    """
    rules = entry.body.get("rules")
    if not isinstance(rules, dict) or not rules.get("twins"):
        return  # earlier releases did not look at them
    stated = twins.states(version.summary) and twins.states(leaves.summary)
    if stated and twins.compare(version.summary, leaves.summary) == "same":
        yield f"other weights than {leaves.id}, which leaves"
    yield from twin_objections_to_return(registry, version, twins, before=entry.seq)


def weaknesses(entries: Sequence[AuditEntry], version: str) -> list[str]:
    """Return where a version was held to less than this release asks by default, in words, for ever."""
    less: dict[str, list[str]] = {}
    found, unsigned = list[str](), list[str]()
    for entry in entries:
        did = DID.get(entry.action)
        if entry.subject.id != version or did is None:
            continue
        rules = entry.body.get("rules")
        if rules is None:
            if entry.action == "production" and entry.body.get("before") != "superseded":
                found.append(
                    "it went into production by the rules of an older release, whose approvals name nothing"
                )
            continue
        asked = _less(rules.get("least", {}))
        if asked:
            less.setdefault(asked, []).append(did)
        rests_on_approvals = entry.action == "approved" or entry.body.get("before") == "canary"
        if rests_on_approvals and rules.get("approvals") == "unsigned":
            unsigned.append(did)
    found += [
        f"it was {_listed(did)} by rules that ask for less evidence than usual ({asked})"
        for asked, did in less.items()
    ]
    if unsigned:
        found.append(f"it was {_listed(unsigned)} by rules that let approvals go unsigned")
    return list(dict.fromkeys(found))


def _less(least: dict[str, Any]) -> str:
    usual = EvidenceSettings().model_dump(mode="json")
    votes, policy, rollout = (usual.pop(name) for name in ("votes", "policy", "rollout"))
    asked = [
        f"{name} {least[name]:g}, not {value:g}"
        for name, value in usual.items()
        if name in least and (least[name] > value if name == "error_share" else least[name] < value)
    ]
    if least.get("votes", votes) != votes:
        asked.append(f"votes from a {least['votes']}, not from a {votes}")
    if least.get("policy", policy) != policy:
        asked.append(f"policy rows from a {least['policy']}, not {policy} ones")
    if least.get("rollout", rollout) != rollout:
        asked.append("a rollout where there is one, not before each production")
    return ", ".join(asked)


def _listed(words: list[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def signer_notes(registry: Registry, version: Version, history: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield which approvals a production rests on that owners.yaml of another day would not have."""
    given = [one for one in approvals_of(registry, version, history) if one.void is None]
    canary = [one for one in history if one.number == version.number and one.action == "canary"]
    try:
        then = owners_before(registry, canary[-1]).team(version.tenant) if canary else None
    except LoraOpsError:  # an older release kept no copy of it
        then = None
    today = registry.owners.team(version.tenant) if registry.owners else None
    for one in given:
        if one.key and then and one.key not in _keys(then, one.person):
            yield (
                f"{one.person} approved it with key {one.key}, which was added to owners.yaml only after the "
                "version entered canary"
            )
        if promotion_in(version, history) is None or today is None:
            continue
        person = today.person(one.person)
        if person is None or person not in today.with_role(APPROVE):
            yield f"it rests on the approval of {one.person}, who is no approver in today's owners.yaml"
        elif one.key and one.key not in _keys(today, one.person):
            yield f"it rests on the approval of {one.person} by key {one.key}, which today's owners.yaml lacks"


def _keys(team: Team, person: str) -> set[str]:
    found = team.person(person)
    return {fingerprint(key) for key in found.keys} if found else set()
