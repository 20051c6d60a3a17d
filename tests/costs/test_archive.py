"""Weights that nobody uses go to the archive and come back; nothing that anybody needs goes, at any kill."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import httpx
import pytest
from moto.server import ThreadedMotoServer

import lora_ops.registry.backup as backup_module
from lora_ops.costs import archive
from lora_ops.costs.archive import Run, check_all
from lora_ops.costs.last_asked import FILE
from lora_ops.errors import Damaged, LoraOpsError, Refused, Unavailable
from lora_ops.registry import archived_weights, lifecycle, packages, routes
from lora_ops.registry.archived_files import ARCHIVED, RESTORED, archived
from lora_ops.registry.archived_weights import bring_back, weights_of
from lora_ops.registry.backup import backup
from lora_ops.registry.backup_place import Place, kept_path
from lora_ops.registry.cards import record
from lora_ops.registry.files import InArchive
from lora_ops.registry.gc import collect_garbage
from lora_ops.registry.holds import Statement
from lora_ops.registry.restoring import restore
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback
from tests.registry import processes
from tests.registry.conftest import AUTHOR, MORNING, Story, build_package

from .archive_kit import FREE, NOW, OldRegistry, age_files, days_before, write_events


def test_dry_run_says_what_may_go_and_why_the_rest_stays(kit: OldRegistry) -> None:
    before = sorted((kit.root / "registry/files").rglob("*"))
    found = kit.stays()
    assert [version for version, why in found.items() if why is None] == FREE
    assert found["finance@2"] == "returns when production is rolled back"
    assert found["finance@3"] == "is candidate, production" and found["healthcare@2"] == "is candidate"
    assert sorted((kit.root / "registry/files").rglob("*")) == before
    assert not (kit.root / ".archive").exists()
    with kit.open() as registry:
        assert archived(registry) == {}


def test_archived_weights_go_and_all_else_stays_readable(kit: OldRegistry) -> None:
    with kit.open() as registry:
        packages.verified_path(registry, "healthcare@1")
    run = kit.run()
    assert run.moved == FREE and run.removed == sum(one.bytes for one in run.candidates if one.stays is None)
    assert kit.here() == ["finance@2", "finance@3", "healthcare@2"]
    kit.require_whole()
    with kit.open() as registry:
        assert not registry.copies.folder("healthcare@1").exists()
        entries = [one for one in registry.history("finance@1") if one.action == ARCHIVED]
        assert [(one.actor, one.body["reason"]) for one in entries] == [("ci", "nobody uses it")]
        card = record(registry, "finance@1")
        assert card.performance.metrics and card.lineage.params["train"]["rank"] == 8
        assert any(
            "`lora-ops archive restore finance@1` brings them back" in one for one in card.verdict.reasons
        )
        warned = [one for one in verify(registry).warnings if "are in the archive" in one]
        assert len(warned) == 3
        age_files(registry)
        assert collect_garbage(registry).orphans == ()
        with pytest.raises(InArchive, match="the archive .* since 2026-09-18: `lora-ops archive restore"):
            packages.verified_path(registry, "healthcare@1")
    again = kit.run()
    assert (again.moved, again.removed, again.away) == ([], 0, FREE)


def test_restored_weights_load_again_and_stay(kit: OldRegistry) -> None:
    kit.run()
    with kit.open() as registry:
        assert bring_back(registry, "healthcare@1", actor="ana", reason="a question")
        assert packages.verified_path(registry, "healthcare@1").is_dir()
        assert [one.action for one in registry.history("healthcare@1")][-1] == RESTORED
        with pytest.raises(Refused, match="not in the archive"):
            bring_back(registry, "healthcare@1", actor="ana", reason="a question")
        age_files(registry)
    kit.require_whole()
    assert kit.stays()["healthcare@1"] == "was used on 2026-09-18"


@pytest.mark.parametrize(
    ("asked", "days", "goes"),
    [("finance@1", 89, False), ("finance@1", 91, True), ("finance@1", -1, False)],
)
def test_request_keeps_a_version_for_its_days(kit: OldRegistry, asked: str, days: float, goes: bool) -> None:
    """A request of tomorrow is by a gateway whose clock is ahead."""
    write_events(kit.serving, (days_before(NOW, days), asked), began=days_before(NOW, 149))
    assert (kit.stays()[asked] is None) is goes


def test_change_in_the_log_keeps_a_version(kit: OldRegistry) -> None:
    kit.clock.time = NOW - timedelta(days=5)
    with kit.open() as registry:
        lifecycle.archive(registry, "media@1", actor="ci", reason="over")
    kit.clock.time = NOW
    assert kit.stays()["media@1"] == f"was used on {NOW - timedelta(days=5):%Y-%m-%d}"


@pytest.mark.parametrize("reach", [None, 30])
def test_nothing_goes_where_nobody_knows_what_was_asked(kit: OldRegistry, reach: int | None) -> None:
    shutil.rmtree(kit.serving)
    if reach:
        write_events(kit.serving, (days_before(NOW, reach), "finance@3"), (NOW, "finance@3"))
    run = kit.run()
    assert run.moved == [] and "nothing goes before" in run.notes[-1]
    assert all("which nobody knows" in str(kit.stays()[version]) for version in FREE)
    # A run of each week remembers what the events of then said.
    for week in range(1, 14):
        kit.clock.time = NOW + timedelta(weeks=week)
        found = kit.stays()
    # Where no gateway ever wrote, silence says nothing.
    assert [version for version, why in found.items() if why is None] == (FREE if reach else [])
    shutil.rmtree(kit.serving)
    assert kit.stays()["finance@1"] is not None


def test_version_under_a_legal_hold_stays(kit: OldRegistry) -> None:
    assert kit.stays(keep=("finance@1",))["finance@1"] == "is named by archive.keep of params.yaml"
    with kit.open() as registry:
        summary = registry.get("healthcare@1").summary
        said = {"actor": "eve", "reason": "an inquiry", "at": NOW.isoformat()}
        registry.holds.keep(Statement(version=summary.id, content_digest=summary.content_digest, **said))
        run = kit.run_in(registry)
    assert run.moved == ["finance@1", "media@1"]


def test_kept_by_hand_too_late_is_said(kit: OldRegistry) -> None:
    """What is in the archive already is not brought back by archive.keep, and a wrong name keeps nothing."""
    assert "finance@1" in kit.run().moved
    for yes in (False, True):
        notes = kit.run(yes=yes, keep=("finance@1", "finance@3", "finance@99")).notes
        assert [note for note in notes if "archive.keep" in note] == [
            "finance@1 is named by archive.keep of params.yaml, and is in the archive already: "
            "`lora-ops archive restore finance@1` brings it back",
            "archive.keep of params.yaml names finance@99, and the registry has no such version",
        ]
    with kit.open() as registry:
        bring_back(registry, "finance@1", actor="ci", reason="it is kept")
    assert kit.run(keep=("finance@1",)).notes == []


def test_rollback_target_stays_where_production_is_gone(kit: OldRegistry) -> None:
    with kit.open() as registry:
        lifecycle.revoke(registry, "finance@3", actor="ben", reason="leaks")
    kit.clock.time = NOW + timedelta(days=100)
    write_events(kit.serving, (kit.clock.time, "finance@3"))
    assert kit.stays()["finance@2"] == "returns when production is rolled back"
    assert "finance@2" in kit.here()


def test_twin_of_a_needed_version_stays(kit: OldRegistry) -> None:
    """Two versions may share one kept file, and it is gone for both."""
    folder = kit.root / "twin"
    kit.clock.time = MORNING + timedelta(hours=1)
    with kit.open() as registry:
        manifest = build_package(folder, 3, "healthcare", fresh_days=3000)
        registry.register(folder, manifest, actor=AUTHOR)
        age_files(registry)
    kit.clock.time = NOW
    found = kit.stays()
    assert found["healthcare@1"] == "has the same file as healthcare@3, which is candidate"
    assert kit.run().moved == ["finance@1", "healthcare@2", "media@1"]


def test_stranger_may_not_archive(kit: OldRegistry) -> None:
    with pytest.raises(Refused, match="mallory may not archive the weights of finance@1"):
        kit.run(actor="mallory")
    assert len(kit.here()) == 6 and not list((kit.root / ".archive").rglob("*.*"))


def test_version_that_is_routed_meanwhile_stays(kit: OldRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule is asked again in the transaction that says where the weights are."""
    sent = archived_weights.send_weights

    def promote_meanwhile(registry: Registry, version: Any, *rest: Any) -> Any:
        if version.id == "healthcare@1":
            with kit.open() as other:
                Story(other, kit.root / "reports").to(version.id, "shadow")
        return sent(registry, version, *rest)

    monkeypatch.setattr(archive, "send_weights", promote_meanwhile)
    run = kit.run()
    assert run.moved == ["finance@1", "media@1"]
    assert any(one.startswith("healthcare@1 stays: healthcare@1 stays: it is") for one in run.notes)
    assert "healthcare@1" in kit.here()
    kit.require_whole()


