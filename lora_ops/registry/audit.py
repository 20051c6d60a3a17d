"""The audit log: one hash-chained entry per change, which nobody can quietly change, remove or re-order."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.registry import AuditEntry
from lora_ops.registry.database import Database
from lora_ops.registry.files import write_atomically
from lora_ops.registry.signing import Signer

GENESIS = "0" * 64
COLUMNS = "seq, at, actor, action, tenant, number, body, previous, hash"


class Head(NamedTuple):
    """The last entry: how many there are and the last one's hash."""

    seq: int = 0
    hash: str = GENESIS

    @property
    def text(self) -> str:
        """`12:3f5a…`, as people read it."""
        return f"{self.seq}:{self.hash[:12]}"


class Log:
    """The entries in SQLite; `append` runs inside the transaction of the change that it tells of."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def head(self) -> Head:
        """Where the log ends now."""
        row = self._db.row("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1")
        return Head(*row) if row else Head()

    def last_time(self) -> str:
        """When the last entry was written (UTC, ISO 8601), or an empty text."""
        row = self._db.row("SELECT at FROM audit ORDER BY seq DESC LIMIT 1")
        return row[0] if row else ""

    def append(self, at: str, actor: str, action: str, tenant: str, number: int, body: dict[str, Any]) -> None:
        """Add one entry that continues the chain."""
        last = self.head()
        values = [last.seq + 1, at, actor, action, tenant, number, canonical(body), last.hash]
        self._db.rows(
            f"INSERT INTO audit ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", (*values, entry_hash(*values))
        )

    def entries(self, tenant: str | None = None, number: int | None = None, after: int = 0) -> list[AuditEntry]:
        """Entries in order: all, of one tenant, or of one version; only those after entry `after`.

        Those of one version include the promotions of another one that took its place.
        """
        rows = self._db.rows(
            f"SELECT {COLUMNS} FROM audit WHERE seq > ?3 AND (?1 IS NULL OR tenant = ?1)"
            " AND (?2 IS NULL OR number = ?2 OR CASE WHEN action = 'production' AND json_valid(body)"
            " THEN json_type(body, '$.effects.states.\"' || ?2 || '\"') IS NOT NULL"
            " OR json_extract(body, '$.concerns') = ?2 END) ORDER BY seq",
            (tenant, number, after),
        )
        return [_entry(row) for row in rows]

    def last_in_production(self, tenant: str) -> int | None:
        """The version that went into production last, whether or not it is still there."""
        row = self._db.row(
            "SELECT number FROM audit WHERE tenant = ? AND action = 'production' ORDER BY seq DESC LIMIT 1",
            (tenant,),
        )
        return row[0] if row else None

    def rows(self) -> list[tuple[Any, ...]]:
        """Every entry as it lies in the database, unchecked."""
        return self._db.rows(f"SELECT {COLUMNS} FROM audit ORDER BY seq")


def fits(entry: AuditEntry) -> bool:
    """Whether an entry's hash is that of its fields."""
    place = (entry.seq, entry.at, entry.actor, entry.action, entry.tenant, entry.number)
    return entry_hash(*place, canonical(entry.body), entry.previous) == entry.hash


def entry_hash(*values: Any) -> str:
    """The hash of an entry: over its place, every field and the hash of the entry before it."""
    return sha256_text(canonical(values))


def _entry(row: tuple[Any, ...]) -> AuditEntry:
    try:
        fields = dict(zip(COLUMNS.split(", "), row, strict=True))
        return AuditEntry.model_validate({**fields, "body": json.loads(fields["body"])})
    except (ValueError, ValidationError) as error:
        raise LoraOpsError(
            f"Entry {row[0]} of the audit log was changed: run `lora-ops registry verify`."
        ) from error


class Anchor:
    """A signed file beside the database that says where the log ends, so that a cut tail shows.

    A change is announced here before it is committed and confirmed after. A kill in between leaves the
    announcement, which fits the log with the change as well as the log without it; only in that state, until
    the next change, could the very last entry be cut off unseen. An older copy of the whole folder fits too:
    a mirror elsewhere is what tells.
    """

    def __init__(self, path: Path, signer: Signer) -> None:
        self.path = path
        self._signer = signer

    def announce(self, before: Head, after: Head) -> None:
        """Say that the log is about to grow from `before` to `after`."""
        self._write(after, before)

    def confirm(self, head: Head) -> None:
        """Say that the log ends at `head`."""
        self._write(head, None)

    def problem(self, head: Head) -> str | None:
        """Why a log that ends at `head` is not the one this file vouches for, or None."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            signature = content.pop("signature")
            says = Head(*content["head"])
            before = Head(*content["before"]) if content["before"] else None
        except FileNotFoundError:
            return None if head == Head() else f"{self.path.name}, which says where the log ends, was removed"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return f"{self.path.name}, which says where the log ends, was changed"
        if not self._signer.fits_text(canonical(content), signature):
            return f"{self.path.name}, which says where the log ends, was changed: its signature does not fit"
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


def chain_problem(rows: Iterable[tuple[Any, ...]]) -> str | None:
    """The first entry that was changed, removed or re-ordered, in words; None when the chain holds."""
    entries = list(rows)
    hashes = {row[-1] for row in entries}
    last = Head()
    for row in entries:
        seq, *fields, previous, hash_ = row
        name = f"entry {last.seq + 1}"
        if seq != last.seq + 1:
            return f"{name} was removed: the next one is {seq}"
        if entry_hash(*row[:-1]) != hash_:
            places = range(1, len(entries) + 1000)
            if not any(entry_hash(place, *fields, previous) == hash_ for place in places):
                return f"{name} ({row[3]} {row[4]}@{row[5]} by {row[2]}, {row[1]}) was changed"
            if previous in hashes or previous == GENESIS:
                return f"{name} was re-ordered: it was written in another place"
            return f"{name} was removed, and those after it were numbered anew"
        if previous != last.hash:
            return f"{name} was re-ordered or put in the place of another one"
        last = Head(seq, hash_)
    return None
