"""What is merely odd in the file system beside the registry stops no revocation and no rollback."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lora_ops.incidents import roll_back
from lora_ops.registry import lifecycle
from lora_ops.registry.backup import backup, restore
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, Build, Story


def folder(path: Path) -> None:
    """Put a folder with something in it where a file or a folder was."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    (path / "something").write_text("odd")


def file(path: Path) -> None:
    """Put a file where something else was."""
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("odd")


def pipe(path: Path) -> None:
    """Put a pipe, which nobody reads, where something else was."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


ODD = (
    (folder, "audit.head"),
    (file, "audit.head"),
    (folder, "memory/head.json"),
    (file, "memory/head.json"),
    (folder, "memory/head.lock"),
    (file, "verified"),
    (file, "verified/finance@1"),
    (folder, "verified/finance@1"),
    (folder, "verified/.lock"),
    (file, "files/incoming"),
    (folder, "keys/odd.pub"),
    (file, "keys/odd.pub"),
    (folder, "keys/signing.key"),
    (folder, "KEY.next"),
    (file, "KEY.next"),
    (folder, "sync.lock"),
    (pipe, "audit.head"),
    (pipe, "memory/head.json"),
    (pipe, "memory/head.lock"),
    (pipe, "verified/.lock"),
    (pipe, "files/incoming"),
    (pipe, "keys/odd.pub"),
    (pipe, "KEY.next"),
)
"""What takes which place; `memory` is the folder of the head kept outside, and KEY the private key."""


@contextmanager
def odd(registry: Registry, make: Callable[[Path], None], name: str) -> Iterator[Registry]:
    """Open the registry again once something odd took the place of one of its files."""
    outside = registry.path.parent / "memory"
    memory = HeadMemory(outside / "head.json", str(registry.path))
    memory.remember(registry.log.head())
    key = registry.signer.own.path
    if name == "KEY.next":
        make(key.with_name(f"{key.name}.next"))
    else:
        make(outside / name.partition("/")[2] if name.startswith("memory/") else registry.path / name)
    with closing(
        Registry(registry.path, owners=registry.owners, clock=registry.clock, memory=memory)
    ) as opened:
        opened.least = registry.least
        yield opened


@pytest.mark.parametrize(("make", "name"), ODD)
def test_oddity_stops_no_revocation(
    registry: Registry, package: Build, story: Story, make: Callable[[Path], None], name: str
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    with odd(registry, make, name) as opened:
        lifecycle.revoke(opened, "finance@1", actor="ci", reason="it leaks")
        assert opened.get("finance@1", whole=False).state == "revoked"
        assert opened.named("finance", "production") is None
        assert [one for one in verify(opened).problems if "state" in one] == []


@pytest.mark.parametrize(("make", "name"), ODD)
def test_oddity_stops_no_rollback(
    registry: Registry, package: Build, story: Story, make: Callable[[Path], None], name: str
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    record = story.folder / "incident.json"
    record.write_text("Card numbers in its answers since this morning.")
    with odd(registry, make, name) as opened:
        roll_back(opened, "finance@2", record, actor="ci", reason="it leaks")
        assert opened.get("finance@2", whole=False).state == "revoked"
        assert opened.named("finance", "production") == 1
        assert [one for one in verify(opened).problems if "state" in one] == []


@pytest.mark.parametrize("make", [folder, file, pipe])
def test_odd_key_stops_no_backup(
    registry: Registry, package: Build, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """A backup held a file that is no key, and could not be restored."""
    registry.register(*package(1), actor=AUTHOR)
    make(registry.path / "keys/notes.pub")
    backup(registry, str(tmp_path / "backup"))
    restore(str(tmp_path / "backup"), tmp_path / "restored")
    assert not (tmp_path / "restored/keys/notes.pub").exists()
