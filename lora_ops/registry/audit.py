"""The audit log: one hash-chained entry per change, which nobody can quietly change, remove or re-order."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import Damaged
from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.registry import AuditEntry, Subject
from lora_ops.registry.database import Database
from lora_ops.registry.files import write_atomically
from lora_ops.registry.signing import Signer
from lora_ops.small_files import parse_json, read_json

GENESIS = "0" * 64
COLUMNS = "seq, format, at, actor, action, kind, subject, body, previous, hash"
FORMAT = 2
HEAD_ACCEPTED = "head_accepted"
"""The action of an entry that lets the log go on from an older or another head."""
# "A" follows "@" in ASCII, so this is the range of all `tenant@...`, which the index can find.
OF_TENANT = "kind = 'version' AND subject >= ?1 || '@' AND subject < ?1 || 'A'"


class Head(NamedTuple):
    """The last entry: how many there are and the last one's hash."""

    seq: int = 0
    hash: str = GENESIS

    @property
    def text(self) -> str:
        """`12:3f5a…`, as people read it."""
        return f"{self.seq}:{self.hash[:12]}"


class Registered(NamedTuple):
    """What the log states of a version; digests of its stored manifest and of its signature's file."""

    author: str
    content_digest: str
    manifest: str
    signature: str | None


