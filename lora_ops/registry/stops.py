"""Kill switches that can't wait for W&B: stated on this machine at once, and a change of the route later.

As a revocation (closing.py), a stop is a signed file first (holds.py), which each gateway of this machine looks
at. It becomes the entry that `lora-ops route stop` writes as soon as the log takes it, and the file goes.
"""

from contextlib import suppress
from datetime import datetime

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.free_text import require_name
from lora_ops.hashing import sha256_text
from lora_ops.registry.changes import require_reason
from lora_ops.registry.holds import Hold, Statement
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.roles import ANYBODY, owners_of, require_role, require_role_in
from lora_ops.registry.route_entries import patch_between, times_stopped
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, parse_reference


def state_stop(registry: Registry, reference: str, actor: str, reason: str) -> Hold:
    """Stop a version on this machine, and ask no other one; a stop that is queued already stays.

    Raises:
        LoraOpsError: unknown or closed version, nobody of its team, no reason, or a disk that takes nothing.
    """
    actor = require_name(actor, "Say who does this (--actor)")
    version = registry.get_exact(reference, whole=False)
    tenant = version.tenant
    require_role(registry, version, actor, ANYBODY, f"change the route of '{tenant}'")
    require_reason(reason)
    if version.state in CLOSED:
        raise Refused(f"{version.id} was {version.state}: it answers nobody already.")
    known = registry.queued_stop(version.summary)
    if known and known.is_signed:
        return known
    registry.stops.keep(
        Statement(
            kind="stop",
            version=version.id,
            content_digest=version.summary.content_digest,
            actor=actor,
            reason=reason.strip(),
            at=utc(registry.clock()),
        )
    )
    stated = registry.queued_stop(version.summary)
    assert stated, "it was written a moment ago"
    return stated


def enter_stop(registry: Registry, stop: Hold) -> None:
    """Write a queued stop into the log as who decided it, once.

    Raises:
        LoraOpsError: nobody signed it, its actor left the team, or the log takes no entry.
    """
    said = stop.statement
    if said is None or not stop.is_signed:
        raise Refused(
            "no key that is trusted here signed it: `lora-ops route stop "
            f"{stop.version} --reason TEXT` decides it again. If nobody has decided it, remove "
            f"{registry.stops.files(stop)}"
        )
    tenant, number = _named(stop)
    with change_with_owners(registry, said.actor, despite_head=True) as change:
        require_role_in(owners_of(registry, tenant), said.actor, ANYBODY, f"change the route of '{tenant}'")
        told = registry.follower.told_route(tenant)
        stopped = tuple(sorted({*told.record.stopped, number}))
        patch = patch_between(told.record, told.record.model_copy(update={"stopped": stopped}))
        assert registry.owners is not None
        if patch:
            change.reroute(
                "stopped",
                tenant,
                patch,
                reason=said.reason,
                owners_sha256=sha256_text(registry.owners.text),
                replaces=told.seq,
                number=number,
                held_at=said.at,
            )


def drop_if_entered(registry: Registry, stop: Hold) -> bool:
    """Remove a queued stop that the verified log has, or whose version it closes; return whether it does."""
    tenant, number = _named(stop)
    with suppress(LoraOpsError):
        if registry.follower.problem() is None:
            closed = registry.follower.state(tenant, number) in CLOSED
            stopped = number in registry.follower.route(tenant).stopped
            # A run that was killed after its entry must not stop again what somebody has resumed since.
            if closed or stopped or _is_entered(registry, stop):
                registry.stops.drop(stop)
                return True
    return False


def _is_entered(registry: Registry, stop: Hold) -> bool:
    if stop.statement is None:
        return False
    stated = datetime.fromisoformat(stop.statement.at)
    return any(start >= stated for start, _ in times_stopped(registry.log, stop.version))


def _named(stop: Hold) -> tuple[str, int]:
    tenant, number = parse_reference(stop.version)
    assert isinstance(number, int)
    return tenant, number
