"""How many users one person gives a version by hand: none get it past the rollout and two approvals."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lora_ops.errors import Refused
from lora_ops.hashing import sha256_text
from lora_ops.registry import routes
from lora_ops.registry.by_hand import MOST_USERS
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import Clock

WHY = {"actor": "ci", "reason": "I want it"}
SHARE = {"canary": {"number": 2, "percent": 100, "salt": "12345678"}}


@pytest.fixture
def canary(staged: Path, tmp_path: Path, owners: Owners, clock: Clock) -> Iterator[Registry]:
    """Return a registry with finance@1 in production, and finance@2 in canary without a rollout."""
    shutil.copytree(staged, tmp_path / "registry")
    with closing(Registry(tmp_path / "registry", owners=owners, clock=clock)) as opened:
        yield opened


def ask(registry: Registry, rollout: str) -> None:
    registry.least = registry.least.model_copy(update={"rollout": rollout})


def many(users: int) -> list[str]:
    return [f"user {number}" for number in range(users)]


def test_share_by_hand_ends_at_the_first_step(canary: Registry) -> None:
    """With all users a version is in production in all but name, and nobody approved it."""
    said = (
        r"One person gives finance@2 at most 1 % of the users.*`lora-ops rollout start finance@2 --reason TEXT`"
    )
    for percent in (1.01, 100):
        with pytest.raises(Refused, match=said):
            routes.set_canary(canary, "finance@2", percent, **WHY)
    assert canary.route("finance").is_empty
    routes.set_canary(canary, "finance@2", 1, **WHY)
    canary.first_step = 5
    routes.set_canary(canary, "finance@2", 5, **WHY)
    assert verify(canary, files=False).ok


def test_share_by_hand_can_always_be_lowered(canary: Registry) -> None:
    """In an incident nobody looks for a setting."""
    ask(canary, "optional")
    routes.set_canary(canary, "finance@2", 100, **WHY)
    ask(canary, "required")
    for percent in (50.0, 2.5):
        routes.set_canary(canary, "finance@2", percent, **WHY)
        assert canary.route("finance").canary.percent == percent  # type: ignore[union-attr]
    with pytest.raises(Refused, match="at most 1 %"):
        routes.set_canary(canary, "finance@2", 3, **WHY)
    routes.clear(canary, "finance", "canary", **WHY)
    assert verify(canary, files=False).ok


def test_pins_by_hand_are_few_and_no_segment(canary: Registry) -> None:
    """An application may send one segment with each request."""
    with pytest.raises(Refused, match="Nobody knows how many users a segment has.*is ready"):
        routes.pin(canary, "finance@2", segments=["web"], **WHY)
    with pytest.raises(Refused, match=f"One person pins at most {MOST_USERS} users to finance@2"):
        routes.pin(canary, "finance@2", users=many(MOST_USERS + 1), **WHY)
    routes.pin(canary, "finance@2", users=many(MOST_USERS), **WHY)
    routes.pin(canary, "finance@2", users=many(1), **WHY)
    with pytest.raises(Refused, match="pins at most"):
        routes.pin(canary, "finance@2", users=["one more"], **WHY)
    routes.unpin(canary, "finance", users=many(2), **WHY)
    routes.pin(canary, "finance@2", users=["one more"], **WHY)
    assert verify(canary, files=False).ok


def test_pins_of_production_are_not_counted(canary: Registry) -> None:
    """It answers these users anyway."""
    routes.pin(canary, "finance@1", users=many(MOST_USERS + 1), segments=["web"], **WHY)
    assert verify(canary, files=False).ok


def test_optional_rollout_leaves_shares_to_people(canary: Registry) -> None:
    """The log keeps that they did."""
    ask(canary, "optional")
    routes.set_canary(canary, "finance@2", 100, **WHY)
    routes.pin(canary, "finance@2", users=many(MOST_USERS + 1), segments=["web"], **WHY)
    found = verify(canary, files=False)
    said = [one for one in found.warnings if "gives finance@2" in one]
    assert found.ok and len(said) == 2, found
    assert all("rules that ask for no rollout" in one for one in said)


def forge(registry: Registry, **body: object) -> None:
    """Give finance@2 all users past the rules, as an edited lora-ops with the key could."""
    assert registry.owners
    digest = sha256_text(registry.owners.text)
    with registry.change("ci") as change:
        change.reroute("canary_cleared", "finance", SHARE, owners_sha256=digest, reason="next", **body)


REQUIRED = {"rollout": "required", "first_step": 1}
OLDER = "by the rules of an older release"


@pytest.mark.parametrize(
    ("rules", "where", "text"),
    [
        (REQUIRED, "problems", "gives finance@2 too many users"),
        ({**REQUIRED, "first_step": 50}, "problems", "at most 50 % of the users"),
        ({**REQUIRED, "first_step": 100}, "warnings", "a first step of 100 %"),
        ({**REQUIRED, "rollout": "optional"}, "warnings", "rules that ask for no rollout"),
        (None, "warnings", OLDER),
        ("none", "warnings", OLDER),
        ({"rollout": ["optional"]}, "warnings", "rules that this release can't read"),
    ],
)
def test_verify_judges_a_share_by_its_own_rules(canary: Registry, rules: object, where: str, text: str) -> None:
    """A log of an older release stays whole, and says what nobody approved."""
    forge(canary, **({} if rules is None else {"rules": rules}))
    found = verify(canary, files=False)
    assert any(text in one for one in getattr(found, where)), found
    assert found.ok == (where == "warnings")


CHANGES: dict[str, Callable[[Registry], object]] = {
    "lowered": lambda registry: routes.set_canary(registry, "finance@2", 50, **WHY),
    "cleared": lambda registry: routes.clear(registry, "finance", "canary", **WHY),
    "stopped": lambda registry: routes.stop(registry, "finance@2", **WHY),
}


@pytest.mark.parametrize("change", CHANGES)
def test_verify_names_no_share_that_got_smaller(canary: Registry, change: str) -> None:
    forge(canary)
    before = verify(canary, files=False)
    CHANGES[change](canary)
    after = verify(canary, files=False)
    assert after.ok and after.warnings == before.warnings
