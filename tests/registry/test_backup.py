"""A backup is whole or doesn't count, and a restored registry verifies before it gets its name."""

import errno
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import pytest
from typer.testing import CliRunner, Result

import lora_ops.registry.backup as backup_module
from lora_ops.errors import Damaged, LoraOpsError, NotFound, Refused, Unavailable
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.audit import Head
from lora_ops.registry.backends import open_registry
from lora_ops.registry.backup import backup
from lora_ops.registry.backup_place import LIST, Place
from lora_ops.registry.commands import app
from lora_ops.registry.restoring import UNFINISHED, restore
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from tests.conftest import small_clone

from . import processes
from .conftest import AUTHOR, Build, Story, build_package


@pytest.fixture
def serving(registry: Registry, package: Build, story: Story) -> Registry:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "shadow")
    registry.register(*package(2), actor=AUTHOR)
    return registry


@pytest.fixture(params=["folder", "file://", "memory://"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "memory://":
        yield "memory://backups/registry"
        fsspec.filesystem("memory").rm("/backups", recursive=True)
    else:
        yield f"{request.param.removeprefix('folder')}{tmp_path}/backups"


def test_restored_registry_is_the_one_that_was_backed_up(serving: Registry, url: str, tmp_path: Path) -> None:
    made = backup(serving, url)
    assert (made.head, made.sent) == (serving.log.head(), made.files)
    restore(url, tmp_path / "restored")
    with closing(Registry(tmp_path / "restored", owners=serving.owners, clock=serving.clock)) as restored:
        assert restored.log.entries() == serving.log.entries()
        assert restored.summaries() == serving.summaries()
        assert verify(restored).ok
        assert packages.verified_path(restored, "finance@1").is_dir()
        lifecycle.revoke(restored, "finance@2", actor="ben", reason="leaks")  # with the key of this machine
        assert verify(restored).ok
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


def test_private_key_is_in_no_backup(serving: Registry, tmp_path: Path) -> None:
    backup(serving, str(tmp_path / "backups"))
    files = [path for path in (tmp_path / "backups").rglob("*") if path.is_file()]
    assert files and not any(b"PRIVATE KEY" in path.read_bytes() for path in files)


def test_second_backup_sends_what_is_new(serving: Registry, url: str, package: Build, tmp_path: Path) -> None:
    first = backup(serving, url)
    assert backup(serving, url).sent == 0
    serving.register(*package(3), actor=AUTHOR)
    third = backup(serving, url)
    assert 0 < third.sent < first.sent
    for number, head in ((2, first.head), (3, None)):
        restore(url, tmp_path / f"restored-{number}", head=head)
        with closing(Registry(tmp_path / f"restored-{number}")) as restored:
            assert len(restored.summaries()) == number


@pytest.mark.parametrize("name", ["files/*/*", "snapshots/*/registry.sqlite", "snapshots/*/audit.head"])
def test_backup_mends_a_damaged_copy_of_the_same_size(serving: Registry, tmp_path: Path, name: str) -> None:
    """Restoring found it, when the registry was gone."""
    url = str(tmp_path / "backups")
    backup(serving, url)
    flip(tmp_path / "backups", name)
    again = backup(serving, url)
    assert (again.sent, again.mended) == (0, 1)
    restore(url, tmp_path / "restored")
    assert backup(serving, url).mended == 0


def test_restore_refuses_a_folder_that_holds_something(serving: Registry, tmp_path: Path) -> None:
    backup(serving, str(tmp_path / "backups"))
    with pytest.raises(Refused, match="is there already: move it away first"):
        restore(str(tmp_path / "backups"), serving.path)
    (tmp_path / "empty").mkdir()
    restore(str(tmp_path / "backups"), tmp_path / "empty")
    assert (tmp_path / "empty/registry.sqlite").is_file()


def kept(folder: Path, pattern: str = "files/*/*") -> Path:
    return next(path for path in sorted(folder.glob(pattern)) if path.is_file())


def flip(folder: Path, pattern: str = "files/*/*") -> None:
    """Change the last byte of a copy, whose size stays."""
    path = kept(folder, pattern)
    path.write_bytes(path.read_bytes()[:-1] + b"~")


def lose(folder: Path) -> None:
    kept(folder).unlink()


def cut_the_database(folder: Path) -> None:
    path = next(folder.glob("snapshots/*/registry.sqlite"))
    path.write_bytes(path.read_bytes()[:-100])


def change_the_head(folder: Path) -> None:
    """The list fits the changed file, as it does for whoever can write at the backup's place."""
    from lora_ops.hashing import sha256_file

    path = next(folder.glob("snapshots/*/audit.head"))
    path.write_text(path.read_text().replace('"value": "', '"value": "AAAA'))
    listed = path.with_name(LIST)
    content = json.loads(listed.read_text())
    content["small"]["audit.head"] = sha256_file(path)
    listed.write_text(json.dumps(content))


def leave_the_folder(folder: Path) -> None:
    listed = next(folder.glob(f"snapshots/*/{LIST}"))
    content = json.loads(listed.read_text())
    content["small"]["../../../stolen"] = "0" * 64
    listed.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [flip, lose, cut_the_database, change_the_head, leave_the_folder])
def test_damaged_backup_is_not_restored(serving: Registry, tmp_path: Path, damage: object) -> None:
    backup(serving, str(tmp_path / "backups"))
    damage(tmp_path / "backups")  # type: ignore[operator]
    with pytest.raises(Damaged):
        restore(str(tmp_path / "backups"), tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not list(tmp_path.glob(f"{UNFINISHED}*"))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"schema": 1, "head": [1], "at": "", "small": {}, "files": []},
        {"schema": 1, "head": [1, "a"], "small": 5},
    ],
)
def test_snapshot_of_another_form_stops_no_other(serving: Registry, tmp_path: Path, content: object) -> None:
    made = backup(serving, str(tmp_path / "backups"))
    other = tmp_path / "backups/snapshots/other"
    other.mkdir()
    (other / LIST).write_text(json.dumps(content))
    assert restore(str(tmp_path / "backups"), tmp_path / "restored").head == made.head


