"""Which version a rollback brings back, and that a run that was killed is ended by the next."""

from pathlib import Path

import pytest

from lora_ops import incidents
from lora_ops.errors import LoraOpsError, Refused
from lora_ops.hashing import sha256_file
from lora_ops.records.registry import IncidentRecord
from lora_ops.registry import lifecycle, rollouts, routes
from lora_ops.registry.reports import make
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback
from lora_ops.rollout.controller import one_round, start
from lora_ops.settings.registry import EvidenceSettings
from lora_ops.settings.rollout import RolloutSettings
from tests.registry.conftest import Build, Clock, Story, saved_again

ON_CALL = "ben"


def record(registry: Registry, folder: Path, reference: str = "finance@2") -> Path:
    planned = rollback.plan(registry, reference)
    return incidents.write_record(
        registry, planned, folder, actor=ON_CALL, reason="It leaks card numbers.", captured={}
    )


def test_version_before_returns_and_the_bad_one_is_revoked(bad_release: Registry, tmp_path: Path) -> None:
    path = record(bad_release, tmp_path / "incident")
    returned = rollback.roll_back(bad_release, "finance@2", path, actor=ON_CALL, reason="It leaks.")
    assert (returned.id, returned.state, returned.aliases) == ("finance@1", "production", ("production",))
    assert bad_release.get("finance@2").state == "revoked"
    assert verify(bad_release).ok
    said = IncidentRecord.model_validate_json(path.read_text())
    assert (said.leaves, said.returns, said.actor) == ("finance@2", "finance@1", ON_CALL)
    assert said.tell == ["payments@example.com", "cro@example.com"]
    assert bad_release.files.holds(sha256_file(path))


def test_rollback_goes_on_without_the_bad_manifest(bad_release: Registry, tmp_path: Path) -> None:
    bad_release.db.rows("DELETE FROM manifests WHERE number = 2")
    path = record(bad_release, tmp_path / "incident")
    returned = rollback.roll_back(bad_release, "finance@2", path, actor=ON_CALL, reason="It leaks.")
    assert (returned.id, returned.state) == ("finance@1", "production")
    assert bad_release.state("finance", 2) == "revoked"


def test_plan_returns_no_version_with_the_same_weights(
    registry: Registry,
    package: Build,
    story: Story,
    tmp_path: Path,
) -> None:
    registry.register(*package(1), actor="ana")
    folder, manifest = package(1)
    registry.register(folder, saved_again(folder, manifest), actor="ana")
    for version in ("finance@1", "finance@2"):
        story.to(version, "production")
    with pytest.raises(LoraOpsError, match="finance@1 has the weights of finance@2"):
        rollback.plan(registry, "finance@2")


def test_a_second_run_changes_nothing(bad_release: Registry, tmp_path: Path) -> None:
    path = record(bad_release, tmp_path / "incident")
    for _ in range(2):
        rollback.roll_back(bad_release, "finance@2", path, actor=ON_CALL, reason="It leaks.")
    assert bad_release.named("finance", "production") == 1
    assert [entry.action for entry in bad_release.log.entries("finance")][-2:] == ["production", "revoked"]


def test_rollback_killed_between_its_decisions_is_ended(bad_release: Registry, tmp_path: Path) -> None:
    path = record(bad_release, tmp_path / "incident")
    incident = make(bad_release, "finance@2", "incident", path)
    lifecycle.promote(
        bad_release, "finance@1", "production", actor=ON_CALL, reason="It leaks.", evidence=[incident]
    )
    assert rollback.plan(bad_release, "finance@2").done_already
    rollback.roll_back(bad_release, "finance@2", path, actor=ON_CALL, reason="It leaks.")
    assert bad_release.get("finance@2").state == "revoked"


