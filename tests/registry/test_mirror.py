"""The copy at W&B: what is sent, in which order, and that no fault, no kill and no second run spoils it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import wandb

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.paths import EVALUATION_PAGE
from lora_ops.records.evidence import Evidence
from lora_ops.records.manifest import FileRecord
from lora_ops.records.registry import AdapterRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.audit import Head
from lora_ops.registry.backends import open_registry
from lora_ops.registry.mirror import Mirror, chain
from lora_ops.registry.store import Registry
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.registry import WandbSettings
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.runs import track
from tests.conftest import write_params
from tests.wandb_server import ENTITY, Version, WandbServer

from . import processes
from .conftest import Build, Clock, Story

ROOT = Path(__file__).parents[2]
Connect = Callable[..., WandbProject]


@pytest.fixture
def mirror(registry: Registry, connect: Connect) -> Mirror:
    return Mirror(registry, connect())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A small clone of the repository whose registry has a mirror."""
    write_params(tmp_path, {"registry": {"mirror": "wandb"}})
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(ROOT / "owners.yaml", tmp_path)
    return tmp_path


def run_command(root: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start `lora-ops registry ...` as a process of its own, with a client and a Go core of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    command = [sys.executable, "-m", "lora_ops", "registry", *words]
    return subprocess.Popen(command, env={**inherited, "LORA_OPS_ROOT": str(root)}, stdout=subprocess.DEVNULL)


def log_at(server: WandbServer) -> list[tuple[int, str]]:
    """The audit log as W&B holds it: number and action of each entry."""
    return [(one.info["seq"], one.info["action"]) for one in server.collection("audit").versions]


def names(version: Version) -> set[str]:
    """The names that people use; digests and `latest` are left out."""
    return {one for one in version.aliases if not one.startswith(("manifest-", "latest"))}


# What arrives.


def test_a_version_arrives_with_its_package_its_names_and_its_whole_record(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    version, _ = registry.register(*package(1), actor="ana")
    assert mirror.sync().sent == 1
    [sent] = server.collection("finance").versions
    assert (sent.collection.type, names(sent), sent.tags) == (
        "lora-adapter",
        {"candidate", "version-1"},
        {"candidate"},
    )
    assert sent.description is not None
    assert sent.description.startswith("finance@1 is 'candidate' and may NOT serve, as of ")
    record = {name: sent.info[name] for name in AdapterRecord.model_fields}
    told = AdapterRecord.model_validate(record)
    assert told.lineage.params == version.manifest.params
    assert told.history == registry.history("finance@1")
    assert set(server.files_of(sent)) == {*version.manifest.files, "manifest.json", "model.sig"}


def test_lineage_leads_from_the_data_over_the_version_to_its_reports_and_its_successor(
    registry: Registry, mirror: Mirror, package: Build, story: Story, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    story.to("finance@1", "validated")
    registry.register(*package(2), actor="ana")
    mirror.sync()
    first, second = server.collection("finance").versions
    [data_1, data_2] = server.collection("finance.data").versions
    policy, rows = server.collection("finance.policy").versions
    assert (data_1.collection.type, policy.collection.type) == ("dataset", "evaluation")
    assert first.run.inputs == [data_1]
    assert policy.run.inputs == [first]
    assert second.run.inputs == [data_2, first]
    assert json.loads(server.storage[server.files_of(policy)["report"]])["kind"] == "policy"
    assert server.storage[server.files_of(rows)["report"]].startswith(b'{"adapter": "finance@1", "check"')


def test_each_entry_of_the_log_is_one_run_and_one_signed_artifact_in_order(
    registry: Registry, mirror: Mirror, package: Build, story: Story, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    story.to("finance@1", "shadow")
    mirror.sync()
    assert log_at(server) == [(1, "registered"), (2, "read"), (3, "validated"), (4, "shadow")]
    assert [one.fields["displayName"] for one in server.runs.values()] == [
        "registered finance@1",
        "read owners owners.yaml",
        "validated finance@1",
        "shadow finance@1",
    ]
    kept = chain(mirror.project.entries(Head()), Head())
    assert [one.entry for one in kept] == registry.log.entries()
    text = server.collection("audit").versions[0].info["entry"]
    assert registry.signer.fits_text(text, kept[0].signature)


def test_names_states_and_incidents_follow_each_decision(
    registry: Registry, mirror: Mirror, package: Build, story: Story, server: WandbServer
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana")
    story.to("finance@1", "shadow")
    mirror.sync()
    first, second = server.collection("finance").versions
    assert (names(first), first.tags) == ({"version-1", "shadow"}, {"shadow"})
    assert (names(second), second.tags) == ({"version-2", "candidate"}, {"candidate"})
    [incident] = story.evidence("incident")
    lifecycle.link_incident(
        registry, "finance@1", evidence=[incident], actor="eve", reason="leaks card numbers"
    )
    lifecycle.revoke(registry, "finance@1", actor="eve", reason="leaks card numbers")
    story.to("finance@2", "shadow")
    mirror.sync()
    assert (names(first), first.tags) == ({"version-1"}, {"revoked"})
    assert (names(second), second.tags) == ({"version-2", "candidate", "shadow"}, {"shadow"})
    assert first.info["verdict"]["may_serve"] is False
    assert first.info["risk"]["incidents"] == [incident.reference.model_dump()]
    assert {one.collection.type for one in server.collection("finance.incident").versions} == {"incident"}


def test_an_archived_version_goes_away_after_its_days_and_a_live_one_never(
    registry: Registry, package: Build, server: WandbServer, connect: Connect
) -> None:
    mirror = Mirror(registry, connect(archived_ttl_days=30))
    registry.register(*package(1), actor="ana")
    mirror.sync()
    [sent] = server.collection("finance").versions
    assert sent.ttl is None
    lifecycle.reject(registry, "finance@1", actor="ben", reason="biased")
    lifecycle.archive(registry, "finance@1", actor="ben", reason="rejected")
    mirror.sync()
    assert sent.ttl == timedelta(days=31).total_seconds()
    assert (names(sent), sent.tags) == ({"version-1"}, {"archived"})


def test_a_validated_version_is_linked_into_the_registry_collection_and_a_revoked_one_is_not(
    registry: Registry, package: Build, story: Story, server: WandbServer, connect: Connect
) -> None:
    mirror = Mirror(registry, connect(collection="wandb-registry-model/{tenant}"))
    registry.register(*package(1), actor="ana")
    mirror.sync()
    assert not server.linked("wandb-registry-model", "finance")
    story.to("finance@1", "shadow")
    mirror.sync()
    [sent] = server.collection("finance").versions
    assert server.linked("wandb-registry-model", "finance") == {
        "latest": sent,
        "candidate": sent,
        "shadow": sent,
    }
    lifecycle.revoke(registry, "finance@1", actor="eve", reason="leaks")
    mirror.sync()
    assert not server.linked("wandb-registry-model", "finance")


def test_versions_that_were_registered_before_there_was_a_mirror_are_sent_too(
    registry: Registry, package: Build, server: WandbServer, connect: Connect
) -> None:
    for seed, tenant in ((1, "finance"), (2, "media"), (3, "finance")):
        registry.register(*package(seed, tenant=tenant), actor="ana")
    assert Mirror(registry, connect()).sync().sent == 3
    assert [len(server.collection(name).versions) for name in ("finance", "media", "audit")] == [2, 1, 3]


# Names.


def log_at_wandb(name: str, kind: str, file: Path, *aliases: str) -> None:
    """Log an artifact into the registry's project, as somebody else or an earlier release would."""
    with wandb.init(project="lora-ops-registry", dir=file.parent, reinit="create_new") as run:
        artifact = wandb.Artifact(name, type=kind)
        artifact.add_file(str(file), "report")
        run.log_artifact(artifact, aliases=list(aliases)).wait()


def test_tenant_with_the_name_of_a_store_jams_nothing(
    registry: Registry,
    mirror: Mirror,
    package: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: WandbServer,
) -> None:
    # A registry from before names were reserved, and its mirror, where finance's data has the name already.
    monkeypatch.setattr("lora_ops.registry.store.refuse_reserved_name", lambda name: name)
    (tmp_path / "data.json").write_text("{}")
    log_at_wandb("finance-data", "dataset", tmp_path / "data.json")
    for seed, tenant in enumerate(("finance", "finance-data", "audit"), start=1):
        registry.register(*package(seed, tenant=tenant), actor="ana")
    assert mirror.sync().sent == 3
    assert mirror.problem() is None and mirror.sync().restored == ()
    for tenant in ("finance-data", "audit"):
        [sent] = server.collection(f"{tenant}.adapter").versions
        assert names(sent) == {"candidate", "version-1"}


def test_report_under_an_earlier_name_is_read(mirror: Mirror, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# a policy")
    report = Evidence(kind="policy", sha256=sha256_file(page), summary="page.md")
    log_at_wandb("finance-policy", "evaluation", page, f"report-{report.sha256[:12]}")
    mirror.project.fetch_report("finance", report, tmp_path / "fetched")
    assert (tmp_path / "fetched" / "report").read_text() == "# a policy"


def test_entry_that_wandb_refuses_is_named(
    registry: Registry, mirror: Mirror, package: Build, tmp_path: Path, server: WandbServer
) -> None:
    (tmp_path / "file").write_text("{}")
    log_at_wandb("finance", "model", tmp_path / "file")
    registry.register(*package(1), actor="ana")
    with pytest.raises(
        LoraOpsError, match=r"Entry 1 \(registered finance@1\) was not sent: .*type 'model'"
    ) as told:
        mirror.sync()
    assert "`registry.wandb.project`" in str(told.value)
    server.collections.pop((ENTITY, "lora-ops-registry", "finance"))
    assert mirror.sync().sent == 1


# The runs that made it.


@pytest.mark.parametrize("runs_first", [True, False], ids=["runs first", "registry first"])
def test_version_names_the_run_that_made_it(
    registry: Registry,
    package: Build,
    story: Story,
    tmp_path: Path,
    server: WandbServer,
    runs_first: bool,
) -> None:
    runs = TrackingSettings(project="lora-ops")
    mirror = Mirror(registry, WandbProject(WandbSettings(retries=1), runs))
    folder, manifest = package(1)
    root = tmp_path / "repository"
    shutil.copytree(folder, root / "packages/finance")
    (root / "packages/finance/manifest.json").write_text(manifest.to_json())
    # Registering adds the page, which the stage `package` does not have.
    about = manifest.evaluation_report_sha256
    text = f'<head><meta name="lora-ops-evaluation" content="{about}"></head><body>'
    (folder / EVALUATION_PAGE).write_text(text)
    page = FileRecord(bytes=len(text), sha256=sha256_file(folder / EVALUATION_PAGE))
    manifest = manifest.model_copy(update={"files": {**manifest.files, EVALUATION_PAGE: page}})

    def run_pipeline() -> str:
        with track("package", "finance", {}, runs, root, outputs=["package"]) as run:
            return str(run.id)

    def sync() -> Version:
        mirror.sync()
        return server.collection("finance").versions[0]

    registry.register(folder, manifest, actor="ana")
    if runs_first:
        made_by, sent = run_pipeline(), sync()
        assert [one.collection.name for one in sent.run.inputs if one.collection.project == "lora-ops"] == [
            "finance-package"
        ]
    else:
        sent, made_by = sync(), run_pipeline()
        assert "run" not in sent.info
        lifecycle.reject(registry, "finance@1", actor="ana", reason="biased")
        sent = sync()
    assert sent.info["run"] == f"{ENTITY}/lora-ops/{made_by}"
    assert sent.info["run_url"].endswith(f"/{ENTITY}/lora-ops/runs/{made_by}")


# Twice is once.


def test_a_second_sync_sends_nothing(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    assert mirror.sync().sent == 1
    server.requests.clear()
    assert mirror.sync() == (0, ())
    assert server.count("CreateArtifact") == server.count("upload") == server.count("UpsertBucket") == 0


def test_a_mirror_that_forgot_what_it_sent_finds_it_at_wandb(
    registry: Registry, mirror: Mirror, package: Build, story: Story, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    story.to("finance@1", "validated")
    mirror.sync()
    before = {key: len(one.versions) for key, one in server.collections.items()}
    registry.db.rows("DELETE FROM mirrors")
    assert mirror.sync().sent == 3
    assert {key: len(one.versions) for key, one in server.collections.items()} == before


# Faults.


def test_without_a_key_changes_stay_queued_and_it_says_so(
    registry: Registry, mirror: Mirror, package: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.delenv("WANDB_MODE")
    registry.register(*package(1), actor="ana")
    with pytest.raises(LoraOpsError, match=r"WANDB_API_KEY is not set.*1 change stays queued"):
        mirror.sync()
    assert [entry.action for entry in mirror.queued()] == ["registered"]


@pytest.mark.parametrize("where", ["CreateArtifact$", "upload content", "CommitArtifact"])
@pytest.mark.parametrize("fault", ["error 500", "connection dropped"])
def test_a_passing_fault_is_not_even_noticed(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer, where: str, fault: str
) -> None:
    registry.register(*package(1), actor="ana")
    if fault == "error 500":
        server.fail(where)
    else:
        server.drop(where)
    mirror.sync()
    assert not [one for one in server.faults if one.times]
    assert len(server.collection("finance").versions) == len(server.collection("audit").versions) == 1
    assert mirror.problem() is None


@pytest.mark.parametrize("where", ["upload content", "CommitArtifact", "UpdateArtifact"])
def test_a_lasting_fault_is_one_sentence_and_the_next_sync_goes_on_where_this_one_ended(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer, where: str
) -> None:
    registry.register(*package(1), actor="ana")
    server.fail(where, times=50)
    with pytest.raises(LoraOpsError, match="W&B .* can't be reached or refuses: .*; 1 change stays queued"):
        mirror.sync()
    server.faults.clear()
    assert mirror.sync().sent == 1
    [sent] = server.collection("finance").versions
    assert names(sent) == {"candidate", "version-1"}
    assert mirror.problem() is None


@pytest.mark.parametrize("where", ["upload content", "CommitArtifact", "UpdateArtifact"])
def test_a_sync_that_is_killed_is_mended_by_the_next_one(
    clone: Path, package: Build, server: WandbServer, where: str
) -> None:
    registry = open_registry(clone, create=True)
    registry.register(*package(1), actor="ana.silva")
    lifecycle.reject(registry, "finance@1", actor="ana.silva", reason="biased")
    started: list[subprocess.Popen[bytes]] = []
    server.meanwhile(where, lambda: started[0].kill())
    started.append(run_command(clone, "sync"))
    assert started[0].wait() == processes.KILLED
    assert run_command(clone, "sync").wait() == processes.DONE
    assert log_at(server) == [(1, "registered"), (2, "read"), (3, "rejected")]
    [sent] = server.collection("finance").versions
    assert (names(sent), sent.tags) == ({"version-1"}, {"rejected"})
    assert run_command(clone, "verify", "--mirror").wait() == processes.DONE


def test_odd_lock_stops_no_sync(mirror: Mirror) -> None:
    (mirror.registry.path / "sync.lock").mkdir()
    assert mirror.sync().sent == 0
    assert (mirror.registry.path / "sync.lock").is_file()


def test_two_syncs_at_once_send_once(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")

    def another() -> None:
        with pytest.raises(LoraOpsError, match="Another sync of this registry is at work"):
            Mirror(Registry(registry.path), mirror.project).sync()

    server.meanwhile("CommitArtifact", another)
    assert mirror.sync().sent == 1
    assert len(server.collection("finance").versions) == 1


# What others do at W&B.


def test_an_alias_that_somebody_moved_at_wandb_is_put_back_and_named(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana")
    mirror.sync()
    collection = server.collection("finance")
    collection.aliases.update(candidate=collection.versions[0], production=collection.versions[0])
    assert mirror.sync().restored == (
        "finance@candidate names finance@1 at W&B, and finance@2 in the audit log",
        "finance@production names finance@1 at W&B, and nothing in the audit log",
    )
    assert collection.aliases["candidate"] is collection.versions[1]
    assert "production" not in collection.aliases


def test_an_entry_that_was_changed_at_wandb_is_named(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    mirror.sync()
    [sent] = server.collection("audit").versions
    entry = json.loads(sent.info["entry"])
    sent.metadata = json.dumps({**sent.info, "entry": json.dumps({**entry, "actor": "mallory"})})
    target = mirror.project.target
    said = f"entry 1 of the audit log was changed at W&B ({target}), or made up there"
    assert mirror.problem() == said


def test_a_log_that_was_cut_or_restored_from_an_older_copy_shows_at_the_mirror(
    registry: Registry,
    mirror: Mirror,
    package: Build,
    story: Story,
    tmp_path: Path,
    clock: Clock,
    server: WandbServer,
) -> None:
    registry.register(*package(1), actor="ana")
    shutil.copytree(registry.path, tmp_path / "older")
    story.to("finance@1", "validated")
    mirror.sync()
    older = Registry(tmp_path / "older", owners=registry.owners, clock=clock)
    copy = Mirror(older, mirror.project)
    assert copy.problem() == "W&B (lora-ops-registry) holds entry 2, and the log here ends at 1"
    with pytest.raises(LoraOpsError, match="restored from an older copy"):
        copy.sync()
    lifecycle.reject(older, "finance@1", actor="eve", reason="another story")
    with pytest.raises(LoraOpsError, match="Entry 2 of the audit log is not the one that W&B"):
        copy.sync()
    assert copy.problem() == "entry 2 is not the one that W&B (lora-ops-registry) holds"


def test_a_project_that_was_deleted_at_wandb_is_named_and_filled_again(
    registry: Registry, mirror: Mirror, package: Build, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    mirror.sync()
    server.clear()
    assert mirror.problem() == "W&B (lora-ops-registry) no longer holds entry 1, which was sent there"
    assert mirror.sync().sent == 1
    assert mirror.problem() is None
    assert names(server.collection("finance").versions[0]) == {"candidate", "version-1"}


def test_two_registries_that_share_one_project_are_refused(
    registry: Registry, mirror: Mirror, package: Build, tmp_path: Path, server: WandbServer
) -> None:
    registry.register(*package(1), actor="ana")
    mirror.sync()
    other = Registry(tmp_path / "other", create=True)
    other.register(*package(2), actor="ben")
    with pytest.raises(LoraOpsError, match="belongs to another registry"):
        Mirror(other, mirror.project).sync()
    assert len(server.collection("finance").versions) == 1
