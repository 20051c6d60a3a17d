"""The life of a version: who may move it where, on what evidence, with whose agreement."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, get_args

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.paths import EVALUATION
from lora_ops.records.evidence import Evidence, EvidenceKind
from lora_ops.records.registry import Approval, AuditEntry, State
from lora_ops.registry.changes import Change
from lora_ops.registry.owners import APPROVERS_NEEDED, Person, Role, Team
from lora_ops.registry.reports import FORMS, latest, read_human_evaluation, read_policy
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version, parse_reference

Stage = Literal["validated", "shadow", "canary", "production"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FRESHNESS_WARNING = timedelta(days=14)
LIVE: frozenset[State] = frozenset({"candidate", "validated", *STAGES})
SERVING: frozenset[State] = frozenset({"shadow", "canary", "production"})

# From, to: the evidence without which the step is refused. A version is superseded only by the promotion of
# another one, and goes back to production only from there: a rollback, which rests on its incident.
EVIDENCE: dict[tuple[State, State], frozenset[EvidenceKind]] = {
    ("candidate", "validated"): frozenset({"evaluation", "policy"}),
    ("validated", "shadow"): frozenset({"human_evaluation"}),
    ("shadow", "canary"): frozenset({"shadow"}),
    ("canary", "production"): frozenset({"canary"}),
    ("production", "superseded"): frozenset(),
    ("superseded", "production"): frozenset({"incident"}),
    ("superseded", "archived"): frozenset(),
    ("rejected", "archived"): frozenset(),
    **{(state, "rejected"): frozenset() for state in ("candidate", "validated", "shadow", "canary")},
    **{
        (state, "revoked"): frozenset()
        for state in ("candidate", "validated", "shadow", "canary", "production", "superseded")
    },
}


# Who of a tenant's team may do what. Taking a version out of service, and telling of an incident, is for
# everybody who is named: to wait for a role would be worse.
APPROVE: frozenset[Role] = frozenset({"approver"})
MOVE: frozenset[Role] = frozenset({"approver", "operator"})
JUDGE: frozenset[Role] = frozenset({"reviewer", "approver"})
ANYBODY: frozenset[Role] = frozenset(get_args(Role))
MAY: dict[State, frozenset[Role]] = {
    "validated": JUDGE | MOVE,
    "shadow": MOVE,
    "canary": MOVE,
    "production": MOVE,
    "rejected": JUDGE | MOVE,
    "archived": MOVE,
    "revoked": ANYBODY,
}


def allowed(before: str, after: str) -> bool:
    """Return whether the rules have this step; a state of a newer release is judged by that release alone."""
    known = get_args(State)
    return before not in known or after not in known or (before, after) in EVIDENCE


class Due(NamedTuple):
    """One thing to do soon, or late already."""

    id: str
    what: Literal["review", "freshness"]
    at: str
    overdue: bool
    state: State
    team: str | None


def promote(
    registry: Registry,
    reference: str,
    to: Stage,
    *,
    actor: str,
    reason: str,
    evidence: Sequence[Evidence] = (),
    expect: str | None = None,
) -> Version:
    """Move a version one stage on: validated, shadow, canary, production; or back to production (rollback).

    Args:
        registry: where.
        reference: which version.
        to: the stage.
        actor: who does it.
        reason: why.
        evidence: what it rests on, from `Registry.keep`; see `EVIDENCE`.
        expect: the version that the alias `to` must name at this moment (`finance@2`, or `none`).

    Raises:
        LoraOpsError: the actor has no role for it, the step does not exist, evidence or approvals are missing,
            its policy report fails or people prefer its base model, the version has expired, or the alias moved
            meanwhile. Nothing is changed then.
    """
    if to not in STAGES:
        raise LoraOpsError(f"A version can't be promoted to '{to}': choose one of {', '.join(STAGES)}.")
    with registry.change(actor) as change:
        version = registry.get(reference)
        _require_role(registry, version, actor, MAY[to], f"make {version.id} '{to}'")
        current = registry.named(version.tenant, to)
        now = f"{version.tenant}@{current}" if current else "none"
        if expect is not None and expect != now:
            raise LoraOpsError(
                f"{version.tenant}@{to} moved meanwhile: it names {now}, not {expect}; look again before "
                "you promote."
            )
        evidence = [*_packaged(registry, version, to, evidence), *evidence]
        needed = _step(registry, version, to, reason, evidence)
        needed += _objections(registry, version, evidence)
        if utc(registry.clock()) >= version.summary.fresh_until:
            raise LoraOpsError(
                f"{version.id} expired on {version.summary.fresh_until[:10]}: train it on fresh data."
            )
        if (version.state, to) == ("canary", "production"):
            needed += _approvals_missing(registry, version)
        if needed:
            raise LoraOpsError(f"{version.id} can't become '{to}' yet; missing: {'; '.join(needed)}.")
        states: dict[int, State] = {version.number: to}
        if current and to == "production":
            states[current] = "superseded"
        elif current:
            raise LoraOpsError(
                f"{now} is '{to}' already: promote or reject it before {version.id} takes its place."
            )
        aliases: dict[str, int | None] = {
            alias: None for alias in version.aliases if alias in SERVING and alias != to
        }
        if to in SERVING:
            aliases[to] = version.number
        # A rollback's incident is one of the version that it puts out of production, not of the good one.
        rollback = (version.state, to) == ("superseded", "production")
        concerns = registry.log.last_in_production(version.tenant) if rollback else None
        _record(change, version, to, reason, evidence, states, aliases, concerns)
    return registry.get(version.id)


def reject(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Evidence] = ()
) -> Version:
    """Decide that a version never serves; its aliases go.

    Raises:
        LoraOpsError: unknown version, no reason, or it is past the stages where it can be rejected.
    """
    return _close(registry, reference, "rejected", actor, reason, evidence)


def revoke(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Evidence] = ()
) -> Version:
    """Take a version out of service for good; anybody in its team may, at once, and its aliases go.

    Raises:
        LoraOpsError: unknown version, no reason, or it is closed already.
    """
    return _close(registry, reference, "revoked", actor, reason, evidence)


def archive(registry: Registry, reference: str, *, actor: str, reason: str) -> Version:
    """Put a superseded or rejected version away.

    Raises:
        LoraOpsError: unknown version, no reason, or it is in another state.
    """
    return _close(registry, reference, "archived", actor, reason, ())


def approve(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Evidence] = ()
) -> Version:
    """Agree that a canary may go to production.

    Args:
        registry: where.
        reference: the exact version; an alias may move between reading and agreeing.
        actor: id or e-mail of a person with the role `approver` in owners.yaml.
        reason: why.
        evidence: what they looked at, if it is more than the canary's own.

    Raises:
        LoraOpsError: not an approver, the author, somebody who agreed already, no canary, or an author whom
            owners.yaml does not name, so that nobody can tell who must not approve.
    """
    tenant, which = parse_reference(reference)
    if not isinstance(which, int):
        raise LoraOpsError(f"Name the exact version to approve ({tenant}@3): an alias may move meanwhile.")
    with registry.change(actor) as change:
        version = registry.get(reference)
        person = _approver(registry, version, actor)
        _said(reason, evidence, registry)
        if version.state != "canary":
            raise LoraOpsError(f"{version.id} is '{version.state}': production is approved while in canary.")
        if person.id in {approval.person for approval in approvals(registry, version)}:
            raise LoraOpsError(f"{person.name} has approved {version.id} already: a second person must agree.")
        change.record(
            "approved",
            version.tenant,
            version.number,
            person=person.id,
            roles=list(person.roles),
            reason=reason,
            evidence=[one.model_dump() for one in evidence],
        )
    return registry.get(version.id)


def review(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Evidence]
) -> Version:
    """Say that a version was looked at again; the next review is due one cadence from now.

    Raises:
        LoraOpsError: no owners.yaml, no reviewer or approver, no evidence of kind `review`, or a closed
            version.
    """
    with registry.change(actor) as change:
        version = registry.get(reference)
        team = owners_of(registry, version.tenant)
        _require_role(registry, version, actor, JUDGE, f"review {version.id}")
        _said(reason, evidence, registry)
        if version.state not in LIVE:
            raise LoraOpsError(f"{version.id} is '{version.state}': there is nothing to review.")
        if "review" not in {one.kind for one in evidence}:
            raise LoraOpsError(f"The review of {version.id} is missing: evidence of kind 'review'.")
        change.record(
            "reviewed",
            version.tenant,
            version.number,
            review_due=utc(team.next_review(datetime.fromisoformat(change.at))),
            reason=reason,
            evidence=[one.model_dump() for one in evidence],
        )
    return registry.get(version.id)


def link_incident(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Evidence]
) -> Version:
    """Link an incident's report to the version that was involved, in whatever state that is.

    Raises:
        LoraOpsError: unknown version, nobody of its team, no reason, or no evidence of kind `incident`.
    """
    with registry.change(actor) as change:
        version = registry.get(reference)
        _require_role(registry, version, actor, ANYBODY, f"tell of an incident of {version.id}")
        _said(reason, evidence, registry)
        if "incident" not in {one.kind for one in evidence}:
            raise LoraOpsError(f"The incident of {version.id} is missing: evidence of kind 'incident'.")
        change.record(
            "incident",
            version.tenant,
            version.number,
            reason=reason,
            evidence=[one.model_dump() for one in evidence],
        )
    return registry.get(version.id)


def incidents_in(history: Sequence[AuditEntry], number: int) -> list[Evidence]:
    """The incidents of version `number` that its history tells of, each report once."""
    told = {
        one.sha256: one
        for entry in history
        if entry.body.get("concerns", entry.number) == number
        for one in entry.evidence
        if one.kind == "incident"
    }
    return list(told.values())


def own_evidence(history: Sequence[AuditEntry], number: int) -> list[Evidence]:
    """Every report on version `number` itself, oldest first, without those on one that took its place."""
    return [one for entry in history if entry.number == number for one in entry.evidence]


def approvals(registry: Registry, version: Version) -> list[Approval]:
    """Who agreed that this version may go to production, oldest first."""
    return approvals_in(registry.log.entries(version.tenant, version.number))


def approvals_in(history: Sequence[AuditEntry]) -> list[Approval]:
    """The approvals in one version's history."""
    return [
        Approval(
            person=entry.body["person"], roles=entry.body["roles"], reason=entry.body["reason"], at=entry.at
        )
        for entry in history
        if entry.action == "approved"
    ]


