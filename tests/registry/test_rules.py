"""What `verify` rechecks: each step had the evidence, the roles and the approvals that its day asked for."""

from collections.abc import Callable
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_text
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.changes import Change
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import Report, filed, make
from lora_ops.registry.ssh_signatures import fingerprint, sign
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from .conftest import AUTHOR, FIRST, SECOND, Build, Clock, Story, public_key, ssh_key

Alter = Callable[[dict[str, Any]], None]


@pytest.fixture
def alter(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Alter], None]:
    """Let an insider's lora-ops alter the entries of one action; they are signed by the machine's own key."""

    def alter_(action: str, change: Alter) -> None:
        honest = Change.record

        def record_(self: Change, name: str, tenant: str, number: int, **body: Any) -> None:
            if name == action:
                change(body)
            honest(self, name, tenant, number, **body)

        monkeypatch.setattr(Change, "record", record_)

    return alter_


def without(kind: str) -> Alter:
    def change(body: dict[str, Any]) -> None:
        body["evidence"] = [one for one in body["evidence"] if one["kind"] != kind]

    return change


def asking_for_50_prompts(body: dict[str, Any]) -> None:
    body["rules"]["least"]["policy_prompts"] = 50


def with_other_owners(body: dict[str, Any]) -> None:
    body["owners_sha256"] = "0" * 64


@pytest.mark.parametrize(
    ("action", "change", "says"),
    [
        ("validated", without("policy"), "makes finance@1 'validated' without evidence of kind 'policy'"),
        ("validated", without("evaluation"), "'validated' without evidence of kind 'evaluation'"),
        ("validated", asking_for_50_prompts, "without a policy report with at least 50 prompts a check"),
        ("canary", without("shadow"), "makes finance@1 'canary' without evidence of kind 'shadow'"),
        ("production", without("human_evaluation"), "without evidence of kind 'human_evaluation'; 2 approvals"),
        ("shadow", with_other_owners, "entry 4 names an owners.yaml that the log does not hold"),
    ],
)
def test_verify_names_a_step_that_broke_the_rules(
    registry: Registry,
    package: Build,
    story: Story,
    alter: Callable[[str, Alter], None],
    action: str,
    change: Alter,
    says: str,
) -> None:
    alter(action, change)
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", action)
    (problem,) = verify(registry).problems
    assert says in problem


