"""What somebody who can write in `.registry` but has no private key changes is found before it counts."""

import shutil
import sqlite3
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.audit import Head
from lora_ops.registry.cards import record
from lora_ops.registry.head_acceptance import accept_head
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.integrity import LogFollower, registry_problem
from lora_ops.registry.store import Registry
from lora_ops.registry.structure import Structure
from lora_ops.registry.verification import verify
from lora_ops.rollout.rollback import roll_back

from . import tampering
from .conftest import AUTHOR, FIRST, Build, Story, reviewed, won


@pytest.fixture
def served(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 in production, finance@2 its candidate."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    return registry


def tamper(registry: Registry, *statements: str) -> None:
    """Write into the database as somebody who knows its tables, and who puts its triggers back."""
    db = sqlite3.connect(registry.db.path, isolation_level=None)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    for _, sql in triggers:
        db.execute(sql)
    db.close()


def revive(registry: Registry) -> None:
    """Cut the revocation of finance@1 off the log, and put row and alias back."""
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks card numbers")
    tamper(
        registry,
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
        "UPDATE versions SET state = 'production' WHERE number = 1",
        "INSERT INTO aliases VALUES ('finance', 'production', 1)",
    )


def move_alias(registry: Registry) -> None:
    tamper(registry, "UPDATE aliases SET number = 2 WHERE alias = 'production'")


def edit_row(registry: Registry) -> None:
    tamper(registry, "UPDATE versions SET state = 'production' WHERE number = 2")


def edit_entry(registry: Registry) -> None:
    tamper(registry, "UPDATE audit SET actor = 'nobody' WHERE seq = 3")


def rewrite_entry(registry: Registry) -> None:
    """Write another entry in the place of an old one, with the hash that fits it."""
    row = registry.log.rows(after=2)[0]._replace(actor="nobody")
    tamper(registry, f"UPDATE audit SET actor = 'nobody', hash = '{row.expected_hash()}' WHERE seq = 3")


def cut_entry(registry: Registry) -> None:
    tamper(registry, "DELETE FROM audit WHERE seq = 3")


def date_ahead(registry: Registry) -> None:
    """Date the last entry a day ahead, with the hash that fits it; the head can't be signed again."""
    row = registry.log.rows(after=registry.log.head().seq - 1)[0]
    later = (datetime.fromisoformat(row.at) + timedelta(days=1)).isoformat()
    changed = row._replace(at=later)
    tamper(
        registry, f"UPDATE audit SET at = '{later}', hash = '{changed.expected_hash()}' WHERE seq = {row.seq}"
    )


def delete_head(registry: Registry) -> None:
    registry.anchor.path.unlink()


def swap_files(registry: Registry) -> None:
    tampering.swap_weights(registry, "finance@1", "finance@2")


def flip_byte(registry: Registry) -> None:
    tampering.flip_weights(registry, "finance@1")


def cut_short(registry: Registry) -> None:
    tampering.cut_weights(registry, "finance@1")


def edit_manifest(registry: Registry) -> None:
    tamper(registry, "UPDATE manifests SET manifest = replace(manifest, '600', '601')")


@pytest.mark.parametrize("attack", [swap_files, flip_byte, cut_short, edit_manifest])
def test_bytes_that_were_tampered_are_refused(served: Registry, attack: object) -> None:
    attack(served)  # type: ignore[operator]
    assert not verify(served).ok
    assert not record(served, "finance@1").verdict.may_serve
    with pytest.raises(Damaged):
        packages.verified_path(served, "finance@1")


def test_older_copy_of_the_folder_is_refused(served: Registry, tmp_path: Path) -> None:
    """A revoked version must not come back with a copy from before its revocation."""
    memory = HeadMemory(tmp_path / "head.json", ".registry")
    copy = tmp_path / "copy"
    shutil.copytree(served.path, copy)
    memory.remember(served.log.head())
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    memory.remember(served.log.head())
    old = Registry(copy, owners=served.owners, clock=served.clock, memory=memory)
    assert "replaced by an older copy" in verify(old).problems[0]
    assert "replaced by an older copy" in record(old, "finance@1").verdict.reasons[0]
    with pytest.raises(Damaged, match="replaced by an older copy"):
        packages.verified_path(old, "finance@1")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (revive, "was removed: the log ends at"),
        (move_alias, "alias finance@production was changed: it names 2, and the audit log says 1"),
        (edit_row, "the state of finance@2 was changed"),
        (edit_entry, "entry 3 (validated finance@1"),
        (rewrite_entry, "entry "),
        (cut_entry, "entry 3 was removed"),
        (delete_head, "audit.head, which says where the log ends, was removed"),
        (tampering.sign_as_stranger, "another key was put in its place"),
        (date_ahead, "changed"),
    ],
)
@pytest.mark.parametrize("followed", [True, False], ids=["while followed", "before the first look"])
def test_follower_names_what_was_tampered(served: Registry, attack: object, words: str, followed: bool) -> None:
    follower = LogFollower(served)
    if followed:
        assert follower.problem() is None
    attack(served)  # type: ignore[operator]
    assert words in str(follower.problem())
    assert words in str(registry_problem(served))
    assert not verify(served).ok
    verdict = record(served, "finance@2" if attack is edit_row else "finance@1").verdict
    assert not verdict.may_serve
    assert words in " ".join(verdict.reasons)


