"""Rollouts as entries of the audit log: the plan that somebody started, and every change of it.

Nothing else keeps their state. A controller that was killed reads the same log as the one after it, and states
the last entry that it knows with each change (`expect`), so that of two controllers only one decides.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import Damaged, Refused
from lora_ops.hashing import sha256_text
from lora_ops.records.registry import AuditEntry
from lora_ops.records.rollout import Phase, Rollout, RolloutPlan
from lora_ops.records.route import RouteRecord
from lora_ops.registry.changes import Change, LostRace, require_reason
from lora_ops.registry.eligibility import expiry_reason, reasons_against
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.roles import ANYBODY, MOVE, require_role
from lora_ops.registry.route_entries import patch_between
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

KIND = "rollout"
Reroute = Callable[[RouteRecord], RouteRecord]
STARTED, RETRIED, MOVED, PAUSED, RESUMED = "started", "retried", "moved", "paused", "resumed"


def rollouts(registry: Registry, tenant: str | None = None, *, before: int | None = None) -> list[Rollout]:
    """Return every rollout in its last state, in the order in which they were started.

    Args:
        registry: where.
        tenant: whose; None: everybody's.
        before: as they were before this entry of the log; None: as they are now.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    found: dict[str, Rollout] = {}
    for entry in registry.log.of_kind(KIND):
        of_tenant = tenant is None or entry.subject.id.rpartition("@")[0] == tenant
        if of_tenant and (before is None or entry.seq < before):
            found[entry.subject.id] = after_entry(found.get(entry.subject.id), entry)
    return list(found.values())


def rollout_of(registry: Registry, adapter: str, *, before: int | None = None) -> Rollout | None:
    """Return the rollout of one version (`finance@2`) in its last state, or None.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    of_tenant = rollouts(registry, adapter.rpartition("@")[0], before=before)
    return next((one for one in of_tenant if one.plan.adapter == adapter), None)


class Turn(NamedTuple):
    """One change of a rollout: the entry of the audit log, and the rollout after it."""

    entry: AuditEntry
    rollout: Rollout


def turns(registry: Registry, adapter: str) -> list[Turn]:
    """Return every change of one version's rollout in order, of all its attempts.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    found: list[Turn] = []
    for entry in registry.log.of_kind(KIND):
        if entry.subject.id == adapter:
            found.append(Turn(entry, after_entry(found[-1].rollout if found else None, entry)))
    return found


def running(registry: Registry, tenant: str) -> Rollout | None:
    """Return the rollout of a tenant that has not ended, or None.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    return next((one for one in rollouts(registry, tenant) if one.is_running), None)


def not_ready(registry: Registry, version: Version) -> Iterator[str]:
    """Yield what a version's rollout lacks before production, in words.

    Evidence from before a breach opens nothing after it: the next attempt has to come to `ready`. Without a
    rollout, or with one that people ended, a version follows another one only where `registry.evidence.rollout`
    is optional: reports on a shadow and a canary that nobody saw could be filed for it. Nothing in production
    is nothing to compare with, nor is a version that has expired, so that people decide there.
    """
    try:
        found = rollout_of(registry, version.id)
    except Damaged as error:
        yield str(error).rstrip(".")
        return
    asked = registry.least.rollout == "required" and _is_compared(registry, version)
    if found and found.phase in ("ready", "done"):
        yield from _ready_no_more(registry, found)
        return
    if found is None:
        if asked:
            yield (
                f"a rollout that is ready (`lora-ops rollout start {version.id} --reason TEXT` begins it; "
                "registry.evidence.rollout in params.yaml asks for it)"
            )
        return
    if found.phase == "aborted" and not asked:
        return
    ways = (
        f"`lora-ops rollout abort {version.id} --reason TEXT` ends it"
        if found.is_running
        else f"`lora-ops rollout start {version.id} --reason TEXT` tries it again"
    )
    yield f"a rollout that is ready (it is '{found.phase}': {found.said}; {ways})"


def _ready_no_more(registry: Registry, rollout: Rollout) -> Iterator[str]:
    """Yield that a rollout compares with another version than the one in production now.

    What is no worse than a version that was rolled back may be as bad.
    """
    adapter, against = rollout.plan.adapter, rollout.plan.against
    tenant = adapter.rpartition("@")[0]
    number = registry.named(tenant, "production")
    if rollout.phase == "ready" and number is not None and f"{tenant}@{number}" != against:
        yield (
            f"a rollout beside {tenant}@{number}, which is in production now, not {against} ("
            f"`lora-ops rollout abort {adapter} --reason TEXT` ends it)"
        )


def pause_of(registry: Registry, adapter: str) -> str | None:
    """Return that somebody paused the rollout of a version, as what production lacks, or None.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    found = rollout_of(registry, adapter)
    if found is None or not (found.is_running and found.paused):
        return None
    return f"an end of its rollout's pause ({found.said}; `lora-ops rollout resume {adapter} --reason TEXT`)"


