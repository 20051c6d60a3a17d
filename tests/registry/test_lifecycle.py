"""The life of a version: each step has its evidence, production has its two approvers, the past stays."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.evaluation import ColumnBias, GroupMetric, Interval
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.reports import Report, gap_limit, make
from lora_ops.registry.requirements import STAGES, missing_for
from lora_ops.registry.rollbacks import incidents_in
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, FIRST, Build, Clock, Story, losing, reviewed, with_evaluation


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
            "missing: evidence of kind 'policy' (`lora-ops gate finance@1`).",
        ),
        ("validated", "shadow", "evidence of kind 'human_evaluation' (`lora-ops review start finance@1`)."),
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
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'policy' .`lora-ops gate"):
        lifecycle.promote(
            registry,
            first,
            "validated",
            actor="ci",
            reason="next",
            evidence=story.evidence("review"),
        )


@pytest.mark.parametrize(
    ("stage", "then"),
    [("candidate", "shadow"), ("candidate", "production"), ("production", "canary"), ("shadow", "shadow")],
)
def test_no_stage_is_skipped_and_none_goes_back(
    registry: Registry, story: Story, first: str, stage: str, then: str
) -> None:
    story.to(first, stage)
    with pytest.raises(LoraOpsError, match=f"is '{stage}': it can't become '{then}'"):
        lifecycle.promote(registry, first, then, actor="ci", reason="next")  # type: ignore[arg-type]


def test_an_unknown_stage_is_refused(registry: Registry, first: str) -> None:
    with pytest.raises(LoraOpsError, match="can't be promoted to 'prod': choose one of validated"):
        lifecycle.promote(registry, first, "prod", actor="ci", reason="next")  # type: ignore[arg-type]


@pytest.mark.parametrize("reason", [" ", "\0" * 100, "\u200b" * 100, "..."])
def test_a_step_without_a_reason_is_refused(registry: Registry, first: str, reason: str) -> None:
    with pytest.raises(LoraOpsError, match="Say why"):
        lifecycle.reject(registry, first, actor="ben", reason=reason)


# Evidence.

Rows = list[dict[str, object]]
POLICY: Rows = [{"check": "no-advice", "prompt": str(i), "passed": i > 1} for i in range(40)]
FEW: Rows = [{"check": "no-advice", "prompt": str(i), "passed": True} for i in range(29)]
AGAINST = pytest.mark.parametrize(
    ("kind", "rows", "says"),
    [
        ("policy", POLICY, "a policy report without a failure (no-advice fails 2 of 40 prompts)"),
        ("policy", FEW, "a policy report with at least 30 prompts a check (no-advice has 29)"),
        (
            "human_evaluation",
            [],
            "a human evaluation that the adapter does not lose (better in 8 of 20 pairs, its base in 12)",
        ),
    ],
)


def report(registry: Registry, folder: Path, kind: str, rows: Rows, about: str = "finance@1") -> Report:
    if kind == "human_evaluation":
        return reviewed(registry, about, losing(12))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"adapter": about, **row}) + "\n" for row in rows))
    return make(registry, about, kind, path)


def kept(registry: Registry) -> int:
    return len(list(registry.files.root.glob("??/*")))


@AGAINST
def test_promote_refuses_a_report_against_it_and_keeps_nothing(
    registry: Registry, story: Story, first: str, tmp_path: Path, kind: str, rows: Rows, says: str
) -> None:
    stage, then = ("candidate", "validated") if kind == "policy" else ("validated", "shadow")
    story.to(first, stage)
    bad = report(registry, tmp_path, kind, rows)
    head, files = registry.log.head(), kept(registry)
    with pytest.raises(LoraOpsError) as caught:
        lifecycle.promote(registry, first, then, actor="ci", reason="next", evidence=[bad])  # type: ignore[arg-type]
    assert str(caught.value) == f"{first} can't become '{then}' yet; missing: {says}."
    assert unchanged(registry, first, stage, head)
    assert kept(registry) == files


@AGAINST
def test_later_report_stops_a_version_until_a_better_one(
    registry: Registry, story: Story, first: str, tmp_path: Path, kind: str, rows: Rows, says: str
) -> None:
    story.to(first, "canary")
    lifecycle.file_evidence(registry, first, report(registry, tmp_path, kind, rows), actor="eve")
    assert says in missing_for(registry, first)[1]
    with pytest.raises(LoraOpsError) as caught:
        story.to(first, "production")
    assert says in str(caught.value)
    story.file(kind)
    assert story.to(first, "production").state == "production"


def test_filed_evidence_counts_at_the_next_step(registry: Registry, story: Story, first: str) -> None:
    story.file("policy")
    assert registry.history(first)[-1].action == "evidence"
    lifecycle.promote(registry, first, "validated", actor="ci", reason="next")
    assert [one.kind for one in registry.history(first)[-1].evidence] == ["evaluation", "policy"]
    assert verify(registry).ok


def test_evidence_of_another_version_is_refused(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    """The same report let finance@1 and media@1 pass."""
    registry.register(*package(2, tenant="media"), actor=AUTHOR)
    other, files = story.evidence("policy", about="media@1"), kept(registry)
    says = "The policy report is about media@1, not finance@1"
    with pytest.raises(LoraOpsError, match=says):
        lifecycle.promote(registry, first, "validated", actor="ci", reason="next", evidence=other)
    with pytest.raises(LoraOpsError, match=says):
        lifecycle.file_evidence(registry, first, other[0], actor="ci")
    assert kept(registry) == files


@pytest.mark.usefixtures("older_packages")
def test_the_evaluation_is_the_packages_own(registry: Registry, package: Build, story: Story) -> None:
    folder, manifest = package(1)
    registry.register(folder, manifest, actor=AUTHOR)
    unnamed = manifest.model_copy(update={"evaluation_report_sha256": "0" * 64, "license": "MIT"})
    registry.register(folder, unnamed, actor=AUTHOR)
    story.to("finance@1", "validated")
    own = registry.history("finance@1")[-1].evidence[0]
    assert own.sha256 == manifest.files["evaluation.json"].sha256
    assert "evidence of kind 'evaluation'" in missing_for(registry, "finance@2")[1]
    page = story.folder / "looked.txt"
    page.write_text("I looked at it, and it is great.")
    with pytest.raises(LoraOpsError, match="The evaluation of finance@2 is the evaluation.json of its package"):
        make(registry, "finance@2", "evaluation", page)


def test_a_version_that_does_not_beat_its_base_is_not_promoted(
    registry: Registry, package: Build, story: Story, written_by_hand: None
) -> None:
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    with pytest.raises(LoraOpsError, match="missing: an evaluation in which it beats its base model"):
        story.to("finance@1", "validated")


@pytest.fixture
def unfair(registry: Registry, package: Build, written_by_hand: None) -> str:
    """`finance@1`, which serves one region clearly worse than another, by more than its tenant's limit."""
    folder, manifest = package(1)
    changed = with_evaluation(folder, manifest, bias={"region": column_bias(limit=0.2)}, rows=160)
    return registry.register(folder, changed, actor=AUTHOR)[0].id


