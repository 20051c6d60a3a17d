"""Files are kept once under their digest, and nothing that could run code gets in."""

import os
import pickle
import time
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.hashing import sha256_file
from lora_ops.registry.files import FileStore, check_package, write_atomically

from .conftest import Build


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(b"weights")
    return path


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in folder.iterdir()}


def test_the_same_bytes_are_kept_once(store: FileStore, source: Path) -> None:
    assert store.add(source) == store.add(source) == store.add_bytes(b"weights")
    assert sum(path.is_file() for path in store.root.rglob("*")) == 1


def test_adding_again_mends_a_damaged_copy(store: FileStore, source: Path) -> None:
    digest = store.add(source)
    store.path(digest).write_bytes(b"wei")
    store.add(source)
    assert store.checked(digest, "weights").read_bytes() == b"weights"


def test_bytes_with_another_digest_than_promised_are_not_kept(store: FileStore, source: Path) -> None:
    with pytest.raises(LoraOpsError, match="changed while it was being copied"):
        store.add(source, "0" * 64)
    assert not any(path.is_file() for path in store.root.rglob("*"))


def test_a_damaged_copy_is_named_when_it_is_read(store: FileStore, source: Path) -> None:
    digest = store.add(source)
    store.path(digest).write_bytes(b"other")
    with pytest.raises(LoraOpsError, match="weights was changed on disk"):
        store.checked(digest, "weights")


def test_a_copy_on_a_bad_disk_is_named_and_mended(store: FileStore, source: Path) -> None:
    digest = store.add(source)
    store.path(digest).unlink()
    store.path(digest).symlink_to("/proc/self/mem")  # reading it is an I/O error
    with pytest.raises(Unavailable, match="weights can't be read .*Input/output error"):
        store.checked(digest, "weights")
    store.add(source)
    assert store.checked(digest, "weights").read_bytes() == b"weights"


def test_a_lost_copy_is_named_when_it_is_read(store: FileStore) -> None:
    with pytest.raises(LoraOpsError, match="has lost weights"):
        store.checked("0" * 64, "weights")


def test_what_a_killed_process_left_is_swept_after_a_day(store: FileStore, source: Path) -> None:
    store.add(source)
    old, new = store.incoming / "old", store.incoming / "new"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    store.sweep()
    assert not old.exists()
    assert new.exists()


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "head"
    write_atomically(path, b"one")
    write_atomically(path, b"two", 0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "deep/cache.PKL", "x.ckpt", "y.pth"])
def test_a_package_that_may_hold_a_pickle_is_refused_even_unlisted(package: Build, name: str) -> None:
    folder, _ = package()
    listed = digests(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(LoraOpsError, match="may hold a pickle"):
        check_package(folder, listed)


def test_a_pickle_that_is_called_safetensors_is_refused(package: Build) -> None:
    folder, _ = package()
    (folder / "adapter_model.safetensors").write_bytes(pickle.dumps(list(range(1000))))
    with pytest.raises(LoraOpsError, match="is not a safetensors file"):
        check_package(folder, digests(folder))


def test_half_a_safetensors_header_is_refused(package: Build) -> None:
    folder, _ = package()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LoraOpsError, match="is not a safetensors file"):
        check_package(folder, digests(folder))


def test_a_package_without_weights_is_refused(package: Build) -> None:
    folder, _ = package()
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(LoraOpsError, match="holds no safetensors"):
        check_package(folder, digests(folder))


@pytest.mark.parametrize(
    "name",
    [
        "../escape.json",
        "/etc/passwd",
        "a/../../b.json",
        "a\\b.json",
        "model.sig",
        "./model.sig",
        "model.sig/notes.json",
        "manifest.json/notes.json",
        "a//b.json",
    ],
)
def test_a_name_that_leaves_the_folder_or_is_taken_is_refused(package: Build, name: str) -> None:
    folder, _ = package()
    with pytest.raises(LoraOpsError, match="may not hold a file named"):
        check_package(folder, {name: "0" * 64})


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="no package folder"):
        check_package(tmp_path / "none", {})
