"""A registry of each released schema is brought forward where it lies; one from the future is left alone."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.records.manifest import Manifest, content_digest
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.cards import record
from lora_ops.registry.files import FileStore
from lora_ops.registry.migrations import SCHEMA_VERSION
from lora_ops.registry.owners import Owners
from lora_ops.registry.rotation import rotate_key
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from . import processes
from .conftest import Build, Clock, evaluated

FIXTURES = Path(__file__).parent / "fixtures"
WRITTEN = {
    1: "898d7a594ea7dad7cc77ef84169e846b414e135790438b91bc7de49472150996",
    2: "1336fc9d048c3e9540fb3ac0dd3794daa252189f547e55d5ddab44faf5d81649",
    3: "ecd7cde7a39720094524c67168c088285021e497ef29eaf5cd5ef75ce687d56d",
    4: "dc7777e2c597e93c8ec6748063c946f9db05896ab8e7a8d19b0836204e6aae50",
    5: "7e36392fd578e6bb55280d4b4256b56231c029c65960eb4991e7f6a765106b8e",
}
"""Schema -> SHA-256 of the registry that the release with it wrote."""


def unpacked(schema: int, folder: Path) -> Path:
    """Lay out the registry that the release with one schema wrote."""
    shutil.unpack_archive(FIXTURES / f"schema-{schema}.tar.gz", folder)
    return folder / f"schema-{schema}"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A registry that the first lora-ops wrote: two versions of finance, one of media."""
    return unpacked(1, tmp_path / "old")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A registry that the release with schema 2 wrote: finance@1 in production, media@1 revoked."""
    return unpacked(2, tmp_path / "second")


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A registry that the release with schema 3 wrote: four versions, one in production, one revoked."""
    return unpacked(3, tmp_path / "released")


@pytest.mark.parametrize("schema", WRITTEN)
def test_fixture_has_the_bytes_of_its_release(schema: int) -> None:
    """No class of today made them, so a change of today's classes can't change them, too."""
    assert sha256_file(FIXTURES / f"schema-{schema}.tar.gz") == WRITTEN[schema]


def test_fixture_of_every_schema_is_there() -> None:
    assert [*WRITTEN] == [*range(1, SCHEMA_VERSION + 1)]


def test_an_old_registry_keeps_its_versions_and_gains_signatures_and_a_log(old: Path) -> None:
    registry = Registry(old)
    assert [(one.id, one.aliases) for one in registry.summaries()] == [
        ("finance@1", ()),
        ("finance@2", ("candidate",)),
        ("media@1", ("candidate",)),
    ]
    assert [entry.action for entry in registry.log.entries()] == ["imported"] * 3
    assert registry.get("finance@1").registered_at == "2026-11-26T16:57:50+00:00"
    assert verify(registry).ok
    assert packages.verified_path(registry, "media").is_dir()


def test_an_upgraded_registry_goes_on_counting(old: Path, package: Build) -> None:
    registry = Registry(old)
    assert registry.register(package(2)[0], as_released(*package(2)))[0].id == "finance@2"
    assert registry.register(*package(9))[0].id == "finance@3"


def test_an_upgraded_registry_is_upgraded_once(old: Path) -> None:
    Registry(old).close()
    assert Registry(old).log.head().seq == 3


def test_processes_that_upgrade_together_upgrade_once(old: Path) -> None:
    started = [processes.start(lambda: Registry(old)) for _ in range(4)]
    assert [processes.wait(one) for one in started] == [processes.DONE] * 4
    registry = Registry(old)
    assert registry.log.head().seq == 3
    assert verify(registry).ok


def test_version_damaged_before_is_imported_unsigned_and_named(old: Path) -> None:
    with closing(sqlite3.connect(old / "registry.sqlite")) as db:
        (text,) = db.execute("SELECT manifest FROM versions WHERE number = 1 AND tenant = 'finance'").fetchone()
    digest = json.loads(text)["files"]["adapter_model.safetensors"]["sha256"]
    FileStore(old / "files").path(digest).write_bytes(b"x")
    registry = Registry(old)
    assert verify(registry).problems[0] == "finance@1 carries no signature"
    with pytest.raises(LoraOpsError, match="changed on disk"):
        packages.verified_path(registry, "finance@1")
    assert packages.verified_path(registry, "finance@2").is_dir()


