"""The audit log: what was changed, removed, re-ordered or cut off is named, and SQLite itself refuses."""

import json
import sqlite3
from collections.abc import Callable

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle
from lora_ops.registry.audit import entry_hash
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, Build, Story

Tamper = Callable[[sqlite3.Connection], None]


@pytest.fixture
def six(registry: Registry, package: Build, story: Story) -> Registry:
    """A registry whose log has six entries: two registered, owners, one rejected, one taken to shadow."""
    registry.register(*package(1), actor=AUTHOR)
    registry.register(*package(2), actor=AUTHOR)
    lifecycle.reject(registry, "finance@1", actor="ben", reason="worse")
    story.to("finance@2", "shadow")
    assert registry.log.head().seq == 6
    return registry


def unlocked(registry: Registry) -> sqlite3.Connection:
    """A connection of somebody who knows SQLite and took the triggers away."""
    db = sqlite3.connect(registry.db.path, isolation_level=None)
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    return db


def first_problem(registry: Registry) -> str:
    result = verify(registry)
    assert not result.ok
    return result.problems[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'nobody' WHERE seq = 2",
        "DELETE FROM audit WHERE seq = 6",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE seq = 3",
        "INSERT INTO audit SELECT 9, 2, at, '', '', kind, subject, '{}', previous, hash FROM audit LIMIT 1",
    ],
)
def test_sqlite_refuses_to_change_the_log(six: Registry, statement: str) -> None:
    with pytest.raises(LoraOpsError, match="append-only"):
        six.db.rows(statement)
    assert verify(six).ok


@pytest.mark.parametrize("field", ["at", "actor", "action", "kind", "subject", "body"])
@pytest.mark.parametrize("seq", [1, 4, 6])
def test_a_changed_entry_is_named(six: Registry, field: str, seq: int) -> None:
    value = '{"reason":"better"}' if field == "body" else "other"
    unlocked(six).execute(f"UPDATE audit SET {field} = ? WHERE seq = ?", (value, seq))
    assert first_problem(six).startswith(f"entry {seq} (")
    assert "was changed" in first_problem(six)


@pytest.mark.parametrize("seq", [1, 2, 5])
def test_a_removed_entry_is_named(six: Registry, seq: int) -> None:
    unlocked(six).execute("DELETE FROM audit WHERE seq = ?", (seq,))
    assert first_problem(six) == f"entry {seq} was removed: the next one is {seq + 1}"


def test_a_removed_entry_is_named_though_the_others_were_numbered_anew(six: Registry) -> None:
    db = unlocked(six)
    db.execute("DELETE FROM audit WHERE seq = 3")
    for seq in (4, 5, 6):
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (seq - 1, seq))
    assert first_problem(six) == "entry 3 was removed, and those after it were numbered anew"


def test_two_entries_in_each_others_place_are_named(six: Registry) -> None:
    db = unlocked(six)
    for new, old in ((99, 3), (3, 4), (4, 99)):
        db.execute("UPDATE audit SET seq = ? WHERE seq = ?", (new, old))
    assert first_problem(six) == "entry 3 was re-ordered: it was written in another place"


@pytest.mark.parametrize("left", [5, 3, 0])
def test_a_cut_tail_is_named(six: Registry, left: int) -> None:
    unlocked(six).execute("DELETE FROM audit WHERE seq > ?", (left,))
    assert f"entry {left + 1} was removed: the log ends at {left}, not at 6" in first_problem(six)


def test_a_chain_that_was_forged_to_its_end_does_not_fit_the_signed_head(six: Registry) -> None:
    db = unlocked(six)
    rows = db.execute("SELECT * FROM audit ORDER BY seq").fetchall()
    previous = rows[0][-2]
    for row in rows:
        fields = list(row[:-2])
        if row[0] == 3:
            fields[3] = "somebody else"
        hash_ = entry_hash(*fields, previous)
        db.execute(
            "UPDATE audit SET actor = ?, previous = ?, hash = ? WHERE seq = ?",
            (fields[3], previous, hash_, row[0]),
        )
        previous = hash_
    assert first_problem(six) == "entry 6 was changed: it is not the one that audit.head vouches for"
    head = json.loads(six.anchor.path.read_text())
    head["head"] = [6, previous]
    six.anchor.path.write_text(json.dumps(head))
    assert "its signature does not fit" in first_problem(six)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"head": 3}', '{"head": [6, "x"], "before": null}'])
def test_a_head_that_was_changed_is_named(six: Registry, content: str) -> None:
    six.anchor.path.write_text(content)
    assert first_problem(six) == "audit.head, which says where the log ends, was changed"


def test_a_head_that_was_removed_is_named(six: Registry) -> None:
    six.anchor.path.unlink()
    assert first_problem(six) == "audit.head, which says where the log ends, was removed"


def test_a_whole_database_that_was_removed_is_noticed(six: Registry) -> None:
    six.close()
    for path in six.path.glob("registry.sqlite*"):
        path.unlink()
    with pytest.raises(
        LoraOpsError, match="registry.sqlite was removed, and the rest of the registry is there"
    ):
        Registry(six.path)
    with pytest.raises(LoraOpsError, match="entry 1 was removed: the log ends at 0, not at 6"):
        Registry(six.path, create=True)


def test_nothing_is_added_to_a_log_that_can_not_be_trusted(six: Registry, package: Build) -> None:
    unlocked(six).execute("DELETE FROM audit WHERE seq = 6")
    with pytest.raises(LoraOpsError, match="can't be trusted, so nothing is changed: entry 6 was removed"):
        six.register(*package(3))


def test_an_entry_that_is_no_json_is_named_when_it_is_read(six: Registry) -> None:
    unlocked(six).execute("UPDATE audit SET body = 'x' WHERE seq = 4")
    with pytest.raises(LoraOpsError, match="Entry 4 of the audit log was changed"):
        six.history("finance@1")


def test_entries_are_read_from_where_a_mirror_stopped(six: Registry) -> None:
    assert [entry.seq for entry in six.log.entries(after=4)] == [5, 6]
    assert [entry.seq for entry in six.log.entries("finance", 1)] == [1, 4]