class Log:
    """The entries in SQLite; `append` runs inside the transaction of the change that it tells of."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def head(self) -> Head:
        """Where the log ends now."""
        row = self._db.row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        return Head(*row) if row else Head()

    def hash_at(self, seq: int) -> str | None:
        """Return the hash of entry `seq`, or None where there is no such entry."""
        row = self._db.row("SELECT hash FROM audit WHERE seq = ?", (seq,))
        return row[0] if row else None

    def current_key(self) -> str | None:
        """Return the fingerprint of the key that signs this log: the one that its last rotation names.

        Before any rotation the first entry names it; logs that earlier releases began name none.
        """
        row = self._db.row(
            "SELECT body FROM audit WHERE kind = 'key' AND action = 'key_rotated' ORDER BY seq DESC LIMIT 1"
        ) or self._db.row("SELECT body FROM audit WHERE seq = 1")
        try:
            body = parse_json(row[0]) if row else {}
            return body.get("new") or body.get("key")
        except (ValueError, AttributeError):  # it was changed, which the chain says
            return None

    def signing_keys(self) -> frozenset[str]:
        """Return the fingerprints of the keys of which one signs where this log ends; empty if it names none.

        A rotation's entry is signed by the old key until the new one has signed the head again.
        """
        current, head = self.current_key(), self.head()
        rotation = self.rows(after=head.seq - 1)[0] if head.seq else None
        if not current or rotation is None or (rotation.kind, rotation.action) != ("key", "key_rotated"):
            return frozenset({current} if current else ())
        return frozenset(filter(None, (current, parse_json(rotation.body).get("old"))))

    def last_time(self) -> str:
        """Return when the last entry was written (UTC, ISO 8601), or an empty text."""
        row = self._db.row("SELECT at FROM audit ORDER BY seq DESC LIMIT 1")
        return row[0] if row else ""

    def append(self, at: str, actor: str, action: str, subject: Subject, body: dict[str, Any]) -> None:
        """Add one entry that continues the chain."""
        last = self.head()
        row = Row(last.seq + 1, FORMAT, at, actor, action, subject.kind, subject.id, canonical(body), last.hash)
        self._insert(row._replace(hash=row.expected_hash()))

    def take(self, entry: AuditEntry) -> None:
        """Add an entry that another machine wrote, in its own format."""
        subject = entry.subject
        place = (entry.seq, entry.format, entry.at, entry.actor, entry.action, subject.kind, subject.id)
        self._insert(Row(*place, canonical(entry.body), entry.previous, entry.hash))

    def _insert(self, row: "Row") -> None:
        marks = ", ".join("?" * len(row))
        self._db.rows(f"INSERT INTO audit ({COLUMNS}) VALUES ({marks})", row)

    def entries(self, tenant: str | None = None, number: int | None = None, after: int = 0) -> list[AuditEntry]:
        """Return entries in order: all, of one tenant, or of one version; only those after entry `after`.

        Those of one version include the promotions of another one that took its place.
        """
        if tenant is None:
            rows = self._db.rows(f"SELECT {COLUMNS} FROM audit WHERE seq > ? ORDER BY seq", (after,))
            return [_entry(Row(*row)) for row in rows]
        rows = self._db.rows(
            f"SELECT {COLUMNS} FROM audit WHERE seq > ?3 AND {OF_TENANT}"
            " AND (?2 IS NULL OR subject = ?1 || '@' || ?2"
            " OR CASE WHEN action = 'production' AND json_valid(body)"
            " THEN json_type(body, '$.effects.states.\"' || ?2 || '\"') IS NOT NULL"
            " OR json_extract(body, '$.concerns') = ?2 END) ORDER BY seq",
            (tenant, number, after),
        )
        return [_entry(Row(*row)) for row in rows]

    def about(self, tenant: str, number: int) -> list[AuditEntry]:
        """Return the entries of one version as `entries` does, and those that gave it a part of the route."""
        rows = self._db.rows(
            f"SELECT {COLUMNS} FROM audit WHERE kind = 'route' AND subject = ?"
            " AND CASE WHEN json_valid(body) THEN json_extract(body, '$.number') = ? END",
            (tenant, number),
        )
        found = [*self.entries(tenant, number), *(_entry(Row(*row)) for row in rows)]
        return sorted(found, key=lambda entry: entry.seq)

    def of_kind(self, kind: str) -> list[AuditEntry]:
        """Return the entries about one kind of subject, such as `owners` or `key`, in order."""
        rows = self._db.rows(f"SELECT {COLUMNS} FROM audit WHERE kind = ? ORDER BY seq", (kind,))
        return [_entry(Row(*row)) for row in rows]

    def about_routes(self, tenant: str | None = None) -> list["Row"]:
        """Return the entries that changed routes, or one tenant's route, in order."""
        rows = self._db.rows(
            f"SELECT {COLUMNS} FROM audit WHERE (kind = 'route' AND (?1 IS NULL OR subject = ?1))"
            " OR (kind = 'version' AND (?1 IS NULL OR (subject >= ?1 || '@' AND subject < ?1 || 'A'))"
            " AND CASE WHEN json_valid(body) THEN json_type(body, '$.effects.route') IS NOT NULL END)"
            " ORDER BY seq",
            (tenant,),
        )
        return [Row(*row) for row in rows]

    def last_in_production(self, tenant: str) -> int | None:
        """Return the version that went into production last, whether or not it is still there."""
        row = self._db.row(
            f"SELECT subject FROM audit WHERE {OF_TENANT} AND action = 'production' ORDER BY seq DESC LIMIT 1",
            (tenant,),
        )
        return int(row[0].rpartition("@")[2]) if row else None

    def last_unrevoked_in_production(self, tenant: str, other_than: int, before: int | None) -> int | None:
        """Return the version that went into production last and was not revoked since.

        Args:
            tenant: whose.
            other_than: a version that does not count.
            before: only entries before this one count; None: all.
        """
        row = self._db.row(
            f"SELECT subject FROM audit AS entered WHERE {OF_TENANT} AND action = 'production'"
            " AND subject != ?1 || '@' || ?2 AND (?3 IS NULL OR seq < ?3) AND NOT EXISTS ("
            "SELECT 1 FROM audit WHERE kind = 'version' AND subject = entered.subject AND action = 'revoked'"
            " AND (?3 IS NULL OR seq < ?3)) ORDER BY seq DESC LIMIT 1",
            (tenant, other_than, before),
        )
        return int(row[0].rpartition("@")[2]) if row else None

    def weights_digests(self) -> dict[str, str]:
        """Return the digests of tensors that the log states, by `finance@3`; earlier releases stated none."""
        rows = self._db.rows(
            "SELECT subject, json_extract(body, '$.weights_digest') FROM audit WHERE kind = 'version'"
            " AND action IN ('registered', 'imported') AND json_valid(body) ORDER BY seq"
        )
        return {subject: digest for subject, digest in rows if digest}

    def weights_digest(self, version: str) -> str | None:
        """Return the digest of tensors that the log states of one version (`finance@3`), or None."""
        row = self._db.row(
            "SELECT json_extract(body, '$.weights_digest') FROM audit WHERE kind = 'version' AND subject = ?"
            " AND action IN ('registered', 'imported') AND json_valid(body) ORDER BY seq",
            (version,),
        )
        return row[0] if row else None

    def registered_as(self, version: str) -> "Registered | None":
        """Return what the log states of one version (`finance@3`) since it was registered, or None."""
        row = self._db.row(
            "SELECT json_extract(body, '$.author'), json_extract(body, '$.content_digest'),"
            " json_extract(body, '$.manifest_sha256'), json_extract(body, '$.signature_sha256') FROM audit"
            " WHERE kind = 'version' AND subject = ? AND action IN ('registered', 'imported')"
            " AND json_valid(body) ORDER BY seq",
            (version,),
        )
        return Registered(*row) if row and all(row[:3]) else None

    def reported(self) -> set[str]:
        """Return every version (`finance@3`) that the log has a report on, an incident's included."""
        rows = self._db.rows(
            "SELECT DISTINCT subject, CASE WHEN json_valid(body) THEN json_extract(body, '$.concerns') END"
            " FROM audit WHERE kind = 'version'"
            " AND CASE WHEN json_valid(body) THEN json_array_length(body, '$.evidence') > 0 END"
        )
        # A rollback's entry is about the version that returns, and its incident about the one that leaves.
        return {f"{name.rpartition('@')[0]}@{left}" if left else name for name, left in rows}

    def rows(self, after: int = 0) -> list["Row"]:
        """Return every entry after entry `after` as it lies in the database, unchecked."""
        rows = self._db.rows(f"SELECT {COLUMNS} FROM audit WHERE seq > ? ORDER BY seq", (after,))
        return [Row(*row) for row in rows]