def test_version_that_is_promoted_before_its_file_goes_keeps_it(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the entry and the removal the file is here, so a promotion does not ask the archive."""
    remove = archived_weights.remove_original

    def promote_meanwhile(registry: Registry, digest: str, *rest: Any) -> bool:
        if digest == weights_of(registry.get("healthcare@1"))[0]:  # type: ignore[index]
            with kit.open() as other:
                Story(other, kit.root / "reports").to("healthcare@1", "shadow")
        return remove(registry, digest, *rest)

    monkeypatch.setattr(archive, "remove_original", promote_meanwhile)
    assert kit.run().moved == FREE
    assert "healthcare@1" in kit.here()
    monkeypatch.undo()
    assert any("healthcare@1 is no more archived" in one for one in kit.run().notes)
    with kit.open() as registry:
        assert set(archived(registry)) == {"finance@1", "media@1"}
        assert packages.verified_path(registry, "healthcare@1").is_dir()
    kit.require_whole()


def test_promotion_brings_weights_back(kit: OldRegistry) -> None:
    kit.run()
    with kit.open() as registry:
        Story(registry, kit.root / "reports").to("healthcare@1", "shadow")
        routes.set_shadow(registry, "healthcare@1", 10, actor="ci", reason="look")
        assert packages.verified_path(registry, "healthcare@1").is_dir()
        actions = [one.action for one in registry.history("healthcare@1")]
        assert actions[-3:] == [RESTORED, "validated", "shadow"]
    kit.require_whole()


def test_rollback_to_an_archived_version_brings_it_back(kit: OldRegistry) -> None:
    kit.run()
    note = kit.root / "incident.md"
    note.write_text("# It leaks the names of customers\n")
    with kit.open() as registry:
        assert rollback.plan(registry, "finance@3").returns.id == "finance@2"
        planned = rollback.plan(registry, "finance@3", "finance@1")
        assert "finance@1" in archived(registry)  # a plan changes nothing
        why = {"actor": "ben", "reason": "leaks"}
        assert rollback.roll_back(registry, "finance@3", note, **why, planned=planned).id == "finance@1"
        assert packages.verified_path(registry, "finance").name == "finance@1"
    kit.require_whole()


@pytest.mark.parametrize("step", ["send_weights", "record_archived", "remove_original"])
def test_run_killed_after_a_step_is_ended_by_the_next(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    done = getattr(archive, step)

    def then_die(*given: Any, **named: Any) -> None:
        done(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(archive, step, then_die)
        assert processes.run(kit.run) == processes.KILLED
    kit.require_whole()
    kit.run()
    kit.require_whole()
    assert kit.here() == ["finance@2", "finance@3", "healthcare@2"]
    with kit.open() as registry:  # one entry, whichever run wrote it
        assert [one.action for one in registry.history("finance@1")].count(ARCHIVED) == 1


@pytest.mark.parametrize("calls", [1800, 2200, 2500, 2800, 3100, 3400])
def test_killed_run_loses_nothing_and_the_next_one_mends_it(kit: OldRegistry, calls: int) -> None:
    ended = processes.run(kit.run, kill_at=calls)
    assert ended in (processes.KILLED, processes.DONE)
    kit.require_whole()
    kit.run()
    kit.require_whole()
    assert kit.here() == ["finance@2", "finance@3", "healthcare@2"]
    left = [path.name for path in (kit.root / ".archive").rglob("*") if path.is_file()]
    assert len([name for name in left if not name.endswith(".part")]) == 3


@pytest.mark.parametrize("calls", [150, 350, 600])
def test_killed_restore_loses_nothing(kit: OldRegistry, calls: int) -> None:
    kit.run()

    def again() -> None:
        with kit.open() as registry:
            bring_back(registry, "finance@1", actor="ana", reason="look")

    assert processes.run(again, kill_at=calls) in (processes.KILLED, processes.DONE)
    kit.require_whole()
    with kit.open() as registry, suppress(Refused):
        bring_back(registry, "finance@1", actor="ana", reason="look")
    assert "finance@1" in kit.here()
    kit.require_whole()


def test_two_runs_at_once_lose_nothing(kit: OldRegistry) -> None:
    started = [processes.start(kit.run) for _ in range(3)]
    ends = [processes.wait(one) for one in started]
    assert set(ends) <= {processes.DONE, processes.REFUSED} and processes.DONE in ends
    kit.require_whole()
    kit.run()
    assert kit.here() == ["finance@2", "finance@3", "healthcare@2"]


@pytest.mark.parametrize("change", ["flip", "cut", "remove", "empty"])
def test_damaged_archive_is_refused_and_named(kit: OldRegistry, change: str) -> None:
    kit.run()
    path = kit.archived_file("finance@1")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    new = {"flip": bytes(content), "cut": path.read_bytes()[:-9], "empty": b""}
    path.unlink() if change == "remove" else path.write_bytes(new[change])
    with kit.open() as registry:
        with pytest.raises(Damaged, match=rf"copy of .* finance@1 is damaged at .*{path.name}"):
            bring_back(registry, "finance@1", actor="ana", reason="look")
        assert "finance@1" in archived(registry)
        assert [name for name, problem in check_all(registry) if problem] == ["finance@1"]
        assert list(registry.files.incoming.iterdir()) == []
        assert verify(registry).ok
        # The same package again is the way back.
        folder = kit.root / "again"
        registry.register(folder, build_package(folder, 0, fresh_days=3650), actor=AUTHOR)
    assert "finance@1" in kit.here()


def test_damaged_file_here_is_not_archived(kit: OldRegistry) -> None:
    with kit.open() as registry:
        path = registry.files.path(kit.digest("finance@1"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run = kit.run()
    assert run.moved == FREE[1:] and any("finance@1 stays: " in one for one in run.notes)
    assert path.exists()


def test_store_that_returns_other_bytes_archives_nothing(
    kit: OldRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is read back before the original goes."""
    send = Place.send

    def broken(mine: Place, relative: str, parts: Any, check: Callable[..., None]) -> None:
        send(mine, relative, (part[:-1] + b"x" for part in parts if part), lambda file: None)

    monkeypatch.setattr(Place, "send", broken)
    with pytest.raises(Damaged, match="does not give back what was kept there"):
        kit.run()
    assert len(kit.here()) == 6
    monkeypatch.undo()
    assert kit.run().moved == FREE
    kit.require_whole()


def test_store_that_nobody_reaches_changes_nothing(kit: OldRegistry) -> None:
    (kit.root / ".archive").write_text("a file in its kit")
    with pytest.raises(Unavailable, match=r"\.archive can't be used"):
        kit.run()
    assert len(kit.here()) == 6
    with kit.open() as registry:
        assert archived(registry) == {}


def test_full_disk_of_the_archive_changes_nothing(kit: OldRegistry) -> None:
    def run() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))  # no file may grow beyond it
        kit.run()

    assert processes.run(run) == processes.REFUSED
    assert len(kit.here()) == 6
    kit.require_whole()
    assert kit.run().moved == FREE