def column_bias(limit: float | None) -> ColumnBias:
    high, low = Interval(value=0.9, low=0.85, high=0.95), Interval(value=0.4, low=0.3, high=0.5)
    groups = {"north": GroupMetric(rows=100, value=high), "south": GroupMetric(rows=60, value=low)}
    gap = Interval(value=0.5, low=0.38, high=0.61)
    return ColumnBias(groups=groups, best="north", worst="south", gap=gap, limit=limit)


def test_a_gap_clearly_above_its_limit_is_refused(registry: Registry, story: Story, unfair: str) -> None:
    registry.max_gap = {"finance": 0.3}
    with pytest.raises(LoraOpsError, match=r"gap by region is not clearly above evaluate.max_gap \(0.3"):
        story.to(unfair, "validated")
    assert registry.get(unfair).state == "candidate"
    (note,) = [one for one in record(registry, unfair).verdict.warnings if "gap" in one]
    assert note.startswith("by region its gap 0.500 [0.380, 0.610] between north (0.900, 100 rows) and south")


def test_a_gap_within_its_interval_is_let_through(registry: Registry, story: Story, unfair: str) -> None:
    """0.4 lies below the measured gap of 0.5 but inside its interval: that may be chance."""
    registry.max_gap = {"finance": 0.4}
    story.to(unfair, "production")
    assert verify(registry).ok
    entries = [entry for entry in registry.history(unfair) if entry.action == "production"]
    assert entries[-1].body["max_gap"] == 0.4


def test_the_limit_of_the_evaluation_counts_without_settings(
    registry: Registry, story: Story, unfair: str
) -> None:
    """A looser limit of today lets it through, and `show` names the one that it was evaluated by for ever."""
    stored = registry.get(unfair)
    assert gap_limit(registry, stored) == 0.2
    registry.max_gap = {"finance": None}
    story.to(unfair, "validated")
    assert any("limit of its evaluation (0.2)" in one for one in record(registry, unfair).verdict.warnings)


