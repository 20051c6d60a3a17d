"""How a tenant's route is changed: who may share its requests, between which versions, in which parts.

Each change is one transaction and one entry of the audit log. Who is in production is decided by promotions
alone (lifecycle.py). A promotion, a rollback or a revocation takes what no longer fits out of the route by its
own entry (changes.py).
"""

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, with_text
from lora_ops.escaping import one_line
from lora_ops.hashing import sha256_text
from lora_ops.records.route import SEGMENT_PATTERN, CanaryRoute, RouteRecord, ShadowRoute
from lora_ops.registry.by_hand import require_few, rules_now
from lora_ops.registry.changes import require_reason
from lora_ops.registry.closing import until_first, why_not_taken, without_settling
from lora_ops.registry.eligibility import reasons_against
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.replay import require_rows
from lora_ops.registry.roles import ANYBODY, MOVE, owners_of, require_role_in
from lora_ops.registry.route_entries import COUNTS_IN, PINNED_IN, ToldRoute, patch_between
from lora_ops.registry.stops import drop_if_entered, state_stop
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Version, parse_reference

MOST_PINS = 10_000
"""Users or segments of one tenant: each gateway reads the whole route after each change."""

Update = Callable[[RouteRecord], RouteRecord]


class Routed(NamedTuple):
    """A tenant's route after a change.

    Attributes:
        tenant: whose.
        route: as it is now.
        seq: the entry of the audit log that changed it last; `expect_seq` of the next change. 0: none did.
    """

    tenant: str
    route: RouteRecord
    seq: int


def current(registry: Registry, tenant: str) -> Routed:
    """Return a tenant's route as the verified log says.

    Raises:
        Damaged: the registry differs from its log.
        LoraOpsError: there is no such tenant in the registry.
    """
    _require_tenant(registry, tenant)
    problem = registry.follower.problem()
    if problem:
        raise Damaged(f"The registry in {registry.path} can't be trusted: {problem}; restore it from a backup.")
    told = registry.follower.told_route(tenant)
    return Routed(tenant, told.record, told.seq)


def set_canary(
    registry: Registry,
    reference: str,
    percent: float,
    *,
    actor: str,
    reason: str,
    expect_seq: int | None = None,
) -> Routed:
    """Let the version in canary answer a share of the users.

    Its salt stays while the percentage changes, so that raising it keeps the users that the version has.

    Args:
        registry: where.
        reference: the exact version; its state is `canary`.
        percent: of the users, above 0 and up to 100.
        actor: who decides it.
        reason: why.
        expect_seq: go on only if this entry changed the route last; of two controllers the second is refused.

    Raises:
        LoraOpsError: no role or reason, a share or version that does not fit, a route that changed meanwhile.
    """
    share = _percent(percent)

    def update(route: RouteRecord, version: Version) -> RouteRecord:
        _require_state(version, COUNTS_IN["canary"], "gets a canary's share")
        return with_canary(route, version.number, share)

    return _give(registry, reference, "canary_set", update, actor, reason, expect_seq)


def with_canary(route: RouteRecord, number: int, percent: float) -> RouteRecord:
    """Return a route in which a version has the canary's share; its salt stays while it had one before."""
    known = route.canary if route.canary and route.canary.number == number else None
    salt = known.salt if known else secrets.token_hex(16)
    return route.model_copy(update={"canary": CanaryRoute(number=number, percent=percent, salt=salt)})


def set_shadow(
    registry: Registry,
    reference: str,
    percent: float,
    *,
    actor: str,
    reason: str,
    expect_seq: int | None = None,
) -> Routed:
    """Ask a version in shadow or canary again for a share of the requests; no client gets its answers.

    Raises:
        LoraOpsError: as `set_canary`.
    """
    share = _percent(percent)

    def update(route: RouteRecord, version: Version) -> RouteRecord:
        _require_state(version, COUNTS_IN["shadow"], "is asked in shadow")
        return route.model_copy(update={"shadow": ShadowRoute(number=version.number, percent=share)})

    return _give(registry, reference, "shadow_set", update, actor, reason, expect_seq)


