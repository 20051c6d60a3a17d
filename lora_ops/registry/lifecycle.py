"""The life of a version: who may move it where, on what evidence, with whose agreement."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple, get_args

from lora_ops.errors import LoraOpsError
from lora_ops.records import Approval, AuditEntry, Evidence, EvidenceKind, State
from lora_ops.registry.owners import APPROVERS_NEEDED, Person, Team
from lora_ops.registry.store import Change, Registry, Version, parse_reference, utc

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
        LoraOpsError: the step does not exist, evidence or approvals are missing, the version has expired, or
            the alias moved meanwhile. Nothing is changed then.
    """
    if to not in STAGES:
        raise LoraOpsError(f"A version can't be promoted to '{to}': choose one of {', '.join(STAGES)}.")
    with registry.change(actor) as change:
        version = registry.get(reference)
        current = registry.named(version.tenant, to)
        now = f"{version.tenant}@{current}" if current else "none"
        if expect is not None and expect != now:
            raise LoraOpsError(
                f"{version.tenant}@{to} moved meanwhile: it names {now}, not {expect}; look again before "
                "you promote."
            )
        needed = _step(registry, version, to, reason, evidence)
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
        _record(change, version, to, reason, evidence, states, aliases)
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
    """Take a version out of service for good; anybody may, at once, and its aliases go.

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
        LoraOpsError: not an approver, the author, somebody who agreed already, or no canary.
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
        LoraOpsError: no owners.yaml, no evidence of kind `review`, or a closed version.
    """
    with registry.change(actor) as change:
        version = registry.get(reference)
        team = _team(registry, version.tenant)
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
    registry: Registry, reference: str, incident: Evidence, *, actor: str, reason: str
) -> Version:
    """Link an incident's record to the version that was involved.

    Raises:
        LoraOpsError: unknown version, or the record is not one of an incident.
    """
    if incident.kind != "incident":
        raise LoraOpsError(f"Only evidence of kind 'incident' can be linked, not '{incident.kind}'.")
    with registry.change(actor) as change:
        version = registry.get(reference)
        _said(reason, [incident], registry)
        change.record(
            "incident", version.tenant, version.number, reason=reason, evidence=[incident.model_dump()]
        )
    return registry.get(version.id)


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
    needed = [f"evidence of kind '{kind}'" for kind in sorted(EVIDENCE[version.state, stage])]
    if version.state == "canary":
        needed += _approvals_missing(registry, version)
    return stage, needed


def _close(
    registry: Registry, reference: str, to: State, actor: str, reason: str, evidence: Sequence[Evidence]
) -> Version:
    with registry.change(actor) as change:
        version = registry.get(reference)
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
) -> None:
    change.record(
        to,
        version.tenant,
        version.number,
        states=states,
        aliases=aliases,
        before=version.state,
        reason=reason,
        evidence=[one.model_dump() for one in evidence],
    )


def _team(registry: Registry, tenant: str) -> Team:
    if registry.owners is None:
        raise LoraOpsError("There is no owners.yaml beside params.yaml: it says who may approve and review.")
    return registry.owners.team(tenant)


def _approver(registry: Registry, version: Version, actor: str) -> Person:
    team = _team(registry, version.tenant)
    person = team.person(actor)
    if person is None or "approver" not in person.roles:
        listed = ", ".join(one.id for one in team.people if "approver" in one.roles)
        raise LoraOpsError(f"{actor} is no approver of '{version.tenant}' in owners.yaml (they are: {listed}).")
    if team.person(version.summary.author) == person:
        raise LoraOpsError(f"{person.name} is the author of {version.id}: somebody else must approve it.")
    return person


def _approvals_missing(registry: Registry, version: Version) -> list[str]:
    # Judged by owners.yaml as it is now: an approval by someone who has left the role no longer counts.
    team = _team(registry, version.tenant)
    author = team.person(version.summary.author)
    eligible = [person for person in team.people if "approver" in person.roles and person != author]
    given = {approval.person for approval in approvals(registry, version)}
    open_ = [person.id for person in eligible if person.id not in given]
    lacking = APPROVERS_NEEDED - (len(eligible) - len(open_))
    if lacking <= 0:
        return []
    people = "1 more approval" if lacking == 1 else f"{lacking} approvals"
    return [f"{people} (by {', '.join(open_) or 'nobody in owners.yaml who is not the author'})"]
