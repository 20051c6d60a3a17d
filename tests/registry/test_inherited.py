"""What was said of the same weights under another number counts for a version as it counts there."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops import incidents
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.registry import lifecycle, requirements
from lora_ops.registry.cards import record
from lora_ops.registry.reports import make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, Build, Story, saved_again, with_evaluation

File = Callable[..., None]


@pytest.fixture
def file(registry: Registry, tmp_path: Path) -> File:
    """File counted rows on a version: `file("finance@1", "policy", rows)`."""

    def count(reference: str, kind: str, rows: list[dict[str, object]]) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"adapter": reference, **row}) + "\n" for row in rows))
        lifecycle.file_evidence(registry, reference, make(registry, reference, kind, path), actor="eve")

    return count


def policy(*checks: str, failed: int = 0) -> list[dict[str, object]]:
    return [{"check": name, "prompt": str(i), "passed": i >= failed} for name in checks for i in range(30)]


def votes(pairs: int, lost: int) -> list[dict[str, object]]:
    return [
        {"pair": str(i), "annotator": who, "vote": "base" if i < lost else "adapter"}
        for i in range(pairs)
        for who in ("eve", "dana")
    ]


def twin(
    registry: Registry, package: Build, seed: int = 1, tenant: str = "finance", **evaluation: object
) -> str:
    """Register the weights of a seed again, as a new version."""
    folder, manifest = package(seed, tenant=tenant)
    again = saved_again(folder, manifest)
    if evaluation:
        again = with_evaluation(folder, again, **evaluation)
    return registry.register(folder, again, actor=AUTHOR)[0].id


def warnings(registry: Registry, reference: str) -> str:
    return "\n".join(record(registry, reference).verdict.warnings)


@pytest.fixture
def rolled_back(registry: Registry, package: Build, story: Story) -> str:
    """Put finance@2 out by a rollback that revokes nothing; return the version with its weights."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)
    return twin(registry, package, seed=2)


def test_promote_refuses_a_twin_of_a_rolled_back_one(
    registry: Registry, story: Story, rolled_back: str
) -> None:
    assert registry.get("finance@2").state == "superseded"
    needs = "other weights (finance@2 has the same, and had an incident: 'incident.txt')"
    assert needs in missing_for(registry, rolled_back)[1]
    with pytest.raises(Refused, match="other weights .finance@2 has the same, and had an incident"):
        story.to(rolled_back, "validated")
    assert registry.get(rolled_back).state == "candidate"


def test_show_and_verify_name_the_twin_and_its_incident(registry: Registry, rolled_back: str) -> None:
    told = (
        "finance@3 has the weights of finance@2, which is 'superseded'; against that one speaks an incident "
        "('incident.txt')"
    )
    assert told in record(registry, rolled_back).verdict.warnings
    assert told in verify(registry).warnings
    assert "weights" not in warnings(registry, "finance@1")


def test_an_incident_in_production_counts_for_a_canary(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    other = twin(registry, package, tenant="media")
    story.to(other, "canary")
    story.file("canary", about=other)
    story.to("finance@1", "production")
    assert len(missing_for(registry, other)[1]) == 1  # the approvals
    story.file("incident")
    with pytest.raises(Refused, match="finance@1 has the same, and had an incident"):
        story.approve(other)


def test_an_incident_before_production_is_answered(registry: Registry, package: Build, story: Story) -> None:
    """Its approvers let it into production all the same."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "shadow")
    story.file("incident")
    other = twin(registry, package)
    assert "had an incident" in " ".join(missing_for(registry, other)[1])
    story.to("finance@1", "production")
    assert "had an incident" not in " ".join(missing_for(registry, other)[1])


def test_plan_passes_over_a_twin_with_an_incident(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    other = twin(registry, package, tenant="media")
    story.file("incident", about=other)
    with pytest.raises(LoraOpsError, match="finance@1 lacks other weights .media@1 has the same"):
        incidents.plan(registry, "finance@2")


def test_a_rollback_returns_other_weights(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    story.to(twin(registry, package), "production")
    told = story.evidence("incident", about="finance@2")
    with pytest.raises(Refused, match="other weights than finance@2, which leaves"):
        lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)


def test_a_failed_check_of_a_twin_is_answered_by_name(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    file("finance@1", "policy", policy("No cards", failed=3))
    other = twin(registry, package, tenant="media")
    needs = "a policy report with every check that failed on finance@1, which has the same weights (No cards)"
    assert needs in missing_for(registry, other)[1]
    file(other, "policy", policy("no-advice"))
    assert missing_for(registry, other)[1] == [needs]
    with pytest.raises(Refused, match="every check that failed on finance@1"):
        lifecycle.promote(registry, other, "validated", actor="ci", reason="next")
    file(other, "policy", policy("no-advice", "no cards"))
    assert missing_for(registry, other)[1] == []
    assert "a policy report (rows.jsonl, " in warnings(registry, other)


def test_a_lost_vote_of_a_twin_is_answered_by_as_many(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "validated")
    file("finance@1", "human_evaluation", votes(50, lost=30))
    other = twin(registry, package)
    file(other, "policy", policy("no-advice"))
    needs = (
        "a human evaluation of at least 50 pairs, as many as one that was lost by finance@1, which has the "
        "same weights (it has {})"
    )
    assert missing_for(registry, other)[1] == [needs.format(0)]
    file(other, "human_evaluation", votes(30, lost=0))
    assert missing_for(registry, other)[1] == [needs.format(30)]
    file(other, "human_evaluation", votes(50, lost=1))
    assert missing_for(registry, other)[1] == []


@pytest.mark.parametrize(("rows", "missing"), [(100, 1), (400, 0)])
def test_fewer_rows_answer_no_evaluation_of_a_twin(
    registry: Registry, package: Build, rows: int, missing: int
) -> None:
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    needs = (
        f"an evaluation of at least 300 rows (it has {rows}), as many as that in which finance@1, which has "
        "the same weights, does not beat its base model"
    )
    assert missing_for(registry, twin(registry, package, rows=rows))[1].count(needs) == missing


def test_verify_rechecks_the_twins_of_each_step(
    registry: Registry,
    package: Build,
    story: Story,
    file: File,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that forgot to look at a twin; what is said of it later, and after it is closed, changes nothing."""
    registry.register(*package(1), actor=AUTHOR)
    other = twin(registry, package, tenant="media")
    story.to(other, "validated")
    file("finance@1", "policy", policy("No cards", failed=3))
    assert verify(registry).problems == ()
    monkeypatch.setattr(requirements, "twin_objections", lambda *_, **__: iter(()))
    story.to(other, "shadow")
    lacked = "without a policy report with every check that failed on finance@1"
    [problem] = verify(registry).problems
    assert "makes media@1 'shadow'" in problem and lacked in problem
    lifecycle.reject(registry, "finance@1", actor="ben", reason="leaks")
    monkeypatch.setattr(requirements, "closed_alike", lambda *_: None)
    monkeypatch.setattr(lifecycle, "closed_alike", lambda *_: None)
    story.to(other, "canary")
    shadow, canary = verify(registry).problems
    assert shadow == problem
    assert "makes media@1 'canary'" in canary
    assert "without other weights (finance@1, which has the same, was rejected)" in canary
