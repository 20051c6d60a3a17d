"""What nothing names goes; what anything names, or is being added, stays."""

import os
import time
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.records.manifest import Manifest
from lora_ops.registry import gc, lifecycle, packages
from lora_ops.registry.gc import collect_garbage, find_garbage
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from . import processes
from .conftest import AUTHOR, Build, Story

LONG_AGO = 10 * 24 * 3600


def age(registry: Registry) -> None:
    """Let every kept file look old."""
    then = time.time() - LONG_AGO
    for digest in registry.files.digests():
        os.utime(registry.files.path(digest), (then, then))


def refuse(registry: Registry) -> str:
    """Keep what a change that was refused leaves behind; gives its digest."""
    return registry.files.add_bytes(b"# not enough\n")


def test_report_of_a_refused_change_goes(registry: Registry, package: Build) -> None:
    """A13: each refused promotion left its report behind for ever."""
    registry.register(*package(), actor=AUTHOR)
    orphan = refuse(registry)
    age(registry)
    assert [one.digest for one in find_garbage(registry).orphans] == [orphan]
    done = collect_garbage(registry)
    assert [one.digest for one in done.orphans] == [orphan] and done.bytes == len("# not enough\n")
    assert not registry.files.holds(orphan)
    assert verify(registry).ok
    assert collect_garbage(registry) == ((), (), 0)


