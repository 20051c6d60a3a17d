"""Each tenant's route as people look at it: who has which share, who is stopped, who changed it last."""

from collections.abc import Iterable
from typing import NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.records.registry import AuditEntry
from lora_ops.records.route import RouteRecord
from lora_ops.registry.eligibility import reasons_against
from lora_ops.registry.routes import current
from lora_ops.registry.store import Registry


class RouteView(NamedTuple):
    """One tenant's route; a version is None where it has no such part. Users are counted, never named."""

    tenant: str
    production: str | None
    canary: str | None
    canary_percent: float | None
    shadow: str | None
    shadow_percent: float | None
    pinned_users: dict[str, int]
    """Version to how many users it answers by name."""
    pinned_segments: dict[str, str]
    """Segment to its version."""
    stopped: tuple[str, ...]
    seq: int
    """The entry of the audit log that changed it last: what `--expect-seq` names; 0 where none did."""
    changed_by: str | None
    changed_at: str | None
    did: str | None
    reason: str | None
    notes: tuple[str, ...]
    """Which part of it counts for nothing now, and why."""


def overview(registry: Registry, tenants: Iterable[str]) -> list[RouteView]:
    """Return the route of each tenant, by the verified log.

    Raises:
        LoraOpsError: there is no such tenant, or the registry differs from its log.
    """
    return [view(registry, tenant) for tenant in tenants]


def view(registry: Registry, tenant: str) -> RouteView:
    """Return one tenant's route; see `overview`."""
    routed = current(registry, tenant)
    route = routed.route
    last = _entry(registry, routed.seq)
    production = registry.named(tenant, "production")
    users: dict[int, int] = {}
    for number in route.users.values():
        users[number] = users.get(number, 0) + 1
    return RouteView(
        tenant=tenant,
        production=_id(tenant, production),
        canary=_id(tenant, route.canary.number if route.canary else None),
        canary_percent=route.canary.percent if route.canary else None,
        shadow=_id(tenant, route.shadow.number if route.shadow else None),
        shadow_percent=route.shadow.percent if route.shadow else None,
        pinned_users={f"{tenant}@{number}": many for number, many in sorted(users.items())},
        pinned_segments={name: f"{tenant}@{number}" for name, number in sorted(route.segments.items())},
        stopped=tuple(f"{tenant}@{number}" for number in route.stopped),
        seq=routed.seq,
        changed_by=last.actor if last else None,
        changed_at=last.at if last else None,
        did=_did(last) if last else None,
        reason=str(last.body.get("reason", "")) if last else None,
        notes=tuple(_notes(registry, tenant, route, production)),
    )


def _notes(registry: Registry, tenant: str, route: RouteRecord, production: int | None) -> list[str]:
    named = {one.number for one in (route.canary, route.shadow) if one}
    named |= {*route.users.values(), *route.segments.values(), *([production] if production else ())}
    notes = []
    if not registry.follower.told_route(tenant).is_readable:
        notes.append("a newer lora-ops wrote this route, so it counts for nothing here: update lora-ops")
    for number in sorted(named):
        try:
            version = registry.get_exact(f"{tenant}@{number}", whole=False)
            against = next(reasons_against(registry, version.summary, registry.clock()), None)
        except LoraOpsError as error:  # a damaged row of one version hides no other part
            against = str(error).rstrip(".")
        if against and number == production:
            notes.append(f"{against}; requests of '{tenant}' that reach production are refused")
        elif against:
            notes.append(f"{against}; its requests get production")
    return notes


def _entry(registry: Registry, seq: int) -> AuditEntry | None:
    return registry.log.entries(after=seq - 1)[0] if seq else None


def _did(entry: AuditEntry) -> str:
    did = entry.action.replace("_", " ")
    number = entry.body.get("number")
    return f"{did} {entry.subject.id}@{number}" if entry.tenant is None and number else f"{did} {entry.subject}"


def _id(tenant: str, number: int | None) -> str | None:
    return f"{tenant}@{number}" if number else None