class Row(NamedTuple):
    """One entry as the database holds it; `body` is canonical JSON."""

    seq: int
    format: int
    at: str
    actor: str
    action: str
    kind: str
    subject: str
    body: str
    previous: str
    hash: str = ""

    def expected_hash(self) -> str:
        """Return the hash of these fields, by the rule of the row's format.

        Entries of format 1 were written when an entry was always about a version: tenant and number were fields
        of their own. A migration keeps their hashes, so the chain of an old registry goes on unbroken.

        Raises:
            ValueError: a row of format 1 is not about a version.
        """
        if self.format == 1:
            tenant, _, number = self.subject.rpartition("@")
            place = (self.seq, self.at, self.actor, self.action, tenant, int(number))
            return entry_hash(*place, self.body, self.previous)
        return entry_hash(*self[:-1])


def matches_hash(entry: AuditEntry) -> bool:
    """Return whether an entry's hash is that of its fields."""
    subject = entry.subject
    place = (entry.seq, entry.format, entry.at, entry.actor, entry.action, subject.kind, subject.id)
    try:
        return Row(*place, canonical(entry.body), entry.previous).expected_hash() == entry.hash
    except ValueError:
        return False


def entry_hash(*values: Any) -> str:
    """Return the hash of an entry: over its place, every field and the hash of the entry before it."""
    return sha256_text(canonical(values))


def _entry(row: Row) -> AuditEntry:
    try:
        fields = {**row._asdict(), "body": parse_json(row.body)}
        fields["subject"] = {"kind": fields.pop("kind"), "id": row.subject}
        return AuditEntry.model_validate(fields)
    except (ValueError, ValidationError) as error:
        raise Damaged(
            f"Entry {row.seq} of the audit log was changed: run `lora-ops registry verify`."
        ) from error


