"""Another head of the audit log than the remembered one: who may accept it, and what stays of that."""

from lora_ops.clock import to_the_minute
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.free_text import require_text
from lora_ops.registry.audit import HEAD_ACCEPTED, Head
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.owners import Owners
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.store import Registry


def accept_head(registry: Registry, memory: HeadMemory, *, actor: str, reason: str) -> Head:
    """Let the log go on from where it ends, though another head is remembered, and state so in the log.

    This is for a registry that was restored from an older backup on purpose, or begun anew: what the lost
    entries did, such as a revocation, is to be done again.

    Args:
        registry: opened without `memory`, which would refuse any change.
        memory: what is remembered of it.
        actor: who accepts it.
        reason: why.

    Returns:
        The new head.

    Raises:
        LoraOpsError: no reason, nothing to accept, the log itself was tampered with, or the actor is no
            approver of the default team.
    """
    require_may_accept(registry.owners, actor, reason)
    problem = memory.problem(registry.log)
    if problem is None:
        raise Refused(f"The audit log ends at {registry.log.head().text}, as expected: nothing to accept.")
    lost = _lost(memory, registry.log.head())
    with change_with_owners(registry, actor) as change:
        change.note(HEAD_ACCEPTED, "registry", "head", reason=reason, problem=problem, lost_entries=lost)
    head = registry.log.head()
    memory.replace(head)
    return head


def accepted_heads(registry: Registry) -> list[str]:
    """Return each time that somebody accepted or replaced a head of the log, in words; these stay for ever."""
    notes = []
    for entry in registry.log.of_kind("registry"):
        if entry.action == "head_mended":
            when = to_the_minute(entry.at)
            notes.append(
                f"entry {entry.seq}: when {entry.actor} changed the registry on {when}, "
                f"{entry.body.get('problem')}; the head kept outside it stood in"
            )
        if entry.action == "route_mended":
            notes.append(
                f"entry {entry.seq}: when {entry.actor} changed the registry on {to_the_minute(entry.at)}, "
                f"{entry.body.get('problem')}; it was written again as the log says"
            )
        if entry.action == HEAD_ACCEPTED:
            many = entry.body.get("lost_entries")
            lost = "an unknown number of entries was" if many is None else f"{many} entries were"
            when = to_the_minute(entry.at)
            notes.append(
                f"entry {entry.seq}: {entry.actor} accepted on {when} that the log goes on "
                f"from an older or other head ({entry.body.get('reason')}); {lost} lost"
            )
    return notes


def _lost(memory: HeadMemory, head: Head) -> int | None:
    """Return how many entries at the end are known to be lost; None where the memory itself is lost."""
    try:
        known = memory.recall()
    except LoraOpsError:
        return None
    return max(known.seq - head.seq, 0) if known else None


def require_may_accept(owners: Owners | None, actor: str, reason: str) -> None:
    """Refuse whoever may not accept another head of the log, and a reason that says nothing.

    Raises:
        LoraOpsError: no reason, no owners.yaml, or the actor is no approver of the default team.
    """
    require_text(reason, "Say why the head is accepted (--reason)")
    if owners is None:
        raise Refused("There is no owners.yaml beside params.yaml: without it nobody may accept another head.")
    team = owners.default
    approvers, person = team.with_role(frozenset({"approver"})), team.person(actor)
    if person is None or person not in approvers:
        raise Refused(
            f"{actor} may not accept another head of the log: that is for the approvers of the default team in "
            f"owners.yaml ({', '.join(one.id for one in approvers)})."
        )