def pin(
    registry: Registry,
    reference: str,
    *,
    users: Sequence[str] = (),
    segments: Sequence[str] = (),
    actor: str,
    reason: str,
    expect_seq: int | None = None,
) -> Routed:
    """Let a version in canary or production answer named users and segments, whatever the canary's share is.

    A user is kept as a salted hash.

    Raises:
        LoraOpsError: as `set_canary`, or no user or segment is named, or a name that can't be one.
    """
    _require_units(users, segments)

    def update(route: RouteRecord, version: Version) -> RouteRecord:
        _require_state(version, PINNED_IN, "can be pinned")
        route = route.model_copy(
            update={"user_salt": route.user_salt or secrets.token_hex(16)} if users else {}
        )
        pins = {
            "users": {**route.users, **{route.user_hash(one): version.number for one in users}},
            "segments": {**route.segments, **dict.fromkeys(segments, version.number)},
        }
        many = max(map(len, pins.values()))
        if many > MOST_PINS:
            raise Refused(
                f"'{version.tenant}' would have {many:,} pins, and may have {MOST_PINS:,}: name a segment that "
                "your application sends instead of each user."
            )
        return route.model_copy(update=pins)

    return _give(registry, reference, "pinned", update, actor, reason, expect_seq)


def unpin(
    registry: Registry,
    tenant: str,
    *,
    users: Sequence[str] = (),
    segments: Sequence[str] = (),
    actor: str,
    reason: str,
    expect_seq: int | None = None,
) -> Routed:
    """Take pins away; anybody in the team may.

    Raises:
        LoraOpsError: no role or reason, or one of them is not pinned.
    """
    _require_units(users, segments)

    def update(route: RouteRecord) -> RouteRecord:
        hashes = {route.user_hash(one): one for one in users}
        gone = [hashes[one] for one in hashes if one not in route.users]
        gone += [one for one in segments if one not in route.segments]
        if gone:
            raise NotFound(f"'{one_line(gone[0][:64])}' is not pinned at '{tenant}'; nothing was changed.")
        return route.model_copy(
            update={
                "users": {one: number for one, number in route.users.items() if one not in hashes},
                "segments": {one: number for one, number in route.segments.items() if one not in segments},
            }
        )

    return _take_away(registry, tenant, "unpinned", update, actor, reason, expect_seq)


def clear(
    registry: Registry,
    tenant: str,
    part: str,
    *,
    actor: str,
    reason: str,
    expect_seq: int | None = None,
) -> Routed:
    """End the canary's or the shadow's share; anybody in the team may.

    Args:
        registry: where.
        tenant: whose.
        part: `canary` or `shadow`.
        actor: who decides it.
        reason: why.
        expect_seq: see `set_canary`.

    Raises:
        LoraOpsError: no role or reason, or a route that changed meanwhile.
    """
    if part not in COUNTS_IN:
        raise LoraOpsError(f"A route has no part '{part}' to clear: choose canary or shadow.")
    return _take_away(
        registry,
        tenant,
        f"{part}_cleared",
        lambda route: route.model_copy(update={part: None}),
        actor,
        reason,
        expect_seq,
        patch={part: None},
    )