def due(registry: Registry, tenant: str | None = None) -> list[Due]:
    """Reviews that are overdue and data that expires within 14 days (or has), the most urgent first."""
    today = registry.clock()
    now, soon = utc(today), utc(today + FRESHNESS_WARNING)
    found = []
    for one in registry.summaries(tenant):
        if one.state not in LIVE:
            continue
        team = registry.owners.team(one.tenant).team if registry.owners else None
        if one.next_review_due and one.next_review_due <= now:
            found.append(Due(one.id, "review", one.next_review_due, True, one.state, team))
        if one.fresh_until <= soon:
            found.append(Due(one.id, "freshness", one.fresh_until, one.fresh_until <= now, one.state, team))
    return sorted(found, key=lambda item: item.at)


def missing_for(registry: Registry, reference: str) -> tuple[Stage | None, list[str]]:
    """The next stage of a version, and what is still needed for it besides a reason.

    Raises:
        LoraOpsError: unknown version.
    """
    version = registry.get(reference)
    stage = next((stage for stage in STAGES if (version.state, stage) in EVIDENCE), None)
    if stage is None:
        return None, []
    packaged = {one.kind for one in _packaged(registry, version, stage, ())}
    needed = [f"evidence of kind '{kind}'" for kind in sorted(EVIDENCE[version.state, stage] - packaged)]
    needed += _objections(registry, version, ())
    if version.state == "canary":
        needed += _approvals_missing(registry, version)
    return stage, needed