def _is_compared(registry: Registry, version: Version) -> bool:
    """Return whether another version is in production, whose age lets it answer."""
    number = registry.named(version.tenant, "production")
    if number in (None, version.number):
        return False
    now = registry.get_exact(f"{version.tenant}@{number}", whole=False)
    return expiry_reason(now.summary, registry.clock()) is None


def taken_back(registry: Registry, adapter: str, *, before: int | None = None) -> int:
    """Return the entry by which a version's rollout went back or was ended by people last; 0 without one.

    Approvals from before it stay void in each later attempt, whatever evidence is filed once more.

    Args:
        registry: where.
        adapter: the version.
        before: as it was before this entry of the log; None: as it is now.
    """
    try:
        found = rollout_of(registry, adapter, before=before)
    except Damaged:  # which `not_ready` says
        return 0
    return found.ended_at_seq if found else 0


def begin(registry: Registry, plan: RolloutPlan, *, actor: str, reason: str) -> Rollout:
    """Start the rollout of a version, or start one that went back once more.

    Raises:
        LoraOpsError: no role, no reason, another rollout of the tenant runs, or this one is done.
    """
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(plan.adapter)
        require_role(registry, version, actor, MOVE, f"start the rollout of {version.id}")
        require_reason(reason)
        other = running(registry, version.tenant)
        if other:
            raise Refused(
                f"The rollout of {other.plan.adapter} runs already ({other.phase}): wait for it, or end it "
                f"with `lora-ops rollout abort {other.plan.adapter} --reason TEXT`."
            )
        before = rollout_of(registry, plan.adapter)
        if before and before.phase == "done":
            raise Refused(f"The rollout of {plan.adapter} is done: {before.said}.")
        change.note(
            RETRIED if before else STARTED,
            KIND,
            plan.adapter,
            reason=reason,
            plan=plan.model_dump(mode="json"),
            **_owners(registry),
        )
    return _now(registry, plan.adapter)


def move(
    registry: Registry,
    rollout: Rollout,
    phase: Phase,
    said: str,
    *,
    actor: str,
    step: int = 0,
    route: Reroute | None = None,
    **facts: Any,
) -> Rollout:
    """Note that a rollout goes to another phase or step, and change the route in the same transaction.

    Args:
        registry: where.
        rollout: as the caller knows it.
        phase: where it goes.
        said: the verdict or the reason, in words.
        actor: who does it; for a controller, who started the rollout.
        step: of the canary.
        route: gives the tenant's route after it.
        facts: what the entry says besides, such as the verdict's numbers.

    Raises:
        LostRace: somebody changed the rollout meanwhile.
        LoraOpsError: the actor has no role for it, or it has ended.
    """
    forward = phase in ("canary", "ready")
    return _change(
        registry,
        rollout,
        MOVED,
        said,
        actor,
        MOVE if forward else ANYBODY,
        route=route,
        forward=forward,
        phase=phase,
        step=step,
        **facts,
    )


def pause(registry: Registry, rollout: Rollout, *, actor: str, reason: str) -> Rollout:
    """Let a rollout stay where it is; a breach still takes it back.

    Raises:
        LoraOpsError: as `move`, or it is paused.
    """
    if rollout.paused:
        raise Refused(f"The rollout of {rollout.plan.adapter} is paused already.")
    return _change(registry, rollout, PAUSED, reason, actor, ANYBODY)


