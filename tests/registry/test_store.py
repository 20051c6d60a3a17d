"""Registering, finding and exporting versions; every refusal is one sentence and leaves nothing behind."""

import fcntl
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_ops.errors import Damaged, LoraOpsError, Unavailable
from lora_ops.hashing import sha256_file
from lora_ops.paths import ANSWERS, EVALUATION, MEMBERSHIP, MODEL_CARD, SAMPLES
from lora_ops.records.evaluation import Interval, PairedDifference
from lora_ops.records.manifest import FileRecord, Manifest
from lora_ops.registry import backup, lifecycle, packages, restoring, store
from lora_ops.registry.backends import open_registry
from lora_ops.registry.heads import HeadMemory
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.registry.versions import parse_reference
from lora_ops.serving.router import NotServed, OutOfService, Router

from . import processes
from .conftest import AUTHOR, FIRST, MORNING, Build, Clock, Story, build_package, evaluated, saved_again

ROOT = Path(__file__).parents[2]


def test_the_first_package_of_a_tenant_is_version_1_and_the_candidate(
    registry: Registry, package: Build
) -> None:
    version, is_new = registry.register(*package(), actor=AUTHOR)
    assert is_new
    assert (version.id, version.state, version.aliases) == ("finance@1", "candidate", ("candidate",))
    assert version.manifest.version == 1
    assert registry.get("finance").number == 1


