"""A verified copy is whole or laid out again, and goes with its version."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, Unavailable
from lora_ops.processes import locked
from lora_ops.registry import copies, lifecycle, packages
from lora_ops.registry.copies import Copies
from lora_ops.registry.store import Registry

from . import processes
from .conftest import Build


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def change(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 64}')


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "README.md").unlink()


def add(folder: Path) -> None:
    (folder / "extra.json").write_text("{}")


def change_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


def make_unreadable(folder: Path) -> None:
    remove(folder)
    (folder / "README.md").symlink_to("/proc/self/mem")  # reading it is an I/O error


def replace_by_a_link(folder: Path) -> None:
    folder.rename(folder.parent / ".elsewhere")
    change(folder.parent / ".elsewhere")
    folder.symlink_to(folder.parent / ".elsewhere")


@pytest.mark.parametrize(
    "damage", [change, cut, remove, add, change_the_manifest, make_unreadable, replace_by_a_link]
)
def test_damaged_copy_is_laid_out_again(
    registry: Registry, package: Build, damage: Callable[[Path], None]
) -> None:
    registry.register(*package())
    folder = packages.verified_path(registry, "finance@1")
    whole = contents(folder)
    damage(folder)
    assert packages.verified_path(registry, "finance@1") == folder
    assert contents(folder) == whole and not folder.is_symlink()


def test_laying_out_leaves_a_folder_that_is_read(registry: Registry, package: Build) -> None:
    registry.register(*package())
    folder = packages.verified_path(registry, "finance@1")
    before = (folder / "adapter_model.safetensors").read_bytes()
    with (folder / "adapter_model.safetensors").open("rb") as file:
        change(folder)
        packages.verified_path(registry, "finance@1")
        assert file.read() == before


def test_copy_is_refused_when_kept_file_is_damaged_too(registry: Registry, package: Build) -> None:
    _, manifest = package()
    registry.register(*package())
    folder = packages.verified_path(registry, "finance@1")
    change(folder)
    registry.files.path(manifest.files["adapter_config.json"].sha256).write_text("{}")
    with pytest.raises(Damaged, match=r"was changed on disk: .*register the same package again, or restore"):
        packages.verified_path(registry, "finance@1")
    registry.register(*package())  # which mends it
    assert packages.verified_path(registry, "finance@1") == folder


@pytest.mark.parametrize("calls", range(1, 160, 9))
def test_killed_laying_out_is_mended_by_the_next(registry: Registry, package: Build, calls: int) -> None:
    registry.register(*package())
    folder = packages.verified_path(registry, "finance@1")
    whole, path = contents(folder), registry.path
    change(folder)

    def load() -> None:
        packages.verified_path(Registry(path), "finance@1")

    assert processes.run(load, kill_at=calls) in (processes.KILLED, processes.DONE)
    change(folder)
    assert packages.verified_path(registry, "finance@1") == folder
    assert contents(folder) == whole
    assert not list(folder.parent.glob(".laid-out-*"))


def test_processes_that_mend_together_lay_out_once(registry: Registry, package: Build) -> None:
    registry.register(*package())
    path = registry.path
    change(packages.verified_path(registry, "finance@1"))

    def load() -> None:
        packages.verified_path(Registry(path), "finance@1")

    started = [processes.start(load) for _ in range(4)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 4
    assert len(list(registry.files.incoming.glob("copy-*"))) == 1


@pytest.mark.parametrize("end", [lifecycle.reject, lifecycle.revoke])
def test_copy_of_closed_version_is_removed(
    registry: Registry, package: Build, end: Callable[..., object]
) -> None:
    """vLLM loads by path: a folder that stays could be loaded past the gateway."""
    for seed in (1, 2):
        registry.register(*package(seed))
        packages.verified_path(registry, f"finance@{seed}")
    end(registry, "finance@1", actor="ben", reason="leaks names")
    assert registry.copies.names() == ["finance@2"]


def test_copy_that_can_not_be_removed_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A revocation must not fail because a folder stays; `gc` takes it later."""
    copies = Copies(tmp_path / "verified", tmp_path / "file/aside")
    copies.folder("finance@1").mkdir(parents=True)
    (tmp_path / "file").write_text("a file where a folder belongs")
    copies.forget("finance@1")
    assert "The verified copy of finance@1 could not be removed" in caplog.text
    assert copies.names() == ["finance@1"]


def test_laying_out_waits_for_no_stopped_process(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(*package())
    monkeypatch.setattr(copies, "LONGEST_REPAIR", 0.1)
    registry.copies.root.mkdir()
    with (
        locked(registry.copies.root / ".lock", seconds=0),
        pytest.raises(Unavailable, match="finance@1 can't be laid out in .*: another process holds it"),
    ):
        packages.verified_path(registry, "finance@1")
    assert packages.verified_path(registry, "finance@1").is_dir()
