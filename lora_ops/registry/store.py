"""The embedded registry: SQLite for records, content-addressed files beside it, every change audited."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ValidationError

from lora_ops.adapter_files import require_lora
from lora_ops.clock import now, utc
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable, disk_reason, with_text
from lora_ops.evaluation.recount import require_recounted
from lora_ops.free_text import require_name
from lora_ops.hashing import sha256_text
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.manifest import ADAPTER_FILES, Manifest, content_digest
from lora_ops.records.registry import State
from lora_ops.registry import migrations
from lora_ops.registry.audit import Anchor, Head, Log
from lora_ops.registry.changes import Change, whoami
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.copies import Copies
from lora_ops.registry.database import Database, MissingRegistry
from lora_ops.registry.files import FileStore, check_package
from lora_ops.registry.heads import LONGEST_WAIT, HeadMemory
from lora_ops.registry.holds import FOLDER as HOLDS
from lora_ops.registry.holds import Holds
from lora_ops.registry.integrity import LogFollower
from lora_ops.registry.own_texts import require_own_texts
from lora_ops.registry.owners import Owners
from lora_ops.registry.owners_log import note_owners
from lora_ops.registry.queries import SUMMARY, Queries
from lora_ops.registry.signing import Signer
from lora_ops.registry.structure import Structure
from lora_ops.registry.twins import Twins, kept_weights
from lora_ops.registry.versions import CLOSED, Summary, Version
from lora_ops.settings.files import first_problem
from lora_ops.settings.registry import EvidenceSettings, SigningSettings
from lora_ops.settings.section import TENANT_PATTERN, colliding_tenant, refuse_reserved_name

CLOCK_TOLERANCE_SECONDS = 300

logger = logging.getLogger(__name__)


class Registry(Queries):
    """Adapter versions under one folder; every change is one transaction and one entry of the audit log.

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
        self.approvals: Literal["signed", "unsigned"] = "signed"
        """Whether an approval counts only with a signature."""
        self.least = EvidenceSettings()
        """The least that evidence must say."""
        self.max_gap: dict[str, float | None] = {}
        """Tenant -> `evaluate.max_gap` as params.yaml has it today."""
        self.max_looks = 10
        """How many versions may be judged on the same test rows before `show` warns."""
        self.files = FileStore(path / "files")
        self.copies = Copies(path / "verified", self.files.incoming)
        self.signer = Signer(path / "keys", signing, several=several_keys)
        self.holds = Holds(path / HOLDS, self.signer)
        self.not_sent: str | None = None
        """Why the log did not take the last revocation, which holds on this machine; None where it did."""
        self.is_settling = False
        """Whether a change is under way that turns a hold into an entry of the log."""
        self.db = Database(path / "registry.sqlite", create=create)
        self.log = Log(self.db)
        self.structure = Structure(self.db)
        self.remember_in(memory)
        self.mended: str | None = None
        """What was wrong with the signed head when the last change replaced it."""
        self.anchor = Anchor(path / "audit.head", self.signer, self._replaced, self._named_keys)
        self.follower = LogFollower(self)
        try:
            self._migrate(create)
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        """Release the database."""
        self.db.close()

    def remember_in(self, memory: HeadMemory | None) -> None:
        """Keep the last head, and a second copy of each hold, outside the registry's folder."""
        self.memory = memory
        self.holds.outside = memory.path.parent / HOLDS if memory else None

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

    def _migrate(self, create: bool) -> None:
        found = migrations.schema_of(self.db)
        if found == 0 and not create:  # its making was broken off before anything was in it
            raise MissingRegistry(self.path)
        if found > migrations.SCHEMA_VERSION:
            raise LoraOpsError(
                f"The registry in {self.path} was written by a newer lora-ops (schema {found}, "
                f"this one knows {migrations.SCHEMA_VERSION}): update lora-ops."
            )
        if found == migrations.SCHEMA_VERSION:
            return
        with self._transaction():
            found = migrations.schema_of(self.db)
            if found == migrations.SCHEMA_VERSION:  # another process was first
                return
            old = migrations.upgrade(self.db, found)
            change = Change(
                self.db, self.log, "lora-ops upgrade", utc(self.clock()), 0, self.signer.own.fingerprint
            )
            for row in old:
                self._import(change, row)

    def _import(self, change: Change, old: migrations.OldVersion) -> None:
        try:
            manifest = Manifest.model_validate_json(old.manifest)
        except ValidationError as error:
            raise LoraOpsError(
                f"The manifest of {old.tenant}@{old.number} does not fit its schema: {first_problem(error)}; "
                "the registry was not upgraded."
            ) from error
        weights = None
        try:
            for name, file in manifest.files.items():
                self.files.checked(file.sha256, name)
            weights = kept_weights(self.files, manifest)
            signature = self.files.add_bytes(self._sign(manifest))
        except LoraOpsError:
            signature = None  # damaged before the upgrade: it stays unsigned and `verify` names it
        self._insert(
            change, "imported", manifest, signature, weights, old.registered_at, "unknown", old.aliases
        )

    @contextmanager
    def _transaction(self, *, catching_up: bool = False, despite_head: bool = False) -> Iterator[str | None]:
        """Write all or nothing, and sign where the log ends then.

        Args:
            catching_up: the log is being taken from elsewhere, so it may be behind what is remembered of it.
            despite_head: go on where nothing but `audit.head` is damaged; what was wrong is yielded.
        """
        announced = False
        with self.db.writing():
            schema = migrations.schema_of(self.db)
            before = self.log.head() if schema >= migrations.FIRST_WITH_LOG else Head()
            if schema == migrations.SCHEMA_VERSION:
                problem = self.follower.problem_inside(catching_up=catching_up)
            else:  # the upgrade, which changes the tables that the follower reads
                problem = self.anchor.problem(before, catching_up=catching_up)
            if problem and not (despite_head and self._vouched_outside(before)):
                raise Damaged(
                    f"The registry in {self.path} can't be trusted, so nothing is changed: {problem}; "
                    "restore the registry from a backup, or, if you put this one here yourself, run `lora-ops "
                    "registry accept-head --reason TEXT`"
                    f"{'; until then only stopping the gateway takes a version out' if despite_head else ''}."
                )
            key = self.log.current_key() if schema == migrations.SCHEMA_VERSION else None
            if key:
                self.signer.own.settle(key)
            yield problem
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
            # The change is done, and its announcement fits until the next one replaces it, so whatever goes
            # wrong here does no harm. Without the lock this could put an old head over a newer one.
            with suppress(OSError, LoraOpsError), self.db.writing():
                if self.log.head() == after:
                    self.anchor.confirm(after)

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
                for it; the first entry says so for ever.

        Raises:
            LoraOpsError: no actor, a log that was tampered with, a read-only disk.
        """
        actor = require_name(actor, "Say who does this (--actor)")
        with self._transaction(despite_head=despite_head) as damage:
            at, last = utc(self.clock()), self.log.last_time()
            behind = 0
            if at < last:
                behind = int((datetime.fromisoformat(last) - datetime.fromisoformat(at)).total_seconds())
                if behind <= CLOCK_TOLERANCE_SECONDS:
                    at = last
            change = Change(self.db, self.log, actor, at, behind, self.signer.own.fingerprint)
            first = self.log.head().seq
            if damage:
                change.note("head_mended", "registry", "head", problem=damage)
            yield change
            if self.log.head().seq != first + change.entries:
                raise Damaged(
                    f"The registry in {self.path} did not keep the entry of this change, so nothing is "
                    "changed: run `lora-ops registry verify`, and restore it from a backup."
                )
        self.mended = damage
        if damage:
            logger.warning("The change is made, and the registry was damaged: %s. Find out by whom.", damage)
        self._forget_closed(change.states)

    def _forget_closed(self, states: dict[str, str]) -> None:
        """Take away the verified copies of versions (`finance@3` to its new state) that may not be loaded."""
        for version, state in states.items():
            if state in CLOSED:
                self.copies.forget(version)

    def register(self, package: Path, manifest: Manifest, *, actor: str | None = None) -> tuple[Version, bool]:
        """Keep a package as the next version of its tenant, signed, and let `candidate` name it.

        The same content again is the same version: nothing is added, `candidate` comes back to it.

        Args:
            package: folder that holds every file of `manifest.files`.
            manifest: what 04_package wrote, without a version.
            actor: its author, who can't approve it later; default: `whoami()`.

        Returns:
            The version, and whether it is a new one.

        Raises:
            LoraOpsError: a file is missing, has another digest than the manifest says or may hold a pickle;
                the manifest does not fit its schema; this content was rejected, revoked or archived before.
        """
        manifest = _valid(manifest)
        self._refuse_colliding_name(manifest.tenant)
        digests = {name: file.sha256 for name, file in manifest.files.items()}
        actor = whoami() if actor is None else actor
        with ExitStack() as stack:
            with self._keeping(package):
                check_package(package, digests)
                self.files.sweep()
                # Whoever writes to the package could show good answers to the checks, and put others back.
                own = stack.enter_context(self.files.own_copy(package, digests))
                with _speaking_of(package, own):
                    weights = self._check_and_keep(own, manifest)
            return self._enter(own, manifest, weights, actor)

    def _check_and_keep(self, package: Path, manifest: Manifest) -> str | None:
        """Check the files of a package and keep them; return the digest of its weights."""
        self._require_fit(package, manifest)
        for name, file in manifest.files.items():
            self.files.add(package / name, file.sha256)
        # Read here, so that nobody waits for it while the registry is locked.
        weights = kept_weights(self.files, manifest)
        twins, adapter = Twins(self), manifest.files.get(ADAPTER_FILES[0])
        twins.read_ahead()
        # What an older release took is known as what it is.
        if adapter and self.known_content(manifest) is None and twins.closed(weights, adapter.sha256) is None:
            require_lora(package / ADAPTER_FILES[0])
        return weights

    def _enter(
        self, package: Path, manifest: Manifest, weights: str | None, actor: str
    ) -> tuple[Version, bool]:
        """Give kept files the next number of their tenant, or the one that they have."""
        tenant = manifest.tenant
        digests = {name: file.sha256 for name, file in manifest.files.items()}
        while True:
            # Signing may take seconds (sigstore), so it happens outside the transaction, for the number that
            # would be next; if another process took that number meanwhile, sign again.
            draft, signature = self._next(manifest), b""
            if self.known_content(manifest) is None:
                signature = self._sign(draft)
            with self.change(actor) as change:
                known = self.known_content(manifest)
                if known is not None:
                    self._again(change, tenant, *known)
                    number = known[0]
                elif not signature or draft != self._next(manifest):
                    continue
                else:
                    twin = Twins(self).closed(weights, digests.get(ADAPTER_FILES[0]))
                    if twin:
                        raise Refused(
                            f"{twin.id} has exactly these weights and was {twin.state}: change the data or the "
                            "recipe, and train it again, before you register it."
                        )
                    assert draft.version is not None
                    number = draft.version
                    with self._keeping(package):
                        # `gc` removes only under this lock, and by now it may have taken one that was old.
                        for name, digest in digests.items():
                            if not self.files.holds(digest):
                                self.files.add(package / name, digest)
                        kept = self.files.add_bytes(signature)
                    note_owners(self, change, begin=False)
                    self._insert(change, "registered", draft, kept, weights, change.at, actor, ("candidate",))
                return self.load(tenant, number), known is None

    def _require_fit(self, package: Path, manifest: Manifest) -> None:
        require_consistent(package, manifest)
        # What an earlier release took is read by its rules, and comes back as the version that it is.
        if self.known_content(manifest) is None:
            require_complete(package, manifest, self.clock())
            require_recounted(package, manifest)
            require_own_texts(package, manifest)

    def _refuse_colliding_name(self, tenant: str) -> None:
        known = self.tenants()
        other = None if tenant in known else colliding_tenant(tenant, known)
        if other:
            raise LoraOpsError(
                f"'{tenant}' and '{other}', which is in the registry, are the same name in some stores: "
                "rename the new tenant."
            )

    def _next(self, manifest: Manifest) -> Manifest:
        row = self.db.row(
            "SELECT (SELECT max(number) FROM versions WHERE tenant = ?1),"
            " (SELECT number FROM aliases WHERE tenant = ?1 AND alias = 'production')",
            (manifest.tenant,),
        )
        last, serving = row if row else (None, None)
        before = serving or last
        parent = f"{manifest.tenant}@{before}" if before else None
        return manifest.model_copy(update={"version": (last or 0) + 1, "parent": parent})

    def _sign(self, manifest: Manifest) -> bytes:
        digests = {name: file.sha256 for name, file in manifest.files.items()}
        texts = {"manifest.json": manifest.to_json()}
        with self.files.staged(manifest.adapter_id, digests, texts) as folder:
            return self.signer.sign(folder)

    def _insert(
        self,
        change: Change,
        action: str,
        manifest: Manifest,
        signature: str | None,
        weights: str | None,
        registered_at: str,
        author: str,
        aliases: tuple[str, ...],
    ) -> None:
        tenant, number = manifest.tenant, manifest.version
        assert number is not None
        review, marks = None, set[str]()
        if self.owners:
            team = self.owners.team(tenant)
            review = utc(team.next_review(datetime.fromisoformat(registered_at)))
            person = team.person(author)
            marks = person.marks if person else marks
        text = manifest.to_json()
        digest = content_digest(text)
        self._add(manifest, text, digest, signature, registered_at, author)
        change.record(
            action,
            tenant,
            number,
            states={number: "candidate"},
            aliases=dict.fromkeys(aliases, number),
            review_due=review,
            author=author,
            registered_at=registered_at,
            content_digest=digest,
            manifest_sha256=sha256_text(text),
            signature_sha256=signature,
            **({"weights_digest": weights} if weights else {}),
            # Whoever gets the author's name in owners.yaml later doesn't take it from these.
            **({"author_marks": sorted(marks)} if marks else {}),
        )

    def _add(
        self,
        manifest: Manifest,
        text: str,
        digest: str,
        signature: str | None,
        registered_at: str,
        author: str,
    ) -> None:
        tenant, number, metric = manifest.tenant, manifest.version, manifest.evaluation.primary
        assert number is not None
        summary = Summary(
            tenant=tenant,
            number=number,
            state="candidate",
            author=author,
            registered_at=registered_at,
            fresh_until=utc(manifest.fresh_until),
            next_review_due=None,
            primary_metric=metric,
            primary_value=manifest.evaluation.metrics[metric][ADAPTER].value,
            size_bytes=manifest.size_bytes,
            content_digest=digest,
            signature=signature,
        )
        marks = ", ".join("?" * (len(summary) - 1))
        self.db.rows(f"INSERT INTO versions ({SUMMARY}) VALUES ({marks})", summary[:-1])
        self.db.rows("INSERT INTO manifests VALUES (?, ?, ?)", (tenant, number, text))

    def _again(self, change: Change, tenant: str, number: int, state: State) -> None:
        if state in CLOSED:
            raise Refused(
                f"{tenant}@{number} has exactly this content and was {state}: change the data or the "
                "recipe, and train it again, before you register it."
            )
        if self.named(tenant, "candidate") != number:
            note_owners(self, change, begin=False)
            change.record("named", tenant, number, aliases={"candidate": number})

    @contextmanager
    def _keeping(self, what: Path) -> Iterator[None]:
        self.db.check_writable()
        try:
            yield
        except OSError as error:
            raise Unavailable(
                f"{what} can't be read, or not be kept in {self.path} ({disk_reason(error)}): nothing was "
                "changed."
            ) from error

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


@contextmanager
def _speaking_of(package: Path, copy: Path) -> Iterator[None]:
    """Let errors name the package and not its copy, which is gone when somebody reads them."""
    try:
        yield
    except LoraOpsError as error:
        text = str(error).replace(str(copy), str(package))
        if text == str(error):
            raise
        raise with_text(error, text) from error


def _valid(manifest: Manifest) -> Manifest:
    try:
        checked = Manifest.model_validate_json(manifest.model_dump_json(warnings=False))
    except (ValidationError, ValueError, AttributeError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise LoraOpsError(f"The manifest does not fit its schema: {what}; package it again.") from error
    if checked.evaluation.primary not in checked.evaluation.metrics:
        raise LoraOpsError(
            f"The manifest has no metric '{checked.evaluation.primary}', which it calls its primary one: "
            "evaluate and package it again."
        )
    if re.fullmatch(TENANT_PATTERN, checked.tenant) is None:
        raise LoraOpsError(f"'{checked.tenant}' can't be a tenant's name: use letters, digits, - and _.")
    try:
        refuse_reserved_name(checked.tenant)
    except ValueError as error:
        raise LoraOpsError(f"{error}.") from error
    return checked.model_copy(update={"version": None})