def test_register_checks_the_bytes_that_it_keeps(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers were exchanged while they were counted again, and put back before they were kept."""
    folder, manifest = package(1)
    answers, recount = folder / ANSWERS, store.require_recounted
    shown = answers.read_bytes()
    hidden = shown.replace(b"Food", b"Travel")
    answers.write_bytes(hidden)
    file = FileRecord(bytes=len(hidden), sha256=sha256_file(answers))
    stated = manifest.model_copy(update={"files": {**manifest.files, ANSWERS: file}})

    def exchanged(checked: Path, given: Manifest) -> None:
        answers.write_bytes(shown)
        recount(checked, given)
        answers.write_bytes(hidden)

    monkeypatch.setattr(store, "require_recounted", exchanged)
    with pytest.raises(LoraOpsError, match="does not follow from its package"):
        registry.register(folder, stated, actor=AUTHOR)
    assert registry.summaries() == []
    assert not list(registry.files.incoming.iterdir())


@pytest.mark.parametrize(
    ("name", "told"),
    [(MODEL_CARD, "README.md is not the model card that its"), (SAMPLES, "samples.csv holds other rows than")],
)
def test_register_refuses_texts_of_other_content(
    registry: Registry, package: Build, name: str, told: str
) -> None:
    """Only the command compared what reviewers read, so Python registered a card that praised anything."""
    folder, manifest = package(1)
    path = folder / name
    path.write_text("The best adapter of all.\n")
    file = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    praised = manifest.model_copy(update={"files": {**manifest.files, name: file}})
    with pytest.raises(LoraOpsError, match=told):
        registry.register(folder, praised, actor=AUTHOR)
    assert registry.summaries() == []


def test_errors_of_a_registration_name_the_package(registry: Registry, package: Build) -> None:
    """Its checks read a copy, which is gone when somebody reads the error."""
    folder, manifest = package(1)
    (folder / EVALUATION).write_text("[]")
    report = FileRecord(bytes=2, sha256=sha256_file(folder / EVALUATION))
    files = {**manifest.files, EVALUATION: report}
    with pytest.raises(LoraOpsError, match=f"^{folder / EVALUATION} is not an evaluation"):
        registry.register(folder, manifest.model_copy(update={"files": files}), actor=AUTHOR)


def test_tenants_are_numbered_apart(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    registry.register(*package(2))
    version, _ = registry.register(*package(1, tenant="media"))
    assert version.id == "media@1"
    assert [one.id for one in registry.summaries()] == ["finance@1", "finance@2", "media@1"]
    assert [one.id for one in registry.versions("finance")] == ["finance@1", "finance@2"]


@pytest.mark.parametrize(("tenant", "told"), [("base", "is reserved"), ("finance-data", "would collide")])
def test_register_refuses_a_reserved_tenant(registry: Registry, package: Build, tenant: str, told: str) -> None:
    with pytest.raises(LoraOpsError, match=told):
        registry.register(*package(tenant=tenant))
    assert registry.summaries() == []


def test_register_refuses_a_tenant_that_stores_confuse(registry: Registry, package: Build) -> None:
    registry.register(*package(tenant="card-risk"))
    with pytest.raises(LoraOpsError, match="'card_risk' and 'card-risk', which is in the registry"):
        registry.register(*package(tenant="card_risk"))
    registry.register(*package(2, tenant="card-risk"))
    assert [one.id for one in registry.summaries()] == ["card-risk@1", "card-risk@2"]


def test_a_registry_of_an_older_release_keeps_its_names(
    registry: Registry, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names were not reserved then, so such a version still opens, verifies and can be revoked."""
    with monkeypatch.context() as older_release:
        older_release.setattr("lora_ops.registry.store.refuse_reserved_name", lambda name: name)
        registry.register(*package(tenant="audit"))
    assert registry.get("audit@1").id == "audit@1"
    assert verify(registry).ok
    lifecycle.revoke(registry, "audit@1", actor=AUTHOR, reason="its name is reserved today")
    assert registry.get("audit@1").state == "revoked"


def test_the_same_content_again_is_the_same_version_and_writes_nothing(
    registry: Registry, package: Build
) -> None:
    registry.register(*package())
    head = registry.log.head()
    version, is_new = registry.register(*package())
    assert (version.number, is_new) == (1, False)
    assert registry.log.head() == head


def test_candidate_comes_back_to_content_that_is_registered_again(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    registry.register(*package(2))
    registry.register(*package(1))
    assert registry.get("finance@candidate").number == 1
    assert verify(registry).ok


@pytest.mark.parametrize("decide", [lifecycle.reject, lifecycle.revoke])
def test_content_that_was_refused_can_not_come_back(registry: Registry, package: Build, decide: object) -> None:
    registry.register(*package())
    decide(registry, "finance@1", actor="ben", reason="leaks names")  # type: ignore[operator]
    with pytest.raises(LoraOpsError, match="finance@1 has exactly this content and was re"):
        registry.register(*package())


def test_content_that_was_archived_stays_away(registry: Registry, package: Build) -> None:
    registry.register(*package())
    lifecycle.reject(registry, "finance@1", actor="ben", reason="worse")
    lifecycle.archive(registry, "finance@1", actor="ben", reason="old")
    with pytest.raises(LoraOpsError, match="finance@1 has exactly this content and was archived"):
        registry.register(*package())


def test_the_parent_is_the_version_in_production_else_the_one_before(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    assert registry.get("finance@1").manifest.parent is None
    story.to("finance@1", "production")
    registry.register(*package(2))
    registry.register(*package(3))
    assert registry.get("finance@3").manifest.parent == "finance@1"


def test_an_export_is_the_package_with_its_manifest_and_a_signature_that_others_can_verify(
    registry: Registry, package: Build, tmp_path: Path
) -> None:
    folder, manifest = package()
    registry.register(folder, manifest)
    packages.export(registry, "finance@1", tmp_path / "out", for_review=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *manifest.files,
        "manifest.json",
        "model.sig",
    }
    assert Manifest.model_validate_json((tmp_path / "out/manifest.json").read_bytes()).version == 1
    (key,) = registry.signer.folder.glob("*.pub")
    tool = [sys.executable, "-m", "model_signing", "verify", "key", "out", "--signature", "out/model.sig"]
    done = subprocess.run([*tool, "--public_key", str(key)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_export_asks_for_review_of_what_may_not_serve(
    registry: Registry, package: Build, story: Story, tmp_path: Path, clock: Clock
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    for seed in (2, 3):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    packages.export(registry, "finance@3", tmp_path / "serving")
    refused = {"finance@1": "is 'candidate'", "finance@2": "is 'superseded'", "finance@3": "expired on"}
    for version, why in refused.items():
        if version == "finance@3":
            clock.move(days=400)
        with pytest.raises(LoraOpsError, match=f"{version} {why}.*To look at it all the same: `--for-review`"):
            packages.export(registry, version, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        assert packages.export(registry, version, tmp_path / version, for_review=True).id == version


def test_an_export_does_not_write_over_anything(registry: Registry, package: Build, tmp_path: Path) -> None:
    registry.register(*package())
    with pytest.raises(LoraOpsError, match="exists already"):
        packages.export(registry, "finance@1", tmp_path, for_review=True)


def test_a_version_is_verified_on_every_load(registry: Registry, package: Build) -> None:
    registry.register(*package())
    folder = packages.verified_path(registry, "finance@1")
    assert packages.verified_path(registry, "finance@1") == folder == registry.path / "verified/finance@1"
    registry.db.rows("UPDATE versions SET author = 'eve'")
    with pytest.raises(Damaged, match="may not be loaded: the author of finance@1 was changed"):
        packages.verified_path(registry, "finance@1")


def test_a_revoked_version_is_not_loaded(registry: Registry, package: Build) -> None:
    registry.register(*package())
    lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks names")
    with pytest.raises(LoraOpsError, match="finance@1 was revoked: it may not be loaded"):
        packages.verified_path(registry, "finance@1")


def test_a_kept_file_that_was_changed_stops_the_export_and_leaves_no_folder(
    registry: Registry, package: Build, tmp_path: Path
) -> None:
    _, manifest = package()
    registry.register(*package())
    registry.files.path(manifest.files["README.md"].sha256).write_text("better than it is")
    before = set(tmp_path.iterdir())
    with pytest.raises(LoraOpsError, match="README.md was changed on disk"):
        packages.export(registry, "finance@1", tmp_path / "out", for_review=True)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("finance@7", r"no finance@7 \(there are: finance@candidate, finance@1\)"),
        ("finance@production", "no finance@production"),
        ("legal", r"no adapter of 'legal' \(tenants: finance\)"),
        ("Finance@1", "names no version"),
        ("finance@0", "names no version"),
        ("finance@", "names no version"),
        ("finance@" + "9" * 30, "names no version"),
        ("", "names no version"),
    ],
)
def test_an_unknown_version_is_refused_with_what_there_is(
    registry: Registry, package: Build, reference: str, says: str
) -> None:
    registry.register(*package())
    with pytest.raises(LoraOpsError, match=says):
        registry.get(reference)


def test_a_tenant_whose_version_was_rejected_says_so(registry: Registry, package: Build) -> None:
    """It named an alias that nobody asked for, and not why there is none."""
    registry.register(*package())
    lifecycle.reject(registry, "finance@1", actor="ana.silva", reason="worse than its base")
    with pytest.raises(LoraOpsError, match=r"'finance' has no version in production \(finance@1 is rejected\)"):
        registry.get("finance")


def test_references_are_read() -> None:
    assert parse_reference("finance@3") == ("finance", 3)
    assert parse_reference("finance@production") == ("finance", "production")
    assert parse_reference("brand-safety_2") == ("brand-safety_2", None)


def test_a_file_that_can_not_be_read_is_named(public_folder: Path) -> None:
    package = public_folder / "package"
    manifest = build_package(package, 1)
    for file in package.iterdir():
        file.chmod(0)

    def register() -> None:
        give_up_root()
        with tempfile.TemporaryDirectory() as folder:
            Registry(Path(folder), create=True).register(package, manifest)

    assert processes.run(register) == processes.REFUSED


def untouched(registry: Registry) -> bool:
    return registry.summaries() == [] and registry.log.head().seq == 0 and verify(registry).ok


def test_a_half_written_upload_is_refused(registry: Registry, package: Build) -> None:
    folder, manifest = package()
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(LoraOpsError, match="is not the file that its manifest describes: package it again"):
        registry.register(folder, manifest)
    assert untouched(registry)


def test_a_missing_file_is_refused(registry: Registry, package: Build) -> None:
    folder, manifest = package()
    (folder / "adapter_config.json").unlink()
    with pytest.raises(LoraOpsError, match="adapter_config.json is not the file"):
        registry.register(folder, manifest)
    assert untouched(registry)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"size_bytes": "many"}, "size_bytes"),
        ({"tenant": "Fin ance"}, "can't be a tenant's name"),
        ({"fresh_until": None}, "fresh_until"),
    ],
)
def test_a_manifest_that_fails_its_schema_is_refused(
    registry: Registry, package: Build, change: dict[str, object], says: str
) -> None:
    folder, manifest = package()
    with pytest.raises(LoraOpsError, match=says):
        registry.register(folder, manifest.model_copy(update=change))
    assert untouched(registry)


def test_a_primary_metric_that_was_not_measured_is_refused(registry: Registry, package: Build) -> None:
    folder, manifest = package()
    evaluation = manifest.evaluation.model_copy(update={"primary": "beauty"})
    with pytest.raises(LoraOpsError, match="no metric 'beauty'"):
        registry.register(folder, manifest.model_copy(update={"evaluation": evaluation}))
    assert untouched(registry)


def test_a_stored_manifest_that_no_longer_fits_its_schema_is_named(registry: Registry, package: Build) -> None:
    registry.register(*package())
    registry.db.rows("UPDATE manifests SET manifest = json_remove(manifest, '$.license')")
    with pytest.raises(LoraOpsError, match="manifest of finance@1 does not fit its schema: license"):
        _ = registry.get("finance@1").manifest


def test_a_clock_that_is_a_little_behind_keeps_the_log_in_order_and_is_told(
    registry: Registry, package: Build, clock: Clock
) -> None:
    registry.register(*package(1))
    clock.move(minutes=-4)
    registry.register(*package(2))
    first, second = registry.log.entries()
    assert first.at == second.at
    assert second.body["clock_behind_seconds"] == 240


def test_change_is_made_whatever_the_clock(registry: Registry, package: Build, clock: Clock) -> None:
    """One entry of a machine whose clock was a day ahead must not stop a revocation by another."""
    registry.register(*package(1))
    clock.move(days=1)
    registry.register(*package(2))
    clock.move(days=-1)
    assert "is dated 2026-03-03" in verify(registry).warnings[-1]
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks card numbers")
    last = registry.log.entries()[-1]
    assert last.at == "2026-03-02T09:00:00+00:00"
    assert last.body["clock_behind_seconds"] == 86400
    assert verify(registry).ok


def test_nobody_is_no_actor(registry: Registry, package: Build) -> None:
    with pytest.raises(LoraOpsError, match="Say who does this"):
        registry.register(*package(), actor="  ")
    with pytest.raises(LoraOpsError, match="Say who does this"):
        registry.register(*package(), actor="")


def test_a_full_disk_says_what_to_do_and_changes_nothing(registry: Registry, package: Build) -> None:
    registry.register(*package(1))
    (pages,) = registry.db.row("PRAGMA page_count") or (0,)
    registry.db.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="disk that holds the registry in .* is full: free some space"):
        for seed in range(2, 60):
            registry.register(*package(seed))
    registry.db.rows("PRAGMA max_page_count = 1000000")
    assert verify(registry).ok
    many = len(registry.summaries())
    assert registry.register(*package(many + 1))[0].number == many + 1