def test_verify_rechecks_the_gap_of_each_step(
    registry: Registry, story: Story, unfair: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.max_gap = {"finance": 0.3}
    with monkeypatch.context() as patch:
        patch.setattr(ColumnBias, "exceeds", lambda self, limit: False)
        story.to(unfair, "validated")
    (problem,) = verify(registry).problems
    assert "makes finance@1 'validated' without an evaluation whose gap by region" in problem


def test_evidence_of_a_newer_release_does_not_stop_reading(registry: Registry, first: str) -> None:
    with registry.change("ci") as change:
        body = [{"kind": "judge", "sha256": "0" * 64, "summary": "of tomorrow"}]
        change.record("judged", "finance", 1, evidence=body)
    assert registry.history(first)[-1].evidence[0].kind == "judge"
    assert record(registry, first).history[-1].action == "judged"


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
    story.file("review")  # the first change of a version brings an entry about owners.yaml
    if action == "shadow":
        story.to(first, "validated")
    evidence = story.evidence("policy", "human_evaluation", "incident", "review")
    said = {"actor": actor, "reason": "next", "evidence": evidence}
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
        evidence=story.evidence("policy"),
    )
    entry = registry.history(first)[-1]
    assert (entry.actor, entry.action, entry.body["reason"]) == ("ben", "validated", "numbers are fine")
    assert [one["kind"] for one in entry.body["evidence"]] == ["evaluation", "policy"]


@pytest.mark.parametrize("action", ["validate", "reject", "revoke", "incident", "file"])
def test_without_owners_nobody_does_anything_but_register(
    registry: Registry, story: Story, first: str, package: Build, action: str
) -> None:
    """A deleted owners.yaml let anybody revoke and validate."""
    given = story.evidence("policy", "incident")
    said = {"actor": FIRST, "reason": "next", "evidence": given}
    registry.owners = None
    head = registry.log.head()
    do = {
        "validate": lambda: lifecycle.promote(registry, first, "validated", **said),  # type: ignore[arg-type]
        "reject": lambda: lifecycle.reject(registry, first, **said),  # type: ignore[arg-type]
        "revoke": lambda: lifecycle.revoke(registry, first, **said),  # type: ignore[arg-type]
        "incident": lambda: lifecycle.link_incident(registry, first, **said),  # type: ignore[arg-type]
        "file": lambda: lifecycle.file_evidence(registry, first, given[0], actor=FIRST),
    }[action]
    with pytest.raises(LoraOpsError, match="There is no owners.yaml beside params.yaml"):
        do()
    assert registry.log.head() == head
    assert registry.register(*package(2), actor="mallory")[1]


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
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'incident' on finance@2"):
        lifecycle.promote(registry, first, "production", actor="oncall", reason="latency")
    own = story.evidence("incident")
    with pytest.raises(LoraOpsError, match="The incident report is about finance@1, not finance@2"):
        lifecycle.promote(registry, first, "production", actor="oncall", reason="latency", evidence=own)
    incident = story.evidence("incident", about="finance@2")
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
    incident = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, first, "production", actor="oncall", reason="leaks", evidence=incident)
    assert incidents_in(registry.history("finance@2"), 2) == [incident[0].reference]
    assert incidents_in(registry.history(first), 1) == []
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
    story.file("canary", about="finance@2")
    story.approve("finance@2")

    def promote(expect: str) -> None:
        lifecycle.promote(registry, "finance@2", "production", actor="ci", reason="next", expect=expect)

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
    for then in STAGES:
        with pytest.raises(LoraOpsError, match="is 'revoked': it can't become"):
            lifecycle.promote(registry, first, then, actor="ci", reason="next")
    assert verify(registry).ok


def lose_manifest(registry: Registry) -> None:
    registry.db.rows("DELETE FROM manifests")


def lose_files(registry: Registry) -> None:
    shutil.rmtree(registry.files.root)
    registry.files.root.mkdir()


def cut_file(registry: Registry) -> None:
    weights = registry.get("finance@1").manifest.files["adapter_model.safetensors"]
    path = registry.files.path(weights.sha256)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:20])


def break_manifest(registry: Registry) -> None:
    registry.db.rows("UPDATE manifests SET manifest = '[1'")


