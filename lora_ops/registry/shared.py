"""The registry of a team at W&B: every machine keeps a copy, and a change counts once W&B took its entry.

W&B keeps versions of artifacts and moves aliases, but it has no transactions: two machines can write at once,
and an alias can be moved by hand. So the audit log decides. A change is one entry that names the hash of the
entry before it; both machines send theirs as a version of one artifact, W&B numbers versions as it commits
them, and the first that continues the log counts. The other machine reads the log back, finds that it lost, and
has changed nothing. Aliases, tags and metadata at W&B only show what the log says; no decision rests on them.

What this can't give: a package whose change lost the race stays at W&B until its time to live ends; between a
change and its alias at W&B there are seconds (after a kill: until the next `sync`); and W&B documents nowhere
that it numbers versions in the order of commits. If it did not, two logs would differ, and every machine would
refuse to go on, naming the entry. Without W&B nothing can be changed but one thing: a revocation holds at
once on the machine where it was decided (holds.py), and other machines serve on until W&B takes it. A change
holds its machine's write lock while it waits for the network.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import ValidationError

from lora_ops.clock import now
from lora_ops.errors import Damaged, LoraOpsError, Unavailable, disk_reason, with_text
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.records.manifest import Manifest
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.audit import Head, matches_hash
from lora_ops.registry.changes import Change, LostRace, apply, apply_route
from lora_ops.registry.closing import settle
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.mirror import Mirror, chain
from lora_ops.registry.owners import Owners
from lora_ops.registry.replay import BORN
from lora_ops.registry.route_entries import ROUTE
from lora_ops.registry.sent_entries import SentEntry
from lora_ops.registry.signing import SIGNATURE_FILE
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.files import first_problem
from lora_ops.settings.registry import SigningSettings

ATTEMPTS = 5
logger = logging.getLogger(__name__)


class SharedRegistry(Registry):
    """The embedded registry as one machine's copy of the one at W&B."""

    shares_log = True

    def __init__(
        self,
        path: Path,
        project: WandbProject,
        *,
        owners: Owners | None = None,
        signing: SigningSettings | None = None,
        memory: HeadMemory | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        # A machine's first copy is empty until it takes the log from W&B.
        super().__init__(path, create=True, owners=owners, signing=signing, clock=clock, several_keys=True)
        # Compared from now on: a copy that was deleted is behind what is remembered until it is taken again.
        self.remember_in(memory)
        self.mirror = Mirror(self, project, self._take)
        self.files.fetch = self._fetch

    def refresh(self) -> bool:
        """Take what other machines changed and say whether W&B gave it; else the copy stays as it is."""
        try:
            self.pull()
        except LoraOpsError as error:
            logger.warning("%s This machine's copy ends at entry %d of the log.", error, self.log.head().seq)
            return False
        return True

    def pull(self) -> int:
        """Take the entries that other machines sent, and send those that were made before W&B was the registry.

        Returns:
            How many were taken.

        Raises:
            LoraOpsError: W&B can't be reached, holds an entry that was changed or is signed by a key that is
                not trusted, or is not the beginning or the continuation of the log here.
        """
        compared = self.mirror.level()
        for entry in compared.unsent:
            self.mirror.send(entry)
        taken = len(compared.unknown)
        # What W&B had lost is there again, and others may have gone on from it.
        return taken + (len(self.mirror.level().unknown) if compared.unsent else 0)

    @contextmanager
    def change(self, actor: str, *, despite_head: bool = False) -> Iterator[Change]:
        """One transaction by `actor`, all or nothing, that counts once W&B took its entry.

        Raises:
            LostRace: another machine's change came first.
            LoraOpsError: as `Registry.change`, W&B can't be reached, or an alias was moved at W&B by hand.
        """
        try:
            self.pull()
        except LoraOpsError as error:
            raise with_text(error, f"{str(error).rstrip('.')}; nothing was changed.") from error
        if not self.is_settling:
            for waiting in settle(self):
                logger.warning("%s.", waiting)
        with super().change(actor, despite_head=despite_head) as change:
            before = self.log.head()
            named = {(one.tenant, alias): one.number for one in self.summaries() for alias in one.aliases}
            yield change
            self._publish(before, named)
        try:
            self.mirror.sync()
        except LoraOpsError as error:
            logger.warning("The change is made; only its aliases and tags at W&B are late: %s", error)

    def register(
        self, package: Path, manifest: Manifest, *, actor: str | None = None, changed_by: Sequence[str] = ()
    ) -> tuple[Version, bool]:
        """As `Registry.register`; if another machine takes the number meanwhile, the next one is tried."""
        for _ in range(ATTEMPTS - 1):
            try:
                return super().register(package, manifest, actor=actor, changed_by=changed_by)
            except LostRace as error:
                logger.warning("%s Trying again.", error)
        return super().register(package, manifest, actor=actor, changed_by=changed_by)

    def _publish(self, before: Head, named: dict[tuple[str, str], int]) -> None:
        entries = self.log.entries(after=before.seq)
        for entry in entries:
            if entry.action == "revoked" or "concerns" in entry.body:
                continue  # whoever moves an alias by hand must stop no revocation and no rollback
            for alias in entry.effects.get("aliases", {}):
                tenant = str(entry.tenant)
                moved = self.mirror.moved(tenant, alias, named.get((tenant, alias)))
                if moved:
                    raise LoraOpsError(
                        f"{moved}: it was moved by hand, or another machine is not done, so nothing was "
                        "changed; `lora-ops registry sync` puts it right."
                    )
        for entry in entries:
            self.mirror.send(entry)
        took = chain(self.mirror.project.entries(before) or [], before)
        for mine, first in zip(entries, took, strict=False):
            if mine.hash != first.entry.hash:
                # A change may begin with an entry about owners.yaml; what it did to a version says more.
                told = [one.entry for one in took if one.entry.subject.kind in ("version", ROUTE)]
                other = told[0] if told else first.entry
                raise LostRace(
                    f"{other.subject} was {_done(other)} by {other.actor} meanwhile, so nothing "
                    "was changed: look again before you repeat it."
                )
        if len(took) < len(entries):
            raise Unavailable(
                f"W&B ({self.mirror.project.target}) did not keep the change: nothing was changed."
            )

    def _take(self, sent: SentEntry) -> None:
        entry = sent.entry
        text = canonical(entry.stored())
        self.signer.adopt(sent.public_key)
        if not self.signer.fits_text(text, sent.signature):
            raise Damaged(f"Entry {entry.seq} of the audit log at W&B is not signed by a key that is trusted.")
        manifest_text = ""
        if entry.action in BORN:
            manifest_text = self.mirror.project.fetch_manifest(str(entry.tenant), entry.body["manifest_sha256"])
        with self._transaction(catching_up=True):
            head = self.log.head()
            if head.seq >= entry.seq:
                return  # another process of this machine took it
            if (entry.seq, entry.previous) != (head.seq + 1, head.hash) or not matches_hash(entry):
                raise Damaged(f"Entry {entry.seq} of the audit log at W&B does not continue the one here.")
            if entry.action in BORN:
                body = entry.body
                manifest = _manifest(manifest_text, entry)
                self._add(
                    manifest,
                    manifest_text,
                    body["content_digest"],
                    body["signature_sha256"],
                    body["registered_at"],
                    body["author"],
                )
            if entry.tenant is not None and entry.number is not None:
                apply(self.db, entry.tenant, entry.number, entry.effects)
            elif entry.subject.kind == ROUTE:
                apply_route(self.db, entry.subject.id, entry.effects)
            self.log.take(entry)
        states = entry.effects.get("states", {})
        self._forget_closed({f"{entry.tenant}@{number}": state for number, state in states.items()})
        self._bring_reports(entry)

    def _bring_reports(self, entry: AuditEntry) -> None:
        # Reports are small, and the record quotes them; packages come when somebody loads them.
        for report in entry.kept_files:
            try:
                self.files.present(report.sha256, report.summary)
            except LoraOpsError as error:
                logger.warning("The %s report of %s: %s", report.kind, entry.subject, error)

    def _fetch(self, digest: str) -> None:
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._download(digest, Path(folder))
        except OSError as error:
            raise Unavailable(
                f"What W&B holds can't be kept in {self.path} ({disk_reason(error)}): nothing was changed."
            ) from error

    def _download(self, digest: str, folder: Path) -> None:
        project = self.mirror.project
        row = self.manifest_naming(digest)
        if row:
            project.fetch_package(row[0], sha256_text(row[1]), folder)
            self._keep(folder / SIGNATURE_FILE, None)
            for file, one in json.loads(row[1])["files"].items():
                self._keep(folder / file, one["sha256"])
            return
        for entry in self.log.entries():
            for report in entry.kept_files:
                if report.sha256 == digest:
                    project.fetch_report(str(entry.tenant), report, folder)
                    self._keep(folder / "report", digest)
                    return

    def _keep(self, path: Path, expected: str | None) -> None:
        """Keep a file that W&B gave; one that it lacks is lost, as whoever asked for it says.

        Raises:
            Damaged: it is another file.
        """
        if not path.is_file():
            return
        if expected not in (None, sha256_file(path)):
            raise Damaged(
                f"W&B ({self.mirror.project.target}) holds another {path.name} than the audit log names: it "
                "was changed there."
            )
        self.files.add(path, expected)


def _manifest(text: str, entry: AuditEntry) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise Damaged(
            f"The manifest of {entry.subject} at W&B does not fit its schema: {first_problem(error)}."
        ) from error


def _done(entry: AuditEntry) -> str:
    if entry.subject.kind == ROUTE:
        return f"changed ('{entry.action}')"
    return f"moved to '{entry.action}'" if entry.body.get("before") else entry.action
