"""What is merely odd in the file system beside the registry stops no revocation and no rollback."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.registry import lifecycle
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


@pytest.mark.parametrize(
    ("make", "name"),
    [
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
    ],
)
def test_oddity_stops_no_revocation(
    registry: Registry, package: Build, story: Story, make: Callable[[Path], None], name: str
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
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
        lifecycle.revoke(opened, "finance@1", actor="ci", reason="it leaks")
        assert opened.get("finance@1", whole=False).state == "revoked"
        assert opened.named("finance", "production") is None
        assert [one for one in verify(opened).problems if "state" in one] == []