def stop(registry: Registry, reference: str, *, actor: str, reason: str) -> Routed:
    """Let a version answer nobody until it is resumed: a kill switch; anybody in the team may.

    Its users get production; of a stopped version in production they get an error. Its row, its manifest and a
    damaged `audit.head` don't matter, as for a revocation. Where W&B has the log, the stop holds on this
    machine before W&B is asked. `registry.not_sent` says afterwards why W&B did not take it; it is queued then.

    Raises:
        LoraOpsError: unknown version, nobody of its team, no reason, a closed version, or a registry that can't
            be changed: the text names `revoke`, which holds whatever the registry's state is.
    """
    tenant, number = _exact(reference)

    def update(route: RouteRecord) -> RouteRecord:
        version = registry.get_exact(reference, whole=False)
        if version.state in CLOSED:
            raise Refused(f"{version.id} was {version.state}: it answers nobody already.")
        return route.model_copy(update={"stopped": tuple(sorted({*route.stopped, number}))})

    def change() -> Routed:
        return _take_away(registry, tenant, "stopped", update, actor, reason, None, number=number)

    registry.not_sent = None
    try:
        return _stop_here_first(registry, reference, change, actor, reason) if registry.shares_log else change()
    except (Refused, NotFound):
        raise
    except LoraOpsError as error:
        raise with_text(
            error,
            f"{str(error).rstrip('.')}. To stop {reference} on this machine all the same, for good: `lora-ops "
            f"registry revoke {reference} --reason TEXT`.",
        ) from error


def _stop_here_first(
    registry: Registry, reference: str, change: Callable[[], Routed], actor: str, reason: str
) -> Routed:
    """State a stop on this machine, then ask W&B for its entry; where that fails, the stop stays queued.

    Raises:
        LoraOpsError: as `stop`, about the request itself, or the registry here differs from its log.
    """
    queued = state_stop(registry, reference, actor, reason)
    try:
        with without_settling(registry):
            routed = change()
    except LoraOpsError as error:
        if not drop_if_entered(registry, queued):
            registry.not_sent = why_not_taken(error)
        return current(registry, parse_reference(reference)[0])
    drop_if_entered(registry, queued)
    return routed


def resume(
    registry: Registry, reference: str, *, actor: str, reason: str, expect_seq: int | None = None
) -> Routed:
    """Let a stopped version answer again, as far as its state and the route let it.

    Raises:
        LoraOpsError: no role or reason, or it is not stopped.
    """
    tenant, number = _exact(reference)

    def update(route: RouteRecord) -> RouteRecord:
        if number not in route.stopped:
            raise Refused(f"{reference} is not stopped; nothing was changed.")
        return route.model_copy(update={"stopped": tuple(one for one in route.stopped if one != number)})

    def change() -> Routed:
        return _change(registry, tenant, "resumed", MOVE, update, actor, reason, expect_seq, number=number)

    return until_first(change)


def _give(
    registry: Registry,
    reference: str,
    action: str,
    update: Callable[[RouteRecord, Version], RouteRecord],
    actor: str,
    reason: str,
    expect_seq: int | None,
) -> Routed:
    """Give a version a part of the requests, if it may serve."""
    tenant, number = _exact(reference)

    def checked(route: RouteRecord) -> RouteRecord:
        version = registry.get_exact(reference)
        require_rows(registry, version)
        after = update(route, version)
        require_few(registry, version, route, after)
        against = list(reasons_against(registry, version.summary, registry.clock()))
        if against:
            raise Refused(f"{against[0]}.")
        return after

    def change() -> Routed:
        rules = rules_now(registry).model_dump(mode="json")
        return _change(
            registry, tenant, action, MOVE, checked, actor, reason, expect_seq, number=number, rules=rules
        )

    return until_first(change)


def _take_away(
    registry: Registry,
    tenant: str,
    action: str,
    update: Update,
    actor: str,
    reason: str,
    expect_seq: int | None,
    **facts: Any,
) -> Routed:
    def change() -> Routed:
        return _change(
            registry, tenant, action, ANYBODY, update, actor, reason, expect_seq, despite_head=True, **facts
        )

    return until_first(change)


