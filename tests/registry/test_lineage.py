"""The picture of a version shows what it was made of, whom it follows, and every decision about it."""

from pathlib import Path

import pytest
from matplotlib.patches import FancyBboxPatch

from lora_ops.errors import LoraOpsError
from lora_ops.registry import cards
from lora_ops.registry.lineage import ancestors, current, draw, nodes
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build, Story, with_card


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


def test_ancestors_are_followed_as_far_as_they_are_known(registry: Registry, package: Build) -> None:
    for seed in (1, 2, 3):
        registry.register(*package(seed), actor=AUTHOR)
    record = cards.record(registry, "finance@3")
    assert ancestors(registry, record) == ["finance@2", "finance@1"]
    # Earlier releases took the parent that a manifest named, such as one of another registry.
    elsewhere = record.lineage.model_copy(update={"parent": "legal@4"})
    assert ancestors(registry, record.model_copy(update={"lineage": elsewhere})) == ["legal@4"]


def test_what_serves_comes_before_the_candidate(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    assert current(registry, "finance") == "finance@1"
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    assert current(registry, "finance") == "finance@1"
    with pytest.raises(LoraOpsError, match="no adapter of 'legal'"):
        current(registry, "legal")


def test_the_version_that_took_its_place_is_the_last_decision(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    boxes = nodes(registry, cards.record(registry, "finance@1"))
    assert [box.title for box in boxes if box.column == 2][-2:] == ["production", "superseded by finance@2"]


@pytest.mark.usefixtures("written_by_hand")
def test_no_text_of_the_picture_leaves_its_box(registry: Registry, package: Build, story: Story) -> None:
    folder, manifest = package(1)
    base = manifest.base_model.model_copy(
        update={"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "revision": "r" * 90}
    )
    registry.register(folder, with_card(folder, manifest.model_copy(update={"base_model": base})), actor=AUTHOR)
    story.to("finance@1", "shadow")
    figure = draw(registry, cards.record(registry, "finance@1"))
    figure.canvas.draw()
    (axes,) = figure.axes
    boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
    title, *texts = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(boxes) == 6
    for text in texts:
        assert any(box.contains(text.x0, text.y0) and box.contains(text.x1, text.y1) for box in boxes)