class Anchor:
    """A signed file beside the database that says where the log ends, so that a cut tail shows.

    A change is announced here before it is committed and confirmed after. A kill in between leaves the
    announcement, which fits the log with the change as well as the log without it; only in that state, until
    the next change, could the very last entry be cut off unseen. An older copy of the whole folder fits too:
    what is remembered outside it shows that, here `elsewhere`, or a mirror.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        elsewhere: Callable[[], str | None] = lambda: None,
        keys: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        self.path = path
        self._signer = signer
        self._elsewhere = elsewhere
        """Says why the log is not the one that was seen before, or None."""
        self._keys = keys
        """Says whose signature counts, by what the log names; empty: that of any key which is trusted."""

    def announce(self, before: Head, after: Head) -> None:
        """Say that the log is about to grow from `before` to `after`."""
        self._write(after, before)

    def confirm(self, head: Head) -> None:
        """Say that the log ends at `head`."""
        self._write(head, None)

    def problem(self, head: Head, *, catching_up: bool = False) -> str | None:
        """Return why a log that ends at `head` is not the one this file vouches for, or None."""
        return self._problem_here(head) or (None if catching_up else self._elsewhere())

    def signed_by(self) -> str | None:
        """Return the fingerprint of the key that signed this file, or None where it can't be read."""
        try:
            return str(read_json(self.path)["signature"]["key"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def damage(self) -> str | None:
        """Return why this file vouches for no head at all, in words, or None."""
        found = self._read()
        return found if isinstance(found, str) else None

    def _read(self) -> tuple[Head, Head | None] | str:
        """Return the head that this file vouches for and the one before it, or why it vouches for none."""
        try:
            content = read_json(self.path)
            signature = content.pop("signature")
            says = Head(*content["head"])
            before = Head(*content["before"]) if content["before"] else None
        except FileNotFoundError:
            return f"{self.path.name}, which says where the log ends, was removed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{self.path.name}, which says where the log ends, was changed"
        if not self._signer.fits_text(canonical(content), signature):
            return f"{self.path.name}, which says where the log ends, was changed: its signature does not fit"
        named = self._keys()
        if named and signature["key"] not in named:
            listed = ", ".join(sorted(f"{one[:12]}…" for one in named))
            return (
                f"{self.path.name} is signed by key {signature['key'][:12]}…, and the audit log names "
                f"{listed}: another key was put in its place"
            )
        return says, before

    def _problem_here(self, head: Head) -> str | None:
        if head == Head() and not self.path.exists():
            return None
        found = self._read()
        if isinstance(found, str):
            return found
        says, before = found
        if head in (says, before):
            return None
        if head.seq < says.seq:
            return f"entry {head.seq + 1} was removed: the log ends at {head.seq}, not at {says.seq}"
        if head.seq > says.seq:
            return f"entry {says.seq + 1} was added by something that is not lora-ops"
        return f"entry {head.seq} was changed: it is not the one that {self.path.name} vouches for"

    def _write(self, head: Head, before: Head | None) -> None:
        content = {"head": list(head), "before": list(before) if before else None}
        signed = {**content, "signature": self._signer.sign_text(canonical(content))}
        write_atomically(self.path, (json.dumps(signed, indent=2) + "\n").encode())


def chain_problem(rows: Iterable[Row], start: Head = Head()) -> str | None:  # noqa: B008 - a value, never changed
    """Return the first entry that was changed, removed or re-ordered, in words; None when the chain holds.

    Args:
        rows: the entries that follow `start`.
        start: the entry that they follow.
    """
    entries = list(rows)
    hashes = {row.hash for row in entries} | {start.hash}
    last = start
    for row in entries:
        name = f"entry {last.seq + 1}"
        if row.seq != last.seq + 1:
            return f"{name} was removed: the next one is {row.seq}"
        if not _hash_holds(row):
            places = range(1, start.seq + len(entries) + 1000)
            if not any(_hash_holds(row._replace(seq=place)) for place in places):
                return f"{name} ({row.action} {row.subject} by {row.actor}, {row.at}) was changed"
            if row.previous in hashes or row.previous == GENESIS:
                return f"{name} was re-ordered: it was written in another place"
            return f"{name} was removed, and those after it were numbered anew"
        if row.previous != last.hash:
            return f"{name} was re-ordered or put in the place of another one"
        last = Head(row.seq, row.hash)
    return None


def _hash_holds(row: Row) -> bool:
    try:
        return row.expected_hash() == row.hash
    except ValueError:
        return False