@pytest.mark.parametrize(
    "attack", [revive, move_alias, edit_row, edit_entry, delete_head, tampering.sign_as_stranger, date_ahead]
)
def test_load_refuses_a_registry_that_was_tampered(served: Registry, attack: object) -> None:
    attack(served)  # type: ignore[operator]
    with pytest.raises(LoraOpsError):
        packages.verified_path(served, "finance@2" if attack is edit_row else "finance")


@pytest.mark.parametrize("attack", [revive, move_alias, delete_head, tampering.sign_as_stranger, date_ahead])
def test_change_is_refused_on_a_tampered_registry(served: Registry, package: Build, attack: object) -> None:
    attack(served)  # type: ignore[operator]
    with pytest.raises(LoraOpsError, match="can't be trusted"):
        lifecycle.reject(served, "finance@2", actor="ci", reason="worse")


def test_replaced_key_stops_no_revocation(served: Registry, tmp_path: Path) -> None:
    """The head kept outside stands in for the one that a stranger signed."""
    served.memory = HeadMemory(tmp_path / "head.json", ".registry")
    served.memory.remember(served.log.head())
    tampering.sign_as_stranger(served)
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert "another key was put in its place" in str(served.mended)
    assert served.anchor.signed_by() == served.log.current_key()
    assert verify(served).ok


DROPPERS = {
    "state": "BEFORE UPDATE ON versions WHEN new.state = 'revoked'",
    "alias": "BEFORE DELETE ON aliases",
    "entry": "BEFORE INSERT ON audit WHEN new.action = 'revoked'",
}


@pytest.mark.parametrize("dropped", DROPPERS)
def test_change_dropped_by_a_trigger_is_not_claimed(served: Registry, dropped: str) -> None:
    """`revoke` said that it revoked, and everything stayed as it was and green."""
    served.db.rows(f"CREATE TRIGGER x {DROPPERS[dropped]} BEGIN SELECT raise(IGNORE); END")
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert "nothing is changed" in str(served.not_sent)
    assert [hold.version for hold in served.held()] == ["finance@1"]
    assert served.get("finance@1").state == "production"
    assert "trigger 'x' that is not of lora-ops" in str(registry_problem(served))
    assert not verify(served).ok
    assert not record(served, "finance@1").verdict.may_serve


