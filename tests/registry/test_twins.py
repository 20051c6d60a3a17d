"""A closed adapter does not come back under another name, whatever happened to its kept file."""

from pathlib import Path

import pytest

from lora_ops.adapter_files import weights_digest
from lora_ops.errors import Refused
from lora_ops.registry import lifecycle, twins
from lora_ops.registry.cards import record
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.status import status
from lora_ops.registry.store import Registry
from lora_ops.registry.twins import Twins, answering_notes
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback

from .conftest import AUTHOR, FIRST, Build, Story, saved_again

WEIGHTS = "adapter_model.safetensors"


def kept_weights(registry: Registry, reference: str) -> Path:
    return registry.files.path(registry.get(reference).manifest.files[WEIGHTS].sha256)


def spoil(path: Path, how: str) -> None:
    """Remove a kept file, change one byte of its header, or let reading it fail as on a bad disk."""
    content = path.read_bytes()
    path.unlink()
    if how == "unreadable":
        path.symlink_to("/proc/self/mem")
    if how == "altered":
        path.write_bytes(content[:9] + b"?" + content[10:])


def register_again(registry: Registry, package: Build, seed: int = 1, tenant: str = "media") -> str:
    """Register the weights of a seed in another file."""
    folder, manifest = package(seed, tenant=tenant)
    return registry.register(folder, saved_again(folder, manifest), actor=AUTHOR)[0].id


def answering(registry: Registry, reference: str) -> list[str]:
    return [one.id for one in Twins(registry).answering(registry.get(reference).summary)]


