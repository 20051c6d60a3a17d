"""Where each tenant stands: what is in which stage, until when, what is due and what comes next."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError
from lora_ops.records.registry import State
from lora_ops.registry.eligibility import FRESHNESS_WARNING
from lora_ops.registry.requirements import LIVE, missing_for, next_stage
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins
from lora_ops.registry.versions import Summary

# The version that is furthest on its way to production is the one that somebody waits for.
ON_THE_WAY = ("canary", "shadow", "validated", "candidate")


class TenantStatus(NamedTuple):
    """One tenant; a version is None where nothing is in that stage."""

    tenant: str
    production: str | None
    canary: str | None
    shadow: str | None
    candidate: str | None
    fresh_until: str | None  # of production, else of the version that is furthest
    next_review_due: str | None  # of the same version
    next_version: str | None  # the version that is furthest on its way to production
    next_stage: str | None
    missing: tuple[str, ...]  # what that step still needs, besides a reason
    route: tuple[str, ...] = ()  # which versions share its requests or are stopped, a sentence each


class Due(NamedTuple):
    """One thing to do soon, or late already."""

    id: str
    what: Literal["review", "freshness", "retirement"]
    at: str
    overdue: bool
    state: State
    team: str | None


def status(registry: Registry, tenants: Iterable[str]) -> list[TenantStatus]:
    """Return where each of `tenants` stands, one entry each, also for a tenant without a version."""
    twins = Twins(registry)
    return [_status(registry, tenant, twins) for tenant in tenants]


def due(registry: Registry, tenant: str | None = None) -> list[Due]:
    """Reviews that are overdue and data that expires within 14 days (or has), the most urgent first."""
    today = registry.clock()
    now, soon = utc(today), utc(today + FRESHNESS_WARNING)
    found = []
    for one in registry.summaries(tenant):
        if one.state not in LIVE:
            continue
        team = registry.owners.team(one.tenant).team if registry.owners else None
        if one.next_review_due and one.next_review_due <= now:
            found.append(Due(one.id, "review", one.next_review_due, True, one.state, team))
        if one.fresh_until <= soon:
            found.append(Due(one.id, "freshness", one.fresh_until, one.fresh_until <= now, one.state, team))
    return sorted(found, key=lambda item: item.at)


def _status(registry: Registry, tenant: str, twins: Twins) -> TenantStatus:
    live = [one for one in registry.summaries(tenant) if one.state in LIVE]
    by_alias = {alias: one for one in live for alias in one.aliases}
    production = by_alias.get("production")
    # What was stopped here goes no step further.
    coming = _furthest(
        [one for one in live if registry.hold_of(one) is None], production.number if production else 0
    )
    stage, missing = _coming(registry, coming, twins) if coming else (None, [])
    shown = production or coming
    return TenantStatus(
        tenant=tenant,
        production=_id(production),
        canary=_id(by_alias.get("canary")),
        shadow=_id(by_alias.get("shadow")),
        candidate=_id(by_alias.get("candidate")),
        fresh_until=shown.fresh_until if shown else None,
        next_review_due=shown.next_review_due if shown else None,
        next_version=_id(coming),
        next_stage=stage,
        missing=tuple(missing),
        route=tuple(_routed(registry, tenant, live)),
    )


def _routed(registry: Registry, tenant: str, live: list[Summary]) -> Iterator[str]:
    """Yield what the tenant's route says of each version, by its row, which `verify` compares with the log."""
    route = registry.route(tenant)
    for one in live:
        yield from (f"{one.id} {said}" for said in route.about(one.number))


def _coming(registry: Registry, coming: Summary, twins: Twins) -> tuple[str | None, list[str]]:
    """Return the next stage of a version and what it lacks; what is damaged hides no other tenant."""
    try:
        return missing_for(registry, coming.id, twins)
    except LoraOpsError as error:
        return next_stage(coming.state), [str(error).rstrip(".")]


def _furthest(live: list[Summary], production: int) -> Summary | None:
    """Return the version next in line: the furthest stage, and in it the newest.

    A candidate that is older than the version in production was passed over.
    """
    for state in ON_THE_WAY:
        in_state = [
            one for one in live if one.state == state and (state != "candidate" or one.number > production)
        ]
        if in_state:
            return in_state[-1]
    return None


def _id(version: Summary | None) -> str | None:
    return version.id if version else None
