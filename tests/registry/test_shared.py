"""One registry at W&B for several machines: a change counts once W&B took it, and of two at once one counts."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle, packages
from lora_ops.registry.backends import open_registry
from lora_ops.registry.changes import LostRace
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import make
from lora_ops.registry.shared import SharedRegistry
from lora_ops.registry.signing import Signer
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.registry.wandb_project import WandbProject
from lora_ops.settings.registry import SigningSettings
from tests.conftest import write_params
from tests.wandb_server import WandbServer

from . import processes
from .conftest import Build, Clock, Story
from .test_mirror import log_at, names, run_command

ROOT = Path(__file__).parents[2]
Connect = Callable[..., WandbProject]
Machine = Callable[[str], SharedRegistry]


def fingerprint(path: Path) -> str:
    """The key of the machine whose registry lies at `path`; made on first use."""
    return Signer(path / "keys").sign_text("")["key"]


@pytest.fixture
def machine(tmp_path: Path, owners: Owners, clock: Clock, connect: Connect) -> Machine:
    """Open the registry on one of two machines that trust each other: `machine("laptop")`, `machine("ci")`."""
    paths = {name: tmp_path / name for name in ("laptop", "ci")}
    signing = SigningSettings(trusted_keys=tuple(fingerprint(path) for path in paths.values()))
    return lambda name: SharedRegistry(paths[name], connect(), owners=owners, signing=signing, clock=clock)


def states(registry: Registry) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(one.id, one.state, one.aliases) for one in registry.summaries()]


# What one machine does is there on the other.


def test_a_version_that_ci_registers_can_be_loaded_on_a_laptop(machine: Machine, package: Build) -> None:
    folder, manifest = package(1)
    version, is_new = machine("ci").register(folder, manifest, actor="ana")
    assert (version.id, is_new) == ("finance@1", True)
    laptop = machine("laptop")
    assert laptop.pull() == 1
    assert laptop.get("finance").manifest == version.manifest
    loaded = packages.verified_path(laptop, "finance@1")
    weights = "adapter_model.safetensors"
    assert (loaded / weights).read_bytes() == (folder / weights).read_bytes()
    assert verify(laptop).ok


def test_two_machines_take_one_version_through_its_life_and_both_logs_are_the_same(
    machine: Machine, package: Build, tmp_path: Path
) -> None:
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.pull()
    Story(laptop, tmp_path / "reports").to("finance@1", "validated")
    ci.pull()
    Story(ci, tmp_path / "reports").to("finance@1", "shadow")
    laptop.pull()
    assert states(laptop) == states(ci) == [("finance@1", "shadow", ("candidate", "shadow"))]
    assert laptop.log.entries() == ci.log.entries()
    assert verify(laptop).ok
    assert verify(ci).ok  # it fetches the reports that the laptop kept


def test_one_file_may_be_the_report_of_two_kinds(machine: Machine, package: Build, tmp_path: Path) -> None:
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    report = tmp_path / "report.md"
    report.write_text("It repeated a card number, and we looked at it again.")
    for kind in ("incident", "review"):
        lifecycle.file_evidence(ci, "finance@1", make(ci, "finance@1", kind, report), actor="ben")
    laptop.pull()
    assert verify(laptop).ok


def test_the_same_content_from_two_machines_is_one_version(machine: Machine, package: Build) -> None:
    machine("ci").register(*package(1), actor="ana")
    version, is_new = machine("laptop").register(*package(1), actor="ben")
    assert (version.id, version.summary.author, is_new) == ("finance@1", "ana", False)


def test_a_registry_that_was_embedded_before_is_sent_when_it_becomes_shared(
    machine: Machine, package: Build, tmp_path: Path, server: WandbServer
) -> None:
    for seed in (1, 2):
        Registry(tmp_path / "ci", create=True).register(*package(seed), actor="ana")
    machine("ci").pull()
    assert log_at(server) == [(1, "registered"), (2, "registered")]
    laptop = machine("laptop")
    laptop.pull()
    assert [one.id for one in laptop.summaries()] == ["finance@1", "finance@2"]


def test_the_log_is_read_whole_in_whatever_order_wandb_lists_it(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    server.oldest_first = True
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.pull()
    ci.register(*package(2), actor="ana")
    assert laptop.pull() == 1
    assert laptop.log.entries() == ci.log.entries()


# Of two changes at once, one counts.


def test_of_two_promotions_at_once_the_second_is_refused_and_changes_nothing(
    machine: Machine, package: Build, tmp_path: Path, server: WandbServer
) -> None:
    ci = machine("ci")
    ci.register(*package(1), actor="ana")

    def meanwhile() -> None:
        laptop = machine("laptop")
        laptop.pull()
        lifecycle.reject(laptop, "finance@1", actor="ben", reason="biased")

    server.meanwhile("CreateArtifact$", meanwhile)
    with pytest.raises(
        LostRace, match="finance@1 was moved to 'rejected' by ben meanwhile, so nothing was changed"
    ):
        Story(ci, tmp_path / "reports").to("finance@1", "validated")
    assert states(ci) == [("finance@1", "candidate", ("candidate",))]
    ci.pull()
    assert states(ci) == [("finance@1", "rejected", ())]
    assert ci.log.entries() == machine("laptop").log.entries()
    assert verify(ci).ok
    [sent] = server.collection("finance").versions
    assert (names(sent), sent.tags) == ({"version-1"}, {"rejected"})


def test_of_two_registrations_at_once_each_gets_its_own_number(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    server.meanwhile("CreateArtifact$", lambda: machine("laptop").register(*package(2), actor="ben"))
    ci = machine("ci")
    version, _ = ci.register(*package(1), actor="ana")
    assert version.id == "finance@2"
    assert [(one.id, one.author) for one in ci.summaries()] == [("finance@1", "ben"), ("finance@2", "ana")]
    assert verify(ci).ok
    lost = [one for one in server.collection("finance").versions if not names(one)]
    assert [one.ttl for one in lost] == [30 * 24 * 3600]  # the package of the lost race goes away by itself


def test_a_change_that_is_killed_after_wandb_took_it_counts(
    tmp_path: Path, package: Build, server: WandbServer
) -> None:
    write_params(tmp_path, {"registry": {"backend": "wandb"}})
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    shutil.copy(ROOT / "owners.yaml", tmp_path)
    open_registry(tmp_path, create=True).register(*package(1), actor="ana.silva")
    started = []
    reject = ("reject", "finance@1", "--reason", "biased", "--actor", "ana.silva")

    def kill_when_it_is_read_back() -> None:
        if len(server.collection("audit").versions) == 3:  # registered, owners.yaml, rejected
            started[0].kill()
        else:
            server.meanwhile("ProjectArtifacts", kill_when_it_is_read_back)

    server.meanwhile("ProjectArtifacts", kill_when_it_is_read_back)
    started.append(run_command(tmp_path, *reject))
    assert started[0].wait() == processes.KILLED
    assert Registry(tmp_path / ".registry").get("finance@1").state == "candidate"
    again = open_registry(tmp_path)
    assert again.get("finance@1").state == "rejected"
    assert verify(again).ok


# What W&B, or somebody there, does wrong.


def test_without_wandb_the_copy_can_be_read_and_nothing_can_be_changed(
    machine: Machine, package: Build, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    machine("ci").register(*package(1), actor="ana")
    server.fail(".", times=1000)
    ci = machine("ci")
    with caplog.at_level(logging.WARNING, "lora_ops"):
        ci.refresh()
    assert "can't be reached" in caplog.text
    assert "This machine's copy ends at entry 1 of the log" in caplog.text
    assert ci.get("finance").id == "finance@1"
    with pytest.raises(LoraOpsError, match="can't be reached or refuses: .*; nothing was changed"):
        lifecycle.reject(ci, "finance@1", actor="ben", reason="biased")
    assert states(ci) == [("finance@1", "candidate", ("candidate",))]


def test_a_change_whose_names_wandb_does_not_show_yet_is_made_and_shown_by_the_next_sync(
    machine: Machine, package: Build, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    ci = machine("ci")
    server.fail("UpdateArtifact", times=50)
    with caplog.at_level(logging.WARNING, "lora_ops"):
        ci.register(*package(1), actor="ana")
    assert "The change is made; only its aliases and tags at W&B are late" in caplog.text
    server.faults.clear()
    laptop = machine("laptop")
    laptop.pull()
    assert laptop.mirror.sync().sent == 1  # any machine mends it
    [sent] = server.collection("finance").versions
    assert names(sent) == {"candidate", "version-1"}


def test_an_alias_that_was_moved_by_hand_stops_the_next_change_until_it_is_put_back(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    ci = machine("ci")
    for seed in (1, 2):
        ci.register(*package(seed), actor="ana")
    collection = server.collection("finance")
    collection.aliases["candidate"] = collection.versions[0]
    with pytest.raises(LoraOpsError, match="finance@candidate names finance@1 at W&B, .* it was moved by hand"):
        ci.register(*package(3), actor="ana")
    assert len(ci.summaries()) == 2
    assert len(ci.mirror.sync().restored) == 1
    assert ci.register(*package(3), actor="ana")[0].id == "finance@3"


def test_alias_that_was_moved_by_hand_stops_no_revocation(
    machine: Machine, package: Build, tmp_path: Path, server: WandbServer
) -> None:
    ci = machine("ci")
    story = Story(ci, tmp_path / "reports")
    for seed in (1, 2):
        ci.register(*package(seed), actor="ana")
        story.to(f"finance@{seed}", "production")
    collection = server.collection("finance")

    def move() -> None:
        collection.aliases.update(production=collection.versions[0], candidate=collection.versions[0])

    move()
    record = tmp_path / "incident.json"
    record.write_text("It repeated a card number, and we looked at it again.")
    promoted = make(ci, "finance@2", "incident", record)
    lifecycle.promote(ci, "finance@1", "production", actor="ci", reason="it leaks", evidence=[promoted])
    move()
    lifecycle.revoke(ci, "finance@2", actor="ci", reason="it leaks")
    assert [one.state for one in ci.summaries()] == ["production", "revoked"]
    assert "candidate" not in collection.aliases  # as the log says


def test_a_sync_takes_first_what_another_machine_changed_meanwhile(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.register(*package(2), actor="ben")
    assert ci.mirror.sync() == (0, ())
    assert ci.get("finance").id == "finance@2"
    collection = server.collection("finance")
    assert collection.aliases["candidate"] is collection.versions[1]


def test_entries_by_a_key_that_is_not_trusted_are_refused_and_the_sentence_says_how_to_trust_it(
    machine: Machine, package: Build, tmp_path: Path, connect: Connect
) -> None:
    machine("ci").register(*package(1), actor="ana")
    stranger = SharedRegistry(tmp_path / "stranger", connect())
    with pytest.raises(
        LoraOpsError, match=rf"Key {fingerprint(tmp_path / 'ci')} is not trusted here.*trusted_keys"
    ):
        stranger.pull()
    assert stranger.summaries() == []


@pytest.mark.parametrize(
    ("content", "said"), [(None, "has lost file"), ("# Another story\n", "holds another report than the audit")]
)
def test_report_that_was_changed_at_wandb_is_lost(
    machine: Machine,
    package: Build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    said: str,
) -> None:
    """A report without its file was a traceback on every other machine, after the entry was taken."""
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    report = tmp_path / "report.md"
    report.write_text("It repeated a card number, and we looked at it again.")
    lifecycle.file_evidence(ci, "finance@1", make(ci, "finance@1", "incident", report), actor="ben")

    def fetch(project: WandbProject, tenant: str, named: object, folder: Path) -> None:
        if content:
            (folder / "report").write_text(content)

    monkeypatch.setattr(WandbProject, "fetch_report", fetch)
    laptop.pull()
    assert laptop.log.head() == ci.log.head()
    assert [one for one in verify(laptop).problems if said in one]
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")


@pytest.mark.parametrize("attack", ["DELETE FROM manifests", "UPDATE manifests SET manifest = '{}'"])
def test_a_lost_manifest_stops_no_revocation(machine: Machine, package: Build, attack: str) -> None:
    """A revocation sends no package, and the copy of one machine had lost what it would send."""
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    ci.db.rows(attack)
    lifecycle.revoke(ci, "finance@1", actor="ben", reason="it leaks")
    laptop.pull()
    assert laptop.get("finance@1").state == "revoked"


def test_a_package_that_was_changed_at_wandb_is_not_loaded(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    machine("ci").register(*package(1), actor="ana")
    laptop = machine("laptop")
    laptop.pull()
    [sent] = server.collection("finance").versions
    weights = server.files_of(sent)["adapter_model.safetensors"]
    server.storage[weights] = server.storage[weights][:-1] + b"x"
    with pytest.raises(LoraOpsError, match="W&B|changed while it was being copied"):
        packages.verified_path(laptop, "finance@1")
    assert not (laptop.path / "verified" / "finance@1").exists()


def junk(server: WandbServer, **metadata: object) -> None:
    """Upload an artifact of anybody's beside the entries of the audit log."""
    audit = server.collection("audit")
    last = audit.versions[-1]
    made = replace(last, id=f"junk-{len(audit.versions)}", index=len(audit.versions), tags=set())
    made.metadata = json.dumps(metadata)
    server.versions[made.id] = made
    audit.versions.append(made)
    audit.aliases["latest"] = made


