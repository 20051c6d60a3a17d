"""What is due: reviews, and data that expires."""

import pytest

from lora_ops.registry import lifecycle
from lora_ops.registry.status import due
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, Build, Clock, Story


@pytest.fixture
def first(registry: Registry, package: Build) -> str:
    return registry.register(*package(), actor=AUTHOR)[0].id


def test_nothing_is_due_on_the_first_day(registry: Registry, first: str) -> None:
    assert due(registry) == []


def test_review_is_due_one_cadence_after_the_last_one(
    registry: Registry, story: Story, first: str, clock: Clock
) -> None:
    clock.move(days=90)
    (item,) = due(registry, "finance")
    assert (item.id, item.what, item.overdue, item.team) == (first, "review", True, "Payments")
    lifecycle.review(registry, first, actor="eve", reason="quarterly", evidence=story.evidence("review"))
    assert due(registry) == []
    clock.move(days=90)
    assert [item.what for item in due(registry)] == ["review"]
    assert verify(registry).ok


@pytest.mark.parametrize(
    ("days", "listed", "overdue"), [(15, 0, 0), (14, 1, 0), (1, 1, 0), (0, 1, 1), (-3, 1, 1)]
)
def test_freshness_is_due_14_days_ahead_and_while_it_is_over(
    registry: Registry, package: Build, days: int, listed: int, overdue: int
) -> None:
    registry.register(*package(fresh_days=days))
    items = due(registry)
    assert len(items) == listed
    assert sum(item.overdue for item in items) == overdue


def test_nothing_is_due_for_what_no_longer_serves(registry: Registry, first: str, clock: Clock) -> None:
    lifecycle.reject(registry, first, actor="ben", reason="next")
    clock.move(days=1000)
    assert due(registry) == []
