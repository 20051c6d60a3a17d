"""The life of a version: who may move it where, on what evidence, with whose agreement."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.approval import Approval, ApprovalStatement
from lora_ops.records.registry import State
from lora_ops.registry import closing, packages
from lora_ops.registry.approvals import (
    approvals_of,
    signature_of,
    statement,
)
from lora_ops.registry.archived_weights import bring_back_if_archived
from lora_ops.registry.changes import require_reason
from lora_ops.registry.eligibility import SERVING, barred_reason, hold_reason
from lora_ops.registry.owners import Person
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.replay import require_rows
from lora_ops.registry.reports import Report, gap_limit
from lora_ops.registry.requirements import (
    LIVE,
    STAGES,
    Stage,
    approvals_needed,
    closed_alike,
    leaves_production,
    require_about,
    return_notes,
    step_basis,
)
from lora_ops.registry.roles import (
    ANYBODY,
    APPROVE,
    JUDGE,
    MAY,
    owners_of,
    require_approver,
    require_role,
)
from lora_ops.registry.rollouts import pause_of
from lora_ops.registry.steps import keep_reports, record_step, require_step
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import Version


def promote(
    registry: Registry,
    reference: str,
    to: Stage,
    *,
    actor: str,
    reason: str,
    evidence: Sequence[Report] = (),
    expect: str | None = None,
) -> Version:
    """Move a version one stage on: validated, shadow, canary, production; or back to production (rollback).

    A damaged `audit.head` does not stop a rollback while the head kept outside the registry stands in for it.

    Args:
        registry: where.
        reference: which version.
        to: the stage.
        actor: who does it.
        reason: why.
        evidence: reports that are filed in the same step; what was filed before counts by itself.
        expect: the version that the alias `to` must name at this moment (`finance@2`, or `none`).

    Raises:
        LoraOpsError: the actor has no role for it, the step does not exist, evidence or approvals are missing,
            evidence speaks against it, the version has expired, a closed version has the same weights, a kept
            file of it was damaged, or the alias moved meanwhile. Nothing is changed or kept then.
    """
    if to not in STAGES:
        raise LoraOpsError(f"A version can't be promoted to '{to}': choose one of {', '.join(STAGES)}.")
    # Nobody waits for the lock while an older registry's weights are read.
    Twins(registry).read_ahead(reference)
    bring_back_if_archived(registry, reference, actor=actor, reason=f"it is to become '{to}': {reason}")
    returns = leaves_production(registry, registry.get_exact(reference), to) is not None
    with change_with_owners(registry, actor, despite_head=returns) as change:
        version = registry.get_exact(reference)
        require_role(registry, version, actor, MAY[to], f"make {version.id} '{to}'")
        current = registry.named(version.tenant, to)
        _require_expected(version, to, current, expect)
        require_step(version, to, reason)
        concerns = leaves_production(registry, version, to)
        if returns and concerns is None:  # only a rollback goes on despite a damaged head
            raise Refused(f"{version.id} became '{version.state}' meanwhile: look again before you promote it.")
        twins = _require_sound(registry, version, returns=concerns is not None)
        basis, needed = step_basis(registry, version, to, evidence, concerns, twins)
        if to == "production" and concerns is None:
            needed += approvals_needed(registry, version)
            # People approve what somebody still looks at; nobody promotes it.
            paused = pause_of(registry, version.id)
            needed += [paused] if paused else []
        if needed:
            raise Refused(f"{version.id} can't become '{to}' yet; missing: {'; '.join(needed)}.")
        notes: list[str] = []
        if concerns:
            leaves = registry.get(f"{version.tenant}@{concerns}", whole=False)
            notes = return_notes(registry, version, leaves, twins)
        states, aliases = _moved(version, to, current)
        record_step(
            registry,
            change,
            version,
            to,
            reason,
            [*basis.values(), *(one for one in keep_reports(registry, evidence) if one not in basis.values())],
            states=states,
            aliases=aliases,
            returns=returns,
            before=version.state,
            max_gap=gap_limit(registry, version),
            **({"concerns": concerns} if concerns else {}),
            **({"notes": notes} if notes else {}),
        )
    return registry.get(version.id)


def reject(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Report] = ()
) -> Version:
    """Decide that a version never serves; its aliases go.

    Raises:
        LoraOpsError: unknown version, no reason, or it is past the stages where it can be rejected.
    """
    return closing.close(registry, reference, "rejected", actor, reason, evidence)


def revoke(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Report] = ()
) -> Version:
    """Take a version out of service for good; anybody in its team may, at once, and its aliases go.

    A damaged `audit.head` does not stop it while the head kept outside the registry stands in for that file.
    Where the log is at W&B, it holds on this machine before W&B is asked; `registry.not_sent` says why W&B did
    not take it, if so, and the version returned is in its old state then.

    Raises:
        LoraOpsError: unknown version, nobody of its team, no reason, or it is closed already.
    """
    return closing.revoke(registry, reference, actor, reason, evidence)


def archive(registry: Registry, reference: str, *, actor: str, reason: str) -> Version:
    """Put a superseded or rejected version away.

    Raises:
        LoraOpsError: unknown version, no reason, or it is in another state.
    """
    return closing.close(registry, reference, "archived", actor, reason, ())


def file_evidence(
    registry: Registry,
    reference: str,
    report: Report,
    *,
    actor: str,
    unless: Callable[[Version], bool] = lambda version: False,
    marks: Mapping[str, Any] | None = None,
) -> Version:
    """File a report on a version, in whatever state that is; it counts from now on.

    An approval names the documents that production rests on: one of these kinds voids it.

    Args:
        registry: where.
        reference: the exact version.
        report: about it.
        actor: who does it.
        unless, marks: as of `link_incident`.

    Raises:
        LoraOpsError: unknown version, nobody of its team, or a report on another one.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(reference, whole=False)
        require_role(registry, version, actor, ANYBODY, f"file evidence of {version.id}")
        require_about(version, [report])
        if not unless(version):
            kept = keep_reports(registry, [report])
            record_step(registry, change, version, "evidence", report.summary, kept, **(marks or {}))
    return registry.get(version.id, whole=False)


