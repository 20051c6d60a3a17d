"""The copy of a registry at W&B: sends what it lacks, in the order of the audit log, and says what it shows.

The audit log is the queue: an entry is written in the transaction of its change, and stays queued until W&B
holds it and shows its effects. Sending an entry again changes nothing, so the next run mends a kill anywhere.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason, with_text
from lora_ops.hashing import canonical, sha256_text
from lora_ops.processes import locked
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.audit import Head
from lora_ops.registry.cards import record
from lora_ops.registry.replay import BORN
from lora_ops.registry.route_entries import ROUTE
from lora_ops.registry.sent_entries import SentEntry
from lora_ops.registry.signing import SIGNATURE_FILE
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.registry.wandb_project import Parcel, WandbProject
from lora_ops.tracking.artifacts import package_alias

logger = logging.getLogger(__name__)

ALIASES = ("candidate", "shadow", "canary", "production")


class Sync(NamedTuple):
    """What one run of `sync` did."""

    sent: int
    """Entries that W&B did not show before."""
    restored: tuple[str, ...]
    """Aliases that somebody had moved at W&B, and that name again what the audit log says."""


class Compared(NamedTuple):
    """What only one of two logs holds; at most one list is not empty."""

    unsent: list[AuditEntry]
    unknown: list[SentEntry]


class Mirror:
    """One registry and its W&B project.

    Args:
        registry: which.
        project: where its copy is.
        take: what to do with an entry that W&B holds and the registry does not; without it, such an entry is
            refused.
    """

    def __init__(
        self, registry: Registry, project: WandbProject, take: Callable[[SentEntry], None] | None = None
    ) -> None:
        self.registry = registry
        self.project = project
        self._take = take

    def shown(self) -> Head:
        """The last entry that W&B holds and shows the effects of, as far as is known here."""
        return self.registry.mirrored(self.project.target)

    def queued(self) -> list[AuditEntry]:
        """The entries that are still to be sent or shown, oldest first."""
        return self.registry.log.entries(after=self.shown().seq)

    def sync(self, *, whole: bool = False) -> Sync:
        """Send every queued entry, in order, and put back the aliases that somebody moved at W&B.

        Args:
            whole: read all of W&B's log, and send again what somebody changed or deleted there.

        Raises:
            LoraOpsError: W&B can't be reached (what was not sent stays queued), another sync is at work, or W&B
                holds the log of another registry.
        """
        with self._alone():
            try:
                if whole and len(chain(self.project.entries(Head()) or [], Head())) < self.shown().seq:
                    self.registry.set_mirrored(self.project.target, None)
                self.level()
                queue = self.queued()
                for entry in queue:
                    self._deliver(entry)
                return Sync(len(queue), tuple(self._restore()))
            except LoraOpsError as error:
                left = len(self.queued())
                waiting = "1 change stays queued" if left == 1 else f"{left} changes stay queued"
                raise with_text(error, f"{str(error).rstrip('.')}; {waiting} for the next sync.") from error

    def _deliver(self, entry: AuditEntry) -> None:
        try:
            self.send(entry)
            self.show(entry)
        except LoraOpsError as error:
            # The log can't leave an entry out, so who reads this has to know which one holds up the others.
            raise with_text(
                error,
                f"Entry {entry.seq} ({entry.action} {entry.subject}) was not sent: {str(error).rstrip('.')}. "
                "If W&B refuses it each time, remove what W&B names there, or set another "
                "`registry.wandb.project` in params.yaml, which gets the whole log",
            ) from error

    def problem(self) -> str | None:
        """How W&B's log differs from this one, or None; entries that are only queued are no difference.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        target = self.project.target
        local = {entry.seq: entry for entry in self.registry.log.entries()}
        sent = self.project.entries(Head()) or []
        changed = next((one.entry.seq for one in sorted(sent) if not one.is_whole), None)
        if changed:
            return f"entry {changed} of the audit log was changed at W&B ({target}), or made up there"
        kept = chain(sent, Head())
        for one in kept:
            mine = local.get(one.entry.seq)
            if mine is None:
                return f"W&B ({target}) holds entry {one.entry.seq}, and the log here ends at {len(local)}"
            if mine.hash != one.entry.hash:
                return f"entry {one.entry.seq} is not the one that W&B ({target}) holds"
        if len(kept) < self.shown().seq:
            return f"W&B ({target}) no longer holds entry {len(kept) + 1}, which was sent there"
        return None

    def level(self) -> Compared:
        """See that W&B's log goes on where this one does, and take the entries that are only there.

        Returns:
            What only one of the two logs held.

        Raises:
            LoraOpsError: W&B can't be reached, one log is not the beginning of the other, or W&B holds an entry
                that may not be taken.
        """
        compared = self._compare()
        for sent in compared.unknown:
            if self._take is None:
                raise Damaged(
                    f"W&B ({self.project.target}) holds entry {sent.entry.seq}, and the log here ends "
                    "before it: this registry was restored from an older copy, or two registries share "
                    "one project."
                )
            self._take(sent)
        shown = self.shown()
        for sent in compared.unknown:
            if not sent.shown or sent.entry.seq != shown.seq + 1:
                break  # from here on, whoever syncs next shows it
            shown = Head(sent.entry.seq, sent.entry.hash)
            self.advance(shown)
        return compared

    def _compare(self) -> Compared:
        start = self.shown()
        sent = self.project.entries(start)
        if sent is None:  # deleted or changed at W&B, so what follows is missing there
            self.registry.set_mirrored(self.project.target, None)
            start = Head()
            sent = self.project.entries(start)
        mine = self.registry.log.entries(after=start.seq)
        theirs = chain(sent or [], start)
        self._refuse_gap(sent or [], mine, theirs)
        for here, there in zip(mine, theirs, strict=False):
            if here.hash != there.entry.hash:
                raise Damaged(
                    f"Entry {here.seq} of the audit log is not the one that W&B ({self.project.target}) holds: "
                    "it belongs to another registry, or one of the two was changed; name another project in "
                    "params.yaml."
                )
        return Compared(mine[len(theirs) :], theirs[len(mine) :])

    def _refuse_gap(self, sent: list[SentEntry], mine: list[AuditEntry], theirs: list[SentEntry]) -> None:
        """Refuse a log that goes on at W&B after an entry which nobody here has: it may be a revocation.

        Only an entry by a trusted key shows a gap, so nobody else can make one up.
        """
        end = max([self.shown().seq, *(one.seq for one in mine), *(one.entry.seq for one in theirs)])
        known = {one.hash for one in mine} | {one.entry.hash for one in sent if one.is_whole}
        for one in sorted(sent):
            entry = one.entry
            lost = entry.seq > end + 1 and entry.previous not in known
            if lost and one.is_whole and self.registry.signer.trusts(one.public_key):
                raise Damaged(
                    f"Entry {entry.seq - 1} of the audit log was changed or deleted at W&B "
                    f"({self.project.target}): `lora-ops registry sync` on a machine that has it puts it back."
                )

    def send(self, entry: AuditEntry) -> None:
        """Send one entry with everything that it brings, unless W&B has it.

        Raises:
            LoraOpsError: W&B can't be reached, or a kept file that it needs is missing.
        """
        if self.project.holds(entry):
            return
        registry = self.registry
        signature = registry.signer.sign_text(canonical(entry.stored()))
        public_key = registry.signer.public_key(signature["key"])
        if entry.subject.kind != "version":  # it brings no package and no report, only itself
            self.project.send(entry, None, signature, public_key)
            return
        reports = [(registry.files.checked(one.sha256, one.summary), one) for one in entry.kept_files]
        stated = registry.log.registered_as(entry.subject.id)
        if entry.action not in BORN and stated:
            # The package is there, so a lost manifest stops no revocation.
            self.project.send(entry, Parcel(stated.manifest, reports), signature, public_key)
            return
        version = registry.get(entry.subject.id)
        parcel = Parcel(
            sha256_text(version.manifest_text),
            reports,
            content=package_alias({name: file.sha256 for name, file in version.manifest.files.items()}),
            data=version.manifest.data,
            parent_manifest_sha256=self._parent(version),
        )
        files = {name: file.sha256 for name, file in version.manifest.files.items()}
        if version.summary.signature:
            files[SIGNATURE_FILE] = version.summary.signature
        with registry.files.staged(version.id, files, {"manifest.json": version.manifest_text}) as folder:
            self.project.send(entry, parcel._replace(package=folder), signature, public_key)

    def _parent(self, version: Version) -> str | None:
        parent = re.fullmatch(rf"{version.tenant}@(\d+)", version.manifest.parent or "")
        return self.manifest_sha256(version.tenant, int(parent[1])) if parent else None

    def show(self, entry: AuditEntry) -> None:
        """Let W&B show what an entry did, and take it off the queue.

        Raises:
            LoraOpsError: W&B can't be reached, or lost a version.
        """
        registry, head = self.registry, self.registry.log.head()
        touched: set[int] = set()
        tenant = entry.tenant
        if entry.subject.kind == ROUTE:
            tenant, number = entry.subject.id, entry.body.get("number")
            touched = {number} if isinstance(number, int) and self.manifest_sha256(tenant, number) else set()
        if entry.tenant is not None and entry.number is not None:
            concerned = entry.body.get("concerns", entry.number)
            touched = {entry.number, concerned, *map(int, entry.effects.get("states", {}))}
        for number in sorted(touched):
            sha256 = self.manifest_sha256(str(tenant), number)
            assert sha256 is not None
            self.project.show(record(registry, f"{tenant}@{number}"), sha256, head)
        self.project.mark_shown(entry)
        self.advance(Head(entry.seq, entry.hash))

    def advance(self, head: Head) -> None:
        """Remember that W&B shows everything up to `head`."""
        self.registry.set_mirrored(self.project.target, head)

    def _restore(self) -> Iterator[str]:
        for tenant in sorted({one.tenant for one in self.registry.summaries()}):
            for alias in ALIASES:
                number = self.registry.named(tenant, alias)
                moved = self.moved(tenant, alias, number)
                if moved and not self._compare().unknown:  # or another machine moved it meanwhile
                    self.project.name(tenant, alias, self.manifest_sha256(tenant, number))
                    yield moved

    def moved(self, tenant: str, alias: str, number: int | None) -> str | None:
        """How an alias at W&B differs from the version that it should name, in words, or None.

        Raises:
            LoraOpsError: W&B can't be reached.
        """
        there = self.project.named(tenant, alias)
        if (there.manifest_sha256 if there else None) == self.manifest_sha256(tenant, number):
            return None
        should = f"{tenant}@{number}" if number else "nothing"
        return (
            f"{tenant}@{alias} names {there.id if there else 'nothing'} at W&B, and {should} in the audit log"
        )

    def manifest_sha256(self, tenant: str, number: int | None) -> str | None:
        """The digest of a version's manifest, which names its package at W&B; None without a version."""
        stated = self.registry.log.registered_as(f"{tenant}@{number}")
        if stated:
            return stated.manifest
        text = self.registry.manifest_text(tenant, number)
        return sha256_text(text) if text else None

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self.registry.db.check_writable()
        path = self.registry.path / "sync.lock"
        with ExitStack() as held:
            try:
                held.enter_context(locked(path, seconds=0))
            except BlockingIOError as error:
                raise Unavailable("Another sync of this registry is at work: wait for it.") from error
            except OSError as error:
                raise Unavailable(
                    f"The lock {path} can't be used ({disk_reason(error)}): remove it."
                ) from error
            yield


def chain(sent: list[SentEntry], start: Head) -> list[SentEntry]:
    """Return the entries that continue the log after `start`: of two that race for one place, the first counts.

    An entry whose hash or signature does not fit never counted on any machine, so it stops none.
    """
    kept, last = [], start
    for one in sorted(sent):
        entry = one.entry
        if entry.seq != last.seq + 1 or entry.previous != last.hash:
            continue  # it lost a race, or was sent twice
        if not one.is_whole:
            logger.warning("Entry %d of the audit log at W&B is not what was signed: left out.", entry.seq)
            continue
        kept.append(one)
        last = Head(entry.seq, entry.hash)
    return kept