def resume(registry: Registry, rollout: Rollout, *, actor: str, reason: str) -> Rollout:
    """Let a paused rollout go on.

    Raises:
        LoraOpsError: as `move`, or it is not paused.
    """
    if not rollout.paused:
        raise Refused(f"The rollout of {rollout.plan.adapter} is not paused.")
    return _change(registry, rollout, RESUMED, reason, actor, MOVE)


def _change(
    registry: Registry,
    rollout: Rollout,
    action: str,
    reason: str,
    actor: str,
    roles: frozenset[Any],
    *,
    route: Reroute | None = None,
    forward: bool = False,
    **facts: Any,
) -> Rollout:
    adapter = rollout.plan.adapter
    # Going back must not wait: neither for a damaged head, nor for a role that the one who started it lost.
    mandated = not forward and route is not None and actor == rollout.started_by
    with change_with_owners(registry, actor, despite_head=not forward) as change:
        version = registry.get_exact(adapter, whole=False)
        if not mandated:
            require_role(registry, version, actor, roles, f"change the rollout of {adapter}")
        require_reason(reason)
        now = _now(registry, adapter)
        if now.seq != rollout.seq:
            raise LostRace(f"The rollout of {adapter} changed meanwhile ({now.phase}: {now.said}): look again.")
        if not now.is_running:
            raise Refused(f"The rollout of {adapter} has ended ({now.phase}): {now.said}.")
        if forward:
            against = next(reasons_against(registry, version.summary, registry.clock()), None)
            if against:
                raise Refused(f"{against}.")
        change.note(action, KIND, adapter, reason=reason, **facts, **_owners(registry))
        if route:
            _reroute(registry, change, version, route, reason, forward=forward)
    return _now(registry, adapter)


def _reroute(
    registry: Registry, change: Change, version: Version, route: Reroute, reason: str, *, forward: bool
) -> None:
    told = registry.follower.told_route(version.tenant)
    if not told.is_readable:
        if forward:
            raise Refused(
                f"The route of '{version.tenant}' was written by a newer lora-ops (entry {told.seq}): update "
                "lora-ops before its rollout goes on."
            )
        return  # there production answers everybody already
    patch = patch_between(told.record, route(told.record))
    if patch:
        change.reroute(
            "rollout",
            version.tenant,
            patch,
            reason=reason,
            replaces=told.seq,
            number=version.number,
            **_owners(registry),
        )


def _now(registry: Registry, adapter: str) -> Rollout:
    found = rollout_of(registry, adapter)
    if found is None:
        raise Refused(f"{adapter} has no rollout: `lora-ops rollout start {adapter} --reason TEXT` starts it.")
    return found


def after_entry(before: Rollout | None, entry: AuditEntry) -> Rollout:
    """Return a rollout after one entry more.

    Raises:
        Damaged: the entry is not what lora-ops writes.
    """
    body, said = entry.body, str(entry.body.get("reason", ""))
    try:
        at = datetime.fromisoformat(entry.at)
        if entry.action in (STARTED, RETRIED):
            return Rollout(
                plan=RolloutPlan.model_validate(body["plan"]),
                phase="shadow",
                since=at,
                began=at,
                seq=entry.seq,
                started_by=entry.actor,
                attempt=before.attempt + 1 if before else 1,
                ended_at_seq=before.ended_at_seq if before else 0,
                said=said,
            )
        if before is None:
            raise ValueError("nothing started it")
        changed: dict[str, Any] = {"seq": entry.seq, "said": said}
        if entry.action == MOVED:
            changed |= {"phase": body["phase"], "step": body["step"], "since": at}
            changed["is_mirrored"] = True
            if body["phase"] in ("returned", "aborted"):
                changed["ended_at_seq"] = entry.seq
            if body["phase"] == "canary" and before.canary_since is None:
                changed["canary_since"] = at
        elif entry.action in (PAUSED, RESUMED):
            changed["paused"] = entry.action == PAUSED
        # The action of a newer release changes nothing that this one knows.
        return Rollout.model_validate({**before.model_dump(), **changed})
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        raise Damaged(
            f"Entry {entry.seq} of the audit log, about the rollout of {entry.subject.id}, is not what "
            "lora-ops writes: run `lora-ops registry verify`, or update lora-ops."
        ) from error


def _owners(registry: Registry) -> dict[str, str]:
    assert registry.owners is not None
    return {"owners_sha256": sha256_text(registry.owners.text)}