def test_full_disk_at_a_restore_changes_nothing(kit: OldRegistry) -> None:
    kit.run()

    def again() -> None:
        import resource

        with kit.open() as registry:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
            bring_back(registry, "finance@1", actor="ana", reason="look")

    assert processes.run(again) == processes.REFUSED
    assert "finance@1" not in kit.here()
    kit.require_whole()


@pytest.mark.parametrize(
    "store", ["registry/archive", "file://{}/x", "local://{}/x", "simplecache::file://{}/x", "dir::file://{}/x"]
)
@pytest.mark.parametrize("yes", [True, False])
def test_archive_inside_the_registry_is_refused(kit: OldRegistry, store: str, yes: bool) -> None:
    with pytest.raises(LoraOpsError, match="is no place for an archive"):
        kit.run(store=store.format(kit.root / "registry"), yes=yes)
    assert len(kit.here()) == 6


def test_archive_in_memory_and_moved_elsewhere(kit: OldRegistry) -> None:
    """Any kit of fsspec will do, and `--from` finds an archive that was moved."""
    kit.run(store="memory://archive")
    fsspec.filesystem("memory").mv("/archive", "/elsewhere", recursive=True)
    with kit.open() as registry:
        with pytest.raises(Damaged, match="is missing at memory://archive"):
            bring_back(registry, "finance@1", actor="ana", reason="look")
        assert bring_back(registry, "finance@1", actor="ana", reason="look", url="memory://elsewhere")
    assert "finance@1" in kit.here()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a folder at an S3 server of this machine."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    httpx.post(
        f"http://{host}:{port}/moto-api/reset", verify=False
    ).raise_for_status()  # a process has one state
    storage = fsspec.filesystem("s3")
    storage.mkdir("adapters")
    yield "s3://adapters/weights-of-a-team"
    storage.clear_instance_cache()
    server.stop()