def test_a_killed_rollback_to_a_higher_number_is_ended(
    registry: Registry,
    package: Build,
    story: Story,
    tmp_path: Path,
) -> None:
    """finance@1 served last, after finance@2: it stayed unrevoked, and the second run found nothing to do."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana")
    for version in ("finance@2", "finance@1"):
        story.to(version, "production")
    path = record(registry, tmp_path / "incident", "finance@1")
    incident = make(registry, "finance@1", "incident", path)
    lifecycle.promote(
        registry, "finance@2", "production", actor=ON_CALL, reason="It leaks.", evidence=[incident]
    )
    assert rollback.plan(registry, "finance@1").done_already
    rollback.roll_back(registry, "finance@1", path, actor=ON_CALL, reason="It leaks.")
    assert registry.get("finance@1").state == "revoked"
    assert registry.named("finance", "production") == 2


def test_a_version_with_an_incident_of_its_own_does_not_return(
    bad_release: Registry,
    story: Story,
) -> None:
    found = story.evidence("incident", about="finance@1")
    lifecycle.link_incident(bad_release, "finance@1", actor=ON_CALL, reason="leaks too", evidence=found)
    with pytest.raises(LoraOpsError, match="finance@1 lacks a version without an incident since"):
        rollback.plan(bad_release, "finance@2")


def test_a_version_that_was_revoked_first_can_still_be_replaced(bad_release: Registry, tmp_path: Path) -> None:
    lifecycle.revoke(bad_release, "finance@2", actor=ON_CALL, reason="It leaks.")
    path = record(bad_release, tmp_path / "incident")
    rollback.roll_back(bad_release, "finance@2", path, actor=ON_CALL, reason="It leaks.")
    assert bad_release.named("finance", "production") == 1


def test_a_version_that_was_revoked_does_not_return(
    bad_release: Registry,
    package: Build,
    story: Story,
) -> None:
    bad_release.register(*package(3), actor="ana")
    story.to("finance@3", "production")
    lifecycle.revoke(bad_release, "finance@2", actor=ON_CALL, reason="It leaks.")
    assert rollback.plan(bad_release, "finance@3").returns.id == "finance@1"


def test_rollback_without_earlier_version_says_how_to_stop(
    registry: Registry,
    package: Build,
    story: Story,
) -> None:
    registry.register(*package(1), actor="ana")
    story.to("finance@1", "production")
    with pytest.raises(LoraOpsError, match=r"no other version was .* `lora-ops registry revoke finance@1"):
        rollback.plan(registry, "finance@1")


def test_plan_says_how_to_stop_what_is_not_in_production(bad_release: Registry, package: Build) -> None:
    """Whoever is on call and names a canary is told what stops it."""
    bad_release.register(*package(3), actor="ana")
    with pytest.raises(
        Refused, match="nothing to roll back. To stop finance@3: `lora-ops route stop finance@3 "
    ):
        rollback.plan(bad_release, "finance@3")


def test_an_expired_version_does_not_return(bad_release: Registry, clock: Clock) -> None:
    clock.move(days=400)
    with pytest.raises(LoraOpsError, match="finance@1 expired on"):
        rollback.plan(bad_release, "finance@2")


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("finance@1", "finance@1 is 'superseded': finance@2 is in production"),
        ("finance@production", "Name the exact version that must go"),
        ("finance@9", "finance@9"),
    ],
)
def test_only_what_is_in_production_can_be_rolled_back(
    bad_release: Registry, reference: str, sentence: str
) -> None:
    with pytest.raises(LoraOpsError, match=sentence):
        rollback.plan(bad_release, reference)


def test_plan_names_what_was_in_production_last(bad_release: Registry, package: Build, story: Story) -> None:
    """The promotion that the plan named was refused: its incident was about another version."""
    bad_release.register(*package(3), actor="ana")
    story.to("finance@3", "production")
    lifecycle.revoke(bad_release, "finance@3", actor=ON_CALL, reason="leaks card numbers")
    with pytest.raises(LoraOpsError, match="finance@3 was in production last, .*: name it, not finance@2"):
        rollback.plan(bad_release, "finance@2")
    assert rollback.plan(bad_release, "finance@3").returns.id == "finance@2"


@pytest.fixture
def third_release(bad_release: Registry, package: Build, story: Story) -> Registry:
    """finance@3 took over from finance@2, which took over from finance@1."""
    bad_release.register(*package(3), actor="ana")
    story.to("finance@3", "production")
    return bad_release


def take_back(registry: Registry, folder: Path, reference: str = "finance@3", to: str | None = None) -> str:
    taken = incidents.take_back(registry, reference, folder, to=to, actor=ON_CALL, reason="It leaks.")
    return taken.returned.id


def test_rollback_twice_goes_back_once(third_release: Registry, tmp_path: Path) -> None:
    assert [take_back(third_release, tmp_path / f"{run}") for run in range(2)] == ["finance@2"] * 2
    assert third_release.named("finance", "production") == 2


def test_rollback_goes_to_a_named_version(third_release: Registry, tmp_path: Path) -> None:
    for _ in range(2):
        assert take_back(third_release, tmp_path / "incident", to="finance@1") == "finance@1"
    assert third_release.state("finance", 2) == "superseded"
    assert verify(third_release).ok
    with pytest.raises(LoraOpsError, match="finance@1 is in production in the place of finance@3 already, not"):
        take_back(third_release, tmp_path / "incident", to="finance@2")


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("finance@2", "finance@2 may not return in the place of finance@3: finance@2 is 'revoked'"),
        ("finance@3", "finance@3 was never in production before finance@3: name another version"),
        ("finance@9", "finance@9"),
        ("healthcare@1", "no adapter of .healthcare."),
    ],
)
def test_rollback_refuses_a_named_version(
    third_release: Registry, tmp_path: Path, named: str, sentence: str
) -> None:
    lifecycle.revoke(third_release, "finance@2", actor=ON_CALL, reason="It leaks.")
    with pytest.raises(LoraOpsError, match=sentence):
        take_back(third_release, tmp_path / "incident", to=named)
    assert third_release.named("finance", "production") == 3


def test_rollback_refuses_a_named_version_that_expired(
    third_release: Registry, tmp_path: Path, clock: Clock
) -> None:
    clock.move(days=400)
    with pytest.raises(LoraOpsError, match="finance@1 may not return .*: finance@1 expired on"):
        take_back(third_release, tmp_path / "incident", to="finance@1")


def test_rollback_refuses_a_named_version_that_was_stopped(third_release: Registry, tmp_path: Path) -> None:
    routes.stop(third_release, "finance@2", actor=ON_CALL, reason="It leaks.")
    with pytest.raises(LoraOpsError, match="finance@2 may not return .*: finance@2 was stopped"):
        take_back(third_release, tmp_path / "incident", to="finance@2")
    assert take_back(third_release, tmp_path / "incident") == "finance@1"


def test_rollback_ends_a_rollout_and_its_canary(
    bad_release: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """What is in canary was compared with the version that leaves."""
    bad_release.register(*package(3), actor="ana.silva")
    story.to("finance@3", "validated")
    story.file("human_evaluation", about="finance@3")
    why = {"actor": "oncall", "reason": "better on held-out rows"}
    rollout = start(bad_release, "finance@3", RolloutSettings(), **why)
    story.to("finance@3", "canary")
    half = {"step": 0, "route": lambda route: routes.with_canary(route, 3, 50)}
    rollout = rollouts.move(bad_release, rollout, "canary", "no metric is worse", actor="oncall", **half)
    assert take_back(bad_release, tmp_path / "incident", "finance@2") == "finance@1"
    assert routes.current(bad_release, "finance").route.canary is None
    ended = one_round(bad_release, rollouts.rollout_of(bad_release, rollout.plan.adapter), NoTraffic())
    assert not ended.rollout.is_running
    assert bad_release.named("finance", "production") == 1


class NoTraffic:
    """Evidence of a rollout that nobody may ask for: it has ended."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"a rollout that has ended asked for its {name}")


def test_rollback_by_nobody_of_the_team_changes_nothing(third_release: Registry, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="mallory"):
        incidents.take_back(third_release, "finance@3", tmp_path / "x", actor="mallory", reason="It leaks.")
    assert third_release.named("finance", "production") == 3


def test_a_version_returns_twice_under_stricter_minimums(
    bad_release: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """The minimums of the day of its first return kept it out: no version could be rolled back to it again."""
    lax, strict = bad_release.least, EvidenceSettings()
    bad_release.least = strict
    assert take_back(bad_release, tmp_path / "first", "finance@2") == "finance@1"
    bad_release.least = lax
    bad_release.register(*package(3), actor="ana")
    story.to("finance@3", "production")
    bad_release.least = strict
    assert take_back(bad_release, tmp_path / "second") == "finance@1"
    assert verify(bad_release).ok
