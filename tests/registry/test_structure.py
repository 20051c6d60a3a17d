"""An index that lies, and objects that lora-ops did not make, are found before they decide anything."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lora_ops.errors import Damaged
from lora_ops.registry import lifecycle
from lora_ops.registry.backup import backup
from lora_ops.registry.cards import record
from lora_ops.registry.integrity import LogFollower, registry_problem
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.serving.router import Router

from .conftest import AUTHOR, FIRST, Build, Story

Attack = Callable[[Registry], None]
HONEST = "CREATE INDEX audit_by_subject ON audit (kind, subject)"


@pytest.fixture
def served(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 in production, finance@2 in shadow, media@1 a candidate."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "shadow")
    registry.register(*package(7, tenant="media"), actor=AUTHOR)
    return registry


@contextmanager
def schema_editor(registry: Registry, *, traceless: bool = False) -> Iterator[sqlite3.Connection]:
    """Give a connection that may edit the schema; `traceless` lets no connection read it again."""
    with closing(sqlite3.connect(registry.db.path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        yield db
        if not traceless:
            (version,) = db.execute("PRAGMA schema_version").fetchone()
            db.execute(f"PRAGMA schema_version = {version + 1}")


def swap_alias_index(registry: Registry) -> None:
    """Let the index, not the table, send `production` to the row of `shadow` and back."""
    with schema_editor(registry) as db:
        rows = db.execute("SELECT rowid, tenant, alias, number FROM aliases").fetchall()
        places = {(tenant, alias): place for place, tenant, alias, _ in rows}
        (sql,) = db.execute("SELECT sql FROM sqlite_master WHERE name = 'aliases'").fetchone()
        db.execute(sql.replace("TABLE aliases", "TABLE other"))
        other = {"production": "shadow", "shadow": "production"}
        for _, tenant, alias, number in rows:
            place = places[tenant, other.get(alias, alias)] if tenant == "finance" else places[tenant, alias]
            row = (place, tenant, alias, number)
            db.execute("INSERT INTO other (rowid, tenant, alias, number) VALUES (?, ?, ?, ?)", row)
        root = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_other_1'"
        db.execute(f"UPDATE sqlite_master SET rootpage = ({root}) WHERE name = 'sqlite_autoindex_aliases_1'")
        db.execute("DELETE FROM sqlite_master WHERE tbl_name = 'other'")


def make_partial(db: sqlite3.Connection, seq: int) -> None:
    db.execute("DROP INDEX audit_by_subject")
    db.execute(f"{HONEST} WHERE seq <> {seq}")


def look_honest(db: sqlite3.Connection) -> None:
    db.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'audit_by_subject'", (HONEST,))


def hide_entry(registry: Registry) -> None:
    """Leave the promotion of finance@1 out of the index whose SQL still promises every entry."""
    seq = next(one.seq for one in registry.log.entries() if one.action == "production")
    with schema_editor(registry) as db:
        make_partial(db, seq)
        look_honest(db)
    assert seq not in {one.seq for one in Registry(registry.path).history("finance@1")}


def dress_trigger(registry: Registry) -> None:
    """Close media@1 with the revocation of another version, by a trigger whose type has a capital letter."""
    with schema_editor(registry) as db:
        db.execute(
            "CREATE TRIGGER zz AFTER INSERT ON audit WHEN new.action = 'revoked'"
            " BEGIN UPDATE versions SET state = 'shadow' WHERE tenant = 'media'; END"
        )
        db.execute("UPDATE sqlite_master SET type = 'Trigger' WHERE name = 'zz'")


def edit(*statements: str) -> Attack:
    def attack(registry: Registry) -> None:
        with schema_editor(registry) as db:
            for statement in statements:
                db.execute(statement)

    return attack


ATTACKS = {
    "alias index": (swap_alias_index, "missing from index sqlite_autoindex_aliases_1"),
    "hidden entry": (hide_entry, "wrong # of entries in index audit_by_subject"),
    "type in capitals": (dress_trigger, "has a trigger 'zz' that is not of lora-ops"),
    "table": (edit("CREATE TABLE extra (a)"), "has a table 'extra' that is not of lora-ops"),
    "index": (edit("CREATE INDEX extra ON audit (action)"), "has an index 'extra' that is not of lora-ops"),
    "view": (edit("CREATE VIEW extra AS SELECT 1"), "has a view 'extra' that is not of lora-ops"),
    "partial index": (
        edit("DROP INDEX audit_by_subject", f"{HONEST} WHERE seq <> 3"),
        "the index 'audit_by_subject' of the database was changed",
    ),
    "removed trigger": (
        edit("DROP TRIGGER audit_stays"),
        "the trigger 'audit_stays' of the database was removed",
    ),
    "second row of an index": (
        edit("INSERT INTO sqlite_master SELECT * FROM sqlite_master WHERE name LIKE '%aliases_1'"),
        "the index 'sqlite_autoindex_aliases_1' of the database was changed",
    ),
}


@pytest.mark.parametrize(("attack", "words"), ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("followed", [True, False], ids=["while followed", "before the first look"])
def test_structure_names_what_was_tampered(
    served: Registry, attack: Attack, words: str, followed: bool
) -> None:
    follower = LogFollower(served)
    if followed:
        assert follower.problem() is None
    attack(served)
    assert words in str(follower.problem())
    assert words in str(registry_problem(Registry(served.path)))
    assert words in " ".join(verify(served).problems)
    verdict = record(served, "finance@1").verdict
    assert not verdict.may_serve
    assert words in " ".join(verdict.reasons)
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert "nothing is changed" in str(served.not_sent)
    assert [hold.version for hold in served.holds.all()] == ["finance@1"]


def test_router_asks_no_false_index(served: Registry) -> None:
    """The index named finance@2, which is in shadow, as the version in production."""
    base_model = served.get("finance@1").manifest.base_model
    warm = Router(served, base_model, allow_candidates=False)
    assert warm.route("finance").name == "finance@1"
    swap_alias_index(served)
    cold = Router(Registry(served.path, clock=served.clock), base_model, allow_candidates=False)
    assert warm.route("finance").name == "finance@1"
    with pytest.raises(Damaged, match="missing from index"):
        cold.route("finance")


@pytest.mark.parametrize("attack", [swap_alias_index, hide_entry, dress_trigger])
def test_backup_refuses_a_false_structure(served: Registry, attack: Attack, tmp_path: Path) -> None:
    """It could not be restored, and the registry may be lost by then."""
    attack(served)
    with pytest.raises(Damaged, match="so it is not backed up: the database"):
        backup(served, str(tmp_path / "backups"))


def test_structure_forgets_a_schema_read_before(served: Registry) -> None:
    """A connection keeps a partial index, and finds nothing missing in it, after its text was changed back."""
    follower = LogFollower(served)
    with schema_editor(served) as db:
        make_partial(db, 3)
    assert "was changed" in str(follower.problem())
    with schema_editor(served, traceless=True) as db:
        look_honest(db)
    assert "wrong # of entries" in str(follower.problem())


def test_structure_reads_indexes_once(served: Registry) -> None:
    """A change of this process and a request without a change cost no second look; others' changes do."""
    read: list[str] = []
    assert served.structure.problem() is None
    served.db.connection.set_trace_callback(lambda sql: read.append(sql) if "integrity" in sql else None)
    lifecycle.reject(served, "media@1", actor="ci", reason="worse")
    assert served.structure.problem() is None
    assert read == []
    other = Registry(served.path, owners=served.owners, clock=served.clock)
    lifecycle.revoke(other, "finance@2", actor=FIRST, reason="leaks card numbers")
    assert served.structure.problem() is None
    tables = ("aliases", "versions", "routes", "audit")
    assert read == [f"PRAGMA integrity_check('{table}')" for table in tables]
