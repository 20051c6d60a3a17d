"""Which version a tenant's production and canary were at which time, by the audit log."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import NamedTuple

from lora_ops.registry.audit import Log
from lora_ops.registry.route_entries import ToldRoute, replay_route, route_patch
from lora_ops.small_files import parse_json


class InProduction(NamedTuple):
    """From when a version was in production; `number` is None from when on nothing was."""

    since: datetime
    number: int | None


class CanaryShare(NamedTuple):
    """From when a version had a share of the users as a canary.

    Attributes:
        since: the time of the entry.
        number: of the version.
        percent: of the users; as many are the control group, as far as there are others.
        salt: by which users are assigned: another one is another assignment.
    """

    since: datetime
    number: int
    percent: float
    salt: str


def in_production(log: Log, tenant: str) -> list[InProduction]:
    """Return each change of what was in production, oldest first."""
    found: list[InProduction] = []
    for entry in log.entries(tenant):
        aliases = entry.effects.get("aliases", {})
        if isinstance(aliases, dict) and "production" in aliases:
            found.append(InProduction(datetime.fromisoformat(entry.at), aliases["production"]))
    return found


def canary_shares(log: Log, tenant: str) -> list[CanaryShare]:
    """Return each share of the users that a canary had, oldest first."""
    return list(_canary_shares(log, tenant))


def _canary_shares(log: Log, tenant: str) -> Iterator[CanaryShare]:
    routes: dict[str, ToldRoute] = {}
    before = None
    for row in log.about_routes(tenant):
        changed = None
        with suppress(ValueError):  # it was changed, which `verify` says
            changed = route_patch(row.kind, row.subject, parse_json(row.body))
        if changed is None:
            continue
        replay_route(row.seq, *changed, routes)
        canary = routes[tenant].known.canary
        if canary and canary != before:
            yield CanaryShare(datetime.fromisoformat(row.at), canary.number, canary.percent, canary.salt)
        before = canary
