"""Which adapter version answers to a model's name: what is in production, what is pinned, or the base model."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Literal

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.registry.eligibility import expiry_reason, state_reason
from lora_ops.registry.heads import SHORT_WAIT
from lora_ops.registry.holds import Hold
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.replay import row_mismatches
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import CLOSED, Summary, Version, parse_reference
from lora_ops.rollout.assignment import ANSWER_USERS, Arm
from lora_ops.rollout.provider import TenantRoute
from lora_ops.serving.turns import in_turns
from lora_ops.sqlite_files import Stamp, stamp

logger = logging.getLogger(__name__)

Decision = Literal["production", "candidate", "pinned", "base", "canary", "pinned_user", "segment", "flag"]
Fallback = Literal["loading", "failed"]
# A client that names a tenant did not choose the version, so that a refusal is no fault of its request.
BY_TENANT = frozenset({"production", "canary", "pinned_user", "segment", "flag"})
# The client named what answers: nothing else takes its place.
BY_CLIENT = frozenset({"pinned", "base"})
BASE = "base"
STOPPED = "stopped"  # by a tenant's route, until somebody resumes it
STAGES = ("production", "candidate", "canary", "shadow")  # aliases; a tenant that answers has one of them
AGAIN_SECONDS = 1.0  # until a version that could not be read is read again
CATCH_UPS = 3  # looks that one request waits for, where the registry changes all the time


class UnknownModel(LoraOpsError):
    """No model has this name."""


class NotServed(LoraOpsError):
    """The model exists and may not answer; the text says why.

    Attributes:
        route: the one that was refused, where it was known.
    """

    def __init__(self, text: str, route: "Route | None" = None) -> None:
        super().__init__(text)
        self.route = route


class OutOfService(NotServed):
    """The tenant had a version in production, and has none that may answer now."""


@dataclass(frozen=True)
class Route:
    """Who answers, and why.

    Attributes:
        decision: `production`, `candidate` (nothing is in production yet), `pinned` (an exact version was
            asked for), `base`; by the tenant's route, `canary`, `pinned_user` or `segment`; by flagd, `flag`.
        version: None for the base model.
        epoch: the last entry of the audit log that was known when the route was made.
        arm: the side of the canary's comparison that the request's unit is on.
        fallback: why this version answers in place of the one that the unit is assigned to, `instead_of`.
    """

    decision: Decision
    version: Version | None
    base_model: BaseModelRecord
    epoch: int
    refusal: str | None = None
    """Why it may not answer whatever the time is; its age is asked at each request."""
    arm: Arm | None = None
    fallback: Fallback | None = None
    instead_of: str | None = None

    @property
    def name(self) -> str:
        """`finance@3`, or the base model's id."""
        return self.version.id if self.version else self.base_model.id

    @property
    def tenant(self) -> str | None:
        """Whose model it is; the base model is nobody's."""
        return self.version.tenant if self.version else None

    @property
    def digest(self) -> str:
        """The adapter's content digest, or the SHA-256 of the base model's weights."""
        return self.version.summary.content_digest if self.version else self.base_model.sha256

    @property
    def labels(self) -> list[str]:
        """The labels that the adapter was trained for; none for free text and for the base model."""
        return self.version.manifest.params.get("data", {}).get("labels", []) if self.version else []

    @property
    def template(self) -> str | None:
        """The template that made its training rows' columns their prompts; the base model has none."""
        return self.version.manifest.params.get("data", {}).get("template") if self.version else None

    @property
    def system(self) -> str | None:
        """The system prompt that the adapter was trained with."""
        return self.version.manifest.params.get("data", {}).get("system") if self.version else None