@pytest.mark.parametrize("calls", range(5, 420, 23))
def test_an_upgrade_that_is_killed_leaves_the_old_registry_or_the_new_one(
    old: Path, tmp_path: Path, calls: int
) -> None:
    path = tmp_path / "copy"
    shutil.copytree(old, path)
    assert processes.run(lambda: Registry(path), kill_at=calls) in (processes.KILLED, processes.DONE)
    registry = Registry(path)
    assert registry.log.head().seq == 3
    assert verify(registry).ok


@pytest.mark.parametrize("calls", [None, *range(3, 60, 8)])
def test_a_registry_of_schema_2_keeps_its_log_and_gains_a_queue_killed_or_not(
    second: Path, package: Build, clock: Clock, calls: int | None
) -> None:
    with closing(sqlite3.connect(second / "registry.sqlite")) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (2,)
        hashes = db.execute("SELECT hash FROM audit ORDER BY seq").fetchall()
    path = second
    assert processes.run(lambda: Registry(path), kill_at=calls) in (processes.KILLED, processes.DONE)
    upgraded = Registry(path, clock=clock)
    assert [(entry.hash,) for entry in upgraded.log.entries()] == hashes
    assert upgraded.db.rows("SELECT * FROM mirrors") == []
    assert [(one.id, one.state) for one in upgraded.summaries()] == [
        ("finance@1", "production"),
        ("finance@2", "candidate"),
        ("media@1", "revoked"),
    ]
    assert packages.verified_path(upgraded, "finance@1").is_dir()
    assert verify(upgraded).ok
    assert upgraded.register(*package(9))[0].id == "finance@3"