def test_verify_names_evidence_of_another_version(
    registry: Registry, package: Build, story: Story, alter: Callable[[str, Alter], None]
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    registry.register(*package(2, tenant="media"), actor=AUTHOR)
    [other] = story.evidence("policy", about="media@1")
    story.file("policy", about="media@1")

    def swap(body: dict[str, Any]) -> None:
        without("policy")(body)
        body["evidence"].append(other.reference.model_dump())

    alter("validated", swap)
    story.to("finance@1", "validated")
    (problem,) = verify(registry).problems
    assert "without a policy report on it (that one is about media@1)" in problem


def into_production(registry: Registry, actor: str) -> None:
    """Write the entry that lets finance@1 into production, asking nobody."""
    version = registry.get("finance@1")
    assert registry.owners is not None
    with registry.change(actor) as change:
        change.record(
            "production",
            "finance",
            1,
            states={1: "production"},
            aliases={"production": 1, "canary": None},
            before="canary",
            reason="because I can",
            evidence=[one.model_dump() for one in filed(version, registry.history("finance@1")).values()],
            owners_sha256=sha256_text(registry.owners.text),
            rules={"approvals": "signed", "least": registry.least.model_dump()},
        )


@pytest.fixture
def canary(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 in canary, with its report filed."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    story.file("canary")
    return registry


def test_verify_names_production_without_approvals(canary: Registry) -> None:
    into_production(canary, "ci")
    (problem,) = verify(canary).problems
    assert "makes finance@1 'production' without 2 approvals (by ben, chen, dana)" in problem


@pytest.mark.parametrize("release", ["this one", "an earlier one"])
def test_verify_names_approvals_from_before_an_incident(
    canary: Registry, story: Story, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """Earlier releases let such approvals count, so their promotions stay right."""
    story.approve("finance@1")
    story.file("incident")
    monkeypatch.setattr(lifecycle, "approvals_needed", lambda *_: [])
    if release == "this one":
        lifecycle.promote(canary, "finance@1", "production", actor="ci", reason="two agreed")
        (problem,) = verify(canary).problems
        assert "that of ben is void: an incident was told after it" in problem
    else:
        into_production(canary, "ci")
        assert verify(canary).problems == ()


@pytest.mark.parametrize(
    ("action", "body", "says"),
    [
        ("production", {"before": "superseded"}, "says that finance@1 was 'superseded' before it, and it was"),
        ("production", {}, "says that finance@1 was None before it, and it was 'canary'"),
        ("reviewed", {}, "makes finance@1 'production', and it is 'reviewed' of finance@1: only a promotion"),
        ("named", {"states": {}}, "lets finance@production name finance@1, and it is 'named' of finance@1"),
    ],
)
def test_verify_names_a_hidden_way_into_production(
    canary: Registry, action: str, body: dict[str, Any], says: str
) -> None:
    """An entry that is no promotion of the version, by its action or by what it says of the state before."""
    assert canary.owners is not None
    filed_now = filed(canary.get("finance@1"), canary.history("finance@1")).values()
    with canary.change("ci") as change:
        change.record(
            action,
            "finance",
            1,
            **{"states": {1: "production"}, "aliases": {"production": 1, "canary": None}, **body},
            reason="because I can",
            evidence=[one.model_dump() for one in filed_now],
            owners_sha256=sha256_text(canary.owners.text),
            rules={"approvals": "signed", "least": canary.least.model_dump()},
        )
    assert any(says in problem for problem in verify(canary).problems)


def test_verify_names_a_promotion_in_anothers_entry(canary: Registry, package: Build) -> None:
    canary.register(*package(2), actor=AUTHOR)
    with canary.change("ci") as change:
        states = {2: "rejected", 1: "production"}
        change.record("rejected", "finance", 2, states=states, aliases={"production": 1, "canary": None})
    assert "makes finance@1 'production', and it is 'rejected' of finance@2" in verify(canary).problems[0]


def failing_policy(registry: Registry, story: Story, *checks: str, failed: int) -> Report:
    """Count a policy report on finance@1 of which `failed` prompts a check fail."""
    path = story.folder / "policy.jsonl"
    row = '{"adapter": "finance@1", "check": "%s", "prompt": "%d", "passed": %s}\n'
    path.write_text("".join(row % (c, i, str(i >= failed).lower()) for c in checks for i in range(40)))
    return make(registry, "finance@1", "policy", path)


def test_verify_names_a_standing_objection(canary: Registry, story: Story) -> None:
    """A check that failed was left out of the next report, and an insider promoted all the same."""
    for checks, failed in ((("no-advice", "no-cards"), 3), (("no-advice",), 0)):
        report = failing_policy(canary, story, *checks, failed=failed)
        lifecycle.file_evidence(canary, "finance@1", report, actor="eve")
    into_production(canary, "ci")
    (problem,) = verify(canary).problems
    assert "with every check of the earlier ones (it leaves out no-cards)" in problem


def test_verify_names_a_return_that_something_spoke_against(
    registry: Registry, package: Build, story: Story
) -> None:
    """A rollback by an insider brought back a version whose policy check fails by now."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    story.to("finance@2", "production")
    bad = failing_policy(registry, story, "no-advice", failed=40)
    lifecycle.file_evidence(registry, "finance@1", bad, actor="eve")
    [incident] = story.evidence("incident", about="finance@2")
    incident.keep(registry.files)
    assert registry.owners is not None
    with registry.change("oncall") as change:
        change.record(
            "production",
            "finance",
            1,
            states={1: "production", 2: "superseded"},
            aliases={"production": 1},
            before="superseded",
            concerns=2,
            reason="because I can",
            evidence=[incident.reference.model_dump()],
            owners_sha256=sha256_text(registry.owners.text),
            rules={"approvals": "signed", "least": registry.least.model_dump()},
        )
    (problem,) = verify(registry).problems
    assert "without a policy report without a failure (no-advice fails 40 of 40 prompts)" in problem


def test_verify_names_an_approval_that_somebody_else_wrote(canary: Registry, story: Story) -> None:
    """The machine's key signs the log, but not for chen."""
    story.approve("finance@1", FIRST)
    honest = canary.history("finance@1")[-1].body
    forged = {**honest, "person": SECOND, "approval": {**honest["approval"], "person": SECOND}}
    with canary.change(SECOND) as change:
        change.record("approved", "finance", 1, **{k: v for k, v in forged.items() if k != "effects"})
    into_production(canary, "ci")
    (problem,) = verify(canary).problems
    assert "1 more approval" in problem
    assert "that of chen is void: its signature fits no key of chen" in problem


def test_approval_signed_for_somebody_else_is_void(canary: Registry, story: Story) -> None:
    """One person's signed statement, filed once more under another name, was two approvals."""
    story.approve("finance@1", FIRST)
    honest = canary.history("finance@1")[-1].body
    with canary.change(SECOND) as change:
        again = {**honest, "person": SECOND}
        change.record("approved", "finance", 1, **{k: v for k, v in again.items() if k != "effects"})
    [mine, copy] = lifecycle.approvals(canary, canary.get("finance@1"))
    assert (mine.void, copy.person, copy.void) == (None, SECOND, "it was signed for ben")


def test_approval_lapses_by_the_earlier_clock(canary: Registry, story: Story, clock: Clock) -> None:
    """A statement dated ahead lasted longer than 30 days."""
    story.approve("finance@1", FIRST)
    honest = canary.history("finance@1")[-1].body
    late = {**honest["approval"], "at": "2026-12-01T00:00:00Z", "expires_at": "2026-12-31T00:00:00Z"}
    signature = sign(canonical(late), ssh_key(FIRST))
    with canary.change(FIRST) as change:
        body = {**honest, "approval": late, "signature": signature}
        change.record("approved", "finance", 1, **{k: v for k, v in body.items() if k != "effects"})
    clock.move(days=31)
    assert lifecycle.approvals(canary, canary.get("finance@1"))[-1].void == "it lapsed on 2026-04-01"


def test_verify_names_a_promotion_by_somebody_without_the_role(canary: Registry, story: Story) -> None:
    story.approve("finance@1")
    into_production(canary, "mallory")
    (problem,) = verify(canary).problems
    assert "'production' by mallory, whom owners.yaml of that day does not let" in problem


def test_verify_accepts_rollback_archive_and_withdrawal(
    registry: Registry, package: Build, story: Story, clock: Clock
) -> None:
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "canary")
        story.file("canary", about=f"finance@{seed}")
        story.approve(f"finance@{seed}", FIRST)
        lifecycle.withdraw(registry, f"finance@{seed}", actor=FIRST, reason="I look again")
        clock.move(seconds=1)
        story.to(f"finance@{seed}", "production")
    incident = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=incident)
    lifecycle.archive(registry, "finance@2", actor="ci", reason="old")
    assert verify(registry).problems == ()


def test_verify_judges_by_the_owners_of_that_day(
    registry: Registry, package: Build, story: Story, owners: Owners, clock: Clock
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    people = tuple(one for one in owners.default.people if one.id != FIRST)
    registry.owners = Owners(default=owners.default.model_copy(update={"people": people}))
    clock.move(days=60)
    story.file("review")
    assert verify(registry).problems == ()
    given = lifecycle.approvals(registry, registry.get("finance@1"))
    assert {one.person: one.void for one in given} == {FIRST: None, SECOND: None}
    [first, then] = registry.log.of_kind("owners")
    assert (first.action, then.action, then.actor) == ("read", "changed", "ci")
    assert then.body["text"] == registry.owners.text


def test_owners_are_noted_once_and_not_by_a_refused_change(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    with pytest.raises(LoraOpsError, match="missing: evidence of kind 'policy'"):
        lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="next")
    assert registry.log.of_kind("owners") == []
    story.to("finance@1", "canary")
    assert len(registry.log.of_kind("owners")) == 1


def test_weaker_rules_are_said_for_ever(canary: Registry, story: Story, owners: Owners) -> None:
    asked = "regression 0, not 1, release_notes 0, not 1, hours 0, not 24"
    asked += ", policy rows from a file, not computed ones"
    asked += ", a rollout where there is one, not before each production"
    less = f"it was promoted, given evidence by rules that ask for less evidence than usual ({asked})"
    assert less in record(canary, "finance@1").verdict.warnings
    assert f"finance@1: {less}" in verify(canary).warnings
    canary.approvals = "unsigned"
    for person in (FIRST, SECOND):
        lifecycle.approve(canary, "finance@1", actor=person, reason="ok")
    lifecycle.promote(canary, "finance@1", "production", actor="ci", reason="next")
    canary.approvals = "signed"
    unsigned = "it was approved, promoted by rules that let approvals go unsigned"
    for _ in range(2):
        assert unsigned in record(canary, "finance@1").verdict.warnings
        result = verify(canary)
        assert result.ok and f"finance@1: {unsigned}" in result.warnings
        if canary.get("finance@1").state == "production":
            lifecycle.revoke(canary, "finance@1", actor="ci", reason="next")


def with_keys(owners: Owners, person: str, *keys: str) -> Owners:
    people = tuple(
        one.model_copy(update={"keys": keys}) if one.id == person else one for one in owners.default.people
    )
    return Owners(default=owners.default.model_copy(update={"people": people}))


def test_a_key_that_came_after_the_canary_is_said(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """Whoever may write owners.yaml could add a key and approve as somebody else, unseen."""
    registry.owners = with_keys(owners, FIRST)
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "canary")
    story.file("canary")
    registry.owners = owners
    story.approve("finance@1")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="next")
    late = (
        f"ben approved it with key {fingerprint(public_key(FIRST))}, which was added to owners.yaml only after"
    )
    assert [note for note in record(registry, "finance@1").verdict.warnings if late in note]
    result = verify(registry)
    assert result.ok and [note for note in result.warnings if late in note]
    [first, then] = registry.log.of_kind("owners")
    assert then.body["replaces_sha256"] == first.body["owners_sha256"]


def test_production_on_approvals_that_today_has_not_is_said(
    canary: Registry, story: Story, owners: Owners
) -> None:
    story.to("finance@1", "production")
    assert not [note for note in verify(canary).warnings if "today's owners.yaml" in note]
    lost = with_keys(owners, FIRST)
    people = tuple(one for one in lost.default.people if one.id != SECOND)
    canary.owners = Owners(default=lost.default.model_copy(update={"people": people}))
    for notes in (verify(canary).warnings, record(canary, "finance@1").verdict.warnings):
        told = "\n".join(notes)
        assert "it rests on the approval of ben by key SHA256:" in told
        assert "it rests on the approval of chen, who is no approver in today's owners.yaml" in told


def test_production_of_an_older_release_is_said_and_not_judged(
    canary: Registry, alter: Callable[[str, Alter], None], story: Story
) -> None:
    alter("production", lambda body: body.pop("rules"))
    story.approve("finance@1")
    lifecycle.promote(canary, "finance@1", "production", actor="ci", reason="next")
    result = verify(canary)
    assert result.ok
    assert any("by the rules of an older release" in note for note in result.warnings)