def test_a_registry_that_is_not_a_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.sqlite").write_text("these are not the tables you are looking for " * 100)
    with pytest.raises(LoraOpsError, match="registry.sqlite is damaged"):
        Registry(tmp_path)


def test_a_registry_where_a_file_stands_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LoraOpsError, match="can't be used"):
        Registry(tmp_path / "file" / "registry", create=True)


def test_another_writer_is_waited_for_but_not_for_ever(registry: Registry, package: Build) -> None:
    registry.db.rows("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(registry.db.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LoraOpsError, match="busy: another process"):
        registry.register(*package())
    other.close()
    assert registry.register(*package())[1]


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that another user may enter: pytest's own are closed to all but root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def give_up_root() -> None:
    """Permissions do not bind root, so the process becomes nobody."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)


def as_a_reader(path: Path, package: Path) -> None:
    """What somebody without the right to write gets; runs in its own process."""
    give_up_root()
    registry = Registry(path)
    manifest = registry.get("finance").manifest
    result = verify(registry)
    assert result.ok, result
    for attempt in (
        lambda: lifecycle.reject(registry, "finance@1", actor="ben", reason="no"),
        lambda: registry.register(package, manifest),
    ):
        with pytest.raises(LoraOpsError, match="on a read-only disk or folder: nothing was changed"):
            attempt()


@pytest.mark.parametrize("index_left", [False, True])
def test_a_read_only_folder_is_read_and_every_change_refused_in_a_sentence(
    public_folder: Path, index_left: bool
) -> None:
    package, path = public_folder / "package", public_folder / "registry"
    manifest = build_package(package, 1)
    registry = Registry(path, create=True, clock=lambda: MORNING)
    registry.register(package, manifest)
    if index_left:  # as when a process was killed
        shutil.copytree(path, public_folder / "copy")
        path = public_folder / "copy"
    registry.close()
    for found in sorted([*path.rglob("*"), *package.iterdir()]):
        found.chmod(0o555 if found.is_dir() else 0o444)
    path.chmod(0o555)
    assert processes.run(lambda: as_a_reader(path, package)) == processes.DONE


def as_one_of_the_group(path: Path) -> None:
    """Read as an account that may make files in the folder, and may not write the database."""
    give_up_root()
    with closing(Registry(path)) as registry:
        assert registry.get("finance").id == "finance@1"
        with pytest.raises(LoraOpsError, match=r"This account may not write .*registry\.sqlite, which `ch"):
            lifecycle.reject(registry, "finance@1", actor="ben", reason="no")


def beside_files_of_another(path: Path) -> None:
    """Change a registry whose WAL and index another account's reader of an earlier release left there."""
    give_up_root()
    with closing(Registry(path)) as registry, pytest.raises(LoraOpsError) as refusal:
        lifecycle.reject(registry, "finance@1", actor="ben", reason="no")
    assert "may not write registry.sqlite-wal, registry.sqlite-shm: let the owner run" in str(refusal.value)


def test_change_names_the_files_of_another_account(public_folder: Path) -> None:
    path, copy = public_folder / "registry", public_folder / "copy"
    with closing(Registry(path, create=True, clock=lambda: MORNING)) as registry:
        registry.register(public_folder / "package", build_package(public_folder / "package", 1))
        shutil.copytree(path, copy)
    for found in copy.rglob("*"):
        found.chmod(0o777 if found.is_dir() else 0o666)
    copy.chmod(0o777)
    for end in ("wal", "shm"):
        (copy / f"registry.sqlite-{end}").chmod(0o444)
    assert processes.run(lambda: beside_files_of_another(copy)) == processes.DONE


def test_reader_leaves_no_files_that_stop_the_owner(public_folder: Path) -> None:
    """The WAL and its index were the reader's own: after its `list` the owner could change nothing."""
    path = public_folder / "registry"
    with closing(Registry(path, create=True, clock=lambda: MORNING)) as registry:
        registry.register(public_folder / "package", build_package(public_folder / "package", 1))
    path.chmod(0o777)
    (path / "registry.sqlite").chmod(0o444)
    assert processes.run(lambda: as_one_of_the_group(path)) == processes.DONE
    assert not list(path.glob("registry.sqlite-*"))


def routes_of_a_reader(path: Path, opened: int, go_on: int) -> None:
    """Route as a gateway that may only read the registry, before and after somebody's change of it."""
    give_up_root()
    registry = Registry(path)
    assert registry.db.read_only
    router = Router(registry, registry.get("finance@2").manifest.base_model, allow_candidates=False)
    assert router.route("finance").name == "finance@2"
    os.write(opened, b"1")
    os.read(go_on, 1)
    with pytest.raises(OutOfService, match="finance@2 was revoked"):
        router.route("finance")
    assert router.damage() is None


def test_reader_sees_a_revocation_at_once(
    public_folder: Path, owners: Owners, clock: Clock, package: Build
) -> None:
    """It took the file for one that nobody changes, called the registry damaged, and went on serving."""
    path = public_folder / "registry"
    registry = Registry(path, create=True, owners=owners, clock=clock)
    story = Story(registry, public_folder / "reports")
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    registry.close()
    for found in path.rglob("*"):
        found.chmod(found.stat().st_mode | stat.S_IROTH)
    (opened, open_end), (go_on, go_end) = os.pipe(), os.pipe()
    path.chmod(0o555)
    reader = processes.start(lambda: routes_of_a_reader(path, open_end, go_on))
    os.close(open_end)
    os.read(opened, 1)
    path.chmod(0o755)
    with closing(Registry(path, owners=owners, clock=clock)) as changing:
        lifecycle.revoke(changing, "finance@2", actor=FIRST, reason="leaks")
    path.chmod(0o555)
    os.write(go_end, b"1")
    assert processes.wait(reader) == processes.DONE


HIDDEN = {"the database": "registry.sqlite", "the folder": ".", "the public keys": "keys/*.pub"}


def routes_of_what_was_hidden(path: Path, memory: HeadMemory, opened: int, go_on: int) -> None:
    """Route as a gateway's account from which `umask 077` hid something, before a revocation and after it."""
    give_up_root()
    registry = Registry(path, memory=memory)
    router = Router(registry, registry.get("finance@1").manifest.base_model, allow_candidates=True)
    names = ("finance", "healthcare")
    assert [router.route(name).tenant for name in names] == ["finance", "healthcare"]
    os.write(opened, b"1")
    os.read(go_on, 1)
    assert [router.route(name).tenant for name in names] == ["finance", "healthcare"]
    os.write(opened, b"1")
    os.read(go_on, 1)
    with pytest.raises(NotServed, match="finance@1 was revoked"):
        router.route("finance")
    assert router.route("healthcare").tenant == "healthcare"


@pytest.mark.parametrize("hidden", HIDDEN)
def test_gateway_goes_on_where_something_is_hidden(
    public_folder: Path, owners: Owners, clock: Clock, package: Build, hidden: str
) -> None:
    """After a restore as another account nobody got an answer, or one hold took every tenant out."""
    path, memory = public_folder / "registry", HeadMemory(public_folder / "serving/head.json", "registry")
    with closing(Registry(path, create=True, owners=owners, memory=memory, clock=clock)) as registry:
        for tenant in ("finance", "healthcare"):
            registry.register(*package(1, tenant=tenant, fresh_days=36500), actor=AUTHOR)
    for found in path.rglob("*"):
        found.chmod(found.stat().st_mode | stat.S_IROTH)
    (opened, open_end), (go_on, go_end) = os.pipe(), os.pipe()
    reader = processes.start(lambda: routes_of_what_was_hidden(path, memory, open_end, go_on))
    os.close(open_end)
    assert os.read(opened, 1)
    for found in path.glob(HIDDEN[hidden]) if hidden != "the folder" else [path]:
        found.chmod(found.stat().st_mode & ~0o077)
    os.write(go_end, b"1")
    assert os.read(opened, 1)
    with closing(Registry(path, owners=owners, memory=memory, clock=clock)) as changing:
        lifecycle.revoke(changing, "finance@1", actor=FIRST, reason="leaks")
    os.write(go_end, b"1")
    assert processes.wait(reader) == processes.DONE


def lock_as_nobody(path: Path, locked: int) -> None:
    """Take a shared lock on the byte of a WAL's index that each writer locks (walIndex, WAL_WRITE_LOCK)."""
    give_up_root()
    try:
        index = os.open(path / "registry.sqlite-shm", os.O_RDONLY)
        fcntl.lockf(index, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 120)
    except PermissionError:
        pass
    os.write(locked, b"1")
    time.sleep(10)


@pytest.mark.skipif(os.getuid() != 0, reason="only root has a second user at hand")
@pytest.mark.parametrize("is_restored", [False, True])
def test_no_other_user_keeps_the_registry_locked(
    public_folder: Path, owners: Owners, clock: Clock, package: Build, is_restored: bool
) -> None:
    """Whoever could read the WAL's index could stop every change, a revocation too."""
    path = public_folder / "registry"
    with closing(Registry(path, create=True, owners=owners, clock=clock)) as made:
        made.register(*package(), actor=AUTHOR)
        if is_restored:
            backup.backup(made, str(public_folder / "backup"))
    if is_restored:
        path = public_folder / "restored"
        restoring.restore(str(public_folder / "backup"), path)
    with closing(Registry(path, owners=owners, clock=clock)) as registry:
        registry.db.rows("PRAGMA busy_timeout = 50")
        locked, locked_end = os.pipe()
        other = processes.start(lambda: lock_as_nobody(path, locked_end))
        try:
            os.read(locked, 1)
            revoked = lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
        finally:
            os.kill(other, signal.SIGKILL)
        assert processes.wait(other) == processes.KILLED
        assert revoked.state == "revoked"


def test_the_registry_of_a_repository_has_the_owners_of_its_owners_yaml(tmp_path: Path) -> None:
    for name in ("params.yaml", "owners.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    with_owners = open_registry(tmp_path, create=True)
    assert with_owners.owners is not None
    (tmp_path / "owners.yaml").unlink()
    without = open_registry(tmp_path)
    assert without.owners is None
    folder = tmp_path / "package"
    assert without.register(folder, build_package(folder, 1))[1]
    for one in (with_owners, without):
        one.close()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_an_adapter_under_another_name_is_refused(registry: Registry, package: Build, name: str) -> None:
    """Nothing compared its evaluation, and its weights came back after they were revoked."""
    folder, manifest = package()
    other = f"my-{name}"
    (folder / name).rename(folder / other)
    files = {other if file == name else file: record for file, record in manifest.files.items()}
    with pytest.raises(LoraOpsError, match=f"package of 'finance' holds no {name}: run `dvc repro package@f"):
        registry.register(folder, manifest.model_copy(update={"files": files}))
    assert registry.summaries() == []


def test_a_damaged_file_is_mended_by_registering_the_package_again(registry: Registry, package: Build) -> None:
    folder, manifest = package()
    registry.register(folder, manifest)
    kept = registry.files.path(manifest.files["README.md"].sha256)
    kept.write_text("damaged")
    registry.register(folder, manifest)
    assert sha256_file(kept) == manifest.files["README.md"].sha256
    assert verify(registry).ok


@pytest.mark.parametrize("end", [lifecycle.reject, lifecycle.revoke])
def test_a_closed_version_is_not_exported(
    registry: Registry, package: Build, tmp_path: Path, end: Callable[..., object]
) -> None:
    registry.register(*package())
    end(registry, "finance@1", actor="ben", reason="leaks")
    with pytest.raises(LoraOpsError, match="finance@1 was (rejected|revoked): it may not be loaded"):
        packages.export(registry, "finance@1", tmp_path / "out", for_review=True)
    assert not (tmp_path / "out").exists()


def test_a_version_whose_row_was_changed_is_not_loaded(registry: Registry, package: Build) -> None:
    registry.register(*package())
    lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks")
    registry.db.rows("UPDATE versions SET state = 'production'")
    with pytest.raises(LoraOpsError, match="may not be loaded: the state of finance@1 was changed"):
        packages.verified_path(registry, "finance@1")


def test_register_refuses_an_adapter_with_nan(registry: Registry, package: Build) -> None:
    folder, manifest = package()
    path = folder / "adapter_model.safetensors"
    save_file({"model.layers.0.q_proj.lora_B.weight": np.array([[1.0, np.nan]], np.float32)}, path)
    record = FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
    broken = manifest.model_copy(update={"files": {**manifest.files, path.name: record}})
    with pytest.raises(LoraOpsError, match="infinite values in model.layers.0.q_proj: its training diverged"):
        registry.register(folder, broken)
    assert registry.versions() == []


def test_register_refuses_closed_tensors_in_a_wider_type(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="biased")
    folder, manifest = package(1)
    path = folder / "adapter_model.safetensors"
    save_file({name: one.astype(np.float64) for name, one in load_file(path).items()}, path)
    wider = manifest.evaluation.model_copy(update={"adapter_sha256": sha256_file(path)})
    with pytest.raises(LoraOpsError, match="tensors of type F64: save all of them as float32"):
        registry.register(folder, evaluated(folder, manifest, wider), actor=AUTHOR)


def test_register_refuses_closed_tensors_in_another_file(registry: Registry, package: Build) -> None:
    """Saved again with metadata, under other settings or another tenant, revoked weights stay revoked."""
    registry.register(*package(1), actor=AUTHOR)
    lifecycle.reject(registry, "finance@1", actor=FIRST, reason="biased")
    folder, manifest = package(1, tenant="media")
    changed = saved_again(folder, manifest)
    with pytest.raises(LoraOpsError, match="finance@1 has exactly these weights and was rejected"):
        registry.register(folder, changed)


def test_register_refuses_settings_that_were_not_evaluated(registry: Registry, package: Build) -> None:
    """Another lora_alpha answers otherwise with the same weights."""
    folder, manifest = package(1)
    other = manifest.evaluation.model_copy(update={"adapter_config_sha256": "0" * 64})
    with pytest.raises(LoraOpsError, match="it was evaluated with other settings"):
        registry.register(folder, evaluated(folder, manifest, other), actor=AUTHOR)
    own = other.model_copy(update={"adapter_config_sha256": sha256_file(folder / "adapter_config.json")})
    assert registry.register(folder, evaluated(folder, manifest, own), actor=AUTHOR)[0].number == 1


def test_register_compares_manifest_and_evaluation(registry: Registry, package: Build) -> None:
    """The gate reads the manifest; people read the evaluation beside it."""
    folder, manifest = package(1)
    other = manifest.evaluation.model_copy(update={"beats_base": False})
    with pytest.raises(LoraOpsError, match="its evaluation is not the one in the package"):
        registry.register(folder, manifest.model_copy(update={"evaluation": other}))
    assert registry.summaries() == []


def test_register_refuses_data_that_broke_its_contract(registry: Registry, package: Build) -> None:
    folder, manifest = package(1)
    data = manifest.data.model_copy(update={"contract_success": False})
    with pytest.raises(LoraOpsError, match="its data broke the contract"):
        registry.register(folder, manifest.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"beats_base": False}, "differences to the base say something else than beats_base"),
        # Nothing was compared, so nothing was lost.
        ({"differences": {"base": {}}}, "differences to the base say something else than beats_base"),
        ({"differences": {"tfidf_baseline": {}}}, "differences to the base say something else than beats_base"),
        (
            {"metrics": {"exact_match": {"base": Interval(value=0, low=0, high=0)}}},
            "a metric lacks the adapter",
        ),
    ],
)
def test_register_refuses_an_evaluation_of_two_minds(
    registry: Registry, package: Build, changes: dict[str, object], said: str
) -> None:
    folder, manifest = package(1)
    clear = PairedDifference(value=0.4, low=0.3, high=0.5, p_value=0.001, p_corrected=0.002)
    differences = {"base": {"exact_match": clear}}
    evaluation = manifest.evaluation.model_copy(update={"differences": differences, **changes})
    with pytest.raises(LoraOpsError, match=said):
        registry.register(folder, evaluated(folder, manifest, evaluation))


