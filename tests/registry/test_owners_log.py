"""owners.yaml in the log: each change of the registry keeps what the file says by then."""

from pathlib import Path

import pytest

from lora_ops.registry import lifecycle
from lora_ops.registry.backup import backup
from lora_ops.registry.cards import record
from lora_ops.registry.owners import Owners
from lora_ops.registry.restoring import restore
from lora_ops.registry.rotation import rotate_key
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, Build, Story, public_key


@pytest.mark.parametrize("action", ["registered", "named", "key_rotated"])
def test_change_without_a_role_notes_changed_owners(
    registry: Registry, package: Build, story: Story, owners: Owners, action: str
) -> None:
    """A version had a review date by an owners.yaml that the log did not hold."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
    assert registry.log.of_kind("owners") == []  # nobody's role was asked for
    story.to("finance@1", "validated")
    registry.owners = Owners(default=owners.default.model_copy(update={"review_cadence_days": 30}))
    if action == "key_rotated":
        rotate_key(registry, actor="ci", reason="yearly")
    else:
        registry.register(*package(3 if action == "registered" else 1), actor=AUTHOR)
    *_, noted, done = registry.log.entries()
    assert (noted.action, noted.subject.kind, done.action) == ("changed", "owners", action)
    assert noted.body["text"] == registry.owners.text
    assert verify(registry).ok


def test_registering_what_is_known_notes_no_owners(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """Twice is once: what changes nothing writes no entry."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "validated")
    registry.owners = Owners(default=owners.default.model_copy(update={"review_cadence_days": 30}))
    head = registry.log.head()
    registry.register(*package(1), actor=AUTHOR)
    assert registry.log.head() == head


def test_a_kept_key_that_was_cut_off_is_a_note(
    registry: Registry, package: Build, story: Story, owners: Owners, tmp_path: Path
) -> None:
    """An earlier release took such a line, and nobody can change what the log holds."""
    registry.register(*package(1), actor=AUTHOR)
    whole = public_key("dana")
    people = [
        one.model_copy(update={"keys": (whole[:-60],)}) if one.id == "dana" else one
        for one in owners.default.people
    ]
    registry.owners = Owners(default=owners.default.model_copy(update={"people": tuple(people)}))
    story.to("finance@1", "production")
    result = verify(registry)
    assert result.problems == ()
    note = "owners.yaml of entry 2 has a key of dana that can't be read: whatever it signed doesn't count"
    assert note in result.warnings
    assert [one.void for one in lifecycle.approvals(registry, registry.get("finance@1"))] == [None, None]
    assert record(registry, "finance@1").verdict.may_serve
    backup(registry, str(tmp_path / "backups"))
    restore(str(tmp_path / "backups"), tmp_path / "restored")