def test_a_registry_from_the_future_is_refused_in_one_sentence(registry: Registry) -> None:
    registry.db.rows(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    registry.close()
    with pytest.raises(LoraOpsError, match=r"written by a newer lora-ops \(schema 6, this one knows 5\)"):
        Registry(registry.path)


def test_an_old_manifest_that_fails_its_schema_stops_the_upgrade_and_changes_nothing(old: Path) -> None:
    db = sqlite3.connect(old / "registry.sqlite")
    db.execute("UPDATE versions SET manifest = '{}' WHERE tenant = 'media'")
    db.commit()
    with pytest.raises(LoraOpsError, match="manifest of media@1 does not fit its schema"):
        Registry(old)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM versions").fetchone() == (3,)


def test_schema_3_keeps_hashes_states_and_aliases(released: Path, clock: Clock) -> None:
    """The chain, its signed head and each manifest of a released registry hold after the upgrade."""
    db = sqlite3.connect(released / "registry.sqlite")
    hashes = db.execute("SELECT seq, hash FROM audit ORDER BY seq").fetchall()
    db.close()
    registry = Registry(released, clock=clock)
    assert [(entry.seq, entry.hash) for entry in registry.log.entries()] == hashes
    assert {entry.format for entry in registry.log.entries()} == {1}
    assert [(one.id, one.state, one.aliases) for one in registry.summaries()] == [
        ("finance@1", "production", ("production",)),
        ("finance@2", "candidate", ("candidate",)),
        ("healthcare@1", "shadow", ("candidate", "shadow")),
        ("media@1", "revoked", ()),
    ]
    assert verify(registry).ok
    assert record(registry, "finance@1").verdict.may_serve
    assert packages.verified_path(registry, "finance@1").is_dir()


def test_schema_3_goes_on_with_entries_of_both_formats(released: Path, owners: Owners, clock: Clock) -> None:
    registry = Registry(released, owners=owners, clock=clock)
    clock.move(days=10)
    lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks card numbers")
    last = registry.log.entries()[-1]
    assert (last.format, last.subject.id, last.action) == (2, "finance@1", "revoked")
    assert [entry.format for entry in registry.history("finance@1")][-2:] == [1, 2]
    assert verify(registry).ok


@pytest.mark.parametrize("calls", range(3, 90, 9))
def test_schema_3_upgrade_killed_goes_on(released: Path, clock: Clock, calls: int) -> None:
    done = processes.run(lambda: Registry(released), kill_at=calls)
    assert done in (processes.KILLED, processes.DONE)
    assert verify(Registry(released, clock=clock)).ok


def test_schema_4_verifies_serves_and_is_revoked(tmp_path: Path, owners: Owners, clock: Clock) -> None:
    """What this schema's release wrote holds in every later one; its private key was never in the folder."""
    registry = Registry(unpacked(4, tmp_path / "fourth"), owners=owners, clock=clock)
    clock.move(days=10)
    assert [(one.id, one.state, one.aliases) for one in registry.summaries()] == [
        ("finance@1", "production", ("production",)),
        ("finance@2", "candidate", ("candidate",)),
        ("media@1", "revoked", ()),
    ]
    assert {entry.format for entry in registry.log.entries()} == {2}
    assert verify(registry).ok
    assert record(registry, "finance@1").verdict.may_serve
    assert registry.routes() == {}
    assert packages.verified_path(registry, "finance@1").is_dir()
    rotate_key(registry, actor="ben", reason="the old key is gone")
    lifecycle.revoke(registry, "finance@1", actor="ben", reason="leaks card numbers")
    assert verify(registry).ok


@pytest.mark.parametrize("calls", range(3, 60, 8))
def test_schema_4_upgrade_killed_goes_on(tmp_path: Path, clock: Clock, calls: int) -> None:
    path = unpacked(4, tmp_path / "fourth")
    done = processes.run(lambda: Registry(path), kill_at=calls)
    assert done in (processes.KILLED, processes.DONE)
    registry = Registry(path, clock=clock)
    assert verify(registry).ok
    assert registry.routes() == {}


def test_schema_5_keeps_its_routes(tmp_path: Path, owners: Owners, clock: Clock) -> None:
    registry = Registry(unpacked(5, tmp_path / "fifth"), owners=owners, clock=clock)
    clock.move(days=10)
    assert verify(registry).ok
    route = registry.route("finance")
    assert registry.follower.problem() is None
    assert registry.follower.route("finance") == route
    assert route.canary and (route.canary.number, route.canary.percent) == (2, 25)
    assert route.shadow and (route.shadow.number, route.shadow.percent) == (2, 20)
    assert (route.users, route.segments) == ({route.user_hash("ann"): 2}, {"beta": 2})
    assert route.stopped == (1,)
    rotate_key(registry, actor="ben", reason="the old key is gone")
    lifecycle.revoke(registry, "finance@2", actor="ben", reason="leaks card numbers")
    assert registry.route("finance").canary is None
    assert verify(registry).ok


def as_released(folder: Path, manifest: Manifest) -> Manifest:
    """Write a package as the fixture's release did: other names of tensors, fewer settings."""
    path = folder / "adapter_model.safetensors"
    [tensor] = load_file(path).values()
    save_file({"lora_A.weight": tensor}, path)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    update = {"answered_by": None, "adapter_sha256": sha256_file(path)}
    older = evaluated(folder, manifest, manifest.evaluation.model_copy(update=update))
    data = manifest.data.model_copy(
        update={
            "source": manifest.data.source.model_copy(update={"date": "2026-01-01"}),
            "splits": {"train": manifest.data.splits["train"]},
        }
    )
    training = older.training.model_copy(update={"settings": None, "adapter_sha256": None})
    params = {"train": manifest.params["train"]}
    return older.model_copy(update={"data": data, "training": training, "params": params})


def test_register_knows_content_of_an_older_schema(released: Path, package: Build, clock: Clock) -> None:
    """The same adapter, packaged again by today's release, is the version that the old one registered."""
    registry = Registry(released, clock=clock)
    version, is_new = registry.register(package(2)[0], as_released(*package(2)))
    assert (version.id, is_new) == ("finance@2", False)


@pytest.mark.usefixtures("older_packages")
def test_register_refuses_revoked_weights_around_other_settings(released: Path, package: Build) -> None:
    registry = Registry(released)
    folder, manifest = package(3, tenant="media")
    with pytest.raises(LoraOpsError, match="media@1 has exactly these weights and was revoked"):
        registry.register(folder, as_released(folder, manifest).model_copy(update={"license": "MIT"}))


def test_registry_survives_fields_of_a_newer_release(registry: Registry, package: Build) -> None:
    """A field that this release does not know is kept in the manifest, and takes nothing out of service."""
    folder, manifest = package(1)
    registry.register(folder, manifest)
    version = registry.get("finance@1")
    newer = json.loads(version.manifest_text)
    newer["data"]["language"] = "en"
    newer["evaluation"]["judge"] = {"model": "x"}
    assert Manifest.model_validate(newer) == version.manifest
    assert content_digest(json.dumps(newer)) == version.summary.content_digest