def approve(
    registry: Registry, reference: str, *, actor: str, reason: str, key: Path | None = None
) -> ApprovalStatement:
    """Agree that a canary may go to production, having seen the evidence that is filed now.

    Args:
        registry: where.
        reference: the exact version; an alias may move between reading and agreeing.
        actor: id or e-mail of a person with the role `approver` in owners.yaml.
        reason: why.
        key: the SSH key that signs; needed unless unsigned approvals count.

    Returns:
        What was signed.

    Raises:
        LoraOpsError: not an approver, the author, somebody who agreed already, no canary, evidence that is
            missing or speaks against it, a key that isn't theirs, or an author whom owners.yaml does not name,
            so that nobody can tell who must not approve.
    """
    # ssh-keygen may wait for a passphrase or a touch, so the signature is made before the registry is locked.
    said, person = _agreement(registry, reference, actor, reason)
    signature = signature_of(registry, said, person, key)
    with change_with_owners(registry, actor) as change:
        now, _ = _agreement(registry, reference, actor, reason)
        timeless = {"at", "expires_at"}
        if now.model_dump(exclude=timeless) != said.model_dump(exclude=timeless):
            raise Refused(
                f"What {said.adapter} rests on changed while you signed: look again before you approve."
            )
        version = registry.get_exact(reference)
        record_step(
            registry,
            change,
            version,
            "approved",
            reason,
            (),
            person=person.id,
            roles=list(person.roles),
            approval=said.model_dump(mode="json"),
            signature=signature,
        )
    return said


def withdraw(registry: Registry, reference: str, *, actor: str, reason: str) -> Version:
    """Take back one's own approval while the version is in canary.

    Raises:
        LoraOpsError: no approver, no approval of theirs that counts, or a version that left the canary.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(reference)
        person = require_role(registry, version, actor, APPROVE, f"withdraw an approval of {version.id}")
        require_reason(reason)
        if version.state != "canary":
            raise Refused(f"{version.id} is '{version.state}': an approval is withdrawn while in canary.")
        if not any(one.person == person.id and one.void is None for one in approvals(registry, version)):
            raise Refused(f"{person.name} has no approval of {version.id} that counts.")
        record_step(registry, change, version, "withdrawn", reason, (), person=person.id)
    return registry.get(version.id)


def review(
    registry: Registry, reference: str, *, actor: str, reason: str, evidence: Sequence[Report]
) -> Version:
    """Say that a version was looked at again; the next review is due one cadence from now.

    Raises:
        LoraOpsError: no reviewer or approver, no evidence of kind `review`, or a closed version.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(reference)
        require_role(registry, version, actor, JUDGE, f"review {version.id}")
        require_reason(reason)
        require_about(version, evidence)
        if version.state not in LIVE:
            raise Refused(f"{version.id} is '{version.state}': there is nothing to review.")
        if "review" not in {one.document.kind for one in evidence}:
            raise Refused(f"The review of {version.id} is missing: evidence of kind 'review'.")
        next_ = owners_of(registry, version.tenant).next_review(datetime.fromisoformat(change.at))
        kept = keep_reports(registry, evidence)
        record_step(registry, change, version, "reviewed", reason, kept, review_due=utc(next_))
    return registry.get(version.id)


