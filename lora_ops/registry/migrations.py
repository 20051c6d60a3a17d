"""The registry's tables, one step per schema version; a database is brought forward in one transaction."""

import sqlite3
from contextlib import closing
from functools import cache
from typing import NamedTuple

from lora_ops.registry.database import Database

SCHEMA_VERSION = 5
FIRST_WITH_LOG = 2

V1 = """
CREATE TABLE versions (
    tenant TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    content_digest TEXT NOT NULL,
    manifest TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    PRIMARY KEY (tenant, number),
    UNIQUE (tenant, content_digest)
) STRICT;
CREATE TABLE aliases (
    tenant TEXT NOT NULL,
    alias TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (tenant, alias),
    FOREIGN KEY (tenant, number) REFERENCES versions (tenant, number)
) STRICT;
"""

# Manifests lie in a table of their own: beside these short columns they would make a list of 10,000 versions
# read every one of them.
V2 = """
CREATE TABLE versions (
    tenant TEXT NOT NULL,
    number INTEGER NOT NULL CHECK (number >= 1),
    content_digest TEXT NOT NULL,
    state TEXT NOT NULL,
    author TEXT NOT NULL,
    registered_at TEXT NOT NULL,
    fresh_until TEXT NOT NULL,
    next_review_due TEXT,
    primary_metric TEXT NOT NULL,
    primary_value REAL NOT NULL,
    size_bytes INTEGER NOT NULL,
    signature TEXT,
    PRIMARY KEY (tenant, number),
    UNIQUE (tenant, content_digest)
) STRICT;
CREATE TABLE manifests (
    tenant TEXT NOT NULL,
    number INTEGER NOT NULL,
    manifest TEXT NOT NULL,
    PRIMARY KEY (tenant, number),
    FOREIGN KEY (tenant, number) REFERENCES versions (tenant, number)
) STRICT;
CREATE TABLE aliases (
    tenant TEXT NOT NULL,
    alias TEXT NOT NULL,
    number INTEGER NOT NULL,
    PRIMARY KEY (tenant, alias),
    FOREIGN KEY (tenant, number) REFERENCES versions (tenant, number)
) STRICT;
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    tenant TEXT NOT NULL,
    number INTEGER NOT NULL,
    body TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_version ON audit (tenant, number);
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_grows BEFORE INSERT ON audit
    WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit)
    BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
"""

# The audit log itself is the queue of what a mirror lacks, written in the transaction of each change; all that
# has to be remembered is the last entry that a mirror shows.
V3 = """
CREATE TABLE mirrors (
    target TEXT PRIMARY KEY,
    seq INTEGER NOT NULL,
    hash TEXT NOT NULL
) STRICT;
"""

# Until schema 3 an entry was always about a version. Its subject is a kind and an id now, and its format says
# by which rule its hash was taken: the hashes of schema 3 stay, so the chain and its signed head stay valid.
V4 = """
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY,
    format INTEGER NOT NULL,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    body TEXT NOT NULL,
    previous TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
INSERT INTO entries
    SELECT seq, 1, at, actor, action, 'version', tenant || '@' || number, body, previous, hash FROM audit;
DROP TABLE audit;
ALTER TABLE entries RENAME TO audit;
CREATE INDEX audit_by_subject ON audit (kind, subject);
CREATE TRIGGER audit_keeps BEFORE DELETE ON audit BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_stays BEFORE UPDATE ON audit BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
CREATE TRIGGER audit_grows BEFORE INSERT ON audit
    WHEN new.seq IS NOT (SELECT coalesce(max(seq), 0) + 1 FROM audit)
    BEGIN SELECT raise(ABORT, 'audit is append-only'); END;
"""

# One row for each tenant whose requests were ever shared: its route as canonical JSON.
V5 = """
CREATE TABLE routes (
    tenant TEXT PRIMARY KEY,
    route TEXT NOT NULL
) STRICT;
"""


class OldVersion(NamedTuple):
    """A row of schema 1, which the registry registers anew under schema 2."""

    tenant: str
    number: int
    manifest: str
    registered_at: str
    aliases: tuple[str, ...]


@cache
def objects() -> tuple[tuple[str, str, str, str | None], ...]:
    """Return type, name, table and SQL of each table, index and trigger that this schema has."""
    with closing(sqlite3.connect(":memory:")) as db:
        for script in (V2, V3, V4, V5):
            db.executescript(script)
        return tuple(db.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall())


def schema_of(db: Database) -> int:
    """The schema version of a database; 0 for a new one."""
    row = db.row("PRAGMA user_version")
    return int(row[0]) if row else 0


def upgrade(db: Database, found: int) -> list[OldVersion]:
    """Bring the tables from schema `found` to this one inside the caller's transaction.

    Returns:
        The versions of schema 1, whose tables are gone now, to be registered anew.
    """
    old = _take_v1(db) if found == 1 else []
    for schema, script in ((2, V2), (3, V3), (4, V4), (5, V5)):
        if found < schema:
            _run(db, script)
    db.rows(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return old


def _run(db: Database, script: str) -> None:
    # `executescript` would commit the caller's transaction.
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            db.rows(statement)
            statement = ""


def _take_v1(db: Database) -> list[OldVersion]:
    rows = db.rows(
        "SELECT v.tenant, v.number, v.manifest, v.registered_at, group_concat(a.alias) FROM versions v"
        " LEFT JOIN aliases a ON a.tenant = v.tenant AND a.number = v.number"
        " GROUP BY v.tenant, v.number ORDER BY v.registered_at, v.tenant, v.number"
    )
    db.rows("DROP TABLE aliases")
    db.rows("DROP TABLE versions")
    return [
        OldVersion(tenant, number, manifest, at, tuple(aliases.split(",")) if aliases else ())
        for tenant, number, manifest, at, aliases in rows
    ]
