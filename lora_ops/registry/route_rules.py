"""Whether the rules allow what each entry does to a route: who gave which version a part, in which state."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.owners import Role
from lora_ops.registry.owners_log import KIND as OWNERS
from lora_ops.registry.owners_log import kept_owners
from lora_ops.registry.roles import ANYBODY, MOVE
from lora_ops.registry.rollouts import KIND as ROLLOUT
from lora_ops.registry.rollouts import RETRIED, STARTED
from lora_ops.registry.route_entries import (
    COUNTS_IN,
    PINNED_IN,
    ROUTE,
    ToldRoute,
    merged,
    replay_route,
    route_patch,
)


def broken_routes(entries: Sequence[AuditEntry]) -> Iterator[str]:
    """Yield what the rules don't allow of each entry that changes a route, in words.

    What an entry does is judged, not what it calls that. One whose form only a newer release knows is left out.
    """
    routes: dict[str, ToldRoute] = {}
    states: dict[tuple[str, int], str] = {}
    mandates = set[tuple[str, str]]()
    owners: AuditEntry | None = None
    for entry in entries:
        owners = entry if entry.subject.kind == OWNERS else owners
        if entry.subject.kind == ROLLOUT and entry.action in (STARTED, RETRIED):
            mandates.add((entry.subject.id, entry.actor))
        changed = route_patch(entry.subject.kind, entry.subject.id, entry.body)
        if changed is not None:
            tenant, patch = changed
            before = routes.get(tenant)
            replay_route(entry.seq, tenant, patch, routes)
            if patch is not None:
                given = list(_given(patch, (before.fields or {}) if before else {}))
                yield from _misfits(entry, tenant, given, states)
                if entry.subject.kind == ROUTE and not _is_mandated(entry, given, mandates):
                    yield from not_let(entry, tenant, MOVE if given else ANYBODY, owners)
        if entry.tenant is not None:
            own = entry.effects.get("states", {})
            states |= {(entry.tenant, int(number)): state for number, state in own.items()}


def _given(patch: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield each part that a patch gives a version, with that version's number; what it takes away is none."""
    for part in COUNTS_IN:
        if patch.get(part) is not None:
            there = merged(before, {part: patch[part]})[part]
            yield part, there.get("number") if isinstance(there, dict) else None
    for name in ("users", "segments"):
        pins = patch.get(name)
        numbers = set(map(str, pins.values())) if isinstance(pins, dict) else set()
        yield from (("pin", int(one) if one.isdigit() else one) for one in sorted(numbers - {"None"}))
    if "stopped" in patch:
        was, rest = (one if isinstance(one, list) else [] for one in (before.get("stopped"), patch["stopped"]))
        yield from (("resumed", number) for number in was if number not in rest)


def _is_mandated(entry: AuditEntry, given: Sequence[tuple[str, Any]], mandates: set[tuple[str, str]]) -> bool:
    """Return whether a controller acts for whoever started its rollout, and may have lost the role since.

    It goes on asking in shadow, and takes back. For a share of the users the role is asked for each time.
    """
    mine = (f"{entry.subject.id}@{entry.body.get('number')}", entry.actor) in mandates
    return mine and {part for part, _ in given} <= {"shadow"}


def _misfits(
    entry: AuditEntry,
    tenant: str,
    given: Sequence[tuple[str, Any]],
    states: Mapping[tuple[str, int], str],
) -> Iterator[str]:
    said = entry_name(entry)
    if entry.subject.kind != ROUTE:
        parts = [part for part, _ in given if part != "resumed"]  # a version that is closed is no more stopped
        if parts:
            yield f"{said} gives a version a part of the requests ({parts[0]}): only a change of the route does"
        return
    for part, number in given:
        fits = PINNED_IN if part == "pin" else COUNTS_IN.get(part)
        state = states.get((tenant, number), "unknown") if isinstance(number, int) else "unknown"
        if fits and state not in fits:
            yield f"{said} gives {tenant}@{number} a part ({part}) that '{state}' does not have"


def not_let(entry: AuditEntry, tenant: str, roles: frozenset[Role], owners: AuditEntry | None) -> Iterator[str]:
    """Yield that an entry is by somebody without a role for it by the owners.yaml that it names.

    Args:
        entry: of the log.
        tenant: whose team is asked.
        roles: of which one is needed.
        owners: the last entry about owners.yaml before it.
    """
    said = entry_name(entry)
    # `owners_before` reads them all again; a log may hold thousands of these entries.
    if owners is None or owners.body.get("owners_sha256") != entry.body.get("owners_sha256"):
        yield f"{said} names an owners.yaml that the log does not hold"
        return
    try:
        team = kept_owners(owners).team(tenant)
    except LoraOpsError as error:
        yield f"{said}: {str(error).rstrip('.')}"
        return
    if team.person(entry.actor) not in team.with_role(roles):
        yield f"{said} is by {entry.actor}, whom owners.yaml of that day does not let"


def entry_name(entry: AuditEntry) -> str:
    """Return how a problem names an entry."""
    return f"entry {entry.seq} ({entry.action} {entry.subject})"