@pytest.mark.parametrize("how", ["kept", "removed", "altered"])
def test_twins_of_closed_versions_are_not_registered(registry: Registry, package: Build, how: str) -> None:
    """The log states the digest of the weights, so the kept file of the closed version doesn't matter."""
    registry.register(*package(1), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    if how != "kept":
        spoil(kept_weights(registry, "finance@1"), how)
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        register_again(registry, package)


@pytest.mark.parametrize("how", ["kept", "removed", "altered"])
def test_twins_of_closed_versions_are_not_promoted(
    registry: Registry, package: Build, story: Story, how: str
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    register_again(registry, package)
    story.to("media@1", "validated")
    assert answering(registry, "finance@1") == ["media@1"]
    lifecycle.reject(registry, "finance@1", actor=FIRST, reason="biased")
    if how != "kept":
        spoil(kept_weights(registry, "finance@1"), how)
    with pytest.raises(Refused, match="media@1 has the weights of finance@1, which is 'rejected'"):
        story.to("media@1", "shadow")
    assert registry.get("media@1").state == "validated"


@pytest.mark.parametrize("how", ["removed", "altered"])
def test_damaged_closed_weights_stop_no_other_version(
    registry: Registry, package: Build, story: Story, how: str
) -> None:
    """A rejected version of another tenant must not block every registration and promotion."""
    registry.register(*package(9, tenant="media"), actor=AUTHOR)
    lifecycle.reject(registry, "media@1", actor=FIRST, reason="biased")
    spoil(kept_weights(registry, "media@1"), how)
    registry.register(*package(1), actor=AUTHOR)
    assert story.to("finance@1", "validated").state == "validated"


@pytest.mark.parametrize("how", ["removed", "altered", "unreadable", "without manifest"])
def test_unknown_closed_weights_are_a_note(
    older_registry: Registry, registry: Registry, package: Build, story: Story, how: str
) -> None:
    """One closed version whose file was lost stopped every tenant."""
    for seed in (1, 2):
        older_registry.register(*package(seed), actor=AUTHOR)
    spoil(kept_weights(registry, "finance@1"), how)
    if how == "without manifest":
        registry.db.rows("DELETE FROM manifests WHERE number = 1")
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    unknown = "has the weights of finance@1, which is 'revoked': kept weights are missing or damaged"
    assert register_again(registry, package) == "media@1"
    for other in ("finance@2", "media@1"):
        assert f"nobody can tell whether {other} {unknown}" in "\n".join(
            record(registry, other).verdict.warnings
        )
    assert story.to("finance@2", "validated").state == "validated"
    [note] = answering_notes(registry, registry.get("finance@1", whole=False).summary)
    assert note.startswith("Nobody can tell whether finance@2 ('validated'), media@1 ('candidate') has")
    lifecycle.revoke(registry, "finance@2", actor=FIRST, reason="leaks")
    assert answering(registry, "finance@2") == []


@pytest.mark.parametrize("file", ["kept", "removed"])
def test_a_signature_names_the_weights_of_a_lost_manifest(
    older_registry: Registry, registry: Registry, package: Build, file: str
) -> None:
    older_registry.register(*package(1), actor=AUTHOR)
    other = older_registry.register(*package(1, tenant="media"), actor=AUTHOR)[0]
    if file == "removed":
        spoil(kept_weights(registry, "finance@1"), file)
    registry.db.rows("DELETE FROM manifests WHERE tenant = 'finance'")
    known = Twins(registry)
    assert known.compare(registry.get("finance@1", whole=False).summary, other.summary) == "same"
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    told = "media@1 has the weights of finance@1, which is 'revoked'"
    assert told in record(registry, "media@1").verdict.warnings
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        registry.register(*package(1, tenant="third"), actor=AUTHOR)


def test_archiving_the_renewed_number_closes_no_weights(
    registry: Registry, package: Build, story: Story
) -> None:
    """finance@2 has the weights of finance@1 and took over from it; putting that one away took @2 out."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    story.to(register_again(registry, package, tenant="finance"), "production")
    lifecycle.archive(registry, "finance@1", actor="ci", reason="renewed")
    registry.register(*package(3), actor=AUTHOR)
    story.to("finance@3", "production")
    planned = rollback.plan(registry, "finance@3")
    assert (planned.returns.id, planned.notes) == ("finance@2", ())
    story.to(register_again(registry, package), "validated")
    assert not [one for one in verify(registry).warnings if "weights" in one]


def test_archiving_a_rejected_version_keeps_it_closed(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    lifecycle.reject(registry, "finance@1", actor=FIRST, reason="biased")
    lifecycle.archive(registry, "finance@1", actor="ci", reason="put away")
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was archived"):
        register_again(registry, package)


def test_twins_reads_the_kept_files_of_older_entries(
    older_registry: Registry, registry: Registry, package: Build
) -> None:
    older_registry.register(*package(1), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        register_again(registry, package)


def test_kept_weights_are_read_before_the_lock(
    older_registry: Registry,
    registry: Registry,
    package: Build,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A registry of an older release states no digest of its closed versions' weights."""
    for seed in (1, 2):
        older_registry.register(*package(seed), actor=AUTHOR)
    lifecycle.reject(registry, "finance@1", actor=FIRST, reason="biased")
    given = story.evidence("policy", about="finance@2")
    locked = []

    def spied(path: Path) -> str:
        locked.append(registry.db.connection.in_transaction)
        return weights_digest(path)

    monkeypatch.setattr(twins, "weights_digest", spied)
    registry.files.tensors.clear()
    lifecycle.promote(registry, "finance@2", "validated", actor="ci", reason="next", evidence=given)
    registry.files.tensors.clear()
    registry.register(*package(3), actor=AUTHOR)
    assert locked == [False] * 4  # both versions, then the new one and the closed one


def test_answering_twins_pass_over_a_damaged_record(registry: Registry, package: Build) -> None:
    """They are named after a revocation, which was made by then."""
    registry.register(*package(1), actor=AUTHOR)
    register_again(registry, package)
    registry.register(*package(5, tenant="third"), actor=AUTHOR)
    registry.db.rows("UPDATE manifests SET manifest = '{}' WHERE tenant IN ('third', 'finance')")
    assert answering(registry, "finance@1") == ["media@1"]


@pytest.mark.parametrize(
    "attack",
    [
        "UPDATE manifests SET manifest = (SELECT manifest FROM manifests WHERE number = 2)",
        "UPDATE versions SET signature = (SELECT signature FROM versions WHERE number = 2)",
    ],
)
def test_edited_row_of_an_older_one_hides_no_weights(
    older_registry: Registry, registry: Registry, package: Build, attack: str
) -> None:
    """Revoked weights came back while the row named another adapter's file for a moment."""
    for seed in (1, 2):
        older_registry.register(*package(seed), actor=AUTHOR)
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    if "signature" in attack:  # which is asked only where the manifest is lost
        registry.db.rows("DELETE FROM manifests WHERE number = 1")
    registry.db.rows(attack)
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        register_again(registry, package)


def test_answering_older_twins_pass_over_a_damaged_record(older_registry: Registry, package: Build) -> None:
    for seed, tenant in ((1, "finance"), (5, "third")):
        older_registry.register(*package(seed, tenant=tenant), actor=AUTHOR)
    register_again(older_registry, package)
    older_registry.db.rows("UPDATE manifests SET manifest = '{}' WHERE tenant = 'third'")
    assert answering(older_registry, "finance@1") == ["media@1"]


@pytest.mark.parametrize("damage", ["UPDATE manifests SET manifest = '{}'", "DELETE FROM manifests"])
def test_plan_passes_over_a_damaged_record(
    registry: Registry, package: Build, story: Story, damage: str
) -> None:
    """The version before the damaged one returns."""
    for seed in (1, 2, 3):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    registry.db.rows(f"{damage} WHERE number = 2")
    assert rollback.plan(registry, "finance@3").returns.id == "finance@1"


def test_plan_passes_over_a_file_that_can_not_be_read(registry: Registry, package: Build, story: Story) -> None:
    """One bad sector stopped every way back."""
    for seed in (1, 2, 3):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    spoil(kept_weights(registry, "finance@2"), "unreadable")
    assert rollback.plan(registry, "finance@3").returns.id == "finance@1"


@pytest.fixture
def canary_twin(registry: Registry, package: Build, story: Story) -> str:
    """Let a version with the weights of `finance@1`, which is revoked, be in canary."""
    registry.register(*package(1), actor=AUTHOR)
    twin = register_again(registry, package)
    story.to(twin, "canary")
    story.file("canary", about=twin)
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    return twin


def test_show_and_verify_name_a_closed_twin(registry: Registry, canary_twin: str) -> None:
    told = "media@1 has the weights of finance@1, which is 'revoked'"
    assert told in record(registry, canary_twin).verdict.warnings
    assert told in verify(registry).warnings
    assert told not in record(registry, "finance@1").verdict.warnings


def test_approve_refuses_a_closed_twin(registry: Registry, story: Story, canary_twin: str) -> None:
    stage, missing = missing_for(registry, canary_twin)
    assert stage == "production"
    assert missing[0] == "other weights (media@1 has the weights of finance@1, which is 'revoked')"
    with pytest.raises(Refused, match="has the weights of finance@1, which is 'revoked': it can't be approved"):
        story.approve(canary_twin)


def test_rollback_names_the_twins_that_answer(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    register_again(registry, package, seed=2)
    leaves = rollback.plan(registry, "finance@2").leaves
    report = tmp_path / "incident.md"
    report.write_text("Card numbers in the answers since 14:05 today.")
    rollback.roll_back(registry, "finance@2", report, actor="ci", reason="leaks")
    named = "media@1 ('candidate') has the same weights: look whether it must go, too."
    assert answering_notes(registry, leaves.summary) == [named]


def test_status_notes_a_lost_report_of_one_tenant(registry: Registry, package: Build, story: Story) -> None:
    for seed, tenant in ((1, "finance"), (9, "media")):
        registry.register(*package(seed, tenant=tenant), actor=AUTHOR)
        story.to(f"{tenant}@1", "validated")
    entries = registry.log.entries("media", 1)
    lost = next(entry.evidence[-1] for entry in reversed(entries) if entry.evidence)
    registry.files.path(lost.sha256).unlink()
    finance, media = status(registry, ["finance", "media"])
    assert finance.next_stage == media.next_stage == "shadow"
    assert "The registry has lost the policy report" in media.missing[0]
    assert "lost" not in "".join(finance.missing)
