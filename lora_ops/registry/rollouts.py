"""Rollouts as entries of the audit log: the plan that somebody started, and every change of it.

Nothing else keeps their state. A controller that was killed reads the same log as the one after it, and states
the last entry that it knows with each change (`expect`), so that of two controllers only one decides.
"""

from datetime import datetime
from typing import Any

from pydantic import ValidationError

from lora_ops.errors import Damaged, Refused
from lora_ops.hashing import sha256_text
from lora_ops.records.registry import AuditEntry
from lora_ops.records.rollout import Phase, Rollout, RolloutPlan
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.roles import ANYBODY, MOVE, require_role
from lora_ops.registry.steps import require_reason
from lora_ops.registry.store import Registry

KIND = "rollout"
STARTED, RETRIED, MOVED, PAUSED, RESUMED = "started", "retried", "moved", "paused", "resumed"


def rollouts(registry: Registry) -> list[Rollout]:
    """Return every rollout in its last state, in the order in which they were started.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    found: dict[str, Rollout] = {}
    for entry in registry.log.of_kind(KIND):
        found[entry.subject.id] = _after(found.get(entry.subject.id), entry)
    return list(found.values())


def rollout_of(registry: Registry, adapter: str) -> Rollout | None:
    """Return the rollout of one version (`finance@2`) in its last state, or None.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    return next((one for one in rollouts(registry) if one.plan.adapter == adapter), None)


def running(registry: Registry, tenant: str) -> Rollout | None:
    """Return the rollout of a tenant that has not ended, or None.

    Raises:
        Damaged: an entry is not what lora-ops writes.
    """
    return next((one for one in rollouts(registry) if one.is_running and _tenant(one) == tenant), None)


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
    registry: Registry, rollout: Rollout, phase: Phase, said: str, *, actor: str, step: int = 0, **facts: Any
) -> Rollout:
    """Note that a rollout goes to another phase or step.

    Args:
        registry: where.
        rollout: as the caller knows it.
        phase: where it goes.
        said: the verdict or the reason, in words.
        actor: who does it; for a controller, who started the rollout.
        step: of the canary.
        facts: what the entry says besides, such as the verdict's numbers.

    Raises:
        LoraOpsError: somebody changed the rollout meanwhile, or the actor has no role for it.
    """
    forward = phase in ("canary", "ready", "done")
    return _change(
        registry, rollout, MOVED, said, actor, MOVE if forward else ANYBODY, phase=phase, step=step, **facts
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
    **facts: Any,
) -> Rollout:
    adapter = rollout.plan.adapter
    with change_with_owners(registry, actor) as change:
        version = registry.get_exact(adapter, whole=False)
        require_role(registry, version, actor, roles, f"change the rollout of {adapter}")
        require_reason(reason)
        now = _now(registry, adapter)
        if now.seq != rollout.seq:
            raise Refused(f"The rollout of {adapter} changed meanwhile ({now.phase}: {now.said}): look again.")
        if not now.is_running:
            raise Refused(f"The rollout of {adapter} has ended ({now.phase}): {now.said}.")
        change.note(action, KIND, adapter, reason=reason, **facts, **_owners(registry))
    return _now(registry, adapter)


def _now(registry: Registry, adapter: str) -> Rollout:
    found = rollout_of(registry, adapter)
    if found is None:
        raise Refused(f"{adapter} has no rollout: `lora-ops rollout start {adapter} --reason TEXT` starts it.")
    return found


def _after(before: Rollout | None, entry: AuditEntry) -> Rollout:
    """Return a rollout after one entry more."""
    body, said = entry.body, str(entry.body.get("reason", ""))
    try:
        at = datetime.fromisoformat(entry.at)
        if entry.action in (STARTED, RETRIED):
            return Rollout(
                plan=RolloutPlan.model_validate(body["plan"]),
                phase="shadow",
                since=at,
                seq=entry.seq,
                started_by=entry.actor,
                attempt=before.attempt + 1 if before else 1,
                said=said,
            )
        if before is None:
            raise ValueError("nothing started it")
        changed: dict[str, Any] = {"seq": entry.seq, "said": said}
        if entry.action == MOVED:
            changed |= {"phase": body["phase"], "step": body["step"], "since": at}
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


def _tenant(rollout: Rollout) -> str:
    return rollout.plan.adapter.rpartition("@")[0]
