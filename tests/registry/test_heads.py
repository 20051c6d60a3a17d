"""The last head is remembered outside the registry: an older copy, or another registry in its place, shows."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lora_ops.errors import LoraOpsError
from lora_ops.processes import locked
from lora_ops.registry import heads, lifecycle
from lora_ops.registry.audit import Head
from lora_ops.registry.backends import open_registry
from lora_ops.registry.commands import app
from lora_ops.registry.heads import HeadMemory, read_head
from lora_ops.registry.owners_log import change_with_owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.serving.router import NotServed, Router
from tests.conftest import ROOT, small_clone, write_params

from . import processes
from .conftest import build_package

Cli = Callable[..., Result]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone in which finance@1 was registered and then revoked; `before/` is its registry until then."""
    root = tmp_path / "clone"
    small_clone(root)
    register(root, 1)
    with closing(open_registry(root)) as registry, change_with_owners(registry, "ana.silva"):
        pass  # the first change of a version would bring this entry
    shutil.copytree(root / ".registry", root / "before")
    with closing(open_registry(root)) as registry:
        lifecycle.revoke(registry, "finance@1", actor="ana.silva", reason="leaks")
    monkeypatch.setenv("LORA_OPS_ROOT", str(root))
    monkeypatch.setenv("LORA_OPS_ACTOR", "tom.becker")
    monkeypatch.setenv("COLUMNS", "300")
    return root


def register(root: Path, seed: int, **options: str) -> None:
    folder = root / f"package-{seed}"
    with closing(open_registry(root, create=True)) as registry:
        registry.register(folder, build_package(folder, seed, **options), actor="ana.silva")


@pytest.fixture
def cli() -> Cli:
    def invoke(*words: str) -> Result:
        result = CliRunner().invoke(app, words)
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def opened(root: Path) -> Iterator[Registry]:
    with closing(open_registry(root)) as registry:
        yield registry


def replay(root: Path) -> None:
    shutil.rmtree(root / ".registry")
    shutil.copytree(root / "before", root / ".registry")


def remembered(root: Path) -> list:
    return json.loads((root / ".serving/head.json").read_text())[".registry"]


def test_every_change_is_remembered(root: Path, opened: Registry) -> None:
    assert remembered(root) == list(opened.log.head()) and opened.log.head().seq == 3


def test_verify_remembers_what_it_verified(root: Path, opened: Registry) -> None:
    (root / ".serving/head.json").unlink()
    assert verify(opened).ok
    assert remembered(root) == list(opened.log.head())


def test_replayed_registry_does_not_verify(root: Path, cli: Cli) -> None:
    """A8: an older copy of the folder verified, and its revoked version could be loaded again."""
    replay(root)
    done = cli("verify")
    assert done.exit_code == 1
    assert "the audit log ends at entry 2, and .serving/head.json knows entry 3:" in done.output
    assert "the registry was replaced by an older copy, or by another one" in done.output


def test_link_to_an_older_copy_does_not_verify(root: Path, cli: Cli) -> None:
    """By the folder that it leads to, the copy was a registry that nobody had seen."""
    (root / ".registry").rename(root / "newer")
    (root / ".registry").symlink_to("before")
    shown = cli("verify")
    assert shown.exit_code != 0 and "replaced by an older copy" in shown.output
    (root / ".registry").unlink()
    (root / ".registry").symlink_to("newer")
    assert cli("verify").exit_code == 0


def test_replayed_registry_is_not_changed(root: Path) -> None:
    replay(root)
    with pytest.raises(LoraOpsError, match=r"can't be trusted, so nothing is changed: .*accept-head --reason"):
        register(root, 2)


def test_older_copy_that_went_on_elsewhere_is_named(root: Path) -> None:
    replay(root)
    with closing(Registry(root / ".registry")) as registry:  # by somebody whose machine remembers nothing
        for seed in (2, 3):
            folder = root / f"package-{seed}"
            registry.register(folder, build_package(folder, seed), actor="ana.silva")
    with closing(open_registry(root)) as registry:
        problem, hold = verify(registry).problems
    assert hold.startswith("the hold of finance@1 was removed from the registry, or an older copy")
    assert problem.startswith("entry 3 of the audit log is ") and "its history was written again" in problem