def test_change_is_read_back_before_it_counts(served: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the schema can't tell, what was written still does."""
    monkeypatch.setattr(Structure, "problem", lambda self, **_: None)
    for dropped in DROPPERS.values():
        served.db.rows(f"CREATE TRIGGER x {dropped} BEGIN SELECT raise(IGNORE); END")
        lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
        assert "nothing is changed" in str(served.not_sent)
        served.db.rows("DROP TRIGGER x")
    assert served.get("finance@1").state == "production"
    assert verify(served).ok


def test_exact_version_is_refused_on_a_forged_middle(served: Registry, package: Build) -> None:
    """The revocation is cut out of the middle of the log, and only later entries reach the signed head."""
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    served.register(*package(3), actor=AUTHOR)
    tamper(
        served,
        "DELETE FROM audit WHERE action = 'revoked'",
        "UPDATE versions SET state = 'production' WHERE number = 1",
        "INSERT INTO aliases VALUES ('finance', 'production', 1)",
    )
    again = Registry(served.path, owners=served.owners, clock=served.clock)
    with pytest.raises(Damaged, match="was removed"):
        packages.verified_path(again, "finance@1")


def test_replaced_database_is_opened_again(served: Registry, tmp_path: Path) -> None:
    """A restore puts another file in the database's place; a gateway must not go on with the old one."""
    follower = LogFollower(served)
    assert follower.problem() is None
    before = served.seen()
    served.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    copy = tmp_path / "copy.sqlite"
    shutil.copy(served.db.path, copy)
    copy.replace(served.db.path)
    other = Registry(served.path, owners=served.owners, clock=served.clock)
    lifecycle.revoke(other, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert served.seen() != before
    assert follower.problem() is None
    assert served.get("finance@1").state == "revoked"


def edit(registry: Registry, column: str, value: str, number: int) -> None:
    """Change one field of a version's row, as SQL that the triggers let through."""
    registry.db.rows(f"UPDATE versions SET {column} = ? WHERE number = ?", (value, number))


def test_edited_author_approves_nothing(served: Registry, story: Story) -> None:
    """With another author in the row, the author approved; the row was put back before anybody verified."""
    story.to("finance@2", "canary")
    story.file("canary", about="finance@2")
    edit(served, "author", "eve", 2)
    with pytest.raises(Damaged, match="finance@2 can't be trusted: the author of finance@2 was changed"):
        story.approve("finance@2", AUTHOR)
    with pytest.raises(Damaged, match="the author of finance@2 was changed"):
        lifecycle.promote(served, "finance@2", "production", actor="ci", reason="next")
    edit(served, "author", AUTHOR, 2)
    story.approve("finance@2", FIRST)


def test_edited_author_votes_on_nothing(served: Registry) -> None:
    edit(served, "author", "eve", 2)
    with pytest.raises(LoraOpsError, match="author"):
        reviewed(served, "finance@2", won, (AUTHOR, "dana"))


@pytest.mark.parametrize(
    ("column", "value"), [("content_digest", "f" * 64), ("content_digest", "odd"), ("author", "nobody")]
)
def test_edited_row_of_what_leaves_stops_no_rollback(
    served: Registry, story: Story, tmp_path: Path, column: str, value: str
) -> None:
    story.to("finance@2", "production")
    edit(served, column, value, 2)
    record = tmp_path / "incident.json"
    record.write_text("Card numbers in its answers since this morning.")
    roll_back(served, "finance@2", record, actor="ci", reason="it leaks")
    assert served.named("finance", "production") == 1
    assert served.get("finance@2", whole=False).state == "revoked"


def test_rollback_passes_over_an_edited_row(
    served: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """It put a version into production that no gateway loads, since its row is not what the log says."""
    story.to("finance@2", "production")
    served.register(*package(3), actor=AUTHOR)
    story.to("finance@3", "production")
    edit(served, "fresh_until", "9999-01-01", 2)
    record = tmp_path / "incident.json"
    record.write_text("Card numbers in its answers since this morning.")
    assert roll_back(served, "finance@3", record, actor="ci", reason="it leaks").id == "finance@1"


def test_change_is_made_where_a_restored_database_is(served: Registry, tmp_path: Path) -> None:
    """Whoever had the registry open when it was restored revoked a version in the file that was gone."""
    served.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(served.path, tmp_path / "restored")
    assert served.follower.problem() is None
    served.path.rename(tmp_path / "gone")
    (tmp_path / "restored").rename(served.path)
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    with closing(Registry(served.path, owners=served.owners, clock=served.clock)) as opened:
        assert opened.get("finance@1").state == "revoked"
        assert verify(opened).ok


def test_older_copy_counts_only_by_a_new_acceptance(served: Registry, package: Build, tmp_path: Path) -> None:
    """An acceptance that the lost log had, too, is none of the older copy."""
    memory = HeadMemory(tmp_path / "head.json", "registry")
    follower = LogFollower(served)

    def accept(opened: Registry) -> None:
        memory.remember(Head(opened.log.head().seq + 1, "f" * 64))
        accept_head(opened, memory, actor=FIRST, reason="the disk died")

    accept(served)
    older = tmp_path / "older"
    served.db.rows("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(served.path, older)
    served.register(*package(3), actor=AUTHOR)
    assert follower.problem() is None
    served.path.rename(tmp_path / "lost")
    older.rename(served.path)
    served.seen()  # opens what took the database's place
    assert "was changed or removed" in str(follower.problem())
    accept(served)
    assert follower.problem() is None and follower.verified == served.log.head()


def test_follower_goes_on_with_honest_changes(served: Registry, package: Build) -> None:
    follower = LogFollower(served)
    for seed in range(3, 6):
        assert follower.problem() is None
        served.register(*package(seed), actor=AUTHOR)
    assert follower.problem() is None


def test_follower_names_an_older_copy_put_back(served: Registry, tmp_path: Path) -> None:
    """A running follower remembers more than the folder does."""
    copy = tmp_path / "copy"
    shutil.copytree(served.path, copy)
    follower = LogFollower(served)
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert follower.problem() is None
    served.close()
    shutil.rmtree(served.path)
    shutil.copytree(copy, served.path)
    again = Registry(served.path, owners=served.owners, clock=served.clock)
    follower._registry = again
    assert "was changed or removed" in str(follower.problem())
