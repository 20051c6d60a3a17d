"""Is the registry what its signed log says, as far as answers depend on it: chain, head, and the rows."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol, TypeVar

from lora_ops.records.registry import AuditEntry
from lora_ops.records.route import RouteRecord
from lora_ops.registry.audit import HEAD_ACCEPTED, Anchor, Head, Log, Row, chain_problem
from lora_ops.registry.replay import Alias, alias_mismatches, replay_aliases
from lora_ops.registry.route_entries import ROUTE, ToldRoute, replay_route, route_mismatches, route_patch
from lora_ops.registry.structure import Structure
from lora_ops.registry.versions import CLOSED
from lora_ops.small_files import parse_json

NO_ROUTE = RouteRecord()
Key = TypeVar("Key")
Value = TypeVar("Value")


class Tables(Protocol):
    """What a registry shows of itself to be verified."""

    log: Log
    anchor: Anchor
    structure: Structure

    def reading(self) -> AbstractContextManager[None]:
        """Let every query inside see the same moment."""

    def aliases(self) -> Mapping[tuple[str, str], int]:
        """Return every alias: (tenant, alias) to the number of the version that it names."""

    def named(self, tenant: str, alias: str) -> int | None:
        """Return the number of the version that an alias names now, or None."""

    def state(self, tenant: str, number: int) -> str | None:
        """Return the state of one version, or None where there is no such version."""

    def states(self) -> Mapping[tuple[str, int], str]:
        """Return the state of every version: (tenant, number) to state."""

    def routes(self) -> Mapping[str, str]:
        """Return every route as it is stored: tenant to canonical JSON."""

    def route_text(self, tenant: str) -> str | None:
        """Return one tenant's route as it is stored, or None."""


class _Did(NamedTuple):
    """What one entry did to the tables.

    Attributes:
        tenant: whose rows; empty for an entry that changes none.
        effects: on versions and aliases.
        changes_route: whether it changes the tenant's route.
        route: the patch of the route; None where its form is not known here.
    """

    tenant: str = ""
    effects: Mapping[str, Any] = {}
    changes_route: bool = False
    route: dict[str, Any] | None = None

    @classmethod
    def read(cls, row: Row) -> "_Did":
        if row.kind not in ("version", ROUTE):
            return cls()
        body = parse_json(row.body)
        changed = route_patch(row.kind, row.subject, body)
        if row.kind == ROUTE:
            return cls(row.subject, {}, True, changed[1] if changed else None)
        tenant = row.subject.rpartition("@")[0]
        return cls(tenant, body.get("effects", {}), changed is not None, changed[1] if changed else None)


@dataclass
class _Told:
    """What the entries of a verified log say, taken one after the other.

    Attributes:
        aliases, states: what the tables must hold.
        routes: tenant to its route.
        production: tenant to the number of the version that entered production last.
        hashes: of each entry, by its place.
        contents: Python's hash of every field of each entry, by its place; no other process can foretell it.
    """

    aliases: dict[Alias, int] = field(default_factory=dict)
    states: dict[tuple[str, int], str] = field(default_factory=dict)
    routes: dict[str, ToldRoute] = field(default_factory=dict)
    production: dict[str, int] = field(default_factory=dict)
    hashes: dict[int, str] = field(default_factory=dict)
    contents: dict[int, int] = field(default_factory=dict)

    def copy(self) -> "_Told":
        return _Told(**{one.name: dict(getattr(self, one.name)) for one in fields(self)})

    def take(self, row: Row) -> None:
        did = _Did.read(row)
        for number, state in did.effects.get("states", {}).items():
            self.states[did.tenant, int(number)] = state
        replay_aliases(did.tenant, did.effects, self.aliases)
        if did.changes_route:
            replay_route(row.seq, did.tenant, did.route, self.routes)
        if (row.kind, row.action) == ("version", "production"):
            self.production[did.tenant] = int(row.subject.rpartition("@")[2])
        self.hashes[row.seq] = row.hash
        self.contents[row.seq] = hash(row)