def test_archive_at_s3_takes_and_returns_weights(kit: OldRegistry, bucket: str) -> None:
    run = kit.run(store=bucket)
    assert run.moved == FREE and "finance@1" not in kit.here()
    kit.require_whole()
    with kit.open() as registry:
        assert bring_back(registry, "finance@1", actor="ana", reason="look")
        one = archived(registry)["media@1"]
        storage = fsspec.filesystem("s3")
        path = f"{bucket}/{one.file.path}"
        storage.pipe_file(path, storage.cat_file(path)[:-3] + b"xyz")
        with pytest.raises(Damaged, match="media@1 is damaged at s3://adapters/"):
            bring_back(registry, "media@1", actor="ana", reason="look")
    assert not [one for one in storage.find(bucket) if one.endswith(".part")]


def test_bucket_that_is_not_there_changes_nothing(kit: OldRegistry, bucket: str) -> None:
    with pytest.raises(Unavailable, match="s3://nowhere/x can't be used"):
        kit.run(store="s3://nowhere/x")
    assert len(kit.here()) == 6


def test_backup_leaves_out_what_is_archived(kit: OldRegistry) -> None:
    kit.run()
    with kit.open() as registry:
        backup(registry, str(kit.root / "backup"))
    restore(str(kit.root / "backup"), kit.root / "back")
    shutil.rmtree(kit.root / "registry")
    (kit.root / "back").rename(kit.root / "registry")
    kit.require_whole()
    with kit.open() as registry:
        assert bring_back(registry, "finance@1", actor="ana", reason="look")
    kit.require_whole()


