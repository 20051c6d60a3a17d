"""A rollback rests on a fresh incident of what leaves, and nothing may speak against what returns."""

import json

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle
from lora_ops.registry.reports import Report, make
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import EvidenceSettings

from .conftest import AUTHOR, Build, Clock, Story, file_votes, won


@pytest.fixture
def two(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@2 took over from finance@1; somebody told of an incident of finance@2 in its canary."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "canary")
    told(registry, story, "finance@2", "early")
    story.to("finance@2", "production")
    return registry


def incident(registry: Registry, story: Story, about: str, name: str) -> Report:
    path = story.folder / f"{name}.md"
    path.write_text(f"# {name}\n\nIt answered with a card number of somebody else.\n")
    return make(registry, about, "incident", path)


def told(registry: Registry, story: Story, about: str, name: str) -> None:
    report = incident(registry, story, about, name)
    lifecycle.link_incident(registry, about, actor="oncall", reason="next", evidence=[report])


def back(registry: Registry, reference: str, *evidence: Report) -> None:
    lifecycle.promote(registry, reference, "production", actor="oncall", reason="leaks", evidence=evidence)


def test_an_incident_from_before_production_is_none(two: Registry, story: Story) -> None:
    with pytest.raises(LoraOpsError, match="'incident' on finance@2, .* told since it entered production last"):
        back(two, "finance@1")
    again = incident(two, story, "finance@2", "early")
    with pytest.raises(LoraOpsError, match="what was given was told before that"):
        back(two, "finance@1", again)
    told(two, story, "finance@2", "late")
    back(two, "finance@1")
    assert two.named("finance", "production") == 1
    assert verify(two).ok


def test_a_clock_behind_stops_no_rollback(
    registry: Registry, package: Build, story: Story, clock: Clock
) -> None:
    """Reports of a machine whose clock was ahead were "of the future" to whoever was on call."""
    clock.move(days=2)
    for number in (1, 2):
        registry.register(*package(number), actor=AUTHOR)
        story.to(f"finance@{number}", "production")
    clock.move(days=-2)
    back(registry, "finance@1", incident(registry, story, "finance@2", "late"))
    assert registry.named("finance", "production") == 1
    assert verify(registry).ok


def test_a_version_that_a_rollback_put_out_stays_out(two: Registry, story: Story) -> None:
    """The incident of one rollback, or any of the other version, brought the bad one back."""
    back(two, "finance@1", incident(two, story, "finance@2", "late"))
    other = incident(two, story, "finance@1", "other")
    with pytest.raises(LoraOpsError, match=r"a version without an incident since .* last \('late.md'\)"):
        back(two, "finance@2", other)


def test_what_speaks_against_a_version_stops_its_return(two: Registry, story: Story) -> None:
    rows = '{"adapter": "finance@1", "check": "no-advice", "prompt": "%d", "passed": false}\n'
    path = story.folder / "bad.jsonl"
    path.write_text("".join(rows % i for i in range(40)))
    bad = make(two, "finance@1", "policy", path)
    lifecycle.file_evidence(two, "finance@1", bad, actor="eve")
    with pytest.raises(LoraOpsError, match=r"without a failure \(no-advice fails 40 of 40 prompts\)"):
        back(two, "finance@1", incident(two, story, "finance@2", "late"))


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("policy", {"check": "another one", "prompt": "1", "passed": True}),
        ("human_evaluation", {}),
        ("canary", {"time": "2026-03-02T09:00:00Z", "status": 200, "request_id": "1"}),
    ],
)
def test_a_small_later_report_stops_no_return(
    two: Registry, story: Story, kind: str, row: dict[str, object]
) -> None:
    """Anybody of the team could file one good answer on the version before, which then couldn't return."""
    path = story.folder / "small.jsonl"
    path.write_text(json.dumps({"adapter": "finance@1", **row}) + "\n")
    if kind == "human_evaluation":
        file_votes(two, "finance@1", won, pairs=1)
    else:
        lifecycle.file_evidence(two, "finance@1", make(two, "finance@1", kind, path), actor="eve")
    back(two, "finance@1", incident(two, story, "finance@2", "late"))
    assert two.named("finance", "production") == 1
    assert verify(two).ok


def test_a_check_that_failed_later_is_not_left_out(two: Registry, story: Story) -> None:
    path = story.folder / "rows.jsonl"
    for check, passed in (("no-cards", False), ("no-advice", True)):
        row = {"adapter": "finance@1", "check": check, "prompt": "1", "passed": passed}
        path.write_text(json.dumps(row) + "\n")
        lifecycle.file_evidence(two, "finance@1", make(two, "finance@1", "policy", path), actor="eve")
    with pytest.raises(LoraOpsError, match="every check of the earlier ones .it leaves out no-cards"):
        back(two, "finance@1", incident(two, story, "finance@2", "late"))


def test_an_incident_of_the_old_version_stops_its_return(two: Registry, story: Story) -> None:
    told(two, story, "finance@1", "found later")
    with pytest.raises(LoraOpsError, match="without an incident since it entered production last"):
        back(two, "finance@1", incident(two, story, "finance@2", "late"))


def test_minimum_of_a_newer_release_stops_no_rollback(registry: Registry, package: Build, story: Story) -> None:
    """The other machines of a team may run an older release than the one that wrote an entry."""

    class Newer(EvidenceSettings):
        languages: int = 3

    registry.least = Newer(**registry.least.model_dump())
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    registry.least = EvidenceSettings(hours=0)
    back(registry, "finance@1", incident(registry, story, "finance@2", "late"))
    assert registry.named("finance", "production") == 1
    assert verify(registry).problems == ()


def test_damaged_files_are_not_promoted(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.file("policy")
    digest = registry.get("finance@1").manifest.files["adapter_model.safetensors"].sha256
    path = registry.files.path(digest)
    path.chmod(0o600)
    path.write_bytes(b"other weights")
    with pytest.raises(LoraOpsError, match="adapter_model.safetensors"):
        lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="next")
    assert registry.get("finance@1").state == "candidate"