def test_deleted_registry_is_not_begun_again_unseen(root: Path) -> None:
    shutil.rmtree(root / ".registry")
    with pytest.raises(LoraOpsError, match="ends at entry 0, and .serving/head.json knows entry 3"):
        register(root, 1)


def test_accepted_head_goes_on_and_is_an_entry(root: Path, cli: Cli) -> None:
    replay(root)
    cli("accept-head", "--reason", "the disk died, this is the backup of Monday")
    register(root, 2)
    with closing(open_registry(root)) as registry:
        result = verify(registry)
        assert result.ok and any("tom.becker accepted on" in one for one in result.warnings)
        assert any(
            "(the disk died, this is the backup of Monday); 1 entries were lost" in o for o in result.warnings
        )
        accepted = registry.log.entries()[2]
    assert (accepted.action, accepted.actor, str(accepted.subject)) == (
        "head_accepted",
        "tom.becker",
        "registry head",
    )
    assert accepted.body["reason"] == "the disk died, this is the backup of Monday"
    assert "knows entry 3:" in accepted.body["problem"]


def test_accepting_a_head_notes_changed_owners(root: Path, cli: Cli) -> None:
    """Who might accept on that day could not be proved."""
    replay(root)
    (root / "owners.yaml").write_text((root / "owners.yaml").read_text() + "# moved\n")
    cli("accept-head", "--reason", "the disk died")
    with closing(open_registry(root)) as registry:
        *_, noted, accepted = registry.log.entries()
        assert (noted.action, accepted.action) == ("changed", "head_accepted")
        assert noted.body["text"].endswith("# moved\n") and accepted.body["lost_entries"] == 1


@pytest.mark.parametrize("actor", ["mallory", "ben.okafor", "lea.novak"])
def test_head_is_accepted_by_an_approver_of_the_default_team(root: Path, cli: Cli, actor: str) -> None:
    """Anybody could forget a revocation."""
    replay(root)
    with pytest.raises(LoraOpsError, match=f"{actor} may not accept .*ines.moreau, tom.becker"):
        cli("accept-head", "--reason", "so", "--actor", actor)
    (root / "owners.yaml").unlink()
    with pytest.raises(LoraOpsError, match="without it nobody may accept another head"):
        cli("accept-head", "--reason", "so", "--actor", "tom.becker")


@pytest.mark.parametrize("text", ["{", "[]", "", '{".registry": 5}'])
def test_damaged_memory_stops_no_revocation(root: Path, cli: Cli, text: str) -> None:
    register(root, 2)
    (root / ".serving/head.json").write_text(text)
    with pytest.raises(LoraOpsError, match="can't be trusted"):
        register(root, 3)
    assert cli("revoke", "finance@2", "--reason=leaks", "--actor=ana.silva").exit_code == 0
    with closing(Registry(root / ".registry")) as registry:
        assert registry.get("finance@2").state == "revoked"


def test_accepted_head_is_shown(root: Path, cli: Cli) -> None:
    replay(root)
    cli("accept-head", "--reason", "the disk died")
    for command in (("status",), ("show", "finance@1")):
        assert "tom.becker accepted on" in " ".join(cli(*command).output.split())


def test_accept_head_begins_a_lost_registry_again(root: Path, cli: Cli) -> None:
    shutil.rmtree(root / ".registry")
    cli("accept-head", "--reason", "there is no backup")
    register(root, 1)
    with closing(open_registry(root)) as registry:
        actions = [entry.action for entry in registry.log.entries()]
        assert actions == ["read", "head_accepted", "registered"]
        assert verify(registry).ok


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--reason", "there is none", "--actor", "nobody"], "nobody may not accept another head"),
        (["--reason", "there is none", "--actor", ""], "may not accept another head"),
        (["--reason", " "], "Say why"),
        (["--reason", "there is none"], "There is no registry in"),
    ],
)
def test_refused_accept_head_makes_no_registry(root: Path, cli: Cli, words: list[str], says: str) -> None:
    shutil.rmtree(root / ".registry")
    if "There is no registry" in says:  # nobody remembers one
        shutil.rmtree(root / ".serving")
    with pytest.raises(LoraOpsError, match=says):
        cli("accept-head", *words)
    assert not (root / ".registry").exists()


