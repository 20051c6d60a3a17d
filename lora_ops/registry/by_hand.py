"""How many users people may give a version by hand, today and by the log.

Two people approve production. A share of all users, or a pin of all users, is production in all but name. So
one person gives a version users up to the step of its rollout, and without a rollout a few who try it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import Damaged, Refused
from lora_ops.records.registry import AuditEntry
from lora_ops.records.rollout import HandRules, Rollout
from lora_ops.records.route import RouteRecord
from lora_ops.registry.rollouts import KIND as ROLLOUT
from lora_ops.registry.rollouts import after_entry, rollout_of
from lora_ops.registry.route_entries import ROUTE, ToldRoute, as_fields, replay_route, route_patch
from lora_ops.registry.route_rules import entry_name
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version

MOST_USERS = 20
"""Users that one person pins to a version before its rollout is ready: people who try it, by name."""
USUAL = HandRules()


class Given(NamedTuple):
    """What a change of a route gives a version that it did not have.

    Attributes:
        percent: the canary's share; 0 where it is no larger than before.
        users: how many are pinned after the change; 0 where nobody was added.
        segment: one that was added, or None.
    """

    percent: float = 0
    users: int = 0
    segment: str | None = None


def rules_now(registry: Registry) -> HandRules:
    """Return the rules of today, by params.yaml."""
    return HandRules(rollout=registry.least.rollout, first_step=registry.first_step)


def require_few(registry: Registry, version: Version, before: RouteRecord, after: RouteRecord) -> None:
    """Refuse a change of a route by hand that gives a version too many users.

    A change that gives it fewer is never refused.

    Raises:
        Refused: it gives more than the rollout's step, or than one person may without one.
        Damaged: an entry about its rollout is not what lora-ops writes.
    """
    if version.state != "canary":  # what is in production answers these users anyway
        return
    given = _given(as_fields(before), as_fields(after), version.number)
    against = _too_many(version.id, rollout_of(registry, version.id), rules_now(registry), given)
    if against:
        raise Refused(f"{against[0].upper()}{against[1:]}; nothing was changed.")


class TooMany(NamedTuple):
    """An entry of the log that gives a version more users than one person may by default.

    Attributes:
        said: what it does, in words.
        is_broken: whether the rules forbade it that the entry names; else it followed other ones than usual.
    """

    said: str
    is_broken: bool


def too_many_given(entries: Sequence[AuditEntry]) -> Iterator[TooMany]:
    """Yield each entry that gives a version too many users by hand.

    What an entry does is judged, not what it calls that: a controller gives no more than its rollout's step.
    """
    routes: dict[str, ToldRoute] = {}
    rollouts: dict[str, Rollout] = {}
    states: dict[str, str] = {}
    for entry in entries:
        if entry.subject.kind == ROLLOUT:
            with suppress(Damaged):  # `broken_rollouts` names it
                rollouts[entry.subject.id] = after_entry(rollouts.get(entry.subject.id), entry)
        changed = route_patch(entry.subject.kind, entry.subject.id, entry.body)
        if changed is not None:
            tenant, patch = changed
            before = routes.get(tenant)
            replay_route(entry.seq, tenant, patch, routes)
            fields = routes[tenant].fields
            if entry.subject.kind == ROUTE and patch is not None and fields is not None:
                for number in _numbers_in(patch, fields):
                    adapter = f"{tenant}@{number}"
                    if states.get(adapter) == "canary":  # `broken_routes` names what no other state may have
                        given = _given((before.fields or {}) if before else {}, fields, number)
                        yield from _judged(entry, adapter, rollouts.get(adapter), given)
        if entry.tenant is not None:
            own = entry.effects.get("states", {})
            states |= {f"{entry.tenant}@{number}": state for number, state in own.items()}


def _judged(entry: AuditEntry, adapter: str, rollout: Rollout | None, given: Given) -> Iterator[TooMany]:
    usual = _too_many(adapter, rollout, USUAL, given)
    rules: HandRules | None = None
    with suppress(KeyError, ValidationError):
        rules = HandRules.model_validate(entry.body["rules"])
    broken = rules and _too_many(adapter, rollout, rules, given)
    said = f"{entry_name(entry)} gives {adapter} too many users"
    if broken:
        yield TooMany(f"{said}: {broken}", is_broken=True)
    elif usual:
        yield TooMany(f"{said} by {_other_rules(entry, rules)}: {usual}", is_broken=False)


def _other_rules(entry: AuditEntry, rules: HandRules | None) -> str:
    """Return by which rules an entry was allowed that the usual ones forbid, in words."""
    if rules and rules.rollout == "optional":
        return "rules that ask for no rollout (registry.evidence.rollout)"
    if rules:
        return f"a first step of {rules.first_step:g} % (rollout.canary.steps)"
    known = isinstance(entry.body.get("rules"), dict)
    return "rules that this release can't read" if known else "the rules of an older release"


def _too_many(adapter: str, rollout: Rollout | None, rules: HandRules, given: Given) -> str | None:
    """Return why a version may not get these users by hand, in words; None where it may.

    A share that is above the plan's has too few users beside it, so that nobody would see a breach. What went
    back has no controller that looks at it any more.
    """
    if given == Given():
        return None
    if rollout and rollout.phase == "returned":
        return (
            f"the rollout of {adapter} went back ({rollout.said}): `lora-ops rollout start {adapter} --reason "
            "TEXT` tries it again"
        )
    is_running = rollout is not None and rollout.is_running
    asked = rules.rollout == "required"
    if rollout and is_running and (rollout.phase == "shadow" or given.percent > rollout.percent):
        way = "" if asked else f", or end it with `lora-ops rollout abort {adapter} --reason TEXT`"
        return (
            f"the rollout of {adapter} gives it {rollout.percent:g} % of the users ({rollout.phase}): wait for "
            f"it{way}"
        )
    if not asked or (rollout and rollout.phase == "ready"):
        return None
    if not is_running and given.percent > rules.first_step:
        return (
            f"one person gives {adapter} at most {rules.first_step:g} % of the users, the first of "
            f"rollout.canary.steps: `lora-ops rollout start {adapter} --reason TEXT` takes it further"
        )
    if given.users > MOST_USERS:
        return (
            f"one person pins at most {MOST_USERS} users to {adapter} before its rollout is ready, and these "
            f"would be {given.users:,}"
        )
    if given.segment is not None:
        return (
            f"nobody knows how many users a segment has, so '{given.segment}' is pinned once the rollout of "
            f"{adapter} is ready: pin users by name until then"
        )
    return None


def _given(before: Mapping[str, Any], after: Mapping[str, Any], number: int) -> Given:
    """Return what a version has by a route and did not have before; both as JSON objects."""
    share, users, segments = (
        _share(after, number),
        _pinned(after, "users", number),
        _pinned(after, "segments", number),
    )
    return Given(
        percent=share if share > _share(before, number) else 0,
        users=len(users) if users - _pinned(before, "users", number) else 0,
        segment=min(segments - _pinned(before, "segments", number), default=None),
    )


def _share(fields: Mapping[str, Any], number: int) -> float:
    there = fields.get("canary")
    percent = there.get("percent") if isinstance(there, dict) and there.get("number") == number else 0
    return percent if isinstance(percent, (int, float)) else 0


def _pinned(fields: Mapping[str, Any], name: str, number: int) -> set[str]:
    pins = fields.get(name)
    return {unit for unit, one in pins.items() if one == number} if isinstance(pins, dict) else set()


def _numbers_in(patch: Mapping[str, Any], fields: Mapping[str, Any]) -> set[int]:
    """Return the versions to which a patch gives something, or of which it changes something."""
    numbers: set[Any] = set()
    if isinstance(patch.get("canary"), dict) and isinstance(fields.get("canary"), dict):
        numbers.add(fields["canary"].get("number"))
    for name in ("users", "segments"):
        pins = patch.get(name)
        numbers |= set(pins.values()) if isinstance(pins, dict) else set()
    return {one for one in numbers if isinstance(one, int)}
