"""The life of a version: each step has its evidence, production has its two approvers, the past stays."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.records.evidence import Evidence, EvidenceKind
from lora_ops.records.manifest import FileRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, FIRST, SECOND, Build, Clock, Story


@pytest.fixture
def first(registry: Registry, package: Build) -> str:
    """`finance@1`, registered by its author."""
    return registry.register(*package(1), actor=AUTHOR)[0].id


def unchanged(registry: Registry, reference: str, state: str, head: object) -> bool:
    return registry.get(reference).state == state and registry.log.head() == head


@pytest.mark.parametrize(
    ("stage", "aliases"),
    [
        ("validated", ("candidate",)),
        ("shadow", ("candidate", "shadow")),
        ("canary", ("canary", "candidate")),
        ("production", ("candidate", "production")),
    ],
)
def test_aliases_follow_a_version_from_stage_to_stage(
    registry: Registry, story: Story, first: str, stage: str, aliases: tuple[str, ...]
) -> None:
    assert story.to(first, stage).aliases == aliases
    assert verify(registry).ok


@pytest.mark.parametrize(
    ("stage", "then", "missing"),
    [
        (
            "candidate",
            "validated",
            "missing: evidence of kind 'evaluation'; evidence of kind 'policy'.",
        ),
        ("validated", "shadow", "missing: evidence of kind 'human_evaluation'."),
        ("shadow", "canary", "missing: evidence of kind 'shadow'."),
        (
            "canary",
            "production",
            "missing: evidence of kind 'canary'; 2 approvals (by ben, chen, dana).",
        ),
    ],
)
def test_a_step_without_its_evidence_is_refused_with_what_is_missing(
    registry: Registry, story: Story, first: str, stage: str, then: str, missing: str
) -> None:
    story.to(first, stage)
    head = registry.log.head()
    with pytest.raises(LoraOpsError) as caught:
        lifecycle.promote(registry, first, then, actor="ci", reason="now")  # type: ignore[arg-type]
    assert missing in str(caught.value)
    assert unchanged(registry, first, stage, head)


def test_evidence_of_one_kind_does_not_stand_for_another(registry: Registry, story: Story, first: str) -> None:
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'policy'."):
        lifecycle.promote(
            registry,
            first,
            "validated",
            actor="ci",
            reason="r",
            evidence=story.evidence("evaluation", "canary"),
        )


def test_evidence_whose_report_nobody_handed_in_is_refused(registry: Registry, first: str) -> None:
    claims = [
        Evidence(kind="evaluation", sha256="0" * 64, summary="it is great"),
        Evidence(kind="policy", sha256="0" * 64, summary="it is safe"),
    ]
    with pytest.raises(LoraOpsError, match="evaluation report 000000000000… is not kept"):
        lifecycle.promote(registry, first, "validated", actor="ci", reason="r", evidence=claims)


def test_a_report_that_is_no_file_is_no_evidence(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="There is no report"):
        registry.keep("evaluation", tmp_path / "none.html")


@pytest.mark.parametrize(
    ("stage", "then"),
    [("candidate", "shadow"), ("candidate", "production"), ("production", "canary"), ("shadow", "shadow")],
)
def test_no_stage_is_skipped_and_none_goes_back(
    registry: Registry, story: Story, first: str, stage: str, then: str
) -> None:
    story.to(first, stage)
    with pytest.raises(LoraOpsError, match=f"is '{stage}': it can't become '{then}'"):
        lifecycle.promote(registry, first, then, actor="ci", reason="r")  # type: ignore[arg-type]


def test_an_unknown_stage_is_refused(registry: Registry, first: str) -> None:
    with pytest.raises(LoraOpsError, match="can't be promoted to 'prod': choose one of validated"):
        lifecycle.promote(registry, first, "prod", actor="ci", reason="r")  # type: ignore[arg-type]


def test_a_step_without_a_reason_is_refused(registry: Registry, first: str) -> None:
    with pytest.raises(LoraOpsError, match="Say why"):
        lifecycle.reject(registry, first, actor="ben", reason=" ")


AGAINST = pytest.mark.parametrize(
    ("kind", "report", "says"),
    [
        (
            "policy",
            '[{"name": "no-advice", "passed": false, "prompts": 40, "failed": 2}]',
            "a policy report without a failure (no-advice fails 2 of 40 prompts)",
        ),
        (
            "human_evaluation",
            '{"annotators": 3, "pairs": 40, "adapter_better": 5, "same": 10, "base_better": 25}',
            "a human evaluation that the adapter does not lose (better in 5 of 40 pairs, its base in 25)",
        ),
    ],
)


@AGAINST
def test_a_report_that_speaks_against_a_version_is_no_evidence_for_it(
    registry: Registry, story: Story, first: str, tmp_path: Path, kind: EvidenceKind, report: str, says: str
) -> None:
    stage, then = ("candidate", "validated") if kind == "policy" else ("validated", "shadow")
    story.to(first, stage)
    (tmp_path / "bad.json").write_text(report)
    evidence = [*story.evidence("evaluation"), registry.keep(kind, tmp_path / "bad.json")]
    head = registry.log.head()
    with pytest.raises(LoraOpsError) as caught:
        lifecycle.promote(registry, first, then, actor="ci", reason="r", evidence=evidence)  # type: ignore[arg-type]
    assert str(caught.value) == f"{first} can't become '{then}' yet; missing: {says}."
    assert unchanged(registry, first, stage, head)


@AGAINST
def test_a_report_that_came_later_keeps_a_version_from_production_until_a_better_one(
    registry: Registry, story: Story, first: str, tmp_path: Path, kind: EvidenceKind, report: str, says: str
) -> None:
    story.to(first, "canary")
    (tmp_path / "bad.json").write_text(report)
    evidence = [*story.evidence("review"), registry.keep(kind, tmp_path / "bad.json")]
    lifecycle.review(registry, first, actor="eve", reason="looked again", evidence=evidence)
    assert says in lifecycle.missing_for(registry, first)[1]
    with pytest.raises(LoraOpsError) as caught:
        story.to(first, "production")
    assert says in str(caught.value)
    better = story.evidence("canary", kind)
    lifecycle.promote(registry, first, "production", actor="ci", reason="mended", evidence=better)


def test_evidence_that_must_be_read_is_refused_when_it_is_a_page(
    registry: Registry, story: Story, first: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# x\n")
    with pytest.raises(
        LoraOpsError, match="A report of kind 'policy' is read by lora-ops: hand in JSON, a list"
    ):
        registry.keep("policy", page)
    kept = registry.keep("canary", page)
    claim = Evidence(kind="policy", sha256=kept.sha256, summary="it is safe")
    with pytest.raises(LoraOpsError, match="missing: a policy report that can be read"):
        lifecycle.promote(
            registry,
            first,
            "validated",
            actor="ci",
            reason="r",
            evidence=[claim, *story.evidence("evaluation")],
        )


def test_the_evaluation_of_the_package_is_taken_as_evidence(
    registry: Registry, package: Build, story: Story
) -> None:
    folder, manifest = package(1)
    report = folder / "evaluation.json"
    report.write_text("{}")
    file = FileRecord(bytes=2, sha256=sha256_file(report))
    files = {**manifest.files, "evaluation.json": file}
    for seed, digest in (("named", file.sha256), ("another", "0" * 64)):
        registry.register(
            folder,
            manifest.model_copy(update={"files": files, "evaluation_report_sha256": digest, "license": seed}),
            actor=AUTHOR,
        )
    assert lifecycle.missing_for(registry, "finance@1")[1] == ["evidence of kind 'policy'"]
    policy = story.evidence("policy")
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="r", evidence=policy)
    assert registry.history("finance@1")[-1].evidence[0].sha256 == file.sha256
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'evaluation'"):
        lifecycle.promote(registry, "finance@2", "validated", actor="ci", reason="r", evidence=policy)


# Roles.


@pytest.mark.parametrize(
    ("actor", "action", "may"),
    [
        ("mallory", "validate", False),
        ("eve", "validate", True),
        ("oncall", "validate", True),
        ("eve", "shadow", False),
        ("oncall", "shadow", True),
        ("mallory", "reject", False),
        ("eve", "reject", True),
        ("oncall", "review", False),
        ("eve", "review", True),
        ("mallory", "revoke", False),
        ("eve", "revoke", True),
        ("mallory", "incident", False),
        ("eve", "incident", True),
    ],
)
def test_who_may_do_what_follows_the_roles(
    registry: Registry, story: Story, first: str, actor: str, action: str, may: bool
) -> None:
    if action == "shadow":
        story.to(first, "validated")
    evidence = story.evidence("evaluation", "policy", "human_evaluation", "incident", "review")
    said = {"actor": actor, "reason": "r", "evidence": evidence}
    do = {
        "validate": lambda: lifecycle.promote(registry, first, "validated", **said),  # type: ignore[arg-type]
        "shadow": lambda: lifecycle.promote(registry, first, "shadow", **said),  # type: ignore[arg-type]
        "reject": lambda: lifecycle.reject(registry, first, **said),  # type: ignore[arg-type]
        "review": lambda: lifecycle.review(registry, first, **said),  # type: ignore[arg-type]
        "revoke": lambda: lifecycle.revoke(registry, first, **said),  # type: ignore[arg-type]
        "incident": lambda: lifecycle.link_incident(registry, first, **said),  # type: ignore[arg-type]
    }[action]
    head = registry.log.head()
    if may:
        do()
        assert registry.log.head().seq == head.seq + 1
    else:
        with pytest.raises(LoraOpsError, match=f"{actor} may not .* owners.yaml gives that to"):
            do()
        assert registry.log.head() == head


def test_a_candidate_is_registered_by_anybody(registry: Registry, package: Build) -> None:
    assert registry.register(*package(7), actor="mallory")[1]


def test_the_history_says_who_why_and_on_what(registry: Registry, story: Story, first: str) -> None:
    lifecycle.promote(
        registry,
        first,
        "validated",
        actor="ben",
        reason="numbers are fine",
        evidence=story.evidence("evaluation", "policy"),
    )
    entry = registry.history(first)[-1]
    assert (entry.actor, entry.action, entry.body["reason"]) == ("ben", "validated", "numbers are fine")
    assert [one["kind"] for one in entry.body["evidence"]] == ["evaluation", "policy"]


# Approvals.


def canary(registry: Registry, story: Story, first: str) -> str:
    story.to(first, "canary")
    return first


def ship(registry: Registry, story: Story, reference: str) -> None:
    lifecycle.promote(
        registry, reference, "production", actor="ci", reason="r", evidence=story.evidence("canary")
    )


def test_one_approval_is_not_enough_for_production(registry: Registry, story: Story, first: str) -> None:
    canary(registry, story, first)
    lifecycle.approve(registry, first, actor=FIRST, reason="ok")
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by chen, dana\)"):
        ship(registry, story, first)
    lifecycle.approve(registry, first, actor=SECOND, reason="ok")
    ship(registry, story, first)
    assert [one.person for one in lifecycle.approvals(registry, registry.get(first))] == [FIRST, SECOND]


@pytest.mark.parametrize("name", [FIRST, "BEN@example.com"])
def test_one_person_does_not_approve_twice_under_any_name(
    registry: Registry, story: Story, first: str, name: str
) -> None:
    canary(registry, story, first)
    lifecycle.approve(registry, first, actor=FIRST, reason="ok")
    with pytest.raises(LoraOpsError, match="Ben has approved finance@1 already"):
        lifecycle.approve(registry, first, actor=name, reason="ok")


@pytest.mark.parametrize("name", [AUTHOR, "Ana@example.com"])
def test_the_author_does_not_approve_under_any_name(
    registry: Registry, story: Story, first: str, name: str
) -> None:
    canary(registry, story, first)
    with pytest.raises(LoraOpsError, match="Ana is the author of finance@1"):
        lifecycle.approve(registry, first, actor=name, reason="mine")


@pytest.mark.parametrize("name", ["eve", "mallory", ""])
def test_who_is_no_approver_does_not_approve(registry: Registry, story: Story, first: str, name: str) -> None:
    canary(registry, story, first)
    with pytest.raises(LoraOpsError, match="no approver of 'finance'|needs an actor"):
        lifecycle.approve(registry, first, actor=name, reason="please")


def test_nobody_approves_while_the_author_is_unknown(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    registry.register(*package(2), actor="root")
    story.to("finance@1", "canary")
    with pytest.raises(LoraOpsError, match=r"its author 'root' in owners.yaml.*add `logins: \[root\]`"):
        lifecycle.approve(registry, "finance@1", actor=FIRST, reason="ok")
    people = tuple(
        person.model_copy(update={"logins": ("root",)}) if person.id == FIRST else person
        for person in owners.default.people
    )
    registry.owners = Owners(default=owners.default.model_copy(update={"people": people}))
    with pytest.raises(LoraOpsError, match="Ben is the author of finance@1"):
        lifecycle.approve(registry, "finance@1", actor=FIRST, reason="ok")
    lifecycle.approve(registry, "finance@1", actor=SECOND, reason="ok")


def test_an_approval_names_the_exact_version(registry: Registry, story: Story, first: str) -> None:
    canary(registry, story, first)
    with pytest.raises(LoraOpsError, match="Name the exact version"):
        lifecycle.approve(registry, "finance@canary", actor=FIRST, reason="ok")


def test_nothing_is_approved_before_its_canary(registry: Registry, story: Story, first: str) -> None:
    story.to(first, "shadow")
    with pytest.raises(LoraOpsError, match="is 'shadow': production is approved while in canary"):
        lifecycle.approve(registry, first, actor=FIRST, reason="ok")


def test_an_approval_by_somebody_who_left_the_role_no_longer_counts(
    registry: Registry, story: Story, first: str, owners: Owners
) -> None:
    canary(registry, story, first)
    for person in (FIRST, SECOND):
        lifecycle.approve(registry, first, actor=person, reason="ok")
    people = [person for person in owners.default.people if person.id != SECOND]
    registry.owners = Owners(default=owners.default.model_copy(update={"people": tuple(people)}))
    with pytest.raises(LoraOpsError, match=r"missing: 1 more approval \(by dana\)"):
        ship(registry, story, first)


def test_without_owners_nobody_approves(tmp_path: Path, package: Build, clock: Clock) -> None:
    registry = Registry(tmp_path / "r", create=True, clock=clock)
    registry.register(*package(), actor=AUTHOR)
    Story(registry, tmp_path / "reports").to("finance@1", "shadow")
    with pytest.raises(LoraOpsError, match="no owners.yaml"):
        lifecycle.approve(registry, "finance@1", actor=FIRST, reason="ok")


# Production.


def test_a_new_production_version_supersedes_the_one_before_in_the_same_entry(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    assert registry.get(first).state == "superseded"
    assert registry.get("finance@production").number == 2
    assert registry.log.entries()[-1].body["effects"]["states"] == {"1": "superseded", "2": "production"}
    assert verify(registry).ok


def test_a_rollback_rests_on_its_incident_and_needs_no_new_approval(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'incident'"):
        lifecycle.promote(registry, first, "production", actor="oncall", reason="latency")
    incident = story.evidence("incident")
    lifecycle.promote(registry, first, "production", actor="oncall", reason="latency", evidence=incident)
    assert registry.get("finance@production").number == 1
    assert registry.get("finance@2").state == "superseded"
    assert verify(registry).ok


def test_the_version_that_is_superseded_has_it_in_its_history(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    last = registry.history(first)[-1]
    assert (last.actor, last.effect_on(1), last.effect_on(2)) == ("ci", "superseded by finance@2", "production")
    assert last == registry.history("finance@2")[-1]


@pytest.mark.parametrize("revoked_first", [False, True])
def test_a_rollbacks_incident_is_one_of_the_version_that_left_production(
    registry: Registry, package: Build, story: Story, first: str, revoked_first: bool
) -> None:
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    if revoked_first:
        lifecycle.revoke(registry, "finance@2", actor="oncall", reason="leaks")
    incident = story.evidence("incident")
    lifecycle.promote(registry, first, "production", actor="oncall", reason="leaks", evidence=incident)
    assert lifecycle.incidents_in(registry.history("finance@2"), 2) == incident
    assert lifecycle.incidents_in(registry.history(first), 1) == []
    assert verify(registry).ok


@pytest.mark.parametrize("stage", ["shadow", "canary"])
def test_a_stage_that_is_taken_is_refused_until_it_is_free(
    registry: Registry, package: Build, story: Story, first: str, stage: str
) -> None:
    story.to(first, stage)
    registry.register(*package(2), actor=AUTHOR)
    if stage == "canary":
        story.to("finance@2", "shadow")
    with pytest.raises(LoraOpsError, match=f"finance@1 is '{stage}' already"):
        story.to("finance@2", stage)
    lifecycle.reject(registry, first, actor="ben", reason="worse")
    assert story.to("finance@2", stage).state == stage


def test_an_alias_that_moved_meanwhile_stops_the_promotion(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "canary")
    for person in (FIRST, SECOND):
        lifecycle.approve(registry, "finance@2", actor=person, reason="ok")

    def promote(expect: str) -> None:
        lifecycle.promote(
            registry,
            "finance@2",
            "production",
            actor="ci",
            reason="r",
            evidence=story.evidence("canary"),
            expect=expect,
        )

    for wrong in ("none", "finance@7"):
        with pytest.raises(LoraOpsError, match=f"moved meanwhile: it names finance@1, not {wrong}"):
            promote(wrong)
    promote("finance@1")


@pytest.mark.parametrize("stage", ["candidate", "validated", "shadow", "canary"])
def test_an_expired_version_is_not_promoted(
    registry: Registry, story: Story, first: str, clock: Clock, stage: str
) -> None:
    story.to(first, stage)
    clock.move(days=365)
    with pytest.raises(LoraOpsError, match="finance@1 expired on 2027-03-02"):
        story.to(first, "production")


def test_a_version_may_be_promoted_until_the_second_it_expires(
    registry: Registry, story: Story, first: str, clock: Clock
) -> None:
    clock.move(days=365, seconds=-1)
    assert story.to(first, "production").state == "production"


# The end.


@pytest.mark.parametrize("stage", ["candidate", "validated", "shadow", "canary", "production"])
def test_a_revoked_version_loses_its_aliases_and_never_comes_back(
    registry: Registry, story: Story, first: str, stage: str
) -> None:
    story.to(first, stage)
    lifecycle.revoke(registry, first, actor="oncall", reason="leaks names")
    assert registry.get(first).aliases == ()
    for then in lifecycle.STAGES:
        with pytest.raises(LoraOpsError, match="is 'revoked': it can't become"):
            lifecycle.promote(registry, first, then, actor="ci", reason="r")
    assert verify(registry).ok


def test_a_version_in_production_is_revoked_not_rejected(registry: Registry, story: Story, first: str) -> None:
    story.to(first, "production")
    with pytest.raises(LoraOpsError, match=r"can't become 'rejected' \(ways from here: revoked\)"):
        lifecycle.reject(registry, first, actor="ben", reason="r")


def test_only_what_no_longer_serves_is_archived(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    story.to(first, "production")
    with pytest.raises(LoraOpsError, match="can't become 'archived'"):
        lifecycle.archive(registry, first, actor="ben", reason="old")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    assert lifecycle.archive(registry, first, actor="ben", reason="old").state == "archived"
    assert verify(registry).ok


# What is due.


def test_nothing_is_due_on_the_first_day(registry: Registry, first: str) -> None:
    assert lifecycle.due(registry) == []


def test_a_review_is_due_one_cadence_after_registration_and_again_after_each_review(
    registry: Registry, story: Story, first: str, clock: Clock
) -> None:
    clock.move(days=90)
    (item,) = lifecycle.due(registry, "finance")
    assert (item.id, item.what, item.overdue, item.team) == (first, "review", True, "Payments")
    lifecycle.review(registry, first, actor="eve", reason="quarterly", evidence=story.evidence("review"))
    assert lifecycle.due(registry) == []
    clock.move(days=90)
    assert [item.what for item in lifecycle.due(registry)] == ["review"]
    assert verify(registry).ok


def test_a_review_rests_on_its_report(registry: Registry, story: Story, first: str) -> None:
    with pytest.raises(LoraOpsError, match="evidence of kind 'review'"):
        lifecycle.review(registry, first, actor="eve", reason="r", evidence=story.evidence("canary"))


@pytest.mark.parametrize(
    ("days", "listed", "overdue"), [(15, 0, 0), (14, 1, 0), (1, 1, 0), (0, 1, 1), (-3, 1, 1)]
)
def test_freshness_is_listed_14_days_ahead_and_for_as_long_as_it_is_over(
    registry: Registry, package: Build, days: int, listed: int, overdue: int
) -> None:
    registry.register(*package(fresh_days=days))
    items = lifecycle.due(registry)
    assert len(items) == listed
    assert sum(item.overdue for item in items) == overdue


def test_nothing_is_due_for_what_no_longer_serves(registry: Registry, first: str, clock: Clock) -> None:
    lifecycle.reject(registry, first, actor="ben", reason="r")
    clock.move(days=1000)
    assert lifecycle.due(registry) == []


def test_an_incident_is_linked_to_the_version_that_it_concerns(
    registry: Registry, story: Story, first: str
) -> None:
    lifecycle.link_incident(
        registry, first, evidence=story.evidence("incident"), actor="oncall", reason="INC-7"
    )
    assert registry.history(first)[-1].action == "incident"
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'incident'"):
        lifecycle.link_incident(registry, first, evidence=story.evidence("canary"), actor="oncall", reason="x")