def test_everything_that_is_named_stays(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks")
    age(registry)
    before = sorted(registry.files.digests())
    assert collect_garbage(registry).orphans == ()
    assert sorted(registry.files.digests()) == before
    assert verify(registry).ok


def test_young_file_stays(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    orphan = refuse(registry)
    assert collect_garbage(registry).orphans == ()
    assert registry.files.holds(orphan)
    assert [one.digest for one in find_garbage(registry, timedelta(0)).orphans] == [orphan]


def test_old_orphan_that_is_kept_again_stays(registry: Registry, package: Build) -> None:
    """Registering finds the file there and does not write it again: it must count as young."""
    registry.register(*package(), actor=AUTHOR)
    orphan = refuse(registry)
    age(registry)
    listed = find_garbage(registry).orphans
    refuse(registry)
    assert [one.digest for one in listed] == [orphan]
    assert not registry.files.remove(orphan, 24 * 3600)
    assert registry.files.holds(orphan)


def test_orphan_of_another_user_that_is_registered_stays(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a shared registry nobody may touch another user's file, so it stays old though a version names it."""
    registry.register(*package(1), actor=AUTHOR)
    folder, manifest = package(2)
    for name in manifest.files:
        registry.files.add(folder / name)
    age(registry)
    listed = gc.find_garbage

    def register_meanwhile(*given: Any) -> gc.Garbage:
        found = listed(*given)
        assert found.orphans
        monkeypatch.setattr(os, "utime", refuse_touch)
        with closing(Registry(registry.path, owners=registry.owners, clock=registry.clock)) as other:
            other.register(folder, manifest, actor=AUTHOR)
        return found

    monkeypatch.setattr(gc, "find_garbage", register_meanwhile)
    assert collect_garbage(registry).orphans == ()
    assert verify(registry).ok


def refuse_touch(*given: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_file_that_goes_while_it_is_registered_is_kept_again(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The collection came after the file was found there, and before the entry that names it."""
    folder, manifest = package(1)
    kept = registry.files.add(folder / "adapter_model.safetensors")
    sign = Registry._sign

    def collect_meanwhile(mine: Registry, draft: Manifest) -> bytes:
        signature = sign(mine, draft)
        age(registry)
        assert kept in {one.digest for one in collect_garbage(registry).orphans}
        return signature

    with closing(Registry(registry.path, owners=registry.owners, clock=registry.clock)) as other:
        monkeypatch.setattr(Registry, "_sign", collect_meanwhile)
        other.register(folder, manifest, actor=AUTHOR)
    assert verify(registry).ok
    assert packages.verified_path(registry, "finance@1").is_dir()


def test_copy_of_a_version_registered_meanwhile_stays(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The versions were listed before the copies, so a new one's copy had no version."""
    registry.register(*package(1), actor=AUTHOR)
    names, waiting = registry.copies.names, [package(2)]

    def register_meanwhile() -> list[str]:
        while waiting:
            with closing(Registry(registry.path, owners=registry.owners, clock=registry.clock)) as other:
                other.register(*waiting.pop(), actor=AUTHOR)
                packages.verified_path(other, "finance@2")
        return names()

    monkeypatch.setattr(registry.copies, "names", register_meanwhile)
    assert collect_garbage(registry).copies == ()
    assert names() == ["finance@2"]


def test_copies_of_closed_and_unknown_versions_go(registry: Registry, package: Build) -> None:
    for seed in (1, 2):
        registry.register(*package(seed))
        packages.verified_path(registry, f"finance@{seed}")
    registry.copies.folder("finance@1").rename(registry.copies.root / "finance-1")  # as earlier releases did
    (registry.copies.root / "media@7").mkdir()
    assert collect_garbage(registry).copies == ("finance-1", "media@7")
    assert registry.copies.names() == ["finance@2"]


def test_nothing_goes_where_the_log_was_changed(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    orphan = refuse(registry)
    age(registry)
    registry.db.rows("DROP TRIGGER audit_keeps")
    registry.db.rows("DELETE FROM audit")
    with pytest.raises(LoraOpsError, match="can't be trusted, so nothing is removed: entry 1 was removed"):
        collect_garbage(registry)
    assert registry.files.holds(orphan)


def test_nothing_goes_where_an_earlier_entry_was_changed(
    registry: Registry, package: Build, story: Story
) -> None:
    """Only the last entry was compared with the signed head, so the report of a changed one went."""
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "shadow")
    age(registry)
    before = sorted(registry.files.digests())
    registry.db.rows("DROP TRIGGER audit_stays")
    registry.db.rows("UPDATE audit SET body = '{}' WHERE action = 'validated'")
    opened = Registry(registry.path, owners=registry.owners, clock=registry.clock)
    with closing(opened), pytest.raises(LoraOpsError, match=r"nothing is removed: entry 3 .* was changed"):
        collect_garbage(opened)
    assert sorted(registry.files.digests()) == before


def test_files_of_a_changed_manifest_stay(registry: Registry, package: Build) -> None:
    """Whoever restores the manifest needs them, as those of a lost one."""
    registry.register(*package(), actor=AUTHOR)
    age(registry)
    before = sorted(registry.files.digests())
    registry.db.rows("UPDATE manifests SET manifest = '{}'")
    assert collect_garbage(registry).orphans == ()
    assert sorted(registry.files.digests()) == before


def test_odd_file_among_the_kept_ones_stays(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    there = {path.name for path in registry.files.root.iterdir()}
    free = next(name for name in (f"{i:02x}" for i in range(256)) if name not in there)
    odd = registry.files.root / free
    odd.write_text("odd")
    before = sorted(registry.files.digests())
    assert collect_garbage(registry).orphans == ()
    assert odd.read_text() == "odd" and sorted(registry.files.digests()) == before


def test_registering_goes_on_while_garbage_is_collected(registry: Registry, package: Build) -> None:
    built = [package(seed) for seed in range(1, 9)]
    path, owners, clock = registry.path, registry.owners, registry.clock

    def write() -> None:
        opened = Registry(path, owners=owners, clock=clock)
        for one in built:
            opened.register(*one)

    def clean() -> None:
        opened = Registry(path, owners=owners, clock=clock)
        for _ in range(40):
            collect_garbage(opened)

    started = [processes.start(work) for work in (write, clean, clean)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 3
    assert verify(registry).ok and len(registry.summaries()) == 8


def test_verify_counts_orphans(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    refuse(registry)
    age(registry)
    result = verify(registry)
    assert result.ok
    assert any("1 kept file is named by nothing (13 bytes)" in one for one in result.warnings)