def link_incident(
    registry: Registry,
    reference: str,
    *,
    actor: str,
    reason: str,
    evidence: Sequence[Report],
    unless: Callable[[Version], bool] = lambda version: False,
    marks: Mapping[str, Any] | None = None,
) -> Version:
    """Link an incident's report to the version that was involved, in whatever state that is.

    Args:
        registry: where.
        reference: the exact version.
        actor: who does it.
        reason: why.
        evidence: the report, and others about it.
        unless: whether it was told already, asked inside the transaction; then nothing is changed.
        marks: what else the entry says, by which a program knows its own; no command lets people write them.

    Raises:
        LoraOpsError: unknown version, nobody of its team, no reason, or no evidence of kind `incident`.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(reference, whole=False)
        require_role(registry, version, actor, ANYBODY, f"tell of an incident of {version.id}")
        require_reason(reason)
        require_about(version, evidence)
        if "incident" not in {one.document.kind for one in evidence}:
            raise Refused(f"The incident of {version.id} is missing: evidence of kind 'incident'.")
        if not unless(version):
            kept = keep_reports(registry, evidence)
            record_step(registry, change, version, "incident", reason, kept, **(marks or {}))
    return registry.get(version.id, whole=False)


def approvals(registry: Registry, version: Version) -> list[Approval]:
    """Return who agreed that this version may go to production, oldest first, and whether it counts."""
    return approvals_of(registry, version, registry.log.entries(version.tenant, version.number))


def _agreement(registry: Registry, reference: str, actor: str, reason: str) -> tuple[ApprovalStatement, Person]:
    """Return what an approver would sign now, and who they are; refuse what can't be approved."""
    version = registry.get_exact(reference)
    require_rows(registry, version)
    person = require_approver(registry, version, actor)
    require_reason(reason)
    held = hold_reason(registry, version.summary)
    if held:
        raise Refused(f"{held}.")
    if version.state != "canary":
        raise Refused(f"{version.id} is '{version.state}': production is approved while in canary.")
    if any(one.person == person.id and one.void is None for one in approvals(registry, version)):
        raise Refused(f"{person.name} has approved {version.id} already: a second person must agree.")
    twins = Twins(registry)
    closed = closed_alike(version, twins)
    if closed:
        raise Refused(f"{closed}: it can't be approved.")
    basis, needed = step_basis(registry, version, "production", (), None, twins)
    if needed:
        raise Refused(f"{version.id} can't be approved yet; missing: {'; '.join(needed)}.")
    return statement(registry, version, basis, person, reason), person


def _require_expected(version: Version, to: Stage, current: int | None, expect: str | None) -> None:
    """Refuse a promotion if the alias `to` does not name the version that somebody saw there."""
    now = _named(version, current)
    if expect is not None and expect != now:
        raise Refused(
            f"{version.tenant}@{to} moved meanwhile: it names {now}, not {expect}; look again before you "
            "promote."
        )


def _named(version: Version, number: int | None) -> str:
    return f"{version.tenant}@{number}" if number else "none"


def _require_sound(registry: Registry, version: Version, *, returns: bool) -> Twins:
    """Refuse a version that expired, was held or damaged, or has a closed one's weights; return all weights.

    Of a version that returns to production, `returning_lacks` says which closed ones count.
    """
    require_rows(registry, version)
    stopped = barred_reason(registry, version.summary)
    if stopped:
        raise Refused(f"{stopped}.")
    # Before anything else reads the kept files.
    packages.check_kept(registry, version)
    twins = Twins(registry)
    closed = None if returns else closed_alike(version, twins)
    if closed:
        raise Refused(f"{closed}: train another one.")
    return twins


def _moved(version: Version, to: Stage, current: int | None) -> tuple[dict[int, State], dict[str, int | None]]:
    """Return what a promotion does to states and aliases; only production takes a place that is taken."""
    states: dict[int, State] = {version.number: to}
    if current and to == "production":
        states[current] = "superseded"
    elif current:
        now = _named(version, current)
        raise Refused(f"{now} is '{to}' already: promote or reject it before {version.id} takes its place.")
    aliases: dict[str, int | None] = {
        alias: None for alias in version.aliases if alias in SERVING and alias != to
    }
    if to in SERVING:
        aliases[to] = version.number
    return states, aliases
