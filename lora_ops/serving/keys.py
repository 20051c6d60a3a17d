"""API keys: who calls, and what they may reach. A key is shown once; only its SHA-256 is kept."""

import hashlib
import secrets
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from lora_ops.clock import now
from lora_ops.errors import LoraOpsError, NotFound, Unavailable
from lora_ops.free_text import require_text
from lora_ops.sqlite_files import places, require_files

KeyRole = Literal["tenant", "admin", "monitor"]
SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    sha256 TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL CHECK (role IN ('tenant', 'admin', 'monitor')),
    tenant TEXT,
    base INTEGER NOT NULL,
    note TEXT NOT NULL,
    created_at TEXT NOT NULL,
    revoked_at TEXT,
    CHECK ((role = 'tenant') = (tenant IS NOT NULL))
) STRICT
"""
COLUMNS = "id, role, tenant, base, note, created_at, revoked_at"


class Key(NamedTuple):
    """What is known of a key; times are UTC in ISO 8601."""

    id: str
    role: KeyRole
    tenant: str | None
    base: bool
    note: str
    created_at: str
    revoked_at: str | None


@dataclass(frozen=True)
class Caller:
    """Who makes a request.

    Attributes:
        key: id of the key; None while no key was ever created and the gateway is open.
        role: what kind of caller; an open gateway's callers are admins.
        tenant: whose models a tenant's key reaches.
        base: whether it reaches the base model too.
    """

    key: str | None
    role: KeyRole
    tenant: str | None = None
    base: bool = True

    def reaches(self, tenant: str | None) -> bool:
        """Whether it may use this tenant's models; None is the base model."""
        if self.role == "tenant":
            return self.base if tenant is None else tenant == self.tenant
        return self.role == "admin"


OPEN = Caller(None, "admin")


class KeyStore:
    """The keys in one SQLite file; a revoked one is refused from the next request on.

    A key holds 256 random bits, so that a plain SHA-256 of it can't be guessed back and needs no salt.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._busy_seconds = 30.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            self._open()
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"The API keys in {path} can't be used ({error}).") from error

    def _open(self) -> None:
        require_files(self._path)
        self._db = sqlite3.connect(self._path, isolation_level=None, timeout=self._busy_seconds)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(SCHEMA)
        self._places = places(self._path)

    def never_wait(self) -> None:
        """Refuse at once what another process keeps locked: an event loop that waits answers nobody."""
        self._busy_seconds = 0.0
        self._rows("PRAGMA busy_timeout = 0")

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def create(
        self, role: KeyRole, tenant: str | None = None, *, base: bool = False, note: str = ""
    ) -> tuple[Key, str]:
        """Make a key.

        Returns:
            What is kept of it, and its secret, which can't be read again.

        Raises:
            LoraOpsError: a tenant's key without a tenant, another one with it, a note that says nothing, or a
                disk that can't be written.
        """
        if (role == "tenant") != (tenant is not None):
            raise LoraOpsError("A key is for one tenant, or it is an admin's or a monitor's: say which.")
        note = require_text(note, "Say who holds the key (--note)") if note else ""
        secret = f"lora-{tenant or role}-{secrets.token_urlsafe(32)}"
        key = Key(f"k-{secrets.token_hex(4)}", role, tenant, base, note, now().isoformat(), None)
        self._change(
            f"INSERT INTO keys ({COLUMNS}, sha256) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", *key, _digest(secret)
        )
        return key, secret

    def all(self) -> list[Key]:
        """Every key, revoked ones too, oldest first."""
        return [Key._make(row) for row in self._rows(f"SELECT {COLUMNS} FROM keys ORDER BY created_at, rowid")]

    def revoke(self, key_id: str) -> Key:
        """Refuse a key from now on.

        Raises:
            LoraOpsError: there is no such key, or it was revoked before.
        """
        revoked = self._change(
            f"UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL RETURNING {COLUMNS}",
            now().isoformat(),
            key_id,
        )
        if not revoked:
            raise NotFound(f"There is no key '{key_id}' that could be revoked: see `lora-ops keys list`.")
        return Key._make(revoked[0])

    def any(self) -> bool:
        """Whether a key was ever created: revoking the last one does not open the gateway again."""
        return bool(self._rows("SELECT EXISTS (SELECT 1 FROM keys)")[0][0])

    def caller(self, secret: str) -> Caller | None:
        """Who holds this secret; None if nobody does any more."""
        rows = self._rows(
            "SELECT id, role, tenant, base FROM keys WHERE sha256 = ? AND revoked_at IS NULL", _digest(secret)
        )
        if not rows:
            return None
        key, role, tenant, base = rows[0]
        return Caller(key, role, tenant, bool(base))

    def _change(self, sql: str, *values: object) -> list[tuple]:
        changed = self._rows(sql, *values)
        # Whoever deletes the WAL takes no revocation back.
        self._rows("PRAGMA wal_checkpoint(PASSIVE)")
        return changed

    def _follow(self) -> None:
        """Open the files again if another WAL took the place of the one that is open: a revocation is in it.

        A store that was put in the place of this one is not opened: an empty one would let everybody in.
        """
        found = places(self._path)
        if found != self._places and found[0] == self._places[0]:
            self._db.close()
            self._open()

    def _rows(self, sql: str, *values: object) -> list[tuple]:
        try:
            self._follow()
            return self._db.execute(sql, values).fetchall()
        except (OSError, sqlite3.Error) as error:
            raise Unavailable(f"The API keys in {self._path} can't be used ({error}).") from error


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