@pytest.mark.parametrize("cut", [0, 40])
def test_snapshot_without_its_whole_list_counts_for_nothing(
    serving: Registry, tmp_path: Path, cut: int
) -> None:
    backup(serving, str(tmp_path / "backups"))
    listed = next((tmp_path / "backups").glob(f"snapshots/*/{LIST}"))
    listed.write_bytes(listed.read_bytes()[:cut])
    with pytest.raises(NotFound, match="There is no whole snapshot"):
        restore(str(tmp_path / "backups"), tmp_path / "restored")
    backup(serving, str(tmp_path / "backups"))
    restore(str(tmp_path / "backups"), tmp_path / "restored")


@pytest.mark.parametrize("calls", range(1, 400, 23))
def test_killed_backup_is_mended_by_the_next(serving: Registry, tmp_path: Path, calls: int) -> None:
    path, url = serving.path, str(tmp_path / "backups")
    serving.close()
    killed = processes.run(lambda: backup(Registry(path), url), kill_at=calls)
    assert killed in (processes.KILLED, processes.DONE)
    if killed == processes.KILLED:
        with pytest.raises(NotFound):
            restore(url, tmp_path / "early")
    with closing(Registry(path)) as registry:
        backup(registry, url)
    restore(url, tmp_path / "restored")


@pytest.mark.parametrize("calls", range(1, 400, 23))
def test_killed_restore_leaves_no_half_registry(serving: Registry, tmp_path: Path, calls: int) -> None:
    url, target = str(tmp_path / "backups"), tmp_path / "restored"
    backup(serving, url)
    killed = processes.run(lambda: restore(url, target), kill_at=calls)
    assert killed in (processes.KILLED, processes.DONE)
    if not target.exists():
        restore(url, target)
        assert not list(tmp_path.glob(f"{UNFINISHED}*"))  # as large as the registry
    with closing(Registry(target)) as registry:
        assert verify(registry).ok and registry.log.head() == serving.log.head()


def test_damaged_registry_is_not_backed_up(serving: Registry, tmp_path: Path) -> None:
    digest = serving.get("finance@1").manifest.files["README.md"].sha256
    content = serving.files.path(digest).read_bytes()
    serving.files.path(digest).write_text("changed")
    with pytest.raises(Damaged, match="was changed on disk"):
        backup(serving, str(tmp_path / "backups"))
    serving.files.path(digest).write_bytes(content)
    serving.db.rows("DROP TRIGGER audit_keeps")
    serving.db.rows("DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)")
    with pytest.raises(Damaged, match="can't be trusted, so it is not backed up"):
        backup(serving, str(tmp_path / "backups"))
    with pytest.raises(NotFound):
        restore(str(tmp_path / "backups"), tmp_path / "restored")


def test_backup_goes_on_while_others_register(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package(1))
    built, path = [package(seed) for seed in range(2, 12)], registry.path

    def write() -> None:
        opened = Registry(path)
        for one in built:
            opened.register(*one)

    writer = processes.start(write)
    heads = [backup(registry, str(tmp_path / "backups")).head for _ in range(4)]
    assert processes.wait(writer) == processes.DONE
    for number, head in enumerate(dict.fromkeys(heads)):
        restore(str(tmp_path / "backups"), tmp_path / f"restored-{number}", head=head)