def forged(server: WandbServer, **changed: object) -> dict[str, object]:
    """Return what an artifact would say that goes on from the last entry, and that no machine has signed."""
    said = server.collection("audit").versions[-1].info
    entry = json.loads(said["entry"])
    next_ = {**entry, "seq": entry["seq"] + 1, "previous": said["hash"], **changed}
    return {**said, "seq": next_["seq"], "hash": "f" * 64, "entry": json.dumps(next_)}


@pytest.mark.parametrize("kind", ["empty", "text", "nested", "forged"])
def test_junk_at_wandb_stops_no_revocation(
    machine: Machine, package: Build, server: WandbServer, kind: str
) -> None:
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.pull()
    said = {"empty": {}, "text": {"entry": "junk"}, "nested": {"entry": "[" * 100_000}}
    junk(server, **(forged(server, actor="mallory") if kind == "forged" else said[kind]))
    lifecycle.revoke(laptop, "finance@1", actor="ben", reason="it leaks")
    ci.pull()
    assert states(ci) == states(laptop) == [("finance@1", "revoked", ())]
    assert verify(ci).ok


@pytest.mark.parametrize("changed", [{}, {"entry": "{}"}, {"signature": {}}])
def test_entry_that_was_vandalised_at_wandb_is_written_again(
    machine: Machine, package: Build, server: WandbServer, changed: dict[str, object]
) -> None:
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    ci.register(*package(2), actor="ana")
    for sent in server.collection("audit").versions:
        sent.metadata = json.dumps({**sent.info, **changed} if changed else {})
    lifecycle.revoke(ci, "finance@1", actor="ben", reason="it leaks")
    laptop.pull()
    assert states(laptop) == states(ci)
    assert laptop.get("finance@1").state == "revoked"


