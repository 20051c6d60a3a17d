"""What the audit log says of routes: each entry holds a merge patch (RFC 7386) of one tenant's route.

A patch names only what an entry changes, so that a log with 5,000 pinned users holds each of them once.
Applying patches needs no knowledge of the fields: a route with a field of a newer release is still the same
text on every machine, and only the reader of that field needs the newer release.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from lora_ops.hashing import canonical
from lora_ops.records.registry import State
from lora_ops.records.route import RouteRecord
from lora_ops.registry.audit import Log
from lora_ops.registry.versions import CLOSED
from lora_ops.small_files import parse_json

ROUTE = "route"
"""The kind of entries about a route, and the name of their effect."""
COUNTS_IN: dict[str, frozenset[State]] = {
    "canary": frozenset({"canary"}),
    "shadow": frozenset({"shadow", "canary"}),
}
"""Part of a route to the states in which its version has that part."""
PINNED_IN: frozenset[State] = frozenset({"canary", "production"})
"""Nobody has agreed that what is in shadow may answer a client."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ToldRoute:
    """One tenant's route after some entries of the log.

    Attributes:
        tenant: whose.
        seq: the entry that changed it last.
        fields: the route as a JSON object; None after an entry whose form only a newer release can read.
        stopped_before: what was stopped when it could be read last.
    """

    tenant: str
    seq: int
    fields: Mapping[str, Any] | None
    stopped_before: tuple[int, ...] = ()

    @cached_property
    def text(self) -> str | None:
        """What the row of the table must hold, or None where nobody can tell here."""
        return None if self.fields is None else canonical(self.fields)

    @cached_property
    def is_readable(self) -> bool:
        """Whether this release can read the route."""
        return _parsed(self.fields) is not None

    @cached_property
    def record(self) -> RouteRecord:
        """The route as `known` has it; that a newer release wrote it is logged once."""
        if not self.is_readable:
            logger.warning(
                "The route of '%s' (entry %d of the audit log) was written by a newer lora-ops: until lora-ops "
                "is updated here, production answers all its requests.",
                self.tenant,
                self.seq,
            )
        return self.known

    @cached_property
    def known(self) -> RouteRecord:
        """The route, as far as this release can read it: of another one only the stopped versions.

        So production answers everybody there. A kill switch counts whatever else the route says, and until a
        release that can read it knows that it was lifted.
        """
        stopped = (self.fields or {}).get("stopped", self.stopped_before)
        return _parsed(self.fields) or _parsed({"stopped": stopped}) or RouteRecord(stopped=self.stopped_before)


def _parsed(fields: Mapping[str, Any] | None) -> RouteRecord | None:
    try:
        return None if fields is None else RouteRecord.model_validate(fields)
    except ValidationError:
        return None


def route_patch(kind: str, subject: str, body: Any) -> tuple[str, dict[str, Any] | None] | None:
    """Return whose route an entry changes, and the patch: None in its place where its form is not known here.

    Args:
        kind: of the entry's subject.
        subject: its id; of a version `tenant@number`.
        body: of the entry.

    Returns:
        None for an entry that changes no route.
    """
    effects = body.get("effects") if isinstance(body, dict) else None
    patch = effects.get(ROUTE) if isinstance(effects, dict) else None
    if kind == ROUTE:
        return subject, patch if isinstance(patch, dict) else None
    if kind == "version" and isinstance(effects, dict) and ROUTE in effects:
        return subject.rpartition("@")[0], patch if isinstance(patch, dict) else None
    return None


def replay_route(seq: int, tenant: str, patch: dict[str, Any] | None, routes: dict[str, ToldRoute]) -> None:
    """Let `routes` hold what they are after entry `seq`."""
    before = routes.get(tenant)
    # What follows an entry that can't be read changes something that nobody knows here.
    known = before is None or before.fields is not None
    fields = None
    if known and patch is not None:
        try:
            fields = merged(before.fields or {} if before else {}, patch)
        except RecursionError:
            fields = None
    routes[tenant] = ToldRoute(tenant, seq, fields, before.known.stopped if before else ())


def routes_of(log: Log) -> dict[str, ToldRoute]:
    """Return every route by a whole log: tenant to its route."""
    routes: dict[str, ToldRoute] = {}
    for row in log.about_routes():
        with suppress(ValueError):  # it was changed, which the chain says
            changed = route_patch(row.kind, row.subject, parse_json(row.body))
            if changed:
                replay_route(row.seq, *changed, routes)
    return routes


