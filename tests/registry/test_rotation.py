"""The private key: apart from the registry, never replaced unseen, rotated as an entry of the log."""

import re
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.registry import lifecycle
from lora_ops.registry.audit import Anchor
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.owners import Owners
from lora_ops.registry.rotation import rotate_key
from lora_ops.registry.signing import Signer
from lora_ops.registry.signing_keys import MissingKey, keys_home, make_key
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.serving.router import NotServed, Router
from lora_ops.settings.registry import SigningSettings

from . import processes
from .conftest import Build, Clock


def again(registry: Registry, **options: object) -> Registry:
    return Registry(registry.path, owners=registry.owners, clock=registry.clock, **options)  # type: ignore[arg-type]


def private_keys(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def test_private_key_is_apart_from_the_registry(registry: Registry, package: Build) -> None:
    """A8: the key lay in the folder that is to be backed up."""
    registry.register(*package())
    assert private_keys(registry.path) == []
    assert registry.signer.own.path.parent == keys_home()


def test_copy_of_a_registry_finds_its_key(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package(1))
    registry.close()
    shutil.copytree(registry.path, tmp_path / "copy")
    copy = Registry(tmp_path / "copy", owners=registry.owners, clock=registry.clock)
    assert copy.register(*package(2))[0].id == "finance@2"
    assert verify(copy).ok


def test_two_registries_have_two_keys(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package())
    other = Registry(tmp_path / "other", create=True)
    other.register(*package())
    assert registry.signer.own.fingerprint() != other.signer.own.fingerprint()


def test_missing_key_is_never_replaced_unseen(registry: Registry, package: Build) -> None:
    """A8: a new key was made silently, and the chain went on."""
    registry.register(*package(1))
    registry.signer.own.path.unlink()
    with pytest.raises(MissingKey, match=r"is not at .*: bring it back .*`lora-ops registry rotate-key"):
        registry.register(*package(2))
    lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks")
    [hold] = registry.held()
    assert not hold.is_signed and "bring it back" in str(registry.not_sent)
    assert registry.log.head().seq == 1 and len(registry.signer.known()) == 1
    assert verify(registry).ok  # what is there needs no private key


def test_key_in_another_place_signs_nothing(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package(1))
    make_key(tmp_path / "other.key")
    other = again(registry, signing=SigningSettings(key=str(tmp_path / "other.key")))
    with pytest.raises(Refused, match="private key .* is not the one that the audit log names"):
        other.register(*package(2))
    assert verify(again(registry)).ok


def test_environment_names_the_key(
    registry: Registry, package: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORA_OPS_SIGNING_KEY", str(tmp_path / "vault/team.key"))
    registry.register(*package())
    assert (tmp_path / "vault/team.key").stat().st_mode & 0o777 == 0o600
    assert verify(registry).ok


def test_key_of_an_earlier_release_is_moved(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package(1))
    fingerprint = registry.signer.own.fingerprint()
    registry.signer.own.path.rename(registry.path / "keys/signing.key")
    (registry.path / "keys/registry.json").unlink()
    assert any("lies in the registry's folder" in note for note in verify(registry).warnings)
    opened = again(registry)
    opened.register(*package(2))
    assert opened.signer.own.fingerprint() == fingerprint
    assert private_keys(registry.path) == []
    assert verify(opened).ok


def test_key_put_into_the_folder_is_not_taken(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    mine = registry.signer.own.fingerprint()
    make_key(registry.path / "keys/signing.key")
    registry.register(*package(2))
    assert registry.signer.own.fingerprint() == mine
    assert any("lies in the registry's folder" in note for note in verify(registry).warnings)


def test_head_signed_by_a_slipped_in_key_is_named(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    stranger = Signer(registry.signer.folder, SigningSettings(key="own.key"))
    make_key(stranger.own.path)
    Anchor(registry.anchor.path, stranger).confirm(registry.log.head())
    (problem,) = verify(registry).problems
    assert problem.startswith("audit.head is signed by key") and "the audit log names" in problem


def test_rotated_key_signs_and_the_old_one_agreed(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    old = registry.signer.own.fingerprint()
    new = rotate_key(registry, actor="ben", reason="the laptop was stolen")
    entry = registry.log.entries()[-1]
    assert (entry.action, str(entry.subject), entry.body["old"]) == ("key_rotated", f"key {new}", old)
    assert entry.body["reason"] == "the laptop was stolen" and entry.body["signature"]["key"] == old
    assert registry.signer.own.fingerprint() == new == registry.anchor.signed_by() != old
    assert again(registry).register(*package(2))[0].id == "finance@2"
    result = verify(registry)
    assert result.ok and sorted(registry.signer.known()) == sorted([old, new])


def test_lost_key_is_replaced_and_the_log_says_so(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    registry.signer.own.path.unlink()
    opened = again(registry)
    rotate_key(opened, actor="ben", reason="the disk died")
    opened.register(*package(2))
    result = verify(opened)
    assert result.ok
    assert any("without the old key's signature (ben: the disk died)" in note for note in result.warnings)


def test_key_replaced_by_hand_becomes_an_entry(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    path = registry.signer.own.path
    path.unlink()
    make_key(path)
    with pytest.raises(Refused, match="is not the one that the audit log names"):
        again(registry).register(*package(2))
    rotate_key(again(registry), actor="ben", reason="replaced by hand")
    assert again(registry).register(*package(2))[0].id == "finance@2"
    assert verify(again(registry)).ok


def test_rotation_needs_a_reason_and_a_pinned_key(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    with pytest.raises(LoraOpsError, match="Say why"):
        rotate_key(registry, actor="ben", reason="")
    mine = registry.signer.own.fingerprint()
    pinned = again(registry, signing=SigningSettings(trusted_keys=(mine,)))
    with pytest.raises(Refused, match="is not listed under registry.signing.trusted_keys") as refused:
        rotate_key(pinned, actor="ben", reason="yearly")
    new = str(refused.value).split("(")[1].split(")")[0]
    both = again(registry, signing=SigningSettings(trusted_keys=(mine, new)))
    assert rotate_key(both, actor="ben", reason="yearly") == new
    assert verify(both).problems == ()


@pytest.mark.parametrize("calls", [1, 100, *range(207, 234, 3)])
def test_killed_replacement_of_a_lost_key_goes_on(registry: Registry, tmp_path: Path, calls: int) -> None:
    """The head may be signed already by a key that the log does not name yet."""
    with registry.change("ci") as change:
        change.note("changed", "route", "finance")
    path, owners, clock = registry.path, registry.owners, registry.clock
    memory = HeadMemory(tmp_path / "head.json", ".registry")
    memory.remember(registry.log.head())
    registry.signer.own.path.unlink()
    registry.close()

    def rotate() -> None:
        opened = Registry(path, owners=owners, clock=clock, memory=memory)
        rotate_key(opened, actor="ben", reason="the disk died")

    assert processes.run(rotate, kill_at=calls) in (processes.KILLED, processes.DONE)
    rotate()
    opened = Registry(path, owners=owners, clock=clock, memory=memory)
    assert opened.signer.own.fingerprint() == opened.log.current_key()
    assert verify(opened).ok


@pytest.mark.parametrize("calls", range(1, 130, 7))
def test_killed_rotation_is_mended_by_the_next_change(registry: Registry, package: Build, calls: int) -> None:
    registry.register(*package(1))
    registry.close()
    path, owners, clock = registry.path, registry.owners, registry.clock

    def rotate() -> None:
        rotate_key(Registry(path, owners=owners, clock=clock), actor="ben", reason="yearly")

    assert processes.run(rotate, kill_at=calls) in (processes.KILLED, processes.DONE)
    opened = Registry(path, owners=owners, clock=clock)
    assert verify(opened).ok
    # Rotated again before anything else: the key of the killed rotation must not be lost.
    assert rotate_key(opened, actor="ben", reason="again") == opened.log.current_key()
    assert opened.signer.own.fingerprint() == opened.log.current_key()
    opened.register(*package(2))
    assert opened.signer.own.fingerprint() == opened.log.current_key()
    rotate_key(opened, actor="ben", reason="once more")
    assert verify(opened).ok


def test_rotation_hides_no_revocation_from_a_gateway(
    tmp_path: Path, owners: Owners, clock: Clock, package: Build
) -> None:
    """A gateway that lists the keys from before went on with a version that the command called revoked."""

    def opened(*keys: str) -> Registry:
        signing = SigningSettings(trusted_keys=keys)
        found = Registry(tmp_path / "registry", create=True, owners=owners, signing=signing, clock=clock)
        found.allow_candidates = True
        return found

    with closing(opened()) as registry:
        registry.register(*package(), actor="ana")
        old = registry.signer.own.fingerprint()
    with closing(opened(old)) as gateway:
        router = Router(gateway, gateway.get("finance@1").manifest.base_model, allow_candidates=True)
        assert router.route("finance").name == "finance@1"
        with closing(opened(old)) as registry, pytest.raises(Refused) as refused:
            rotate_key(registry, actor="ben", reason="it is old")
        new = re.findall("[0-9a-f]{64}", str(refused.value))[0]
        with closing(opened(old, new)) as registry:
            rotate_key(registry, actor="ben", reason="it is old")
            assert router.damage()
            assert router.route("finance").name == "finance@1"
            lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks")
        with pytest.raises(NotServed, match="finance@1 was revoked"):
            router.route("finance")