def test_accept_head_refuses_without_need_or_reason(root: Path, cli: Cli) -> None:
    with pytest.raises(LoraOpsError, match="as expected: nothing to accept"):
        cli("accept-head", "--reason", "just so")
    replay(root)
    with pytest.raises(LoraOpsError, match="Say why"):
        cli("accept-head", "--reason", " ")


def test_damaged_memory_is_named_and_accepted(root: Path, cli: Cli) -> None:
    (root / ".serving/head.json").write_text("{")
    assert "remembers where the audit log ended, can't be read" in cli("verify").output
    cli("accept-head", "--reason", "the file was cut")
    assert cli("verify").exit_code == 0


def test_expected_head_may_be_short_and_the_log_longer(root: Path, cli: Cli, opened: Registry) -> None:
    _, first, second = (Head(entry.seq, entry.hash) for entry in opened.log.entries())
    assert cli("verify", "--expect-head", first.text).exit_code == 0
    assert cli("verify", "--expect-head", f"3:{second.hash}").exit_code == 0
    wrong = cli("verify", "--expect-head", f"2:{second.hash[:12]}")
    assert wrong.exit_code == 1 and "--expect-head knows 2:" in wrong.output
    later = cli("verify", "--expect-head", "17:" + "a" * 12)
    assert later.exit_code == 1 and "ends at entry 3, and --expect-head knows entry 17:" in later.output


@pytest.mark.parametrize("text", ["", "17", "17:a0d7", "0:" + "a" * 12, "x:" + "a" * 12, "17:" + "g" * 12])
def test_text_that_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(LoraOpsError, match="is no head of an audit log"):
        read_head(text)


def test_memory_only_grows(tmp_path: Path) -> None:
    memory = HeadMemory(tmp_path / "new/head.json", ".registry")
    other = HeadMemory(tmp_path / "new/head.json", "other")
    for seq in (3, 1, 2):
        memory.remember(Head(seq, f"{seq:064x}"))
    other.remember(Head(1, "f" * 64))
    assert (memory.recall(), other.recall()) == (Head(3, f"{3:064x}"), Head(1, "f" * 64))