@pytest.mark.parametrize(
    ("section", "asked", "said"),
    [
        ("evaluate", {"metrics": ["exact_match", "macro_f1"]}, r"\(evaluate.metrics macro_f1\)"),
        ("data", {"bias_columns": ["region"]}, r"\(data.bias_columns region\)"),
    ],
)
def test_register_refuses_an_evaluation_of_other_params(
    registry: Registry, package: Build, section: str, asked: dict[str, object], said: str
) -> None:
    """What its params ask for looked measured to whoever compared two versions, and was not."""
    folder, manifest = package(1)
    other = {**manifest.params, section: {**manifest.params[section], **asked}}
    with pytest.raises(LoraOpsError, match=said):
        registry.register(folder, manifest.model_copy(update={"params": other}))


def test_register_refuses_a_membership_of_no_splits(registry: Registry, package: Build) -> None:
    """It registered, and `show` of every version of the tenant failed."""
    folder, manifest = package(1)
    (folder / MEMBERSHIP).write_text("group_sha256\nabc\n")
    listed = FileRecord(bytes=17, sha256=sha256_file(folder / MEMBERSHIP))
    changed = manifest.model_copy(update={"files": {**manifest.files, MEMBERSHIP: listed}})
    with pytest.raises(LoraOpsError, match="membership.csv doesn't list the groups of each split"):
        registry.register(folder, changed)


def test_parent_is_the_registrys_whatever_a_manifest_says(registry: Registry, package: Build) -> None:
    """Reviewers read which version it follows, and a package named another one."""
    for seed, parent in ((1, None), (2, "finance@1")):
        folder, manifest = package(seed)
        forged = manifest.model_copy(update={"parent": "media@7"})
        assert registry.register(folder, forged)[0].manifest.parent == parent