def _close(
    registry: Registry, reference: str, to: State, actor: str, reason: str, evidence: Sequence[Evidence]
) -> Version:
    with registry.change(actor) as change:
        version = registry.get(reference)
        _require_role(registry, version, actor, MAY[to], f"make {version.id} '{to}'")
        missing = _step(registry, version, to, reason, evidence)
        if missing:
            raise LoraOpsError(f"{version.id} can't become '{to}' yet; missing: {'; '.join(missing)}.")
        gone: dict[str, int | None] = dict.fromkeys(version.aliases)
        _record(change, version, to, reason, evidence, {version.number: to}, gone)
    return registry.get(version.id)


def _step(
    registry: Registry, version: Version, to: State, reason: str, evidence: Sequence[Evidence]
) -> list[str]:
    """What the step lacks; raises when there is no such step."""
    required = EVIDENCE.get((version.state, to))
    if required is None:
        steps = [b for a, b in EVIDENCE if a == version.state and b != "superseded"]
        ways = ", ".join(steps) if steps else "none"
        raise LoraOpsError(
            f"{version.id} is '{version.state}': it can't become '{to}' (ways from here: {ways})."
        )
    _said(reason, evidence, registry)
    return [f"evidence of kind '{kind}'" for kind in sorted(required - {one.kind for one in evidence})]


def _packaged(registry: Registry, version: Version, to: State, given: Sequence[Evidence]) -> list[Evidence]:
    """The evaluation that lies in the package, which nobody needs to hand in again."""
    if (version.state, to) != ("candidate", "validated") or "evaluation" in {one.kind for one in given}:
        return []
    file = version.manifest.files.get(EVALUATION)
    if file is None or file.sha256 != version.manifest.evaluation_report_sha256:
        return []
    registry.files.present(file.sha256, EVALUATION)
    return [Evidence(kind="evaluation", sha256=file.sha256, summary=f"{EVALUATION} of the package")]


