"""Two commands at once, an archive that is away, and a rollback that needs what was archived."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from lora_ops.costs import archive
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable
from lora_ops.registry import archived_weights, lifecycle, packages
from lora_ops.registry.archived_files import RESTORED, archived
from lora_ops.registry.archived_weights import bring_back, bring_back_if_archived, remove_original
from lora_ops.registry.backup import backup
from lora_ops.registry.backup_place import Place
from lora_ops.registry.files import InArchive
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback
from tests.registry.conftest import AUTHOR, build_package

from .archive_kit import NOW, OldRegistry, write_events


def stop_before_removal(kit: OldRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run end between its entries and the removal of the originals."""

    def die(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(archive, "remove_original", die)
        kit.run()


@pytest.mark.parametrize("grace_seconds", [3600.0, -3600.0])
def test_restore_keeps_what_a_run_removes_meanwhile(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch, grace_seconds: float
) -> None:
    """The run looks between the check of a restore and its entry; without a grace time it takes the file."""
    stop_before_removal(kit, monkeypatch)
    digest, check, went = kit.digest("finance@1"), packages.check_kept, list[bool]()

    def check_and_remove(registry: Any, version: Any) -> None:
        check(registry, version)
        if not went:
            with kit.open() as other:
                went.append(remove_original(other, digest, lambda version: None, grace_seconds))

    with monkeypatch.context() as patched, kit.open() as registry:
        patched.setattr(packages, "check_kept", check_and_remove)
        bring_back(registry, "finance@1", actor="ana", reason="look")
    assert went == [grace_seconds < 0]
    assert "finance@1" in kit.here()
    with kit.open() as registry:
        assert "finance@1" not in archived(registry)
    kit.require_whole()


def test_restore_gives_up_where_a_run_always_wins(kit: OldRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_before_removal(kit, monkeypatch)
    digest, check = kit.digest("finance@1"), packages.check_kept

    def check_and_remove(registry: Any, version: Any) -> None:
        check(registry, version)
        with kit.open() as other:
            remove_original(other, digest, lambda version: None, -3600.0)

    with monkeypatch.context() as patched, kit.open() as registry:
        patched.setattr(packages, "check_kept", check_and_remove)
        with pytest.raises(Unavailable, match="finance@1 are taken away while they come back: try again"):
            bring_back(registry, "finance@1", actor="ana", reason="look")
        assert "finance@1" in archived(registry)
    kit.require_whole()


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_restore_takes_an_older_copy_of_lost_weights(kit: OldRegistry, damage: str) -> None:
    kit.run()
    with kit.open() as registry:
        bring_back(registry, "finance@1", actor="ana", reason="look")
        path = registry.files.path(kit.digest("finance@1"))
        path.unlink() if damage == "lost" else path.write_bytes(b"other")
        assert bring_back(registry, "finance@1", actor="ana", reason="lost")
        assert [one.action for one in registry.history("finance@1")].count(RESTORED) == 2
        packages.check_kept(registry, registry.get("finance@1"))
        if damage == "lost":  # as a promotion asks for it
            path.unlink()
            bring_back_if_archived(registry, "finance@1", actor="ana", reason="lost again")
            assert path.is_file()
    kit.require_whole()


@contextmanager
def down(place: Place, relative: str) -> Iterator[None]:
    raise Unavailable(f"{place.url} can't be used (timeout).")
    yield


@pytest.mark.parametrize("how", ["removed", "down"])
def test_rollback_changes_nothing_without_its_archive(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Else the version in production would be revoked, and nothing would return."""
    kit.run()
    note = kit.root / "incident.md"
    note.write_text("# It leaks the names of customers\n")
    why: dict[str, Any] = {"actor": "ben", "reason": "leaks"}
    with kit.open() as registry:
        planned = rollback.plan(registry, "finance@3", "finance@1")
        with monkeypatch.context() as patched:
            if how == "down":
                patched.setattr(Place, "reading", down)
            else:
                shutil.move(kit.root / ".archive", kit.root / "elsewhere")
            with pytest.raises(
                (Damaged, Unavailable), match="finance@1 can't return .*registry revoke finance@3"
            ):
                rollback.roll_back(registry, "finance@3", note, **why, planned=planned)
        assert registry.named("finance", "production") == 3 and "finance@1" in archived(registry)
        if how == "removed":
            shutil.move(kit.root / "elsewhere", kit.root / ".archive")
        assert rollback.roll_back(registry, "finance@3", note, **why, planned=planned).id == "finance@1"
    kit.require_whole()


def test_rollback_without_a_name_may_use_the_archive(kit: OldRegistry) -> None:
    """finance@2 was to return when finance@1 went; then it was revoked."""
    kit.run()
    note = kit.root / "incident.md"
    note.write_text("# It leaks the names of customers\n")
    with kit.open() as registry:
        lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
        assert rollback.plan(registry, "finance@3").returns.id == "finance@1"
        assert "finance@1" in archived(registry)  # a plan changes nothing
        assert rollback.roll_back(registry, "finance@3", note, actor="ben", reason="leaks").id == "finance@1"
        assert registry.named("finance", "production") == 1
        assert packages.verified_path(registry, "finance").name == "finance@1"
    kit.require_whole()


def test_rollback_prefers_weights_that_are_here(kit: OldRegistry) -> None:
    """The archive may be away in an incident; `from_archive` says what would return if all were here."""
    kit.run()
    with kit.open() as registry:
        assert rollback.plan(registry, "finance@3").returns.id == "finance@2"
        registry.files.path(kit.digest("finance@2")).unlink()
        assert rollback.plan(registry, "finance@3").returns.id == "finance@1"
        lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks")
        with pytest.raises(Refused, match="no version to go back to from finance@3"):
            rollback.plan(registry, "finance@3")


def test_run_brings_back_what_a_rollback_needs_by_now(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    kit.run()
    with kit.open() as registry:
        lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
    kit.clock.time = NOW + timedelta(days=1)
    write_events(kit.serving, (kit.clock.time, "finance@3"))
    said = "finance@1 is in the archive, and returns when production is rolled back: `--yes` brings it back"
    assert kit.run(yes=False).notes == [said] and "finance@1" not in kit.here()
    with monkeypatch.context() as patched:
        patched.setattr(Place, "reading", down)
        notes = kit.run().notes
    assert any(
        "finance@1 returns when production is rolled back, and is in the archive alone" in n for n in notes
    )
    run = kit.run()
    assert run.notes == ["finance@1 is no more archived: it returns when production is rolled back"]
    assert "finance@1" in kit.here() and run.removed == 0
    kit.require_whole()


def test_archived_copy_expands_to_no_more_than_it_had(kit: OldRegistry) -> None:
    """A few bytes of zstd may stand for more than the disk has."""
    kit.run()
    path, stored = kit.archived_file("finance@1"), archived_weights._stored
    path.write_bytes(zstandard.ZstdCompressor(level=1).compress(bytes(64 * 2**20)))
    with kit.open() as registry:
        one, arrived = archived(registry)["finance@1"], 0
        with pytest.raises(Damaged, match=r"finance@1 is damaged .* expands to more than its [0-9,]+ bytes"):
            for part in stored(one, None):
                arrived += len(part)
        assert arrived <= one.file.bytes


def test_lost_file_of_a_twin_is_no_archived_one(kit: OldRegistry) -> None:
    """Another version may have the same file, and nothing says that its weights are elsewhere."""
    kit.run()
    folder = kit.root / "twin"
    with kit.open() as registry:
        manifest = build_package(folder, 3, "healthcare", fresh_days=3000)
        registry.register(folder, manifest, actor=AUTHOR)
        path = registry.files.path(kit.digest("healthcare@1"))
        path.unlink()
        said = r"healthcare@1 are in the archive .*archive restore healthcare@1"
        assert any(re.search(said, one) for one in verify(registry).problems)
        with pytest.raises(InArchive, match=said):
            backup(registry, str(kit.root / "backup"))
        bring_back_if_archived(registry, "healthcare@3", actor="ana", reason="look")
        assert path.is_file() and verify(registry).ok
        backup(registry, str(kit.root / "backup"))


def test_clock_ahead_archives_nothing(kit: OldRegistry) -> None:
    write_events(kit.serving, (NOW, "healthcare@1"), (NOW, "finance@1"))
    kit.clock.time = NOW + timedelta(days=100)
    with pytest.raises(Refused, match="A clock that is ahead would archive what is in use"):
        kit.run()
    kit.clock.time = NOW
    assert kit.run().moved == ["media@1"]


def test_messages_of_a_place_have_no_password(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError) as found, Place("ftp://u:secret@127.0.0.1:1/x?sig=secret").reading("a"):
        pass
    assert "127.0.0.1" in str(found.value) and "secret" not in str(found.value)
