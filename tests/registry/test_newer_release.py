"""What a newer release wrote into a shared registry takes nothing out of this release's hands."""

from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.manifest import SCHEMA_VERSION
from lora_ops.registry import lifecycle, packages, store
from lora_ops.registry.cards import record
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, FIRST, Build, Story

FROZEN: Any = "frozen"


@pytest.fixture
def frozen(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 was in production, until a newer release put it into a state of its own."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    with registry.change("ci") as change:
        change.record("frozen", "finance", 1, states={1: FROZEN}, aliases={"production": None})
    return registry


def test_unknown_state_is_read_and_does_not_serve(frozen: Registry) -> None:
    assert verify(frozen).ok
    told = record(frozen, "finance@1")
    assert (told.state, told.verdict.may_serve) == ("frozen", False)
    assert "finance@1 is 'frozen'" in told.verdict.reasons[0]
    assert missing_for(frozen, "finance@1") == (None, [])


def test_unknown_state_is_not_loaded(frozen: Registry) -> None:
    with pytest.raises(LoraOpsError, match="finance@1 is 'frozen', a state that this release does not know"):
        packages.verified_path(frozen, "finance@1")


def test_unknown_state_stops_no_revocation(frozen: Registry) -> None:
    assert lifecycle.revoke(frozen, "finance@1", actor=FIRST, reason="leaks card numbers").state == "revoked"
    assert verify(frozen).ok


def test_unknown_state_is_left_by_revocation_alone(frozen: Registry) -> None:
    for step in (lifecycle.reject, lifecycle.archive):
        with pytest.raises(LoraOpsError, match=r"is 'frozen': it can't become .* \(ways from here: revoked\)"):
            step(frozen, "finance@1", actor=FIRST, reason="worse")


def test_manifest_of_a_newer_schema_is_read_and_serves(
    registry: Registry, package: Build, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its content digest follows a rule of that release, so the log alone can say whether it is right."""
    folder, manifest = package(1)
    newer = manifest.model_copy(update={"schema_version": SCHEMA_VERSION + 1})
    with monkeypatch.context() as patch:
        patch.setattr(store, "content_digest", lambda text, rule=None: sha256_text(f"a newer rule of {rule}"))
        patch.setattr(Registry, "_require_fit", lambda *given: None)
        registry.register(folder, newer, actor=AUTHOR)
    assert verify(registry).ok
    story.to("finance@1", "production")
    assert record(registry, "finance@1").verdict.may_serve
    assert packages.verified_path(registry, "finance@1").is_dir()
    registry.db.rows("UPDATE versions SET content_digest = ?", ("0" * 64,))
    assert "the content_digest of finance@1 was changed" in verify(registry).problems[0]


@pytest.mark.parametrize("kind", ["route", "runbook", "drift"])
def test_entry_about_something_else_is_read_by_all(
    registry: Registry, package: Build, story: Story, kind: str
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    with registry.change("ci") as change:
        change.note("changed", kind, "finance", effects={"weights": {"finance@1": 0.5}})
    story.to("finance@1", "production")
    assert verify(registry).ok
    assert registry.follower.problem() is None
    (entry,) = registry.log.of_kind(kind)
    assert (str(entry.subject), entry.tenant, entry.number) == (f"{kind} finance", None, None)
    assert entry not in registry.history("finance@1")
    assert record(registry, "finance@1").verdict.may_serve
