"""How one registry changes: one transaction, one entry of the audit log, one signed head."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

from lora_ops.clock import now, utc
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason
from lora_ops.free_text import require_name
from lora_ops.registry import migrations
from lora_ops.registry.archived_files import in_archive
from lora_ops.registry.audit import Anchor, Head, Log
from lora_ops.registry.changes import Change, set_route_row
from lora_ops.registry.copies import Copies
from lora_ops.registry.database import Database
from lora_ops.registry.files import FileStore
from lora_ops.registry.heads import LONGEST_WAIT, HeadMemory
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.holds import STOPS, Holds
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.owners import Owners
from lora_ops.registry.queries import Queries
from lora_ops.registry.signing import Signer
from lora_ops.registry.structure import Structure
from lora_ops.registry.versions import CLOSED
from lora_ops.settings.registry import EvidenceSettings, SigningSettings
from lora_ops.settings.rollout import CanarySettings

CLOCK_TOLERANCE_SECONDS = 300

logger = logging.getLogger(__name__)


class Transactions(Queries, ABC):
    """One registry's folder, opened; every change is one transaction and one entry of the audit log.

    A registry belongs to one thread; open another one for another thread or process.

    Attributes:
        shares_log: whether a change counts only once another place took it, so that a revocation is held here
            first.

    Args:
        path: its folder.
        create: make the registry if it is missing, as only registering a version does.
        owners: who may do what; None refuses what needs a role.
        signing: who vouches for packages and for the log.
        memory: where the last head is kept outside the registry, so that an older copy in its place shows.
        clock: gives the time.
        several_keys: each machine signs with a key of its own.

    Raises:
        MissingRegistry: there is none, and `create` is not set; nothing is made.
        LoraOpsError: it can't be opened, or was written by a newer lora-ops.
    """

    shares_log: ClassVar[bool] = False

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        owners: Owners | None = None,
        signing: SigningSettings | None = None,
        memory: HeadMemory | None = None,
        clock: Callable[[], datetime] = now,
        several_keys: bool = False,
    ) -> None:
        self.path = path
        self.owners = owners
        self.clock = clock
        self.allow_candidates = False
        """Whether the gateway beside this registry also serves what nobody has approved."""
        self.accept_replay = False
        """Whether replayed requests count as traffic of a version in shadow."""
        self.approvals: Literal["signed", "unsigned"] = "signed"
        """Whether an approval counts only with a signature."""
        self.least = EvidenceSettings()
        """The least that evidence must say."""
        self.first_step: float = CanarySettings().steps[0]
        """Per cent of the users that one person may give a version without a rollout."""
        self.max_gap: dict[str, float | None] = {}
        """Tenant -> `evaluate.max_gap` as params.yaml has it today."""
        self.max_looks = 10
        """How many versions may be judged on the same test rows before `show` warns."""
        self.files = FileStore(path / "files")
        self.copies = Copies(path / "verified", self.files.incoming)
        self.signer = Signer(path / "keys", signing, several=several_keys)
        log = "at W&B" if self.shares_log else "in the audit log"
        self.holds = Holds(path / HOLDS, self.signer, log, self._readable_keys)
        self.stops = Holds(path / STOPS, self.signer, log, self._readable_keys, "stop")
        self.not_sent: str | None = None
        """Why the log did not take the last revocation or stop, which holds here; None where it did."""
        self.is_settling = False
        """Whether a change is under way that turns a hold into an entry of the log."""
        self.settle: Callable[[Any], list[str]] | None = None
        """Turns what was stopped while the log could not be changed into entries of it, before each change."""
        self.db = Database(path / "registry.sqlite", create=create)
        self.log = Log(self.db)
        self.files.elsewhere = lambda digest: in_archive(self, digest)
        self.structure = Structure(self.db)
        self.remember_in(memory)
        self.mended: str | None = None
        """What was wrong with the signed head, or with rows of routes, when the last change replaced it."""
        self.anchor = Anchor(path / "audit.head", self.signer, self._replaced, self._named_keys)
        self.follower = LogFollower(self)
        try:
            self._migrate(create)
        except BaseException:
            self.db.close()
            raise

    @abstractmethod
    def _migrate(self, create: bool) -> None:
        """Bring an older release's database to today's schema; its versions are entered as new ones are."""

    def close(self) -> None:
        """Release the database."""
        self.db.close()

    def remember_in(self, memory: HeadMemory | None) -> None:
        """Keep the last head, and a second copy of each hold, outside the registry's folder."""
        self.memory = memory
        self.holds.outside = memory.path.parent / HOLDS if memory else None
        self.stops.outside = memory.path.parent / STOPS if memory else None

    def _replaced(self) -> str | None:
        if self.memory is None:
            return None
        # A registry that is being made has no table of entries yet.
        ready = migrations.schema_of(self.db) >= migrations.FIRST_WITH_LOG
        return self.memory.problem(self.log if ready else None)

    def _named_keys(self) -> frozenset[str]:
        """Return the keys of which one signs the head; empty where each machine has its own."""
        if self.signer.own.several or migrations.schema_of(self.db) != migrations.SCHEMA_VERSION:
            return frozenset()
        return self.log.signing_keys()

    def _readable_keys(self) -> frozenset[str]:
        """Return the keys that the log names; empty, too, where the log can't be read: a hold must not wait."""
        with suppress(LoraOpsError, ValueError, AttributeError):
            return self._named_keys()
        return frozenset()

    def sign_head(self) -> None:
        """Sign where the log ends again, with the key that is the private one now."""
        with self.db.writing():
            self.anchor.confirm(self.log.head())

    def remember(self, head: Head, *, seconds: float = LONGEST_WAIT) -> None:
        """Keep a head outside the registry that was written here, or verified; wait so long for its file."""
        if self.memory:
            with suppress(LoraOpsError):  # the change is made; by its place the registry is known anyway
                self.memory.identify(self.log)
            self.memory.remember(head, seconds=seconds)

    def unremembered(self) -> str | None:
        """Return that the head is not kept outside the registry, in words, or None."""
        if self.memory is None:
            return None
        self.memory.identify(self.log)
        return self.memory.behind(self.log.head())

    # Changes.

    @contextmanager
    def _transaction(
        self, *, catching_up: bool = False, despite_head: bool = False
    ) -> Iterator[dict[str, str]]:
        """Write all or nothing, and sign where the log ends then.

        Args:
            catching_up: the log is being taken from elsewhere, so it may be behind what is remembered of it.
            despite_head: go on where nothing but `audit.head` or rows of routes is damaged. What was wrong is
                yielded, by the action of the entry that must state it.
        """
        announced, mended = False, None
        with self.db.writing():
            schema = migrations.schema_of(self.db)
            before = self.log.head() if schema >= migrations.FIRST_WITH_LOG else Head()
            if schema == migrations.SCHEMA_VERSION:
                problem = self.follower.problem_inside(catching_up=catching_up)
                if problem and (despite_head or catching_up):
                    mended = self._mend_routes()
                    problem = self.follower.problem_inside(catching_up=catching_up) if mended else problem
            else:  # the upgrade, which changes the tables that the follower reads
                problem = self.anchor.problem(before, catching_up=catching_up)
            if problem and not (despite_head and self._vouched_outside(before)):
                raise Damaged(
                    f"The registry in {self.path} can't be trusted, so nothing is changed: {problem}; "
                    "restore the registry from a backup, or, if you put this one here yourself, run `lora-ops "
                    "registry accept-head --reason TEXT`."
                )
            key = self.log.current_key() if schema == migrations.SCHEMA_VERSION else None
            if key:
                self.signer.own.settle(key)
            found = {"head_mended": problem, "route_mended": mended}
            yield {action: text for action, text in found.items() if text}
            after = self.log.head()
            if after != before:
                unwritten = self.follower.unwritten()
                if unwritten:
                    raise Damaged(
                        f"The registry in {self.path} did not take the change, so nothing is changed: "
                        f"{unwritten}; restore the registry from a backup."
                    )
                self._refuse_other_key(key)
                try:
                    self.anchor.announce(before, after)
                except OSError as error:
                    raise Unavailable(
                        f"The registry in {self.path} can't be written ({disk_reason(error)}): nothing was "
                        "changed."
                    ) from error
                announced = True
        if announced:
            self.remember(after)
            self.holds.reserve()
            # The change is done, and its announcement fits until the next one replaces it, so whatever goes
            # wrong here does no harm. Without the lock this could put an old head over a newer one.
            with suppress(OSError, LoraOpsError), self.db.writing():
                if self.log.head() == after:
                    self.anchor.confirm(after)

    def _mend_routes(self) -> str | None:
        """Write rows of routes as the log says; return which were not, in words, or None.

        No answer depends on a row, since gateways follow the log. So a wrong one must hold up neither a
        rollback nor a revocation.
        """
        changed = self.follower.changed_routes()
        for tenant, text in changed.items():
            if text is None:
                self.db.rows("DELETE FROM routes WHERE tenant = ?", (tenant,))
            else:
                set_route_row(self.db, tenant, text)
        if not changed:
            return None
        said = f"the route of {', '.join(sorted(changed))} was changed by something that is not lora-ops"
        logger.warning("In %s %s: it is written again as the audit log says.", self.path, said)
        return said

    def _vouched_outside(self, head: Head) -> bool:
        """Return whether nothing but the signed head is damaged, and the head kept outside stands in for it.

        In an incident a wrong byte there must not keep a version on air. But the head is signed again with the
        change, which would hide that entries were cut off. So chain and rows must agree, no signed head may say
        otherwise, and the memory outside must name exactly this entry as the last one. Where the memory is the
        damaged one, the signed head stands in for it.
        """
        try:
            known = None
            if self.memory:
                self.memory.identify(self.log)
                known = self.memory.recall()
        except LoraOpsError:
            return self.anchor.damage() is None and self.follower.rows_problem() is None
        return known == head and self.anchor.damage() is not None and self.follower.rows_problem() is None

    def _refuse_other_key(self, key: str | None) -> None:
        """Refuse to sign with a key that the log names neither before (`key`) nor after this transaction."""
        allowed = {one for one in (key, self.log.current_key()) if one}
        mine = self.signer.own.fingerprint() if allowed and not self.signer.own.several else None
        if mine and mine not in allowed:
            named = ", ".join(sorted(f"{one[:12]}…" for one in allowed))
            raise Refused(
                f"This machine's private key ({mine[:12]}…) is not the one that the audit log names ({named}): "
                f"{self.signer.own.way_back(allowed)}; nothing was changed."
            )

    @contextmanager
    def change(self, actor: str, *, despite_head: bool = False) -> Iterator[Change]:
        """One transaction by `actor`, all or nothing.

        The order of the log is `seq`, never the time: a wrong clock on one machine must not stop a revocation
        on another. A clock that is up to five minutes behind the last entry gets that entry's time; one further
        behind keeps its own. Both entries state by how much the clock was behind.

        Args:
            actor: who does it.
            despite_head: go on where nothing but the signed head is damaged and the head kept outside stands in
                for it, or where a row of a route is; the first entry says so for ever.

        Raises:
            LoraOpsError: no actor, a log that was tampered with, a read-only disk.
        """
        actor = require_name(actor, "Say who does this (--actor)")
        if (
            self.settle
            and not self.is_settling
            and not self.shares_log
            and (self.holds.all() or self.stops.all())
        ):
            for waiting in self.settle(self):
                logger.warning("%s.", waiting)
        with self._transaction(despite_head=despite_head) as damage:
            at, last = utc(self.clock()), self.log.last_time()
            behind = 0
            if at < last:
                behind = int((datetime.fromisoformat(last) - datetime.fromisoformat(at)).total_seconds())
                if behind <= CLOCK_TOLERANCE_SECONDS:
                    at = last
            change = Change(self.db, self.log, actor, at, behind, self.signer.own.fingerprint)
            first = self.log.head().seq
            for action, problem in damage.items():
                change.note(action, "registry", action.removesuffix("_mended"), problem=problem)
            yield change
            if self.log.head().seq != first + change.entries:
                raise Damaged(
                    f"The registry in {self.path} did not keep the entry of this change, so nothing is "
                    "changed: run `lora-ops registry verify`, and restore it from a backup."
                )
        self.mended = "; ".join(damage.values()) or None
        if damage:
            logger.warning(
                "The change is made, and the registry was damaged: %s. Find out by whom.", self.mended
            )
        self._forget_closed(change.states)

    def _forget_closed(self, states: dict[str, str]) -> None:
        """Take away the verified copies of versions (`finance@3` to its new state) that may not be loaded."""
        for version, state in states.items():
            if state in CLOSED:
                self.copies.forget(version)

    def set_mirrored(self, target: str, head: Head | None) -> None:
        """Remember that the mirror `target` shows everything up to `head`; None forgets what it showed."""
        with self.db.writing():
            if head is None:
                self.db.rows("DELETE FROM mirrors WHERE target = ?", (target,))
                return
            self.db.rows(
                "INSERT INTO mirrors VALUES (?1, ?2, ?3) ON CONFLICT (target) DO UPDATE"
                " SET seq = ?2, hash = ?3 WHERE ?2 > seq",
                (target, *head),
            )
