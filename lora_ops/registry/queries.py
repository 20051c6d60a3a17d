"""What a registry's tables say: versions, aliases, states and manifests; nothing here changes a row."""

from collections.abc import Iterator
from contextlib import contextmanager

from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.hashing import sha256_text
from lora_ops.records.manifest import SCHEMA_VERSION, Manifest, content_digest
from lora_ops.records.registry import AuditEntry, State
from lora_ops.records.route import RouteRecord
from lora_ops.registry.audit import Anchor, Head, Log
from lora_ops.registry.database import Database
from lora_ops.registry.files import FileStore
from lora_ops.registry.holds import ANY_CONTENT, Hold, Holds
from lora_ops.registry.route_entries import ToldRoute
from lora_ops.registry.structure import Structure
from lora_ops.registry.versions import CLOSED, Summary, Version, lost, parse_reference
from lora_ops.small_files import parse_json

SUMMARY = (
    "tenant, number, state, author, registered_at, fresh_until, next_review_due, primary_metric,"
    " primary_value, size_bytes, content_digest, signature"
)


class Queries:
    """Every read of one registry; `Registry` in store.py opens what these ask, and changes it."""

    db: Database
    log: Log
    anchor: Anchor
    files: FileStore
    holds: Holds
    stops: Holds
    structure: Structure

    def summaries(self, tenant: str | None = None) -> list[Summary]:
        """Every version, or those of one tenant, oldest first, without their manifests."""
        names: dict[tuple[str, int], tuple[str, ...]] = {}
        for name, alias, number in self.db.rows(
            "SELECT tenant, alias, number FROM aliases WHERE ?1 IS NULL OR tenant = ?1 ORDER BY alias",
            (tenant,),
        ):
            names[name, number] = (*names.get((name, number), ()), alias)
        rows = self.db.rows(
            f"SELECT {SUMMARY} FROM versions WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, number", (tenant,)
        )
        return [Summary._make((*row, names.get(row[:2], ()))) for row in rows]

    def tenants(self) -> list[str]:
        """Return every tenant that has a version, sorted."""
        return [tenant for (tenant,) in self.db.rows("SELECT DISTINCT tenant FROM versions ORDER BY 1")]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Let every query inside see the same moment."""
        with self.db.reading():
            yield

    def states(self) -> dict[tuple[str, int], State]:
        """Return the state of every version: (tenant, number) to state."""
        rows = self.db.rows("SELECT tenant, number, state FROM versions")
        return {(tenant, number): state for tenant, number, state in rows}

    def state(self, tenant: str, number: int) -> State | None:
        """Return the state of one version, or None where there is no such version."""
        row = self.db.row("SELECT state FROM versions WHERE tenant = ? AND number = ?", (tenant, number))
        return row[0] if row else None

    def seen(self) -> tuple[object, ...]:
        """Return what differs after every change by others: of the database, its signed head or its holds.

        A file that took the place of the database, as a restore puts it there, is opened.
        """
        self.db.follow_replacement()
        holds = self.holds.place(), self.stops.place()
        try:
            found = self.anchor.path.stat()
        except OSError:  # removed; whoever verifies the log says so
            return self.db.openings, self.data_version(), holds
        changed = found.st_mtime_ns, found.st_size, found.st_ino
        return self.db.openings, self.data_version(), holds, *changed

    def hold_of(self, summary: Summary) -> Hold | None:
        """Return the hold that keeps a version from serving here, or None; a closed one needs none."""
        return None if summary.state in CLOSED else self.stop_of(summary)

    def stop_of(self, summary: Summary) -> Hold | None:
        """Return the hold of a version, whatever its row says of its state, or None.

        Of several, a signed one: it can become a revocation in the log.
        """
        found = [hold for hold in self.holds.all() if self.is_stopped_by(hold, summary)]
        return max(found, key=lambda hold: hold.is_signed, default=None)

    def queued_stop(self, summary: Summary) -> Hold | None:
        """Return the kill switch of a version that this machine states and the log does not yet, or None."""
        found = [stop for stop in self.stops.all() if self.is_stopped_by(stop, summary)]
        return max(found, key=lambda stop: stop.is_signed, default=None)

    def is_stopped_by(self, hold: Hold, summary: Summary) -> bool:
        """Return whether a hold is about a version and its content.

        A number that was lost with a newer registry may be given again, to another content.
        """
        if hold.version != summary.id:
            return False
        if hold.content_digest == ANY_CONTENT:
            # Who restores an older backup gives the number again, to a version that nobody has stopped.
            return hold.latest is None or summary.registered_at <= hold.latest
        digests = (summary.content_digest, self.as_registered(summary).content_digest)
        return hold.content_digest in digests

    def held(self, tenant: str | None = None) -> list[Hold]:
        """Return the holds that keep versions, or those of one tenant, from serving here."""
        if not self.holds.all():
            return []
        return [hold for hold in map(self.hold_of, self.summaries(tenant)) if hold]

    def data_version(self) -> int:
        """Return a number that changes with every commit of another connection."""
        row = self.db.row("PRAGMA data_version")
        return row[0] if row else 0

    def aliases(self) -> dict[tuple[str, str], int]:
        """Return every alias: (tenant, alias) to the number of the version that it names."""
        rows = self.db.rows("SELECT tenant, alias, number FROM aliases")
        return {(tenant, alias): number for tenant, alias, number in rows}

    def routes(self) -> dict[str, str]:
        """Return every route as it is stored: tenant to canonical JSON."""
        rows = self.db.rows("SELECT tenant, route FROM routes")
        return dict(rows)

    def route_text(self, tenant: str) -> str | None:
        """Return one tenant's route as it is stored, or None where its requests were never shared."""
        row = self.db.row("SELECT route FROM routes WHERE tenant = ?", (tenant,))
        return row[0] if row else None

    def route(self, tenant: str) -> RouteRecord:
        """Return one tenant's route by its row, as far as this release can read it; see `ToldRoute`.

        Whoever answers requests asks the follower of the log instead, which no row can deceive.
        """
        text = self.route_text(tenant)
        try:
            return ToldRoute(tenant, 0, parse_json(text)).known if text else RouteRecord()
        except (ValueError, AttributeError, RecursionError):  # it was changed, as whoever verifies says
            return RouteRecord()

    def manifest_text(self, tenant: str, number: int | None) -> str | None:
        """Return a version's manifest as it is stored, unchecked; None where there is none."""
        row = self.db.row("SELECT manifest FROM manifests WHERE tenant = ? AND number = ?", (tenant, number))
        return row[0] if row else None

    def manifest_naming(self, digest: str) -> tuple[str, str] | None:
        """Return tenant and manifest of the newest version that has the file or signature `digest`."""
        row = self.db.row(
            "SELECT v.tenant, m.manifest FROM versions v JOIN manifests m USING (tenant, number)"
            " WHERE v.signature = ?1 OR instr(m.manifest, ?1) ORDER BY number DESC LIMIT 1",
            (digest,),
        )
        return (row[0], row[1]) if row else None

    def mirrored(self, target: str) -> Head:
        """Return the last entry that the mirror `target` shows, as far as is known here."""
        row = self.db.row("SELECT seq, hash FROM mirrors WHERE target = ?", (target,))
        return Head(*row) if row else Head()

    def versions(self, tenant: str | None = None) -> list[Version]:
        """Every version, or those of one tenant, oldest first, with their manifests."""
        texts = {
            (name, number): text
            for name, number, text in self.db.rows(
                "SELECT tenant, number, manifest FROM manifests WHERE ?1 IS NULL OR tenant = ?1", (tenant,)
            )
        }
        return [
            Version(one, texts[one.tenant, one.number])
            for one in self.summaries(tenant)
            if (one.tenant, one.number) in texts
        ]

    def get(self, reference: str, *, whole: bool = True) -> Version:
        """Return the version that `finance@3`, `finance@candidate` or `finance` names; see `current`.

        Args:
            reference: which version.
            whole: see `load`.

        Raises:
            LoraOpsError: there is no such tenant, version or alias; the text lists what there is.
        """
        return self.load(*self.resolve(reference), whole=whole)

    def get_exact(self, reference: str, *, whole: bool = True) -> Version:
        """Return the version that `finance@3` names; what can't be undone asks for no less.

        Args:
            reference: which version.
            whole: see `load`.

        Raises:
            LoraOpsError: an alias or a bare tenant, which may name another version by now; or there is none.
        """
        tenant, which = parse_reference(reference)
        if not isinstance(which, int):
            raise LoraOpsError(
                f"'{reference}' may name another version in a moment: name the exact one ({tenant}@3, see "
                f"`lora-ops registry list {tenant}`); nothing was changed."
            )
        return self.get(reference, whole=whole)

    def current(self, tenant: str) -> int | None:
        """Return the number of the version that a bare tenant means, everywhere; None where it means none.

        That is what is in production. Before anything ever was, it is the candidate. After production was
        revoked nothing takes its place by itself: a candidate was reviewed by nobody.
        """
        number = self.named(tenant, "production")
        if number is None and self.log.last_in_production(tenant) is None:
            number = self.named(tenant, "candidate")
        return number

    def resolve(self, reference: str) -> tuple[str, int]:
        """Return the tenant and the number that a reference names now.

        Raises:
            LoraOpsError: there is no such tenant, version or alias; the text lists what there is.
        """
        tenant, which = parse_reference(reference)
        if isinstance(which, int):
            row = self.db.row("SELECT number FROM versions WHERE tenant = ? AND number = ?", (tenant, which))
            number = row[0] if row else None
        else:
            number = self.named(tenant, which) if which else self.current(tenant)
        if number is None:
            raise self._unknown(tenant, which)
        return tenant, number

    def named(self, tenant: str, alias: str) -> int | None:
        """The number of the version that an alias names now, or None."""
        row = self.db.row("SELECT number FROM aliases WHERE tenant = ? AND alias = ?", (tenant, alias))
        return row[0] if row else None

    def _unknown(self, tenant: str, which: int | str | None) -> NotFound:
        there = self.summaries(tenant)
        if not there:
            known = ", ".join(self.tenants())
            return NotFound(
                f"The registry has no adapter of '{tenant}' (tenants: {known or 'none yet: run `make repro`'})."
            )
        if which is None:
            states = ", ".join(f"{one.id} is {one.state}" for one in there[-5:])
            return NotFound(
                f"'{tenant}' has no version in production ({states}): name one, such as {there[-1].id}, "
                "or promote one."
            )
        names = [f"{tenant}@{alias}" for one in there for alias in one.aliases]
        listed = ", ".join([*names, *(one.id for one in there[-5:])])
        return NotFound(f"The registry has no {tenant}@{which} (there are: {listed}).")

    def load(self, tenant: str, number: int, *, whole: bool = True) -> Version:
        """Return one version.

        Args:
            tenant: whose version.
            number: which version.
            whole: refuse a version whose manifest was lost. A revocation needs its row alone, and an incident
                can't wait for a restore: it gets the version without its manifest. Author and content digest
                are the log's then, which nobody compares with the row.

        Raises:
            Damaged: its row was lost, or its manifest.
        """
        key = (tenant, number)
        row = self.db.row(f"SELECT {SUMMARY} FROM versions WHERE tenant = ? AND number = ?", key)
        text = self.db.row("SELECT manifest FROM manifests WHERE tenant = ? AND number = ?", key)
        if row is None:
            raise lost("record", f"{tenant}@{number}")
        if text is None and whole:
            raise lost("manifest", f"{tenant}@{number}")
        aliases = self.db.rows("SELECT alias FROM aliases WHERE tenant = ? AND number = ? ORDER BY alias", key)
        summary = Summary._make((*row, tuple(alias for (alias,) in aliases)))
        return Version(summary if whole else self.as_registered(summary), text[0] if text else "")

    def as_registered(self, summary: Summary) -> Summary:
        """Return a summary with the author and the content digest that the log states."""
        stated = self.log.registered_as(summary.id)
        if stated is None:
            return summary
        return summary._replace(author=stated.author, content_digest=stated.content_digest)

    def require_stated_manifest(self, version: Version) -> None:
        """Refuse a version whose manifest is another one than the log states; an older log states none.

        Raises:
            Damaged: it was changed, so that the one that was registered is lost.
        """
        stated = self.log.registered_as(version.id)
        if stated and sha256_text(version.manifest_text) != stated.manifest:
            raise lost("manifest", version.id)

    def history(self, reference: str) -> list[AuditEntry]:
        """What the audit log says of one version, oldest first.

        Raises:
            LoraOpsError: unknown version, or an entry that was changed.
        """
        return self.log.entries(*self.resolve(reference))

    def holding(self, manifest: Manifest) -> Version | None:
        """The version with exactly this content, in whatever state, or None."""
        known = self.known_content(manifest)
        return self.load(manifest.tenant, known[0]) if known else None

    def known_content(self, manifest: Manifest) -> tuple[int, State] | None:
        """Return number and state of the version with exactly this content, or None."""
        tenant, text = manifest.tenant, manifest.to_json()
        digest = content_digest(text)
        row = self.db.row(
            "SELECT number, state FROM versions WHERE tenant = ? AND content_digest = ?", (tenant, digest)
        )
        if row is not None:
            return row[0], row[1]
        # A version of an older schema keeps the digest that the log states; by today's rule it may be this one.
        for version in self.versions(tenant):
            if content_digest(version.manifest_text, SCHEMA_VERSION) == digest:
                return version.number, version.state
        return None
