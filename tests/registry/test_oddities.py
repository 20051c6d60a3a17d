"""What is merely odd in the file system beside the registry stops no revocation and no rollback."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.backup import backup
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.restoring import restore
from lora_ops.registry.signing_keys import key_fingerprint, keys_home, make_key, public_pem, read_key
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout.rollback import roll_back

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


def gone(path: Path) -> None:
    """Remove a file."""
    path.unlink()


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
    *((make, name) for make in (folder, file, pipe, gone) for name in ("keys/registry.json", "keys/OWN.pub")),
)
"""What takes which place; `memory` is the folder of the head kept outside, and KEY the private key.

OWN is the fingerprint of that key.
"""
IN_THE_WAY = (
    (file, "verified"),
    (pipe, "verified"),
    (folder, "verified/.lock"),
    (pipe, "verified/.lock"),
    (file, "verified/finance@1"),
    (pipe, "verified/finance@1"),
    (file, "files/incoming"),
    (folder, "keys/registry.json"),
)


@contextmanager
def odd(registry: Registry, make: Callable[[Path], None], name: str) -> Iterator[Registry]:
    """Open the registry again once something odd took the place of one of its files."""
    outside = registry.path.parent / "memory"
    memory = HeadMemory(outside / "head.json", str(registry.path))
    memory.remember(registry.log.head())
    key = registry.signer.own.path
    name = name.replace("OWN", registry.signer.own.fingerprint())
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


@pytest.mark.parametrize(("make", "name"), IN_THE_WAY)
def test_oddity_stops_no_load(
    registry: Registry, package: Build, make: Callable[[Path], None], name: str
) -> None:
    """After a rollback the version that returned could not be laid out."""
    registry.register(*package(1), actor=AUTHOR)
    with odd(registry, make, name) as opened:
        assert packages.verified_path(opened, "finance@1").is_dir()


@pytest.mark.parametrize("make", [folder, file])
def test_oddity_where_a_file_is_kept_stops_no_report(
    registry: Registry, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    """The folder's name is the beginning of a digest, so it stopped some reports only."""
    place = registry.files.path(sha256_text("it leaks"))
    make(place if make is folder else place.parent)
    assert registry.files.add_bytes(b"it leaks") == sha256_text("it leaks")
    assert registry.files.checked(sha256_text("it leaks"), "the report").read_bytes() == b"it leaks"
    assert list(registry.files.digests()) == [sha256_text("it leaks")]


def test_lost_identity_is_not_guessed(registry: Registry, package: Build) -> None:
    """Two private keys that have signed here: nobody knows which one is this registry's."""
    registry.register(*package(1), actor=AUTHOR)
    own = registry.signer.own
    other = keys_home() / f"{'a' * 32}.key"
    make_key(other)
    public = public_pem(read_key(other))
    (registry.path / "keys" / f"{key_fingerprint(public)}.pub").write_bytes(public)
    folder(registry.path / "keys/registry.json")
    with pytest.raises(LoraOpsError, match=r"registry.json, which names .* restore the registry from a backup"):
        own.identity()
    other.unlink()
    assert own.identity().key == own.fingerprint()


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