@pytest.mark.parametrize("moment", ["copied", "sent"])
def test_backup_beside_a_run_is_whole(kit: OldRegistry, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """The run ends after the backup copied the database, or between two of the files that it sends."""
    taken, put, runs = backup_module._take_database, Place.put, list[Run]()

    def run_once() -> None:
        if not runs:
            runs.append(kit.run())

    def take(registry: Registry, folder: Path) -> Any:
        found = taken(registry, folder)
        if moment == "copied":
            run_once()
        return found

    def send(place: Place, source: Path, relative: str) -> None:
        if relative == kept_path(digest):
            run_once()
        put(place, source, relative)

    digest = kit.digest("finance@1")
    monkeypatch.setattr(backup_module, "_take_database", take)
    monkeypatch.setattr(Place, "put", send)
    with kit.open() as registry:
        made = backup(registry, str(kit.root / "backup"))
    assert runs[0].moved == FREE
    assert restore(str(kit.root / "backup"), kit.root / "back").head == made.head
    shutil.rmtree(kit.root / "registry")
    (kit.root / "back").rename(kit.root / "registry")
    kit.require_whole()


def test_nothing_goes_where_the_log_was_changed(kit: OldRegistry) -> None:
    with kit.open() as registry:
        registry.db.rows("DROP TRIGGER audit_stays")
        registry.db.rows("UPDATE audit SET body = '{}' WHERE action = 'rejected'")
    with pytest.raises(Damaged, match="can't be trusted, so nothing is archived"):
        kit.run()
    assert len(kit.here()) == 6


def test_entries_say_where_weights_are(kit: OldRegistry) -> None:
    kit.run()
    with kit.open() as registry:
        file = archived(registry)["finance@1"].file
    assert file.codec == "shuffle4-zstd" and file.stored_bytes == kit.archived_file("finance@1").stat().st_size
    assert file.path == f"weights/{file.sha256[:2]}/{file.sha256}.shuffle4-zstd"
    assert json.loads((kit.serving / FILE).read_text())["since"].startswith("2026-06-20")
