"""Whether the rules allow what each entry does to a rollout: who acted, and which phase follows which."""

from collections.abc import Iterator, Sequence

from lora_ops.errors import Damaged
from lora_ops.records.registry import AuditEntry
from lora_ops.records.rollout import Rollout
from lora_ops.registry.owners_log import KIND as OWNERS
from lora_ops.registry.roles import ANYBODY, MOVE
from lora_ops.registry.rollouts import KIND, MOVED, PAUSED, RESUMED, RETRIED, STARTED, after_entry
from lora_ops.registry.route_rules import entry_name, not_let

FORWARD = ("canary", "ready")


def broken_rollouts(entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what the rules don't allow of each entry about a rollout, in words.

    Production rests on the phase `ready`: nobody reaches it past the steps, and nobody without the role.
    """
    found: dict[str, Rollout] = {}
    owners: AuditEntry | None = None
    for entry in entries:
        owners = entry if entry.subject.kind == OWNERS else owners
        if entry.subject.kind != KIND:
            continue
        before = found.get(entry.subject.id)
        try:
            found[entry.subject.id] = after_entry(before, entry)
        except Damaged as error:
            yield str(error).rstrip(".")
            continue
        if entry.action not in (STARTED, RETRIED, MOVED, PAUSED, RESUMED):
            continue  # of a newer release
        problem = _jump(before, entry)
        if problem:
            yield f"{entry_name(entry)} {problem}"
        forward = entry.action in (STARTED, RETRIED, RESUMED) or entry.body.get("phase") in FORWARD
        # A controller takes back for whoever started the rollout, and may have lost the role since.
        mandated = entry.action == MOVED and not forward and before and entry.actor == before.started_by
        if not mandated:
            tenant = entry.subject.id.rpartition("@")[0]
            yield from not_let(entry, tenant, MOVE if forward else ANYBODY, owners)


def _jump(before: Rollout | None, entry: AuditEntry) -> str | None:
    """Return that an entry does not follow the rollout's last phase, in words, or None."""
    if entry.action in (STARTED, RETRIED):
        is_over = before is None or before.phase in ("returned", "aborted")
        return None if is_over else "begins a rollout that runs or is done"
    assert before is not None
    if not before.is_running:
        return f"changes a rollout that had ended ({before.phase})"
    if entry.action != MOVED:
        return None
    phase, step = entry.body["phase"], entry.body["step"]
    last = len(before.plan.canary.steps) - 1
    fits = {
        "shadow": before.phase == "shadow",
        "canary": (before.phase, step) in (("shadow", 0), ("canary", before.step + 1)) and step <= last,
        "ready": (before.phase, before.step) == ("canary", last),
    }
    if fits.get(phase, True):
        return None
    return f"moves a rollout from {before.phase} (step {before.step}) to {phase} (step {step})"
