"""The picture of a version shows what it was made of, whom it follows, and every decision about it."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import Registry, cards
from lora_ops.registry.lineage import ancestors, current, draw, nodes

from .conftest import AUTHOR, Build, Story


def test_each_ingredient_and_each_decision_has_its_box(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "canary")
    record = cards.record(registry, "finance@2")
    titles = [[box.title for box in nodes(registry, record) if box.column == column] for column in range(3)]
    assert titles == [
        ["base model smol", "data iso18245 1.4.1", "commit abc123", "follows finance@1"],
        ["finance@2"],
        ["validated", "shadow", "canary"],
    ]
    draw(registry, record).savefig(tmp_path / "lineage.png")
    assert (tmp_path / "lineage.png").stat().st_size > 5000


def test_ancestors_are_followed_to_the_first_and_not_beyond_what_is_known(
    registry: Registry, package: Build
) -> None:
    folder, manifest = package(1)
    registry.register(folder, manifest.model_copy(update={"parent": "legal@4"}))
    registry.register(*package(2))
    assert ancestors(registry, cards.record(registry, "finance@2")) == ["finance@1", "legal@4"]


def test_what_serves_comes_before_the_candidate(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    assert current(registry, "finance") == "finance@1"
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    assert current(registry, "finance") == "finance@1"
    with pytest.raises(LoraOpsError, match="no adapter of 'legal'"):
        current(registry, "legal")