def test_entry_that_wandb_lost_stops_who_lacks_it(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    """A machine that took the log without it would serve what the lost entry revoked."""
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.pull()
    lifecycle.revoke(ci, "finance@1", actor="ben", reason="it leaks")
    ci.register(*package(2), actor="ana")
    lost = server.collection("audit").versions[1]
    lost.metadata = "{}"
    with pytest.raises(LoraOpsError, match=r"Entry \d of the audit log was changed or deleted at W&B"):
        laptop.pull()
    ci.mirror.sync(whole=True)
    laptop.pull()
    assert states(laptop) == states(ci)


def test_copies_of_an_entry_at_wandb_hide_no_newer_one(
    machine: Machine, package: Build, server: WandbServer
) -> None:
    """A machine that knew the log up to the copied entry saw no revocation after it."""
    ci, laptop = machine("ci"), machine("laptop")
    ci.register(*package(1), actor="ana")
    laptop.pull()
    first = server.collection("audit").versions[0]
    lifecycle.revoke(ci, "finance@1", actor="ben", reason="it leaks")
    junk(server, **first.info)
    assert laptop.pull() == 2
    junk(server, **first.info)
    opened = machine("laptop")
    assert opened.get("finance@1").state == "revoked"
    opened.register(*package(2), actor="ana")
    assert ci.pull() == 1
    assert states(ci) == states(opened)
