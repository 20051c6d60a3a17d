"""A version with a review that nobody has voted in yet."""

import pytest

from lora_ops.gates.review.sessions import Session, start
from lora_ops.registry.store import Registry
from tests.gates.sources import file_answers_again
from tests.registry.conftest import AUTHOR, Build


@pytest.fixture
def session(registry: Registry, package: Build) -> Session:
    """The review of finance@1: 20 pairs for ben, chen and dana, of whom two see each pair."""
    registry.register(*package(1), actor=AUTHOR)
    file_answers_again(registry, "finance@1")
    people = ("ben", "chen", "dana")
    return start(registry, "finance@1", actor="ci", reviewers=people, pairs=20, annotators=2, seed=7)
