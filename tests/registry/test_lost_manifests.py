"""A lost manifest of one version stops neither the way back nor what looks at the whole registry."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from lora_ops import incidents
from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle
from lora_ops.registry.backup import backup
from lora_ops.registry.gc import find_garbage
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback

from .conftest import AUTHOR, Build, Story, saved_again

REPORT = "Card numbers in the answers since 14:05 today."


def lose_manifest(registry: Registry, number: int) -> None:
    registry.db.rows(f"DELETE FROM manifests WHERE tenant = 'finance' AND number = {number}")


@pytest.fixture
def bad_release(registry: Registry, package: Build, story: Story, tmp_path: Path) -> Path:
    """Let finance@2, whose manifest is lost, take over from finance@1; return an incident's report."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    lose_manifest(registry, 2)
    report = tmp_path / "incident.md"
    report.write_text(REPORT)
    return report


def roll_back(registry: Registry, story: Story, report: Path) -> None:
    rollback.roll_back(registry, "finance@2", report, actor="ci", reason="leaks")


def revoke(registry: Registry, story: Story, report: Path) -> None:
    lifecycle.revoke(registry, "finance@2", actor="ci", reason="leaks")


def link(registry: Registry, story: Story, report: Path) -> None:
    told = story.evidence("incident", about="finance@2")
    lifecycle.link_incident(registry, "finance@2", actor="ci", reason="leaks", evidence=told)


@pytest.mark.parametrize("act", [roll_back, revoke, link])
def test_verify_names_a_lost_manifest_after(
    registry: Registry, story: Story, bad_release: Path, tmp_path: Path, act: Callable[..., None]
) -> None:
    """After a rollback it ended with an error for good."""
    act(registry, story, bad_release)
    problems = verify(registry).problems
    assert problems[0] == "the manifest of finance@2 was removed"
    assert not [one for one in problems if one.startswith("entry")]
    with pytest.raises(LoraOpsError, match="manifest of finance@2"):
        backup(registry, str(tmp_path / "backup"))


def test_gc_keeps_the_files_of_a_lost_manifest(registry: Registry, bad_release: Path) -> None:
    assert find_garbage(registry, timedelta(0)).orphans == ()


def lose_weights(registry: Registry, number: int) -> None:
    """Lose all that tells which weights a version of an older release has."""
    signature = registry.get(f"finance@{number}", whole=False).summary.signature
    assert signature
    registry.files.path(signature).unlink()
    lose_manifest(registry, number)


@pytest.fixture
def older_release(older_registry: Registry, registry: Registry, package: Build, story: Story) -> Registry:
    """Put three versions of an older release into production in turn; the last two have the same weights."""
    for seed in (1, 2):
        older_registry.register(*package(seed), actor=AUTHOR)
    folder, manifest = package(2)
    older_registry.register(folder, saved_again(folder, manifest), actor=AUTHOR)
    for number in (1, 2, 3):
        story.to(f"finance@{number}", "production")
    return registry


def test_a_lost_manifest_brings_the_same_weights_not_back(older_release: Registry) -> None:
    """The signature names the file, so finance@2 is known to have the weights that leave."""
    lose_manifest(older_release, 3)
    planned = rollback.plan(older_release, "finance@3")
    assert (planned.returns.id, planned.notes) == ("finance@1", ())


def test_plan_prefers_what_is_known_to_differ(older_release: Registry) -> None:
    lifecycle.revoke(older_release, "finance@1", actor="ci", reason="leaks")
    lose_weights(older_release, 3)
    planned = rollback.plan(older_release, "finance@3")
    assert planned.returns.id == "finance@2"
    said = "nobody can tell whether finance@2 has the weights of finance@3, which leaves"
    assert planned.notes[0] == said


def test_a_rollback_notes_that_nobody_can_tell(older_release: Registry, tmp_path: Path) -> None:
    lose_weights(older_release, 3)
    report = tmp_path / "incident.md"
    report.write_text(REPORT)
    returned = rollback.roll_back(older_release, "finance@3", report, actor="ci", reason="leaks")
    said = f"nobody can tell whether {returned.id} has the weights of finance@3, which leaves"
    entry = next(one for one in older_release.log.entries("finance") if one.body.get("concerns") == 3)
    assert entry.body["notes"][0] == said
    notes = incidents.summary(older_release, "finance@3", tmp_path, done=True)["notes"]
    assert notes[0] == said
    assert notes[-1].startswith(f"Nobody can tell whether {returned.id} ('production') has the weights")
    assert not [one for one in verify(older_release).problems if one.startswith("entry")]