def test_processes_that_remember_together_keep_the_last(tmp_path: Path) -> None:
    memory = HeadMemory(tmp_path / "head.json", ".registry")

    def work(start: int) -> None:
        for seq in range(start, 60, 3):
            memory.remember(Head(seq, f"{seq:064x}"))

    started = [processes.start(lambda first=first: work(first)) for first in (1, 2, 3)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 3
    assert memory.recall() == Head(59, f"{59:064x}")


def read_only(path: Path, content: bytes) -> None:
    """Write as on a read-only disk, which stops root, too."""
    raise OSError(errno.EROFS, "Read-only file system", str(path))


FORGETFUL = """
from lora_ops.cli import main
from lora_ops.registry import heads
def read_only(path, content):
    raise OSError(30, "Read-only file system", str(path))
heads.write_atomically = read_only
main()
"""
"""The command line where the memory can't be written."""


def test_change_goes_on_where_nothing_can_be_remembered(
    root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "write_atomically", read_only)
    register(root, 2)
    assert "can't be kept in" in caplog.text


def test_change_waits_for_no_stopped_process(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that held the lock of the memory kept every change, and the gateway, waiting for ever."""
    monkeypatch.setattr(heads, "LONGEST_WAIT", 0.1)
    with locked(root / ".serving/head.lock", seconds=0):
        register(root, 2)
    assert "head.json (another process holds it: " in caplog.text.replace("[Errno 11] ", "")


def test_change_that_is_not_remembered_says_so(root: Path, cli: Cli) -> None:
    """Only a line of the log said it: nobody saw that a replaced registry would not show."""
    register(root, 2)
    assert json.loads(cli("status", "--json").output)[0]["head_remembered"] is True
    words = ["registry", "reject", "finance@2", "--reason", "worse", "--actor", "ben.okafor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL, *words], cwd=root, capture_output=True, text=True, env=environment
    )
    assert json.loads(done.stdout)["state"] == "rejected"
    assert json.loads(done.stdout)["head_remembered"] is False
    assert "The change is made, but the head" in done.stderr
    assert json.loads(cli("status", "--json").output)[0]["head_remembered"] is False
    assert "head.json knows it up to entry 4: an older copy" in " ".join(cli("status").output.split())
    assert cli("verify").exit_code == 0
    assert json.loads(cli("status", "--json").output)[0]["head_remembered"] is True


def test_copy_of_a_shared_registry_is_taken_again(root: Path, connect: Callable[..., WandbProject]) -> None:
    shutil.rmtree(root / ".registry")
    shutil.rmtree(root / ".serving")
    write_params(root, {"registry.backend": "wandb"})
    for seed in (1, 2):
        register(root, seed)
    with closing(open_registry(root)) as registry:
        head, key = registry.log.head(), registry.signer.known()[0]
    shutil.rmtree(root / ".registry/files")
    for path in (root / ".registry").glob("*.*"):
        path.unlink()
    assert remembered(root) == list(head) and key
    with closing(open_registry(root)) as registry:
        assert registry.log.head() == head


def move_to(root: Path, path: str) -> None:
    params = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(params.replace("  path: .registry\n", f"  path: {path}\n"))


def test_older_copy_at_another_place_does_not_verify(root: Path, cli: Cli) -> None:
    """By its place alone it was a registry that nobody had seen, and its revoked version could be loaded."""
    move_to(root, "before")
    done = cli("verify")
    assert done.exit_code == 1
    assert "the audit log ends at entry 2, and .serving/head.json knows entry 3:" in done.output
    with pytest.raises(LoraOpsError, match=r"can't be trusted, so nothing is changed: .*accept-head --reason"):
        register(root, 2)
    # Whoever looks at an older copy on purpose can read it, and can go on with it.
    assert json.loads(cli("list", "--json").output)[0]["state"] == "candidate"
    cli("accept-head", "--reason", "the newer one is lost")
    assert cli("verify").exit_code == 0
    register(root, 2)


def test_registry_that_moved_is_known_at_its_new_place(root: Path, cli: Cli) -> None:
    (root / ".registry").rename(root / "moved")
    move_to(root, "moved")
    assert cli("verify").exit_code == 0
    register(root, 2)
    shutil.rmtree(root / "moved")
    shutil.copytree(root / "before", root / "moved")
    assert cli("verify").exit_code == 1


def test_memory_of_an_earlier_release_learns_the_first_entry(root: Path, cli: Cli) -> None:
    kept = root / ".serving/head.json"
    kept.write_text(json.dumps({".registry": remembered(root)}))
    assert cli("verify").exit_code == 0
    move_to(root, "before")
    assert cli("verify").exit_code == 1


@pytest.mark.parametrize("path", ["./.registry", "before/../.registry", "link"])
def test_memory_knows_the_folder_by_another_name(root: Path, path: str) -> None:
    """A path written in another way must not begin without a memory."""
    replay(root)
    (root / "link").symlink_to(root / ".registry")
    move_to(root, path)
    with closing(open_registry(root)) as registry:
        assert "replaced by an older copy" in verify(registry).problems[0]


@pytest.mark.parametrize("kind", ["pipe", "nested"])
@pytest.mark.parametrize("name", [".serving/head.json", ".registry/audit.head"])
def test_head_that_is_no_file_is_named(root: Path, cli: Cli, name: str, kind: str) -> None:
    """A pipe in its place was waited for without end, and deep nesting was a traceback."""
    path = root / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_text("[" * 100_000)
    found = cli("verify")
    assert found.exit_code == 1
    assert path.name in found.output


def flip_head(root: Path) -> None:
    path = root / ".registry/audit.head"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the signature
    path.write_bytes(content)


def test_revocation_goes_through_a_damaged_head(root: Path, cli: Cli) -> None:
    """In an incident one wrong byte kept a version on air."""
    register(root, 2)
    flip_head(root)
    with pytest.raises(LoraOpsError, match="can't be trusted, so nothing is changed"):
        cli("reject", "finance@2", "--reason", "worse", "--actor", "ben.okafor")
    done = json.loads(cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor", "--json").output)
    assert done["state"] == "revoked"
    assert done["registry_was_damaged"].startswith("audit.head, which says where the log ends, was changed")
    assert cli("verify").exit_code == 0
    for command in (("status",), ("verify",)):
        assert "was changed: its signature does not fit; the head kept" in " ".join(
            cli(*command).output.split()
        )


@pytest.mark.parametrize(
    "changed",
    [{"signature": None}, {"signature": "x"}, {"signature": {"key": "a" * 300}}, {"head": [1, "\ud800"]}],
    ids=["no signature", "text", "long key", "half a character"],
)
def test_revocation_goes_through_a_head_of_another_form(
    root: Path, cli: Cli, changed: dict[str, object]
) -> None:
    """It was a traceback, of every command."""
    register(root, 2)
    path = root / ".registry/audit.head"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    assert "was changed: its signature does not fit" in " ".join(cli("verify").output.split())
    assert cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").exit_code == 0
    assert cli("verify").exit_code == 0


def test_revocation_goes_through_a_memory_without_numbers(root: Path, cli: Cli) -> None:
    """An infinite number in head.json was a traceback."""
    register(root, 2)
    (root / ".serving/head.json").write_text('{".registry": [1e999, "x"]}')
    assert cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").exit_code == 0
    assert "which remembers where the audit log ended" in " ".join(cli("verify").output.split())


@pytest.mark.parametrize("text", [None, "default: ["], ids=["missing", "broken"])
def test_revocation_asks_the_last_owners_of_the_log(root: Path, cli: Cli, text: str | None) -> None:
    """A file that somebody moved or edited kept a version on air."""
    register(root, 2)
    (root / "owners.yaml").unlink()
    if text:
        (root / "owners.yaml").write_text(text)
    with pytest.raises(LoraOpsError, match="may not make finance@2 'revoked'"):
        cli("revoke", "finance@2", "--reason", "leaks", "--actor", "mallory")
    with pytest.raises(LoraOpsError, match=r"owners\.yaml"):
        cli("reject", "finance@2", "--reason", "leaks", "--actor", "ben.okafor")
    assert cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").exit_code == 0
    with closing(open_registry(root, to_stop="finance@2")) as registry:
        assert registry.get("finance@2").state == "revoked"
        assert verify(registry).ok


def test_revocation_holds_on_a_full_disk(root: Path) -> None:
    """A full disk kept a version on air, whose gateway's event log may be what filled it."""
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    register(root, 2)
    disk = root.parent / "disk"
    disk.mkdir()
    lora_ops = f"{sys.executable} -m lora_ops registry"
    steps = (
        f"mount -t tmpfs -o size=3m tmpfs {disk} && cp -a {root}/. {disk} && cd {disk}; cat /dev/zero > fill",
        f"{lora_ops} revoke finance@2 --reason leaks --actor ben.okafor --json >&3",
        f"rm fill; {lora_ops} reject finance@2 --reason worse --actor ben.okafor; {lora_ops} list --json >&3",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LORA_OPS_ROOT": str(disk)}
    with (root / "said").open("w+b") as said:
        command = ["unshare", "--map-root-user", "--mount", "bash", "-c", "; ".join(steps), "3>&1"]
        command = ["bash", "-c", 'exec 3>&1; exec "$@"', "-", *command[:-1]]
        subprocess.run(command, stdout=said, stderr=subprocess.DEVNULL, env=environment, check=False)
        said.seek(0)
        text = said.read().decode()
    first, end = json.JSONDecoder().raw_decode(text)
    assert first["held"]["actor"] == "ben.okafor" and "is full" in first["held"]["not_sent"]
    rest = {one["adapter"]: one["state"] for one in json.loads(text[end:])}
    assert rest["finance@2"] == "revoked"


@pytest.mark.parametrize("loss", ["damaged", "removed"])
def test_revocation_holds_without_a_database(root: Path, cli: Cli, loss: str) -> None:
    """A gateway that ran went on with what it had read, and nothing but its end took the version out."""
    register(root, 2)
    path = root / ".registry/registry.sqlite"
    kept = path.read_bytes()
    with closing(open_registry(root)) as registry:
        candidate = registry.get("finance@2")
        router = Router(registry, candidate.manifest.base_model, allow_candidates=True)
        assert router.route("finance@2").name == "finance@2"
        if loss == "removed":
            path.unlink()
        else:
            path.write_bytes(os.urandom(len(kept)))
        with pytest.raises(LoraOpsError, match="restore it from a backup"):
            cli("show", "finance@2")
        with pytest.raises(LoraOpsError, match="mallory may not make finance@2 'revoked'"):
            cli("revoke", "finance@2", "--reason", "leaks", "--actor", "mallory")
        assert router.route("finance@2").name == "finance@2"
        said = cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").output
        assert "finance@2 does not answer any more" in " ".join(said.split())
        with pytest.raises(NotServed, match="finance@2 was revoked"):
            router.route("finance@2")
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
    register(root, 3)
    with closing(open_registry(root)) as registry:
        assert registry.get("finance@2").state == "revoked"
        assert registry.log.entries("finance", 2)[-1].actor == "ben.okafor"
        assert not registry.holds.all() and verify(registry).ok


@pytest.mark.parametrize("lost", ["rows", "versions", "audit"])
def test_revocation_holds_without_a_record(root: Path, cli: Cli, lost: str) -> None:
    register(root, 2)
    remove = ["DELETE FROM audit", "DELETE FROM versions"] if lost == "rows" else [f"DROP TABLE {lost}"]
    with closing(open_registry(root)) as registry:
        triggers = registry.db.rows("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for statement in (
            "PRAGMA foreign_keys = OFF",
            *(f"DROP TRIGGER {name}" for (name,) in triggers),
            *remove,
        ):
            registry.db.rows(statement)
    said = cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").output
    assert "finance@2 does not answer any more" in " ".join(said.split())
    [path] = (root / ".registry/holds").iterdir()
    assert path.name.startswith("finance@2-")


@pytest.mark.parametrize("loss", ["memory", "older", "row"])
def test_revocation_needs_somebody_to_vouch_for_the_log(root: Path, cli: Cli, loss: str) -> None:
    """Signing the head again would hide what somebody cut off or moved."""
    register(root, 2)
    if loss == "memory":
        (root / ".serving/head.json").unlink()
    elif loss == "older":
        replay(root)
        register_without_memory(root, 2)
    else:
        with closing(open_registry(root)) as registry:
            registry.db.rows("UPDATE aliases SET number = 1")
    flip_head(root)
    with closing(open_registry(root)) as registry:
        before = registry.log.head()
    said = cli("revoke", "finance@2", "--reason", "leaks", "--actor", "ben.okafor").output
    assert "finance@2 does not answer any more, and the audit log does not say so yet" in " ".join(said.split())
    with closing(open_registry(root)) as registry:
        assert registry.log.head() == before
        assert [hold.version for hold in registry.held()] == ["finance@2"]


def register_without_memory(root: Path, seed: int) -> None:
    with closing(Registry(root / ".registry")) as registry:
        folder = root / f"package-{seed}"
        registry.register(folder, build_package(folder, seed), actor="ana.silva")
