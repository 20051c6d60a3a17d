"""Only registering makes a registry; whatever reads one says that there is none, and makes nothing."""

import resource
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Damaged, LoraOpsError, Unavailable
from lora_ops.registry.backends import open_registry
from lora_ops.registry.database import MissingRegistry
from lora_ops.registry.store import Registry
from tests.conftest import run_forked, small_clone, write_params
from tests.wandb_server import WandbServer

from .conftest import Build, build_package

READING = (
    ["list"],
    ["show", "finance@1"],
    ["history", "finance@1"],
    ["diff", "finance@1", "finance@2"],
    ["due"],
    ["verify"],
    ["export", "finance@1", "out"],
    ["revoke", "finance@1", "--reason", "leaks"],
    ["promote", "finance@1", "validated", "--reason", "good"],
)


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """A clone in which nothing was registered yet."""
    small_clone(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_command_on_missing_registry_makes_none(empty: Path, words: list[str]) -> None:
    done = run_forked("lora-ops", "registry", *words, cwd=empty, LORA_OPS_ROOT=str(empty))
    assert done.returncode not in (0, 1)
    assert f"There is no registry in {empty / '.registry'}: `lora-ops register` makes one, and" in done.stderr
    assert not (empty / ".registry").exists()


def test_deleted_registry_does_not_verify(empty: Path) -> None:
    with closing(open_registry(empty, create=True)) as registry:
        registry.register(empty / "package", build_package(empty / "package", 1))
    shutil.rmtree(empty / ".registry")
    done = run_forked("lora-ops", "registry", "verify", cwd=empty, LORA_OPS_ROOT=str(empty))
    assert done.returncode != 0
    assert not (empty / ".registry").exists()


@pytest.mark.parametrize("left", ["nothing", "an empty file", "a database without tables"])
def test_registry_whose_making_was_cut_off_is_missing(tmp_path: Path, package: Build, left: str) -> None:
    path = tmp_path / "registry"
    path.mkdir()
    if left != "nothing":
        (path / "registry.sqlite").touch()
    if left == "a database without tables":
        sqlite3.connect(path / "registry.sqlite").execute("PRAGMA journal_mode = WAL")
    with pytest.raises(MissingRegistry):
        Registry(path)
    made = Registry(path, create=True)
    assert made.register(*package())[1]
    made.close()
    again = Registry(path)
    assert again.get("finance").id == "finance@1"


def test_shared_registry_that_is_empty_is_missing(empty: Path, server: WandbServer) -> None:
    write_params(empty, {"registry.backend": "wandb"})
    with pytest.raises(MissingRegistry):
        open_registry(empty)
    open_registry(empty, create=True).close()


def in_circle(path: Path) -> None:
    path.symlink_to(path.name)


def to_nowhere(path: Path) -> None:
    path.symlink_to("not/mounted")


def as_a_file(path: Path) -> None:
    path.write_text("a file")


def full_of_others(path: Path) -> None:
    path.mkdir()
    (path / "rows.csv").write_text("text,label\n")


@pytest.mark.parametrize("words", [["list"], ["verify"], ["restore", "backups"]], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("made", "says"),
    [
        (in_circle, "registry.path: {path} is a symlink that leads back to itself: mend it."),
        (to_nowhere, "{path}, which should be the registry, is a symlink that leads nowhere: mend it."),
        (as_a_file, "{path} is a file, and a registry is a folder: correct registry.path."),
        (full_of_others, "{path} is no registry, and holds other things (rows.csv): name a folder of its own"),
    ],
)
def test_folder_that_is_no_registry_is_named(
    empty: Path, words: list[str], made: Callable[[Path], None], says: str
) -> None:
    path = empty / ".registry"
    made(path)
    done = run_forked("lora-ops", "registry", *words, cwd=empty, LORA_OPS_ROOT=str(empty))
    if words[0] == "restore" and made in (as_a_file, full_of_others):
        assert done.returncode == 3 and f"{path} is there already: move it away first" in done.stderr
    else:
        assert done.returncode == 2 and says.format(path=path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_registry_is_made_among_other_things(tmp_path: Path) -> None:
    full_of_others(tmp_path / "data")
    with pytest.raises(LoraOpsError, match="holds other things"):
        Registry(tmp_path / "data", create=True)
    assert [one.name for one in (tmp_path / "data").iterdir()] == ["rows.csv"]


def test_database_with_a_flipped_bit_is_one_sentence(tmp_path: Path) -> None:
    """SQLite quotes the byte, which is no UTF-8."""
    Registry(tmp_path, create=True).close()
    path = tmp_path / "registry.sqlite"
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE aliases", b"CREA\xe1E TABLE aliases"))
    with pytest.raises(Damaged, match="registry.sqlite is damaged .*: restore it from a backup"):
        Registry(tmp_path)


def test_disk_that_takes_nothing_more_is_one_sentence(tmp_path: Path) -> None:
    """SQLite says no more than "disk I/O error" of a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(Unavailable, match=r"can't be written or read \(disk I/O error\): it is full"):
            Registry(tmp_path / "registry", create=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    Registry(tmp_path / "registry", create=True).close()