@pytest.mark.parametrize("damage", [lose_manifest, break_manifest, lose_files, cut_file])
def test_revoke_goes_through_a_damaged_version(
    registry: Registry, story: Story, first: str, damage: Callable[[Registry], None]
) -> None:
    """An incident can't wait for a restore."""
    story.to(first, "production")
    damage(registry)
    incident = story.evidence("incident", about=first)
    gone = lifecycle.revoke(registry, first, actor="oncall", reason="leaks names", evidence=incident)
    assert (gone.state, gone.aliases) == ("revoked", ())
    assert not registry.aliases()


@pytest.mark.parametrize(
    "loss", ["DELETE FROM versions", "DELETE FROM aliases WHERE alias = 'production'", "DROP TABLE manifests"]
)
def test_revoke_stops_a_version_whose_rows_are_gone(
    registry: Registry, story: Story, first: str, loss: str
) -> None:
    story.to(first, "production")
    registry.db.rows("PRAGMA foreign_keys = OFF")
    registry.db.rows(loss)
    lifecycle.revoke(registry, first, actor="oncall", reason="leaks names")
    assert registry.not_sent and "restore the registry from a backup" in registry.not_sent
    assert [hold.version for hold in registry.holds.all()] == [first]


def test_a_version_in_production_is_revoked_not_rejected(registry: Registry, story: Story, first: str) -> None:
    story.to(first, "production")
    with pytest.raises(LoraOpsError, match=r"can't become 'rejected' \(ways from here: revoked\)"):
        lifecycle.reject(registry, first, actor="ben", reason="next")


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


def test_an_archived_version_is_revoked_with_its_weights(
    registry: Registry, package: Build, story: Story, first: str
) -> None:
    """Put away it could not be revoked any more, and its weights came back under another name."""
    story.to(first, "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    lifecycle.archive(registry, first, actor="ben", reason="old")
    assert lifecycle.revoke(registry, first, actor="ben", reason="it leaked").state == "revoked"
    with pytest.raises(Refused, match="finance@1 has exactly these weights and was revoked"):
        registry.register(*package(1, tenant="ledger"), actor=AUTHOR)
    assert verify(registry).ok


def test_a_review_rests_on_its_report(registry: Registry, story: Story, first: str) -> None:
    with pytest.raises(LoraOpsError, match="evidence of kind 'review'"):
        lifecycle.review(registry, first, actor="eve", reason="next", evidence=story.evidence("policy"))


def test_an_incident_is_linked_to_the_version_that_it_concerns(
    registry: Registry, story: Story, first: str
) -> None:
    lifecycle.link_incident(
        registry, first, evidence=story.evidence("incident"), actor="oncall", reason="INC-7"
    )
    assert registry.history(first)[-1].action == "incident"
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'incident'"):
        lifecycle.link_incident(
            registry, first, evidence=story.evidence("policy"), actor="oncall", reason="next"
        )


@pytest.mark.parametrize("reference", ["finance", "finance@candidate", "finance@production"])
@pytest.mark.parametrize("step", ["promote", "reject", "revoke", "archive", "approve", "review", "incident"])
def test_steps_ask_for_an_exact_version(
    registry: Registry, package: Build, story: Story, step: str, reference: str
) -> None:
    """`revoke finance` revoked the candidate and left production answering."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    head = registry.log.head()
    steps: dict[str, Callable[..., object]] = {
        "promote": partial(lifecycle.promote, to="validated"),
        "reject": lifecycle.reject,
        "revoke": lifecycle.revoke,
        "archive": lifecycle.archive,
        "approve": lifecycle.approve,
        "review": partial(lifecycle.review, evidence=()),
        "incident": partial(lifecycle.link_incident, evidence=()),
    }
    with pytest.raises(LoraOpsError, match="name the exact one"):
        steps[step](registry, reference, actor=FIRST, reason="so")
    assert registry.log.head() == head


def test_promote_refuses_two_reports_of_one_kind(registry: Registry, package: Build, story: Story) -> None:
    """The first one counted for nobody, and `verify` then judged the step by it."""
    registry.register(*package(1), actor=AUTHOR)
    reports = story.evidence("policy", "policy")
    with pytest.raises(LoraOpsError, match="Two reports of kind 'policy' in one step"):
        lifecycle.promote(registry, "finance@1", "validated", actor=FIRST, reason="next", evidence=reports)
    assert registry.get("finance@1").state == "candidate"
    assert verify(registry).ok