@pytest.mark.parametrize(
    ("url", "error", "says"),
    [
        ("nosuch://bucket/x", Unavailable, "can't be used"),
        ("memory://empty", NotFound, "There is no whole snapshot at memory://empty"),
        ("/proc/nothing/here", LoraOpsError, "/proc/nothing/here"),
    ],
)
def test_place_that_can_not_be_used_is_one_sentence(
    serving: Registry, tmp_path: Path, url: str, error: type[LoraOpsError], says: str
) -> None:
    with pytest.raises(error, match=says):
        restore(url, tmp_path / "restored")
    if url != "memory://empty":
        with pytest.raises(LoraOpsError, match="can't be used"):
            backup(serving, url)


def test_unknown_head_is_not_found(serving: Registry, tmp_path: Path) -> None:
    backup(serving, str(tmp_path / "backups"))
    with pytest.raises(NotFound, match="no snapshot that ends at 99:"):
        restore(str(tmp_path / "backups"), tmp_path / "restored", head=Head(99, "a" * 12))


def test_restored_key_is_asked_for(serving: Registry, tmp_path: Path, package: Build) -> None:
    backup(serving, str(tmp_path / "backups"))
    key = serving.signer.own.path
    shutil.move(key, tmp_path / "key")
    restore(str(tmp_path / "backups"), tmp_path / "restored")
    with closing(Registry(tmp_path / "restored")) as restored:
        with pytest.raises(NotFound, match="The private key of this registry is not at"):
            restored.register(*package(3))
        shutil.move(tmp_path / "key", key)
        assert restored.register(*package(3))[1]


def test_commands_back_up_lose_and_restore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older backup is named, because the head is remembered outside, and goes on once it is accepted."""
    small_clone(tmp_path)
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "400")
    url = str(tmp_path / "backups")
    with closing(open_registry(tmp_path, create=True)) as registry:
        registry.register(tmp_path / "one", build_package(tmp_path / "one", 1), actor="ana.silva")
        made = json.loads(CliRunner().invoke(app, ["backup", url, "--json"]).output)
        assert Path(made["private_key"]).is_file()
        registry.register(tmp_path / "two", build_package(tmp_path / "two", 2), actor="ana.silva")
    shutil.rmtree(tmp_path / ".registry")
    restored = CliRunner().invoke(app, ["restore", url, "--json"])
    told = json.loads(restored.output)
    assert told["head"].startswith("1:") and "knows entry 2:" in told["problem"]
    assert CliRunner().invoke(app, ["verify"]).exit_code == 1
    accepted = CliRunner().invoke(app, ["accept-head", "--reason", "the disk died", "--actor", "tom.becker"])
    assert "The audit log goes on from 3:" in accepted.output  # after owners.yaml, by which it was accepted
    assert CliRunner().invoke(app, ["verify", "--json"]).exit_code == 0
    cleaned = CliRunner().invoke(app, ["gc", "--dry-run"])
    assert "0 files and 0 verified copies would go, 0 bytes." in cleaned.output


@pytest.fixture
def restored_twice(serving: Registry, url: str, tmp_path: Path) -> Iterator[tuple[Registry, Registry]]:
    """Two machines that restored the same snapshot, and each changed it."""
    backup(serving, url)
    copies = []
    for number, name in ((3, "one"), (4, "two")):
        restore(url, tmp_path / name)
        copy = Registry(tmp_path / name, owners=serving.owners, clock=serving.clock)
        folder = tmp_path / f"package {name}"
        copy.register(folder, build_package(folder, number), actor=AUTHOR)
        copies.append(copy)
    yield copies[0], copies[1]
    for copy in copies:
        copy.close()


def test_second_of_two_machines_overwrites_nothing(
    serving: Registry, restored_twice: tuple[Registry, Registry], url: str, tmp_path: Path
) -> None:
    first, second = restored_twice
    before = serving.log.head()
    assert backup(first, url, follows=before).head == first.log.head()
    with pytest.raises(Refused, match=f"ends at {first.log.head().text}, not {before.text}"):
        backup(second, url, follows=before)
    assert restore(url, tmp_path / "after").head == first.log.head()
    assert backup(first, url, follows=before).head == first.log.head()  # the same job again
    assert backup(first, url, follows=first.log.head()).head == first.log.head()  # nothing has changed


def test_of_two_backups_at_once_one_is_made(
    serving: Registry, restored_twice: tuple[Registry, Registry], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen the old snapshot as the last one before either of them writes."""
    first, second = restored_twice
    before, look = serving.log.head(), backup_module._refuse_other_last

    def other_is_quicker(*given: Any) -> None:
        look(*given)
        monkeypatch.setattr(backup_module, "_refuse_other_last", look)
        backup(second, url, follows=before)

    monkeypatch.setattr(backup_module, "_refuse_other_last", other_is_quicker)
    with pytest.raises(Refused, match="another backup that follows .* has begun"):
        backup(first, url, follows=before)
    assert {one.head for one in Place(url).snapshots()} == {before, second.log.head()}


