"""What the commands say of a version that was revoked on this machine alone, and of one that W&B took."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app as lora_ops
from lora_ops.errors import NotFound, Refused, Unavailable
from lora_ops.processes import locked
from lora_ops.registry import unread as unreadable
from lora_ops.registry.backends import open_registry
from lora_ops.registry.migrations import SCHEMA_VERSION
from lora_ops.serving.router import NotServed, Router
from tests.conftest import write_params
from tests.wandb_server import WandbServer

from .conftest import AT_ONCE
from .test_commands import Cli, cli, root  # noqa: F401 - fixtures

Damage = Callable[[Path], None]


@pytest.fixture
def shared(root: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> Path:  # noqa: F811
    """The clone with its registry at W&B, which is not asked for anything."""
    write_params(root, {"registry.evidence": AT_ONCE, "registry": {"backend": "wandb"}})
    monkeypatch.setenv("WANDB_MODE", "offline")
    return root


@pytest.mark.usefixtures("shared")
def test_revoke_says_that_it_holds_here_and_why(cli: Cli) -> None:  # noqa: F811
    done = cli("revoke", "finance@2", "--reason", "it leaks")
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert said.startswith(
        "finance@2 does not answer on this machine any more. W&B has not taken the revocation"
    )
    assert "is not asked: WANDB_MODE is 'offline'. It is queued: a running gateway, the next change" in said
    assert "Until then other machines serve finance@2: run this command there." in said
    again = json.loads(cli("revoke", "finance@2", "--reason", "again", "--json").stdout)
    assert (again["state"], again["held"]["reason"]) == ("candidate", "it leaks")
    with pytest.raises(Refused, match="mallory may not make finance@1 'revoked'"):
        cli("revoke", "finance@1", "--reason", "it leaks", "--actor", "mallory")


@pytest.mark.usefixtures("shared")
def test_every_page_names_what_is_held(cli: Cli) -> None:  # noqa: F811
    cli("revoke", "finance@2", "--reason", "it leaks")
    said = "finance@2 was revoked on this machine by ben.okafor on "
    for words in (("list",), ("list", "finance"), ("status",), ("show", "finance@2"), ("verify",)):
        done = cli(*words)
        assert (done.exit_code, said in " ".join(done.stdout.split())) == (0, True), words
    listed = {row["adapter"]: row["held"] for row in json.loads(cli("list", "--json").stdout)}
    assert (listed["finance@1"], listed["finance@2"]["actor"]) == (None, "ben.okafor")
    verdict = json.loads(cli("show", "finance@2", "--json").stdout)["verdict"]
    assert verdict["may_serve"] is False
    assert said in verdict["reasons"][0]


def test_sync_sends_what_is_held(
    shared: Path,
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli("revoke", "finance@2", "--reason", "it leaks")
    monkeypatch.setenv("WANDB_MODE", "online")
    done = cli("sync")
    assert "finance@2, which was stopped here, is now 'revoked' at W&B, too." in done.stdout
    assert [row["state"] for row in json.loads(cli("list", "--json").stdout)] == ["candidate", "revoked"]
    assert "(on one machine" in cli("history", "finance@2").stdout
    again = json.loads(cli("sync", "--json").stdout)
    assert (again["revoked"], again["waiting"]) == ([], [])


def test_restore_keeps_stopped_what_was_stopped(shared: Path, cli: Cli) -> None:  # noqa: F811
    cli("backup", str(shared / "backups"))
    cli("revoke", "finance@2", "--reason", "it leaks")
    (shared / ".registry").rename(shared / "lost")
    done = cli("restore", str(shared / "backups"), "--json")
    assert [one.split(" by ")[0] for one in json.loads(done.stdout)["held"]] == [
        "finance@2 was revoked on this machine"
    ]
    assert cli("verify").exit_code == 0


def version(number: int) -> Damage:
    def write(registry: Path) -> None:
        with closing(sqlite3.connect(registry / "registry.sqlite")) as db:
            db.execute(f"PRAGMA user_version = {number}")

    return write


def emptied(registry: Path) -> None:
    (registry / "registry.sqlite").rename(registry.parent / "away.sqlite")
    (registry / "registry.sqlite").touch()


def moved(*after: Damage) -> Damage:
    def move(registry: Path) -> None:
        registry.rename(registry.parent / "away")
        for one in after:
            one(registry)

    return move


def pipe(name: str) -> Damage:
    def make(registry: Path) -> None:
        (registry / name).unlink(missing_ok=True)
        os.mkfifo(registry / name)

    return make


UNREAD: dict[str, Damage] = {
    "a journal that is a pipe": pipe("registry.sqlite-journal"),
    "of a newer lora-ops": version(99),
    "said to be empty": version(0),
    "emptied": emptied,
    "moved away": moved(),
    "a folder of nothing": moved(Path.mkdir),
    "a file": moved(Path.touch),
    "a link to nothing": moved(lambda registry: registry.symlink_to("nothing")),
    "a link to itself": moved(lambda registry: registry.symlink_to(registry.name)),
    "something else": moved(Path.mkdir, lambda registry: (registry / "readme.md").touch()),
}


@pytest.fixture(params=UNREAD)
def unread(root: Path, request: pytest.FixtureRequest) -> Iterator[Router]:  # noqa: F811
    """A gateway's router that serves finance@2, of a registry that nobody can open any more."""
    with closing(open_registry(root)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        UNREAD[request.param](root / ".registry")
        assert router.route("finance@2").name == "finance@2"
        yield router


def test_revocation_holds_where_no_registry_opens(unread: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """Four bytes, or a folder that was moved away, stopped every revocation, and the gateway went on."""
    there = sorted(path.name for path in root.iterdir())
    with pytest.raises(Refused, match="mallory may not make finance@2 'revoked'"):
        cli("revoke", "finance@2", "--reason", "it leaks", "--actor", "mallory")
    assert unread.route("finance@2").name == "finance@2"
    done = cli("revoke", "finance@2", "--reason", "it leaks")
    assert done.exit_code == 0
    assert "finance@2 does not answer any more, and the audit log does not say so yet" in done.stdout
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        unread.route("finance@2")
    assert sorted(path.name for path in root.iterdir()) == there


def test_rollback_stops_where_no_registry_opens(
    unread: Router,
    root: Path,  # noqa: F811
) -> None:
    command = ("rollback", "finance@2", "--reason", "it leaks", "--yes", "--without-notebook")
    done = CliRunner().invoke(lora_ops, command)
    assert isinstance(done.exception, Unavailable)
    assert str(done.exception).startswith("finance@2 does not answer any more, and nothing has returned")
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        unread.route("finance@2")


def test_revoke_says_that_nobody_could_sign(root: Path, cli: Cli) -> None:  # noqa: F811
    """It promised that the next change writes the revocation, which takes a hold that a trusted key signed."""
    with closing(open_registry(root)) as registry:
        key = registry.signer.own.path
    key.rename(key.with_suffix(".away"))
    said = " ".join(cli("revoke", "finance@2", "--reason", "it leaks").stdout.split())
    key.with_suffix(".away").rename(key)
    assert said.endswith("No trusted key signed this: run it again where the registry's private key is.")
    assert "is now 'revoked'" in cli("revoke", "finance@2", "--reason", "it leaks").stdout


def test_revocation_of_no_registry_holds_nothing(root: Path, cli: Cli) -> None:  # noqa: F811
    (root / ".registry").rename(root / "away")
    shutil.rmtree(root / ".serving")
    with pytest.raises(NotFound, match="There is no registry in"):
        cli("revoke", "finance@2", "--reason", "it leaks")
    assert not (root / ".serving").exists() and not (root / ".registry").exists()


def test_revocation_is_ended_when_the_registry_is_back(root: Path, cli: Cli) -> None:  # noqa: F811
    (root / ".registry").rename(root / "away")
    cli("revoke", "finance@2", "--reason", "it leaks")
    (root / "away").rename(root / ".registry")
    assert json.loads(cli("show", "finance@2", "--json").stdout)["verdict"]["may_serve"] is False
    assert "is now 'revoked'" in cli("revoke", "finance@2", "--reason", "it leaks").stdout
    assert not list((root / ".serving/holds").iterdir())
    assert cli("verify").exit_code == 0


def test_hold_that_was_removed_stops_a_running_gateway(unread: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """Whoever could write in both folders let the version answer again, before the log had its revocation."""
    cli("revoke", "finance@2", "--reason", "it leaks")
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        unread.route("finance@2")
    for folder in (root / ".registry/holds", root / ".serving/holds"):
        shutil.rmtree(folder, ignore_errors=True)
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        unread.route("finance@2")


def test_gateway_of_another_clone_keeps_a_hold(root: Path, cli: Cli) -> None:  # noqa: F811
    """Its `.serving` is another one, so whoever removed one file freed the version there for good."""
    other, path = root.parent / "gateway", root / ".registry"
    other.mkdir()
    write_params(other, {"registry": {"path": str(path)}})
    shutil.copy(root / "owners.yaml", other)
    with closing(open_registry(other)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        version(99)(path)
        cli("revoke", "finance@2", "--reason", "it leaks")
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")
    shutil.rmtree(path / "holds")
    version(SCHEMA_VERSION)(path)
    with closing(open_registry(other)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")


def test_revocation_holds_though_all_was_removed(root: Path, cli: Cli) -> None:  # noqa: F811
    """`git clean -fdx` removes `.registry` and `.serving`: nobody could stop what a gateway went on serving."""
    with closing(open_registry(root)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        for name in (".registry", ".serving"):
            shutil.rmtree(root / name)
        router.keep_remembered()  # the gateway does, each second
        assert router.route("finance@2").name == "finance@2"
        cli("revoke", "finance@2", "--reason", "it leaks")
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")


FORGOTTEN: dict[str, Damage] = {
    "an empty object": lambda serving: (serving / "head.json").write_text("{}"),
    "a link to nothing": lambda serving: (
        (serving / "head.json").unlink(),
        (serving / "head.json").symlink_to("no"),
    ),
    "another registry's": lambda serving: (serving / "head.json").write_text('{"other": [3, "ab"]}'),
    "a file": lambda serving: (shutil.rmtree(serving), serving.write_text("")),
}


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_revocation_holds_though_its_memory_was_changed(root: Path, cli: Cli, forgotten: str) -> None:  # noqa: F811
    """With any file in its place nobody kept the head again, and `revoke` said that there is no registry."""
    with closing(open_registry(root)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        shutil.rmtree(root / ".registry")
        FORGOTTEN[forgotten](root / ".serving")
        router.keep_remembered()
        cli("revoke", "finance@2", "--reason", "it leaks")
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")


def test_revocation_holds_where_params_name_no_registry(root: Path, cli: Cli) -> None:  # noqa: F811
    """A branch whose params.yaml has another `registry.path` left the gateway with what nobody could stop."""
    with closing(open_registry(root)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        write_params(root, {"registry": {"path": "elsewhere"}})
        cli("revoke", "finance@2", "--reason", "it leaks")
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")
    assert not (root / "elsewhere").exists()


def test_clock_that_is_behind_stops_no_revocation(
    unread: Router,
    root: Path,  # noqa: F811
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hold was of a time before the version was registered: it was said to be stopped, and answered on."""
    monkeypatch.setattr(unreadable, "now", lambda: datetime(2020, 1, 1, tzinfo=UTC))
    assert "does not answer any more" in cli("revoke", "finance@2", "--reason", "it leaks").stdout
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        unread.route("finance@2")


@pytest.fixture
def router(root: Path) -> Iterator[Router]:  # noqa: F811
    """A gateway's router that serves finance@2."""
    with closing(open_registry(root)) as registry:
        found = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert found.route("finance@2").name == "finance@2"
        yield found


def refuses(router: Router) -> None:
    with pytest.raises(NotServed, match="finance@2 was revoked"):
        router.route("finance@2")


def test_head_is_kept_again_once_its_file_is_free(router: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """Where another process had the file's lock at that moment, the gateway never tried again."""
    serving = root / ".serving"
    with locked(serving / "head.lock", seconds=1):
        (serving / "head.json").write_text("{}")
        router.keep_remembered()
    router.keep_remembered()
    shutil.rmtree(root / ".registry")
    cli("revoke", "finance@2", "--reason", "it leaks")
    refuses(router)


def test_revocation_holds_where_both_paths_are_others(router: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """A branch with another `registry.path` and another `serving.path` said that there is no registry."""
    (root / "docs").mkdir()
    (root / "docs/head.json").write_text("another program's")
    write_params(root, {"registry": {"path": "elsewhere"}, "serving.path": "gateway"})
    cli("revoke", "finance@2", "--reason", "it leaks")
    refuses(router)
    assert not any((root / name).exists() for name in ("elsewhere", "gateway", "docs/holds"))


def test_revocation_holds_where_a_nested_path_is_another(root: Path, cli: Cli) -> None:  # noqa: F811
    """`serving.path: var/gateway/state` of another branch was two folders too deep, and it answered on."""
    deep = "var/gateway/state"
    write_params(root, {"serving.path": deep})
    with closing(open_registry(root)) as registry:
        router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        inner = root / "others/clone"
        shutil.copytree(root / deep, inner / ".serving")
        shutil.copy(root / "params.yaml", inner)
        shutil.rmtree(root / ".serving", ignore_errors=True)
        write_params(root, {"registry": {"path": "elsewhere"}, "serving.path": ".serving"})
        cli("revoke", "finance@2", "--reason", "it leaks")
        refuses(router)
        assert not (inner / ".serving/holds").exists()


def test_hold_that_one_gateway_does_not_get_is_named(
    router: Router,
    root: Path,  # noqa: F811
    cli: Cli,  # noqa: F811
) -> None:
    """It was said to be stopped, since another folder took the hold, and it answered on."""
    shutil.copytree(root / ".serving", root / "earlier")
    (root / ".serving/holds").symlink_to("/proc")  # a folder that nobody can write
    write_params(root, {"registry": {"path": "elsewhere"}})
    with pytest.raises(Unavailable, match="finance@2 may still answer: .* in .*/.serving, and no"):
        cli("revoke", "finance@2", "--reason", "it leaks")
    assert router.route("finance@2").name == "finance@2"
    (root / ".serving/holds").unlink()
    cli("revoke", "finance@2", "--reason", "it leaks")
    refuses(router)


def test_revocation_ends_while_folders_of_the_clone_vanish(
    router: Router,
    root: Path,  # noqa: F811
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Jobs make and remove folders in a clone all the time; the search for gateways met one that was gone."""
    usual, gone = Path.is_dir, root / "gone"
    gone.mkdir()

    def vanishing(path: Path) -> bool:
        is_folder = usual(path)
        if path == gone and is_folder:
            gone.rmdir()
        return is_folder

    write_params(root, {"registry": {"path": "elsewhere"}})
    monkeypatch.setattr(Path, "is_dir", vanishing)
    cli("revoke", "finance@2", "--reason", "it leaks")
    assert not gone.exists()
    refuses(router)


def put_back(clone: Path, *names: str) -> None:
    """Put back what a backup has of a clone, as `cp -a` or `rsync` does."""
    for name in names:
        shutil.rmtree(clone / name)
        shutil.copytree(clone / "backup" / name, clone / name)


@pytest.fixture
def older(root: Path) -> None:  # noqa: F811
    """A backup from before the last entry of the log."""
    for name in (".registry", ".serving"):
        shutil.copytree(root / name, root / "backup" / name)
    with closing(open_registry(root)) as registry, registry.change("ci") as change:
        change.note("noted", "registry", "later")


@pytest.mark.usefixtures("older")
@pytest.mark.parametrize("looks", [True, False])
def test_revocation_holds_in_an_older_clone(router: Router, root: Path, cli: Cli, looks: bool) -> None:  # noqa: F811
    """It was an entry of the older log, which the gateway that knew a later one did not read."""
    router.keep_remembered()
    put_back(root, ".registry", ".serving")
    if looks:
        router.keep_remembered()
    cli("revoke", "finance@2", "--reason", "it leaks")
    refuses(router)


@pytest.mark.usefixtures("older")
def test_older_copy_after_a_revocation_frees_nothing(router: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """Who was faster than the gateway's look kept the version on air, and the next gateway had it, too."""
    cli("revoke", "finance@2", "--reason", "it leaks")
    put_back(root, ".registry")
    refuses(router)
    cli("accept-head", "--reason", "the newer one is lost", "--actor", "tom.becker")
    cli("reject", "finance@1", "--reason", "worse")
    with closing(open_registry(root)) as registry:
        assert registry.get("finance@2").state == "revoked"
        assert not list((root / ".serving/holds").iterdir())


def test_shorter_file_stops_no_verified_route(router: Router, root: Path, cli: Cli) -> None:  # noqa: F811
    """`cp` of an older, shorter copy over the open file: SQLite refused each look, and nobody got an answer."""
    os.truncate(root / ".registry/registry.sqlite", 3 * 4096)
    assert "malformed" in str(router.damage())
    assert router.route("finance@2").name == "finance@2"
    cli("revoke", "finance@2", "--reason", "it leaks")
    refuses(router)
