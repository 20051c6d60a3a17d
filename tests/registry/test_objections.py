"""What an earlier report says against a version is answered by a newer one, or stays an objection."""

import json
from pathlib import Path

import pytest

from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.reports import make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build, Clock, Story, file_votes, losing, policy


@pytest.fixture
def canary(registry: Registry, package: Build, story: Story) -> Registry:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    story.file("canary")
    return registry


def file(registry: Registry, folder: Path, kind: str, rows: list[dict[str, object]]) -> None:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"adapter": "finance@1", **row}) + "\n" for row in rows))
    lifecycle.file_evidence(registry, "finance@1", make(registry, "finance@1", kind, path), actor="eve")


def missing(registry: Registry) -> list[str]:
    return missing_for(registry, "finance@1")[1][:-1]  # without the approvals


def test_a_failing_check_cannot_be_left_out(canary: Registry, tmp_path: Path, clock: Clock) -> None:
    """A report of the checks that pass took the place of one with a check that fails."""
    file(canary, tmp_path, "policy", policy("no-advice", "No cards", failed=3))
    file(canary, tmp_path, "policy", policy("no-advice"))
    assert missing(canary) == ["a policy report with every check of the earlier ones (it leaves out No cards)"]
    clock.move(hours=1)
    file(canary, tmp_path, "policy", policy("no cards", "no-advice"))
    assert missing(canary) == []


def test_a_lost_evaluation_is_answered_by_as_many_pairs(canary: Registry) -> None:
    file_votes(canary, "finance@1", losing(15), pairs=24)
    file_votes(canary, "finance@1", losing(0), pairs=23)
    assert missing(canary) == [
        "a human evaluation of at least 24 pairs, as many as one that the adapter lost (it has 23)"
    ]
    file_votes(canary, "finance@1", losing(1), pairs=24)
    assert missing(canary) == []


def test_show_names_what_was_outvoted(canary: Registry) -> None:
    assert not any("earlier" in note for note in record(canary, "finance@1").verdict.warnings)
    file_votes(canary, "finance@1", losing(15), pairs=24)
    file_votes(canary, "finance@1", losing(0), pairs=24)
    [note] = [note for note in record(canary, "finance@1").verdict.warnings if "earlier" in note]
    assert "an earlier human_evaluation report speaks against it (review by dana, ben, " in note
    assert "its base in 15" in note