class Router:
    """Reads routes from the registry and keeps them until any process changes it.

    SQLite's `data_version` tells of every commit by others, so a promotion, a rollback or a revocation holds
    for the next request, at the price of one pragma.

    A change counts only once the log verifies up to its signed head and rows and aliases are what it says.
    Where they are not, the routes that were verified before go on, and no new one is read: `damage` says why.
    A version that the log closes meanwhile stops all the same.

    Args:
        copy: opens the same registry for another thread; None: all is read in this one.
    """

    def __init__(
        self,
        registry: Registry,
        base_model: BaseModelRecord,
        *,
        allow_candidates: bool,
        copy: Callable[[], Registry] | None = None,
    ) -> None:
        self._registry = registry
        self._copy = copy
        self._looking: asyncio.Task[bool] | None = None
        self._base_model = base_model
        registry.allow_candidates = allow_candidates
        self._log = LogFollower(registry)
        self._seen: tuple[object, ...] | None = None
        self._said: frozenset[str] = frozenset()
        self._remembered: Stamp | None = None
        """The memory of the head when it was looked at last."""
        self._held: dict[tuple[str, str, str | None], Hold] = {}
        """Every hold that was seen, by version, content and time: it counts though somebody removed it."""
        self._routes: dict[str, Route] = {}
        self._unread: dict[str, float] = {}
        """Versions that a route names and that could not be read, and when it is tried again."""
        self._versions: Sequence[Summary] | None = None
        self._damage: str | None = None
        self._closed: dict[tuple[str, int], str] = {}
        """What the log closed since it can't be trusted: version to its state."""

    async def catch_up(self) -> None:
        """Verify in a thread what others changed, where this thread has more to do than to wait for that.

        All entries of the log are read for it, 0.1 s at 10,000 versions. Whoever comes meanwhile waits, so that
        nobody gets an older route. What can't be read is found again, and said, by whoever needs it.
        """
        for _ in range(CATCH_UPS):
            try:
                if self._copy is None or self._registry.seen() == self._seen:
                    return
            except LoraOpsError:
                return
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(self._copy))
            # A client that leaves takes the look away from nobody else.
            if not await asyncio.shield(self._looking):
                return

    async def close(self) -> None:
        """Wait for a look that is under way."""
        if self._looking:
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self, copy: Callable[[], Registry]) -> bool:
        """Take the changes up to now; return whether that succeeded."""
        before, start = self._seen, self._log.over(self._registry)

        def verify() -> tuple[LogFollower, str | None, Sequence[Summary]]:
            with closing(copy()) as registry:
                log = start.over(registry)
                damage = log.problem()
                return log, damage, () if damage else registry.summaries()

        try:
            # The copy reads later than this, so it finds at least what was seen here.
            seen = self._registry.seen()
            log, damage, versions = await asyncio.to_thread(verify)
            if self._seen != before:  # somebody could not wait, and took them here
                return True
            self._log.take_over(log)
            self._take(seen, damage)
        except LoraOpsError:
            return False
        self._versions = versions
        return True

    def damage(self) -> str | None:
        """Return why the registry can't be trusted at this moment, or None."""
        self._take_changes()
        return self._damage

    def unremembered(self) -> str | None:
        """Return that the log's head is not kept outside the registry, in words, or None."""
        return None if self._damage else self._registry.unremembered()

    def route(self, model: str) -> Route:
        """Return the route of a model's name: a tenant, a version (`finance@3`), `base` or the base model's id.

        A tenant's is that of its version in production, whoever else shares its requests.

        Raises:
            UnknownModel: no tenant or version has this name, or it is an alias.
            NotServed: the version was closed, has expired, or nobody has approved it.
            OutOfService: so is what was in production for this tenant.
            Damaged: the registry differs from its signed log, and this route was not verified before.
            LoraOpsError: the registry can't be read.
        """
        self._take_changes()
        return self._route(model)

    @property
    def epoch(self) -> int:
        """The last entry of the audit log that is known as of the last look."""
        return self._log.verified.seq

    def look(self) -> None:
        """Take what others changed, for the next calls of `seen`, `tenant_route` and `shared`."""
        self._take_changes()

    def seen(self, model: str) -> Route:
        """Return a model's route as `route` does, by the registry as of the last look.

        Raises:
            LoraOpsError: as `route`.
        """
        return self._route(model)

    def tenant_route(self, tenant: str) -> TenantRoute | None:
        """Return how a tenant's requests are shared, as of the last look; None: there is no such tenant."""
        if not self._is_tenant(tenant):
            return None
        route, epoch = self._log.route(tenant), self._log.verified.seq
        return TenantRoute(route, lambda number: self._state(tenant, number), epoch)

    def shared(self, tenant: str, number: int) -> Route | None:
        """Return the route to a version that shares a tenant's requests, as of the last look.

        None: it may not answer its users, or can't be read now. Whoever asks for an exact version by its name
        may reach more.
        """
        name = f"{tenant}@{number}"
        if time.monotonic() < self._unread.get(name, 0.0):
            return None
        try:
            found = self._route(name)
        except NotServed:
            return None
        except LoraOpsError as error:  # another process may hold the registry for a moment
            if name not in self._unread:
                logger.warning("%s shares the requests of '%s', and can't: %s", name, tenant, error)
            self._unread[name] = time.monotonic() + AGAIN_SECONDS
            return None
        return found if found.version and found.version.state in ANSWER_USERS else None

    def _state(self, tenant: str, number: int) -> str | None:
        found = self.shared(tenant, number)
        return found.version.state if found and found.version else None

    def _is_tenant(self, model: str) -> bool:
        # By the verified log alone, which costs nothing and is there while the rows can't be trusted.
        named = any(self._log.named(model, alias) for alias in STAGES)
        return named or self._log.last_in_production(model) is not None

    def _route(self, model: str) -> Route:
        found = self._routes.get(model) or self._read(model)
        if found.version:
            summary = found.version.summary
            refusal = self._closed_reason(summary) or found.refusal
            refusal = refusal or expiry_reason(summary, self._registry.clock())
            if refusal:
                raise _refused(found, refusal)
        return found

    def _closed_reason(self, summary: Summary) -> str | None:
        """Return that a version was closed, in the log or by a hold, without a full stop, or None."""
        # A hold counts while the registry is damaged, too. Clients need not know who decided it.
        held = self._registry.hold_of(summary) or any(
            self._registry.is_stopped_by(hold, summary) for hold in self._held.values()
        )
        key = (summary.tenant, summary.number)
        state = self._log.state(*key)
        closed = self._closed.get(key) or (state if state in CLOSED else None)
        closed = closed or ("revoked" if held else None)
        if closed in (None, STOPPED):
            stopped = closed or summary.number in self._log.route(summary.tenant).stopped
            queued = self._registry.queued_stop(summary)
            return _stopped_reason(summary) if stopped or queued else None
        return f"{summary.id} was {closed}: it does not answer any more"

    async def require_open(self, route: Route) -> None:
        """Refuse a version that was closed since its route was asked for: nothing new begins with it.

        Another version that went into production meanwhile changes nothing for whoever has a route.

        Raises:
            NotServed, OutOfService: it was closed.
            LoraOpsError: the registry can't be read.
        """
        if route.version is None:
            return
        await self.catch_up()
        self._take_changes()
        reason = self._closed_reason(route.version.summary)
        if reason:
            raise _refused(route, reason)

    def keep_remembered(self) -> None:
        """Keep the last verified head outside the registry again where it was removed, or is an older one.

        A revocation holds where a registry was seen before, also if somebody removed it. Without that memory
        nobody could stop what answers here.

        Raises:
            LoraOpsError: the registry can't be read.
        """
        memory = self._registry.memory
        # Called each second on the event loop: the file is read again only after a change.
        found = stamp(memory.path) if memory else None
        if memory is None or (found and found == self._remembered):
            return
        self._take_changes()  # somebody may have accepted an older head
        if memory.knows(self._log.verified):
            self._remembered = found
        else:  # looked at again in a second: another process may keep the file locked
            memory.remember(self._log.verified, seconds=SHORT_WAIT, by_place=True)

    def may_return(self, version: str) -> bool:
        """Return whether another version took the place of this one (`finance@3`) in production."""
        tenant, which = parse_reference(version)
        stopped = version in {hold.version for hold in self._held.values()}
        return isinstance(which, int) and self._log.state(tenant, which) == "superseded" and not stopped

    def is_base(self, model: str) -> bool:
        """Return whether a name means the base model."""
        return model in (self._base_model.id, BASE)

    async def served(self) -> list[tuple[str, Route]]:
        """Return every name that answers now, with its route: tenants, their versions, then the base model."""
        self._take_changes()
        names: Iterable[str]
        if self._damage:
            names = [name for name in self._routes if not self.is_base(name)]
        else:
            summaries = self.versions()
            names = [*dict.fromkeys(one.tenant for one in summaries), *(one.id for one in summaries)]
        routes = []
        async for name in in_turns(names):  # a route that was not read yet takes a millisecond
            with suppress(UnknownModel, NotServed, Damaged):  # listed are the names that answer
                routes.append((name, self._route(name)))
        return [*routes, (self._base_model.id, self._route(self._base_model.id))]

    def versions(self) -> Sequence[Summary]:
        """Return every version in the registry; while it is damaged, those that were verified last."""
        self._take_changes()
        if self._versions is None:
            self._versions = () if self._damage else self._registry.summaries()
        return self._versions

    def tenants(self) -> list[str]:
        """Return every tenant with a version in the registry."""
        return list(dict.fromkeys(one.tenant for one in self.versions()))

    def _take_changes(self) -> None:
        unread = None
        try:
            seen = self._registry.seen()
        except LoraOpsError as error:
            # As after a `cp` of a backup over the open file, or a restore by another account. Holds are files
            # of their own, and count; a revocation in the log leaves one, too.
            unread = str(error).rstrip(".")
            seen = unread, self._registry.holds.place(), self._registry.stops.place()
        if seen == self._seen:
            return
        self._take(seen, unread or self._problem())

    def _problem(self) -> str | None:
        """Return what is wrong; a database that nobody can read is damage, and no reason to answer nobody."""
        try:
            return self._log.problem()
        except Damaged as error:
            return str(error).rstrip(".")

    def _take(self, seen: tuple[object, ...], damage: str | None) -> None:
        """Go on with what was verified, or with the routes from before where there is damage."""
        self._seen = seen
        if damage is None:
            self._registry.remember(self._log.verified, seconds=SHORT_WAIT)
            self._routes.clear()
            self._unread.clear()
            self._closed = {}
            self._versions = None
        else:
            self._closed |= self._closed_meanwhile()
        self._take_holds()
        if damage != self._damage:
            if damage:
                logger.error(
                    "The registry can't be trusted: %s. Routes that were verified before go on; nothing new is "
                    "loaded until it is restored (`lora-ops registry verify`).",
                    damage,
                )
            else:
                logger.warning("The registry verifies again.")
        self._damage = damage

    def _closed_meanwhile(self) -> dict[tuple[str, int], str]:
        """Return what the log closes after what was verified, though nobody vouches for it here."""
        with suppress(LoraOpsError, ValueError, AttributeError):  # entries that lora-ops did not write
            return self._log.closed_since()
        return {}

    def _take_holds(self) -> None:
        holds = self._registry.holds
        # Whoever revoked may have done so in another clone: then one removed file would free the version.
        holds.copy_outside()
        self._registry.stops.copy_outside()
        self._held |= {(hold.version, hold.content_digest, hold.latest): hold for hold in holds.all()}
        queued = (*holds.all(), *self._registry.stops.all())
        texts = frozenset(hold.text for hold in queued if not self._is_closed(hold))
        for text in sorted(texts - self._said):
            logger.warning("%s: it does not answer here any more.", text)
        self._said = texts

    def _is_closed(self, hold: Hold) -> bool:
        tenant, number = parse_reference(hold.version)
        return isinstance(number, int) and self._log.state(tenant, number) in CLOSED

    def _read(self, model: str) -> Route:
        """Find who answers to a name, and keep that if nobody changed the registry since.

        Raises:
            LoraOpsError: as `route`.
        """
        while True:
            try:
                found = self._find(model)
            except LoraOpsError:  # a change between two reads may look like damage
                if self._registry.seen() == self._seen:
                    raise
            else:
                if self._registry.seen() == self._seen:
                    self._routes[model] = found
                    return found
            self._take_changes()

    def _find(self, model: str) -> Route:
        if self.is_base(model):
            return Route("base", None, self._base_model, self._log.verified.seq)
        if self._damage:
            raise Damaged(
                f"The registry can't be trusted ({self._damage}): '{model[:80]}' was not verified before."
            )
        try:
            tenant, which = parse_reference(model)
        except LoraOpsError as error:
            raise UnknownModel(f"There is no model '{model[:80]}': see /v1/models for the names.") from error
        if isinstance(which, str):
            # What a tenant's clients get is decided by promotions, never by a client that names a stage.
            raise UnknownModel(
                f"'{model[:80]}' is an alias of the registry and no model: ask for '{tenant}', or for an exact "
                f"version such as '{tenant}@1'."
            )
        if which is None:
            return self._current(tenant)
        return self._verified("pinned", self._load(model))

    def _current(self, tenant: str) -> Route:
        if self._log.named(tenant, "production") is not None:
            return self._verified("production", self._load(f"{tenant}@production"))
        last = self._log.last_in_production(tenant)
        if last is None:
            return self._verified("candidate", self._load(f"{tenant}@candidate"))
        # Nothing takes the place of a revoked version by itself: what is there was reviewed by nobody.
        return self._verified("production", self._load(f"{tenant}@{last}"))

    def _load(self, reference: str) -> Version:
        """Return a version as its rows are, and refuse a name or a state that the verified log does not give.

        SQLite does not see a write past it, into its file, and such a page may be read long after the log was
        verified.

        Raises:
            UnknownModel: there is no such version.
            Damaged: its rows are not what was verified.
        """
        try:
            found = self._registry.get(reference)
        except LoraOpsError as error:
            raise UnknownModel(str(error)) from error
        tenant, which = parse_reference(reference)
        number = self._log.named(tenant, which) if isinstance(which, str) else which
        if (number, self._log.state(tenant, found.number)) != (found.number, found.state):
            raise Damaged(f"{found.id} may not be loaded: its name or state is not what the log says.")
        return found

    def _verified(self, decision: Decision, version: Version) -> Route:
        """Return the route to a version whose rows are what its entries of the verified log say.

        Raises:
            Damaged: they are not.
        """
        history = self._registry.log.entries(version.tenant, version.number)
        for problem in (*self._log.rewritten(history), *row_mismatches(version, history)):
            raise Damaged(f"{version.id} may not be loaded: {problem}.")
        refusal = state_reason(self._registry, version.summary, self._log)
        return Route(decision, version, self._base_model, self._log.verified.seq, refusal)


def _refused(route: Route, reason: str) -> NotServed:
    # Who asks for a tenant wants its service back; who pins a version has chosen the wrong one.
    kind = OutOfService if route.decision in BY_TENANT else NotServed
    return kind(f"{reason}.", route)


def _stopped_reason(summary: Summary) -> str:
    return (
        f"{summary.id} was stopped: it answers nobody until the team of '{summary.tenant}' (owners.yaml) "
        f"resumes it; `lora-ops route show {summary.tenant}` says who stopped it and why"
    )
