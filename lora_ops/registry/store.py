"""The embedded registry: SQLite for records, content-addressed files beside it, every change audited."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lora_ops.adapter_files import require_lora
from lora_ops.clock import utc
from lora_ops.errors import LoraOpsError, Refused, Unavailable, disk_reason, with_text
from lora_ops.evaluation.recount import require_recounted
from lora_ops.hashing import sha256_text
from lora_ops.records.evaluation import ADAPTER
from lora_ops.records.manifest import ADAPTER_FILES, Manifest, content_digest
from lora_ops.records.registry import State
from lora_ops.registry import migrations
from lora_ops.registry.changes import Change, set_route_row, whoami
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.database import MissingRegistry
from lora_ops.registry.files import check_package
from lora_ops.registry.own_texts import require_own_texts
from lora_ops.registry.owners_log import note_owners
from lora_ops.registry.queries import SUMMARY
from lora_ops.registry.route_entries import routes_of
from lora_ops.registry.transactions import Transactions
from lora_ops.registry.twins import Twins, kept_weights
from lora_ops.registry.versions import CLOSED, Summary, Version
from lora_ops.settings.files import first_problem
from lora_ops.settings.section import TENANT_PATTERN, colliding_tenant, refuse_reserved_name


class Registry(Transactions):
    """Adapter versions under one folder: packages come in here; `Transactions` says how it is opened.

    A registry belongs to one thread; open another one for another thread or process.
    """

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
            # An older release at W&B took entries about routes, and kept no rows of them.
            for tenant, told in routes_of(self.log).items():
                if told.text is not None:
                    set_route_row(self.db, tenant, told.text)
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

    def register(
        self, package: Path, manifest: Manifest, *, actor: str | None = None, changed_by: Sequence[str] = ()
    ) -> tuple[Version, bool]:
        """Keep a package as the next version of its tenant, signed, and let `candidate` name it.

        The same content again is the same version: nothing is added, `candidate` comes back to it.

        Args:
            package: folder that holds every file of `manifest.files`.
            manifest: what 04_package wrote, without a version.
            actor: its author, who can't approve it later; default: `whoami()`.
            changed_by: names or addresses of who else made it, such as those of commits where CI is the author;
                they can't approve or judge it either.

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
            return self._enter(own, manifest, weights, actor, changed_by)

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
        self, package: Path, manifest: Manifest, weights: str | None, actor: str, changed_by: Sequence[str]
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
                    self._again(change, manifest, *known)
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
                    aliases = ("candidate",)
                    self._insert(
                        change, "registered", draft, kept, weights, change.at, actor, aliases, changed_by
                    )
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
        changed_by: Sequence[str] = (),
    ) -> None:
        tenant, number = manifest.tenant, manifest.version
        assert number is not None
        review, marks = None, {one.strip().casefold() for one in changed_by}
        if self.owners:
            team = self.owners.team(tenant)
            review = utc(team.next_review(datetime.fromisoformat(registered_at)))
            for person in filter(None, map(team.person, (author, *changed_by))):
                marks |= person.marks
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
            **self._stated(weights, marks, changed_by),
        )

    @staticmethod
    def _stated(weights: str | None, marks: set[str], changed_by: Sequence[str]) -> dict[str, Any]:
        """Return what the entry of a new version says only where it is known."""
        # Whoever gets the author's name in owners.yaml later doesn't take it from the marks.
        said = {
            "weights_digest": weights,
            "changed_by": sorted(set(changed_by)),
            "author_marks": sorted(marks),
        }
        return {name: value for name, value in said.items() if value}

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

    def _again(self, change: Change, manifest: Manifest, number: int, state: State) -> None:
        tenant = manifest.tenant
        if state in CLOSED:
            raise Refused(
                f"{tenant}@{number} has exactly this content and was {state}: change the data or the "
                "recipe, and train it again, before you register it."
            )
        # Its evidence is about answers with those files, and no gateway with these would load it.
        theirs = self.load(tenant, number).manifest.base_model
        other = manifest.base_model.other_files(theirs) if manifest.base_model.files else []
        if other:
            raise Refused(
                f"{tenant}@{number} has exactly this content, and its base model had another {other[0]}: "
                "change the data or the recipe, and train it again, before you register it."
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