def _objections(registry: Registry, version: Version, given: Sequence[Evidence]) -> list[str]:
    """What the latest reports of policy and people say against going on, now given or known from before."""
    known = [*own_evidence(registry.log.entries(version.tenant, version.number), version.number), *given]
    checks = latest(registry.files, known, "policy", read_policy)
    people = latest(registry.files, known, "human_evaluation", read_human_evaluation)
    kinds = {one.kind for one in given}
    found = [
        f"a {kind} report that can be read (JSON, {FORMS[kind]})"
        for kind, report in (("policy", checks), ("human_evaluation", people))
        if kind in kinds and report is None
    ]
    failing = [
        f"{check.name} fails {check.failed} of {check.prompts} prompts"
        for check in (checks if checks is not None else version.manifest.policy)
        if not check.passed
    ]
    if failing:
        found.append(f"a policy report without a failure ({', '.join(failing)})")
    people = people or version.manifest.human_evaluation
    if people and people.lost:
        found.append(
            "a human evaluation that the adapter does not lose "
            f"(better in {people.adapter_better} of {people.pairs} pairs, its base in {people.base_better})"
        )
    return found


def _said(reason: str, evidence: Sequence[Evidence], registry: Registry) -> None:
    if not reason.strip():
        raise LoraOpsError("Say why: a change of the registry needs a reason.")
    for one in evidence:
        if not registry.files.holds(one.sha256):
            raise LoraOpsError(
                f"The {one.kind} report {one.sha256[:12]}… is not kept in the registry: hand in the file."
            )


def _record(
    change: Change,
    version: Version,
    to: State,
    reason: str,
    evidence: Sequence[Evidence],
    states: dict[int, State],
    aliases: dict[str, int | None],
    concerns: int | None = None,
) -> None:
    body: dict[str, Any] = {"concerns": concerns} if concerns else {}
    change.record(
        to,
        version.tenant,
        version.number,
        states=states,
        aliases=aliases,
        before=version.state,
        reason=reason,
        evidence=[one.model_dump() for one in evidence],
        **body,
    )


def owners_of(registry: Registry, tenant: str) -> Team:
    """Who answers for a tenant, and whom to tell.

    Raises:
        LoraOpsError: there is no owners.yaml.
    """
    if registry.owners is None:
        raise LoraOpsError(
            "There is no owners.yaml beside params.yaml: it says who may approve and review, and whom to tell."
        )
    return registry.owners.team(tenant)


def _require_role(registry: Registry, version: Version, actor: str, roles: frozenset[Role], what: str) -> None:
    """Refuse who has none of the roles; without an owners.yaml nobody has one, and only approving needs it."""
    if registry.owners is None:
        return
    team = registry.owners.team(version.tenant)
    people = team.with_role(roles)
    if team.person(actor) not in people:
        raise LoraOpsError(
            f"{actor} may not {what}: owners.yaml gives that to "
            f"{', '.join(one.id for one in people)}; act under your name there (--actor, $LORA_OPS_ACTOR), or "
            "add your login to your entry."
        )


def _approver(registry: Registry, version: Version, actor: str) -> Person:
    team = owners_of(registry, version.tenant)
    approvers, person = team.with_role(APPROVE), team.person(actor)
    if person is None or person not in approvers:
        listed = ", ".join(one.id for one in approvers)
        raise LoraOpsError(f"{actor} is no approver of '{version.tenant}' in owners.yaml (they are: {listed}).")
    author = team.person(version.summary.author)
    if author is None:
        raise LoraOpsError(f"{version.id} can't be approved yet; missing: {_unknown_author(version)}.")
    if author == person:
        raise LoraOpsError(f"{person.name} is the author of {version.id}: somebody else must approve it.")
    return person


def _unknown_author(version: Version) -> str:
    name = version.summary.author
    return (
        f"its author '{name}' in owners.yaml, without whom nobody can tell who must not approve (add `logins: "
        f"[{name}]` to the person of '{version.tenant}' whom it belongs to, or a person of that id)"
    )


def _approvals_missing(registry: Registry, version: Version) -> list[str]:
    # Judged by owners.yaml as it is now: an approval by someone who has left the role no longer counts.
    team = owners_of(registry, version.tenant)
    author = team.person(version.summary.author)
    if author is None:
        return [_unknown_author(version)]
    eligible = [person for person in team.with_role(APPROVE) if person != author]
    given = {approval.person for approval in approvals(registry, version)}
    open_ = [person.id for person in eligible if person.id not in given]
    lacking = APPROVERS_NEEDED - (len(eligible) - len(open_))
    if lacking <= 0:
        return []
    people = "1 more approval" if lacking == 1 else f"{lacking} approvals"
    return [f"{people} (by {', '.join(open_) or 'nobody in owners.yaml who is not the author'})"]
