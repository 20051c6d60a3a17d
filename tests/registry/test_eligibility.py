"""May a version serve: one rule, which everybody asks."""

from dataclasses import replace
from datetime import timedelta

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.registry import lifecycle
from lora_ops.registry.eligibility import (
    base_model_reason,
    expiry_reason,
    expiry_warning,
    reasons_against,
    state_reason,
)
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, FIRST, Build, Clock, Story


@pytest.fixture
def served(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 in production, finance@2 its candidate; candidates may serve."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    registry.allow_candidates = True
    return registry


def test_state_reason_lets_production_serve(served: Registry) -> None:
    assert list(reasons_against(served, served.get("finance@1").summary, served.clock())) == []


def test_state_reason_allows_first_candidate_by_setting(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    summary = registry.get("finance@1").summary
    assert "only shadow, canary and production serve" in str(state_reason(registry, summary))
    registry.allow_candidates = True
    assert state_reason(registry, summary) is None


def test_state_reason_refuses_candidate_after_production(served: Registry) -> None:
    reason = state_reason(served, served.get("finance@2").summary)
    assert reason is not None
    assert "has had a version in production (finance@1)" in reason


def test_state_reason_refuses_candidate_after_revocation(served: Registry) -> None:
    """A revocation must not put a version on air that nobody has reviewed."""
    lifecycle.revoke(served, "finance@1", actor=FIRST, reason="leaks card numbers")
    assert "has had a version in production" in str(state_reason(served, served.get("finance@2").summary))
    assert "finance@1 was revoked" in str(state_reason(served, served.get("finance@1").summary))
    assert served.current("finance") is None
    with pytest.raises(LoraOpsError, match="'finance' has no version in production .finance@1 is revoked"):
        served.get("finance")


@pytest.mark.parametrize("state", ["superseded", "frozen-by-a-newer-release"])
def test_state_reason_refuses_other_states(served: Registry, state: str) -> None:
    summary = served.get("finance@1").summary._replace(state=state)  # type: ignore[arg-type]
    assert f"is '{state}'" in str(state_reason(served, summary))


def test_expiry_is_warned_of_before_it_refuses(served: Registry, clock: Clock) -> None:
    summary = served.get("finance@1").summary
    assert expiry_warning(summary, clock()) is None
    clock.move(days=355)
    assert "in 10 days" in str(expiry_warning(summary, clock()))
    assert expiry_reason(summary, clock()) is None
    clock.move(days=10)
    assert expiry_warning(summary, clock()) is None
    assert "expired on" in str(expiry_reason(summary, clock() + timedelta(seconds=1)))


def test_current_is_production_then_nothing(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    assert registry.resolve("finance") == ("finance", 1)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    assert registry.resolve("finance") == ("finance", 1)
    assert registry.resolve("finance@candidate") == ("finance", 2)


def test_base_model_reason_names_other_files(registry: Registry, package: Build) -> None:
    """Another chat template or end of answers gives other answers on the same weights."""
    registry.register(*package(1), actor=AUTHOR)
    version = registry.get("finance@1")
    base = version.manifest.base_model
    assert base_model_reason(version, base) is None
    other = base.model_copy(update={"files": {**(base.files or {}), "chat_template.jinja": "0" * 64}})
    assert "trained with another chat_template.jinja of its base model smol than the one here" in str(
        base_model_reason(version, other)
    )
    unnamed = base.model_copy(update={"files": None})
    assert "made by an earlier release, names none: run `dvc repro base_model`" in str(
        base_model_reason(version, unnamed)
    )


def test_base_model_reason_takes_older_versions(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    version = registry.get("finance@1")
    base = version.manifest.base_model
    older = version.manifest.model_copy(update={"base_model": base.model_copy(update={"files": None})})
    assert base_model_reason(replace(version, manifest_text=older.to_json()), base) is None