def _change(
    registry: Registry,
    tenant: str,
    action: str,
    roles: frozenset[Any],
    update: Update,
    actor: str,
    reason: str,
    expect_seq: int | None,
    *,
    despite_head: bool = False,
    patch: dict[str, Any] | None = None,
    number: int | None = None,
    rules: dict[str, Any] | None = None,
) -> Routed:
    """Change a route by one entry; a change that changes nothing is none.

    Args:
        registry: where.
        tenant: whose.
        action: of the entry.
        roles: who may.
        update: gives the route after the change, or refuses it.
        actor: who acts.
        reason: why.
        expect_seq: the entry that must have changed the route last.
        despite_head: see `Transactions.change`.
        patch: what the change writes where only a newer release can read the route.
        number: which version it is about.
        rules: by which it gives a version users.
    """
    with change_with_owners(registry, actor, despite_head=despite_head) as change:
        _require_tenant(registry, tenant)
        require_role_in(owners_of(registry, tenant), actor, roles, f"change the route of '{tenant}'")
        require_reason(reason)
        told = registry.follower.told_route(tenant)
        _require_expected(registry, told, expect_seq)
        if told.fields is None or not (told.is_readable or action == "stopped" or patch):
            raise Refused(
                f"The route of '{tenant}' was written by a newer lora-ops (entry {told.seq}): update lora-ops. "
                "`lora-ops registry revoke` takes a version out of service all the same."
            )
        if not told.is_readable and patch:
            patch = {name: None for name in patch if name in told.fields}
        else:
            patch = patch_between(told.record, update(told.record))
        assert registry.owners is not None
        if patch:
            change.reroute(
                action,
                tenant,
                patch,
                reason=reason.strip(),
                owners_sha256=sha256_text(registry.owners.text),
                replaces=told.seq,
                **({"number": number} if number else {}),
                **({"rules": rules} if rules else {}),
            )
    return current(registry, tenant)


def _require_expected(registry: Registry, told: ToldRoute, expect_seq: int | None) -> None:
    if expect_seq is None or expect_seq == told.seq:
        return
    last = registry.log.entries(after=told.seq - 1)[:1] if told.seq else []
    by = f" ({last[0].action} by {one_line(last[0].actor)})" if last else ""
    raise Refused(
        f"The route of '{told.tenant}' changed meanwhile: entry {told.seq}{by} is its last, not {expect_seq}; "
        "look again before you change it."
    )


def _require_tenant(registry: Registry, tenant: str) -> None:
    if tenant in registry.tenants():
        return
    name, which = parse_reference(tenant)
    if which is not None:
        raise LoraOpsError(f"'{tenant}' names no tenant: write {name}.")
    registry.resolve(tenant)  # it names the tenants that there are


def _require_state(version: Version, states: frozenset[Any], what: str) -> None:
    if version.state not in states:
        listed = " or ".join(f"'{one}'" for one in sorted(states))
        raise Refused(
            f"{version.id} is '{version.state}', and only a version in {listed} {what}: promote it first."
        )


def _percent(percent: float) -> float:
    if isinstance(percent, bool) or not isinstance(percent, (int, float)) or not 0 < percent <= 100:
        raise LoraOpsError(f"A share is above 0 and at most 100 percent, got {percent!r}.")
    return float(percent)


def _require_units(users: Sequence[str], segments: Sequence[str]) -> None:
    if not users and not segments:
        raise LoraOpsError("Name at least one user or segment (--user, --segment).")
    if "" in users:
        raise LoraOpsError("A user without a name can't be pinned: every request without a user would be.")
    for one in segments:
        if re.fullmatch(SEGMENT_PATTERN, one) is None:
            raise LoraOpsError(
                f"'{one_line(one[:80])}' is no segment: use 1 to 64 letters, digits, -, _ and dots."
            )


def _exact(reference: str) -> tuple[str, int]:
    tenant, which = parse_reference(reference)
    if not isinstance(which, int):
        raise LoraOpsError(
            f"'{reference}' may name another version in a moment: name the exact one ({tenant}@3, see "
            f"`lora-ops registry list {tenant}`); nothing was changed."
        )
    return tenant, which