class LogFollower:
    """Verifies the log once, and after that what was added to it: cheap enough for every change.

    Somebody who can write in the registry's folder can move an alias or edit a row by SQL, and can compute the
    hashes of a log without its last entry, but can't sign the head of that log. So nothing is decided on a row
    or an alias before the chain reaches the signed head, and the rows are what the chain says.
    """

    def __init__(self, registry: Tables) -> None:
        self._registry = registry
        self._head = Head()
        self._told = _Told()
        self._accepted: frozenset[str] = frozenset()
        """The hashes of the entries that accept another head of the log."""

    @property
    def verified(self) -> Head:
        """The last head up to which everything was right."""
        return self._head

    def over(self, registry: Tables) -> "LogFollower":
        """Return one that goes on from the same point over another connection to the same registry."""
        other = LogFollower(registry)
        other.take_over(self)
        return other

    def take_over(self, other: "LogFollower") -> None:
        """Go on from where another follower of the same registry is."""
        # What the other one was told is never changed in place, so both may hold it.
        self._head, self._told, self._accepted = other._head, other._told, other._accepted

    def state(self, tenant: str, number: int) -> str | None:
        """Return the state of a version by the log as it was verified last; None where it tells of none."""
        return self._told.states.get((tenant, number))

    def named(self, tenant: str, alias: str) -> int | None:
        """Return the number that an alias names by the log as it was verified last, or None."""
        return self._told.aliases.get((tenant, alias))

    def route(self, tenant: str) -> RouteRecord:
        """Return a tenant's route by the log as it was verified last: an empty one where nobody set any.

        Of a route that only a newer release can read, its stopped versions alone are left: see `ToldRoute`.
        """
        told = self._told.routes.get(tenant)
        return told.record if told else NO_ROUTE

    def told_route(self, tenant: str) -> ToldRoute:
        """Return a tenant's route with the entry that changed it last (0: none), as it was verified last."""
        return self._told.routes.get(tenant) or ToldRoute(tenant, 0, {})

    def last_in_production(self, tenant: str) -> int | None:
        """Return the version that entered production last by the log as it was verified last, or None."""
        return self._told.production.get(tenant)

    def rewritten(self, entries: Iterable[AuditEntry]) -> Iterator[str]:
        """Yield which entries are not those that were verified at their places, in words.

        Each change is verified from the last verified entry on. Somebody can write another entry in the place
        of an older one, with the hash that fits it.
        """
        for entry in entries:
            if self._told.hashes.get(entry.seq) != entry.hash:
                yield f"entry {entry.seq} of the audit log was changed"

    def problem(self) -> str | None:
        """Verify everything that is new, and return what is wrong, or None.

        What was found right stays the point from which the next call goes on. Entries that were verified before
        are only compared with what they were.

        Raises:
            LoraOpsError: the database can't be read.
        """
        last, verified = None, self._head.seq
        while True:
            with self._registry.reading():
                head = self._registry.log.head()
                tail = self._registry.anchor.problem(head)
                # A change committed between these two reads looks like a wrong head, but then the log grew.
                if tail is None or head == last:
                    return tail or self._follow(head) or (self._other_entry() if verified else None)
            last = head

    def _other_entry(self) -> str | None:
        """Return which entry is not the one that was verified, whatever hash it has, in words, or None."""
        there = {row.seq: row for row in self._registry.log.rows()}
        for seq, content in self._told.contents.items():
            row = there.get(seq)
            if row is None:
                return f"entry {seq} was removed"
            if hash(row) != content:
                return f"entry {seq} ({row.action} {row.subject} by {row.actor}, {row.at}) was changed"
        return None

    def head_problem(self) -> str | None:
        """Return why the log does not end where its signed head says, or why an index may lie, or None.

        It costs one signature however long the log is, and a look at the indexes if others changed the file.
        That is enough where an exact version is named and its rows are compared with its own entries: a false
        index could hide one of them.
        """
        last = None
        while True:
            head = self._registry.log.head()
            tail = self._registry.anchor.problem(head)
            if tail is None or head == last:
                return tail or self._registry.structure.problem()
            last = head

    def problem_inside(self, *, catching_up: bool = False) -> str | None:
        """As `problem`, for a caller that holds the write lock: nobody else changes log or head meanwhile.

        Args:
            catching_up: the log is being taken from elsewhere, so it may be behind what is remembered of it.
        """
        head = self._registry.log.head()
        return self._registry.anchor.problem(head, catching_up=catching_up) or self._follow(head)

    def rows_problem(self) -> str | None:
        """As `problem_inside`, of the chain and the rows alone: who vouches for its end is not asked."""
        return self._follow(self._registry.log.head())

    def changed_routes(self) -> dict[str, str | None]:
        """Return each tenant whose route's row is not what the log says, and what it must hold (None: no row).

        Nothing where the chain is broken: then nobody knows what to write.
        """
        new, broken = self._unread()
        told = self._told.copy()
        for row in () if broken else new:
            told.take(row)
        found = {} if broken else self._registry.routes()
        said = {} if broken else told.routes
        return {
            tenant: said[tenant].text if tenant in said else None
            for tenant in found.keys() | said.keys()
            if (tenant not in said or said[tenant].fields is not None)
            and found.get(tenant) != (said[tenant].text if tenant in said else None)
        }

    def closed_since(self) -> dict[tuple[str, int], str]:
        """Return the versions that the entries after the verified ones close or stop: `revoked`, `stopped`.

        A gateway may lack what vouches for them: it lists the keys from before a rotation, or the memory of the
        head is damaged. Whoever writes such entries without a key can take a version out, and bring none back.

        Raises:
            LoraOpsError: the database can't be read.
        """
        new, broken = self._unread()
        closed = dict[tuple[str, int], str]()
        for did in map(_Did.read, () if broken else new):
            stopped = (did.route or {}).get("stopped")
            for number in stopped if isinstance(stopped, list) else ():
                if isinstance(number, int):
                    closed.setdefault((did.tenant, number), "stopped")
            for number, state in did.effects.get("states", {}).items():
                if state in CLOSED:  # for good, whatever a later entry says
                    closed[did.tenant, int(number)] = str(state)
        return closed

    def unwritten(self) -> str | None:
        """Return what a transaction that is about to commit did not do, though it was told to, or None.

        A trigger that somebody put into the database can drop an entry or a row without an error. The caller
        would say that a version was revoked, and it would go on answering.

        Only the rows that the new entries name are read. `problem_inside` compared all of them when the
        transaction began, and the write lock keeps everybody else out since then.
        """
        new, broken = self._unread()
        if broken:
            return broken
        told = self._told.copy()
        named, moved, routed = set[Alias](), set[tuple[str, int]](), set[str]()
        for row in new:
            did = _Did.read(row)
            named |= {(did.tenant, alias) for alias in did.effects.get("aliases", {})}
            moved |= {(did.tenant, int(number)) for number in did.effects.get("states", {})}
            routed |= {did.tenant} if did.changes_route else set()
            told.take(row)
        names = {one: self._registry.named(*one) for one in named}
        there = {one: self._registry.state(*one) for one in moved}
        routes = {one: self._registry.route_text(one) for one in routed}
        wrong = [
            *alias_mismatches(
                _without_none(names), {one: told.aliases[one] for one in named & told.aliases.keys()}
            ),
            *_state_mismatches(_without_none(there), {one: told.states[one] for one in moved}),
            *route_mismatches(_without_none(routes), {one: told.routes[one] for one in routed}),
        ]
        return wrong[0] if wrong else self._registry.structure.problem()

    def _unread(self) -> tuple[list[Row], str | None]:
        """Return the entries after the last verified one, and where they don't continue it."""
        rows = self._registry.log.rows(after=self._head.seq - 1)
        if self._head.seq and (not rows or Head(rows[0].seq, rows[0].hash) != self._head):
            return [], f"entry {self._head.seq} was changed or removed"
        new = rows[1:] if self._head.seq else rows
        return new, chain_problem(new, self._head)

    def _follow(self, head: Head) -> str | None:
        new, broken = self._unread()
        told, accepted = self._told.copy(), self._accepted
        if broken:
            # Somebody may have accepted that the log goes on from an older copy, and states so in it. Else
            # a gateway would go on with routes of the lost log, and see no revocation in this one.
            new, told, accepted = self._registry.log.rows(), _Told(), frozenset()
            if chain_problem(new) or _accepted(new) <= self._accepted:
                return broken
        for row in new:
            told.take(row)
        wrong = self._difference(told)
        if wrong:
            return wrong
        self._head, self._told = head, told
        self._accepted = accepted | _accepted(new)
        return None

    def _difference(self, told: _Told) -> str | None:
        wrong = [
            *alias_mismatches(self._registry.aliases(), told.aliases),
            *_state_mismatches(self._registry.states(), told.states),
            *route_mismatches(self._registry.routes(), told.routes),
        ]
        return wrong[0] if wrong else self._registry.structure.problem()


def registry_problem(registry: Tables) -> str | None:
    """Return the first thing in which the registry differs from its signed log, or None."""
    return LogFollower(registry).problem()


def _accepted(rows: Iterable[Row]) -> frozenset[str]:
    """Return the hashes of the entries that accept another head of the log."""
    return frozenset(row.hash for row in rows if (row.kind, row.action) == ("registry", HEAD_ACCEPTED))


def _without_none(found: Mapping[Key, Value | None]) -> dict[Key, Value]:
    return {key: value for key, value in found.items() if value is not None}


def _state_mismatches(
    found: Mapping[tuple[str, int], str], told: Mapping[tuple[str, int], str]
) -> Iterator[str]:
    if found == told:
        return
    for tenant, number in sorted(found.keys() | told.keys()):
        here, said = found.get((tenant, number)), told.get((tenant, number))
        if here != said:
            yield (
                f"the state of {tenant}@{number} was changed: it is {here or 'gone'}, "
                f"and the audit log says {said or 'nothing of it'}"
            )