@pytest.mark.parametrize(
    "error", [OSError(errno.EINVAL, "Invalid"), ValueError("mode"), None], ids=["s3fs", "unknown", "folder"]
)
def test_turn_is_taken_once_whatever_storage_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """s3fs says EINVAL to the second one, and other storages don't know the mode."""
    place = Place(str(tmp_path))
    assert place.write_new("turns/1", b"a") is None
    real = place._fs.open

    def refusing(path: str, mode: str = "rb", **given: Any) -> Any:
        if mode == "xb" and error:
            raise error
        return real(path, mode, **given)

    monkeypatch.setattr(place._fs, "open", refusing)
    assert place.write_new("turns/1", b"b") == "a"
    if isinstance(error, OSError):
        with pytest.raises(Unavailable, match="Invalid"):
            place.write_new("turns/2", b"b")
    else:
        assert place.write_new("turns/2", b"b") is None


def test_backup_follows_a_snapshot_that_is_there(serving: Registry, tmp_path: Path) -> None:
    url, head = str(tmp_path / "backups"), serving.log.head()
    with pytest.raises(Refused, match="has no snapshot, not "):
        backup(serving, url, follows=head)
    with pytest.raises(Refused, match="was replaced by another one"):
        backup(serving, url, follows=Head(head.seq, "0" * 12))


@pytest.mark.parametrize("calls", range(1, 400, 23))
def test_killed_following_backup_is_made_by_its_machine(
    serving: Registry, package: Build, tmp_path: Path, calls: int
) -> None:
    path, url, before = serving.path, str(tmp_path / "backups"), backup(serving, str(tmp_path / "backups")).head
    serving.register(*package(3), actor=AUTHOR)
    serving.close()
    processes.run(lambda: backup(Registry(path), url, follows=before), kill_at=calls)
    with closing(Registry(path)) as registry:
        head = backup(registry, url, follows=before).head
    assert restore(url, tmp_path / "restored").head == head


def test_a_backup_from_before_a_rotation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`accept-head` asked for the old key, which was gone, and `rotate-key` asked for `accept-head`."""
    small_clone(tmp_path)
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "900")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "my keys"))

    def ran(*words: str) -> Result:
        return CliRunner().invoke(app, [*words])

    with closing(open_registry(tmp_path, create=True)) as registry:
        registry.register(tmp_path / "one", build_package(tmp_path / "one", 1), actor="ana.silva")
    assert ran("backup", str(tmp_path / "backups")).exit_code == 0
    assert ran("rotate-key", "--reason", "yearly", "--actor", "tom.becker").exit_code == 0
    shutil.rmtree(tmp_path / ".registry")
    assert ran("restore", str(tmp_path / "backups")).exit_code == 0
    accept = ("accept-head", "--reason", "the disk died", "--actor", "tom.becker")
    refused = ran(*accept)
    assert isinstance(refused.exception, Refused)
    copied = re.search(r"run `(cp .+?)` and this again", str(refused.exception))
    assert copied
    _, kept, path = shlex.split(copied[1])
    shutil.copy(kept, path)
    assert ran(*accept).exit_code == 0
    assert ran("rotate-key", "--reason", "as it was", "--actor", "tom.becker").exit_code == 0
    verified = ran("verify", "--json")
    assert verified.exit_code == 0 and "without the old key's signature" not in verified.output


@pytest.mark.parametrize("place", ["-", "--url", "~", "~/backup", "back\nup", "backup\t", "\u202epukcab"])
def test_backup_refuses_a_name_that_nobody_means(
    serving: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LoraOpsError, match="is no place for a backup: name a folder or a URL that does not"):
        backup(serving, place)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "place", ["", " ", "{registry}", "{registry}/files", "file://{registry}", "{registry}/.."]
)
def test_backup_refuses_the_registry_itself(serving: Registry, place: str) -> None:
    """A backup that is gone with the registry is none, and its files would lie among the registry's."""
    before = sorted(serving.path.rglob("*"))
    with pytest.raises(LoraOpsError, match="is no place for a backup"):
        backup(serving, place.format(registry=serving.path))
    assert sorted(serving.path.rglob("*")) == before


@pytest.mark.parametrize("place", ["", " ", "a\0b"])
def test_place_that_names_nothing_is_refused(serving: Registry, tmp_path: Path, place: str) -> None:
    with pytest.raises(LoraOpsError):
        backup(serving, place)
    with pytest.raises(LoraOpsError):
        restore(place, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
