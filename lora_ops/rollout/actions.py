"""What people may do with a rollout as it is now, by which command, and who of the team may."""

from typing import NamedTuple

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.rollout import Rollout
from lora_ops.registry.approvals import approvals_of
from lora_ops.registry.owners import Role, Team
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.roles import ANYBODY, APPROVE, JUDGE, MOVE, require_approver
from lora_ops.registry.store import Registry


class Action(NamedTuple):
    """One thing that people may do now."""

    what: str
    command: str
    people: tuple[str, ...]
    """Their ids in owners.yaml; empty where nobody has the role."""


def actions(registry: Registry, rollout: Rollout) -> list[Action]:
    """Return what may be done with a rollout now, the most likely first; nothing without an owners.yaml."""
    if registry.owners is None:
        return []
    adapter = rollout.plan.adapter
    team = registry.owners.team(adapter.rpartition("@")[0])

    def by(roles: frozenset[Role]) -> tuple[str, ...]:
        return tuple(one.id for one in team.with_role(roles))

    reason = "--reason TEXT"
    if rollout.phase == "returned":
        return [
            Action("try it again", f"lora-ops rollout start {adapter} {reason}", by(MOVE)),
            Action("give it up", f"lora-ops registry reject {adapter} {reason}", by(JUDGE | MOVE)),
        ]
    if rollout.phase == "done":
        return [Action("take it back", f"lora-ops rollback {adapter} {reason} --yes", by(MOVE))]
    if rollout.phase == "aborted":
        return []
    found = []
    if rollout.phase == "ready":
        people = _who_may_approve(registry, rollout, team)
        found.append(Action("approve", f"lora-ops registry approve {adapter} {reason}", people))
    if rollout.paused:
        found.append(Action("go on", f"lora-ops rollout resume {adapter} {reason}", by(MOVE)))
    else:
        found.append(Action("pause", f"lora-ops rollout pause {adapter} {reason}", by(ANYBODY)))
    return [*found, Action("end it", f"lora-ops rollout abort {adapter} {reason}", by(ANYBODY))]


def lacking(registry: Registry, rollout: Rollout) -> list[str]:
    """Return what a rollout that is ready still lacks for production, in words."""
    if rollout.phase != "ready":
        return []
    try:
        return missing_for(registry, rollout.plan.adapter)[1]
    except LoraOpsError as error:
        return [str(error).rstrip(".")]


def _who_may_approve(registry: Registry, rollout: Rollout, team: Team) -> tuple[str, ...]:
    """Return the approvers whose approval is not there yet, without whoever made the version."""
    try:
        version = registry.get_exact(rollout.plan.adapter, whole=False)
        given = approvals_of(registry, version, registry.history(version.id))
    except LoraOpsError:
        return ()
    counting = {one.person for one in given if one.void is None}
    people = []
    for person in team.with_role(APPROVE):
        try:
            require_approver(registry, version, person.id)
        except Refused:
            continue
        if person.id not in counting:
            people.append(person.id)
    return tuple(people)