def times_stopped(log: Log, version: str) -> list[tuple[datetime, datetime | None]]:
    """Return from when until when a version (`finance@1`) was stopped, each time; None: it still is."""
    tenant, _, number = version.rpartition("@")
    routes: dict[str, ToldRoute] = {}
    times: list[tuple[datetime, datetime | None]] = []
    for row in log.about_routes(tenant):
        with suppress(ValueError):  # it was changed, which the chain says
            changed = route_patch(row.kind, row.subject, parse_json(row.body))
            if changed is None:
                continue
            replay_route(row.seq, *changed, routes)
            is_stopped = int(number) in routes[tenant].known.stopped
            was_stopped = bool(times) and times[-1][1] is None
            if is_stopped and not was_stopped:
                times.append((datetime.fromisoformat(row.at), None))
            elif was_stopped and not is_stopped:
                times[-1] = (times[-1][0], datetime.fromisoformat(row.at))
    return times


def merged(fields: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `fields` are after a merge patch: null takes a name away, an object is merged."""
    after = dict(fields)
    for name, value in patch.items():
        if value is None:
            after.pop(name, None)
        elif isinstance(value, dict):
            there = after.get(name)
            after[name] = merged(there if isinstance(there, dict) else {}, value)
        else:
            after[name] = value
    return after


def patch_between(before: RouteRecord, after: RouteRecord) -> dict[str, Any]:
    """Return the merge patch that makes one route of another; empty where they are the same."""
    return _difference(as_fields(before), as_fields(after))


def as_fields(route: RouteRecord) -> dict[str, Any]:
    """Return a route as the log holds it."""
    return route.model_dump(mode="json", exclude_defaults=True)


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = dict.fromkeys(before.keys() - after.keys())
    for name, value in after.items():
        there = before.get(name)
        if isinstance(value, dict) and isinstance(there, dict):
            inner = _difference(there, value)
            if inner:
                patch[name] = inner
        elif value != there:
            patch[name] = value
    return patch


def patch_after(fields: Mapping[str, Any], states: Mapping[int, State], *, returns: bool) -> dict[str, Any]:
    """Return the patch that takes versions out of a route whose states have just changed.

    A part ends where its version is no more in the state that it counts in. A pin ends with any change of state
    but the one to canary: what goes into production answers everybody, and its pinned users would be left out
    of the next canary. A stopped version stays stopped until it is closed for good.

    Args:
        fields: the route, of whatever release.
        states: number to its new state.
        returns: an earlier version returns to production. The canary's share ends then: it was compared with
            what leaves, and whoever rolls back wants everybody to get the version that is known to be good.
            Shadow and the pins of other versions stay, since each of these was chosen by name.
    """
    patch: dict[str, Any] = {}
    for part, counts_in in COUNTS_IN.items():
        there = fields.get(part)
        number: Any = there.get("number") if isinstance(there, dict) else None
        if (part == "canary" and returns and there) or (number in states and states[number] not in counts_in):
            patch[part] = None
    left = {number for number, state in states.items() if state != "canary"}
    for name in ("users", "segments"):
        pins = fields.get(name)
        if not isinstance(pins, dict):
            continue
        gone = [unit for unit, number in pins.items() if number in left]
        if gone:
            patch[name] = None if len(gone) == len(pins) else dict.fromkeys(gone)
    stopped = fields.get("stopped")
    if isinstance(stopped, list):
        rest = [number for number in stopped if states.get(number) not in CLOSED]
        if rest != stopped:
            patch["stopped"] = rest
    return patch


def route_mismatches(found: Mapping[str, str], told: Mapping[str, ToldRoute]) -> Iterator[str]:
    """Yield where rows of routes are not what the audit log says, in words."""
    for tenant in sorted(found.keys() | told.keys()):
        row, said = found.get(tenant), told.get(tenant)
        if said is None:
            yield f"the route of {tenant} was added by something that is not lora-ops: no entry tells of it"
        elif row != said.text and said.fields is not None:
            what = "removed" if row is None else "changed: it is not what the audit log says"
            yield f"the route of {tenant} was {what} (entry {said.seq})"
