"""What was said of the same weights under another number counts for a version as it counts there."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.records.evaluation import ColumnBias, GroupMetric, Interval, PairedDifference
from lora_ops.registry import lifecycle, requirements
from lora_ops.registry.cards import record
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.rollout import rollback

from .conftest import AUTHOR, Build, Story, file_votes, losing, policy, saved_again, with_evaluation

File = Callable[..., None]


@pytest.fixture
def file(registry: Registry, tmp_path: Path) -> File:
    """File counted rows on a version: `file("finance@1", "policy", rows)`."""

    def count(reference: str, kind: str, rows: list[dict[str, object]]) -> None:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps({"adapter": reference, **row}) + "\n" for row in rows))
        lifecycle.file_evidence(registry, reference, make(registry, reference, kind, path), actor="eve")

    return count


def twin(
    registry: Registry, package: Build, seed: int = 1, tenant: str = "finance", **evaluation: object
) -> str:
    """Register the weights of a seed again, as a new version."""
    folder, manifest = package(seed, tenant=tenant)
    again = saved_again(folder, manifest)
    if evaluation:
        again = with_evaluation(folder, again, **evaluation)
    return registry.register(folder, again, actor=AUTHOR)[0].id


def warnings(registry: Registry, reference: str) -> str:
    return "\n".join(record(registry, reference).verdict.warnings)


@pytest.fixture
def rolled_back(registry: Registry, package: Build, story: Story) -> str:
    """Put finance@2 out by a rollback that revokes nothing; return the version with its weights."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)
    return twin(registry, package, seed=2)


def test_promote_refuses_a_twin_of_a_rolled_back_one(
    registry: Registry, story: Story, rolled_back: str
) -> None:
    assert registry.get("finance@2").state == "superseded"
    needs = "other weights (finance@2 has the same, and had an incident: 'incident.txt')"
    assert needs in missing_for(registry, rolled_back)[1]
    with pytest.raises(Refused, match="other weights .finance@2 has the same, and had an incident"):
        story.to(rolled_back, "validated")
    assert registry.get(rolled_back).state == "candidate"


def test_edited_row_of_a_twin_hides_no_report(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    """With another content digest in its row, what was filed on the twin was about something else."""
    registry.register(*package(1), actor=AUTHOR)
    file("finance@1", "policy", policy("no-advice", failed=3))
    other = twin(registry, package)
    registry.db.rows("UPDATE versions SET content_digest = ? WHERE number = 1", ("f" * 64,))
    needs = " ".join(missing_for(registry, other)[1])
    assert "a policy report with every check that failed on finance@1" in needs


def test_show_and_verify_name_the_twin_and_its_incident(registry: Registry, rolled_back: str) -> None:
    told = (
        "finance@3 has the weights of finance@2, which is 'superseded'; against that one speaks an incident "
        "('incident.txt')"
    )
    assert told in record(registry, rolled_back).verdict.warnings
    assert told in verify(registry).warnings
    assert "weights" not in warnings(registry, "finance@1")


def test_an_incident_in_production_counts_for_a_canary(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    other = twin(registry, package, tenant="media")
    story.to(other, "canary")
    story.file("canary", about=other)
    story.to("finance@1", "production")
    assert len(missing_for(registry, other)[1]) == 1  # the approvals
    story.file("incident")
    with pytest.raises(Refused, match="finance@1 has the same, and had an incident"):
        story.approve(other)


def test_an_incident_before_production_is_answered(registry: Registry, package: Build, story: Story) -> None:
    """Its approvers let it into production all the same."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "shadow")
    story.file("incident")
    other = twin(registry, package)
    assert "had an incident" in " ".join(missing_for(registry, other)[1])
    story.to("finance@1", "production")
    assert "had an incident" not in " ".join(missing_for(registry, other)[1])


@pytest.fixture
def bad_release(registry: Registry, package: Build, story: Story) -> None:
    """Let finance@2 take over from finance@1."""
    for seed in (1, 2):
        registry.register(*package(seed), actor=AUTHOR)
        story.to(f"finance@{seed}", "production")


def roll_back(registry: Registry, folder: Path, reference: str = "finance@2") -> str:
    report = folder / "incident.md"
    report.write_text("Card numbers in the answers since 14:05 today.")
    return rollback.roll_back(registry, reference, report, actor="ci", reason="leaks").id


@pytest.mark.parametrize("tenant", ["media", "finance"])
@pytest.mark.parametrize("said", ["rejected", "revoked", "incident", "policy", "votes", "lost report"])
def test_a_rollback_notes_a_twin_that_served_nobody(
    registry: Registry,
    bad_release: None,
    package: Build,
    story: Story,
    file: File,
    tmp_path: Path,
    tenant: str,
    said: str,
) -> None:
    """Another team, or a duplicate in the same one, kept a bad version on air."""
    other = twin(registry, package, tenant=tenant)
    if said in ("rejected", "revoked"):
        close = lifecycle.reject if said == "rejected" else lifecycle.revoke
        close(registry, other, actor="eve" if said == "rejected" else "ci", reason="not for us")
    elif said == "incident":
        story.file("incident", about=other)
    elif said == "votes":
        file_votes(registry, other, losing(15))
    else:
        file(other, "policy", policy("tone of ours", failed=3))
    if said == "lost report":
        lost = registry.log.entries(tenant, int(other[-1]))[-1].evidence[0]
        registry.files.path(lost.sha256).unlink()
    [note] = rollback.plan(registry, "finance@2").notes
    assert note.startswith(f"finance@1 has the weights of {other}, which is '")
    assert roll_back(registry, tmp_path) == "finance@1"
    entry = next(one for one in registry.log.entries("finance", 1) if one.body.get("concerns"))
    assert entry.body["notes"] == [note]
    if said != "lost report":
        assert verify(registry).problems == ()


@pytest.mark.parametrize("said", ["revoked", "incident"])
def test_a_rollback_refuses_what_failed_in_production(
    registry: Registry, package: Build, story: Story, said: str
) -> None:
    """finance@2 has the weights of finance@1, which served before it; finance@3 is bad, too."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    story.to(twin(registry, package), "production")
    registry.register(*package(3), actor=AUTHOR)
    story.to("finance@3", "production")
    if said == "revoked":
        lifecycle.revoke(registry, "finance@1", actor="ci", reason="leaks")
        why = "finance@1, which was in production with the same, was revoked"
    else:
        story.file("incident")
        why = "finance@1 has the same, and had an incident"
    with pytest.raises(LoraOpsError, match=f"finance@2 lacks other weights .{why}"):
        rollback.plan(registry, "finance@3")


@pytest.mark.parametrize("said", ["incident", "policy", "votes", "lost report"])
def test_another_tenants_word_stops_no_canary(
    registry: Registry, package: Build, story: Story, file: File, said: str
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    other = twin(registry, package, tenant="media")
    story.to("finance@1", "canary")
    story.file("canary")
    story.approve("finance@1")
    if said == "incident":
        story.file("incident", about=other)
    elif said == "votes":
        file_votes(registry, other, losing(15))
    else:
        file(other, "policy", policy("tone of ours", failed=3))
    if said == "lost report":
        registry.files.path(registry.log.entries("media", 1)[-1].evidence[0].sha256).unlink()
    assert missing_for(registry, "finance@1") == ("production", [])
    assert "finance@1 has the weights of media@1, which is 'candidate'; against" in warnings(
        registry, "finance@1"
    )


def test_a_lost_report_of_a_twin_answers_nothing(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    """Whoever took the file with the failed check away brought the same weights into production."""
    registry.register(*package(1), actor=AUTHOR)
    file("finance@1", "policy", policy("No cards", failed=3))
    other = twin(registry, package)
    registry.files.path(registry.log.entries("finance", 1)[-1].evidence[0].sha256).unlink()
    with pytest.raises(Refused, match="the policy report on finance@1, which has the same weights .it is lost"):
        story.to(other, "validated")
    assert "its policy report (rows.jsonl) is lost or damaged" in warnings(registry, other)


@pytest.mark.usefixtures("written_by_hand")
@pytest.mark.parametrize(
    "attack",
    [
        "DELETE FROM manifests WHERE number = 1",
        "UPDATE manifests SET manifest = (SELECT manifest FROM manifests WHERE number = 2)",
    ],
)
def test_a_changed_manifest_of_a_twin_answers_nothing(
    registry: Registry, package: Build, story: Story, attack: str
) -> None:
    """With another manifest for a moment, the evaluation that failed was another one."""
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    other = twin(registry, package, rows=100)
    registry.db.rows(attack)
    with pytest.raises(Refused, match="the manifest of finance@1, which has the same weights .it is lost"):
        story.to(other, "validated")


def review(registry: Registry, story: Story, reference: str, actor: str, reason: str) -> None:
    lifecycle.review(
        registry, reference, actor=actor, reason=reason, evidence=story.evidence("review", about=reference)
    )


def incident_in_production(registry: Registry, story: Story, reference: str) -> str:
    """Bring a version to production, tell of an incident, and return how a review names it."""
    story.to(reference, "production")
    story.file("incident", about=reference)
    tenant, number = reference.split("@")
    return registry.log.entries(tenant, int(number))[-1].evidence[0].sha256[:8]


@pytest.mark.parametrize("reviewed", ["finance@1", "finance@2"])
def test_an_approver_answers_an_incident_of_a_twin(
    registry: Registry, package: Build, story: Story, reviewed: str
) -> None:
    """A harmless incident in production made it impossible to renew the same weights."""
    registry.register(*package(1), actor=AUTHOR)
    digest = incident_in_production(registry, story, "finance@1")
    other = twin(registry, package)
    needs = (
        "other weights (finance@1 has the same, and had an incident: 'incident.txt'), or a review of "
        f"finance@2 or finance@1 by an approver, not the author, whose reason names that incident ({digest})"
    )
    assert needs in missing_for(registry, other)[1]
    review(registry, story, reviewed, "eve", f"incident {digest} was harmless")  # no approver
    review(registry, story, reviewed, AUTHOR, f"incident {digest} was harmless")  # the author
    review(registry, story, reviewed, "ben", "all is well")  # names no incident
    assert needs in missing_for(registry, other)[1]
    review(registry, story, reviewed, "ben", f"incident {digest} was a false alarm")
    assert story.to(other, "production").state == "production"
    said = f"an incident ('incident.txt'), which ben answered: 'incident {digest} was a false alarm'"
    assert said in warnings(registry, other)
    assert verify(registry).problems == ()


def test_no_author_answers_by_another_teams_names(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """The author of finance@1 is `ana.silva`, a login of Ana's that the team of media does not know."""
    people = tuple(one.model_copy(update={"logins": ()}) for one in owners.default.people)
    media = owners.default.model_copy(update={"people": people})
    registry.owners = owners.model_copy(update={"tenants": {"media": media}})
    folder, manifest = package(1, tenant="media")
    registry.register(folder, manifest, actor="dana")
    digest = incident_in_production(registry, story, "media@1")
    folder, manifest = package(1)
    registry.register(folder, saved_again(folder, manifest), actor="ana.silva")
    review(registry, story, "media@1", AUTHOR, f"incident {digest} was harmless")
    assert digest in " ".join(missing_for(registry, "finance@1")[1])
    review(registry, story, "media@1", "ben", f"incident {digest} was harmless")
    assert digest not in " ".join(missing_for(registry, "finance@1")[1])


def test_nobody_answers_while_the_author_is_unknown(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """The author reviewed under another name; a login that was added later let the review count."""
    registry.register(*package(1), actor=AUTHOR)
    digest = incident_in_production(registry, story, "finance@1")
    folder, manifest = package(1)
    other = registry.register(folder, saved_again(folder, manifest), actor="laptop")[0].id
    review(registry, story, other, "ben", f"incident {digest} was harmless")
    people = [
        one.model_copy(update={"logins": ("laptop",)}) if one.id == "ben" else one
        for one in owners.default.people
    ]
    team = owners.default.model_copy(update={"people": tuple(people)})
    registry.owners = owners.model_copy(update={"default": team})
    assert digest in " ".join(missing_for(registry, other)[1])
    review(registry, story, other, "dana", f"incident {digest} was harmless")
    assert digest not in " ".join(missing_for(registry, other)[1])


def test_nothing_answers_the_incident_of_a_rollback(registry: Registry, story: Story, rolled_back: str) -> None:
    digest = registry.log.entries("finance", 1)[-1].evidence[0].sha256[:8]
    review(registry, story, rolled_back, "ben", f"incident {digest} was harmless")
    assert (
        "other weights (finance@2 has the same, and had an incident: 'incident.txt')"
        in (missing_for(registry, rolled_back)[1])
    )


def test_a_rollback_rests_on_an_answered_incident(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """finance@2 renewed finance@1 after its incident was answered, and may return."""
    registry.register(*package(1), actor=AUTHOR)
    digest = incident_in_production(registry, story, "finance@1")
    review(registry, story, "finance@1", "ben", f"incident {digest} was a false alarm")
    story.to(twin(registry, package), "production")
    registry.register(*package(3), actor=AUTHOR)
    story.to("finance@3", "production")
    assert roll_back(registry, tmp_path, "finance@3") == "finance@2"
    assert verify(registry).problems == ()


def test_a_rollback_returns_other_weights(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    story.to(twin(registry, package), "production")
    told = story.evidence("incident", about="finance@2")
    with pytest.raises(Refused, match="other weights than finance@2, which leaves"):
        lifecycle.promote(registry, "finance@1", "production", actor="ci", reason="leaks", evidence=told)


def test_a_failed_check_of_a_twin_is_answered_by_name(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    file("finance@1", "policy", policy("No cards", failed=3))
    other = twin(registry, package)
    needs = "a policy report with every check that failed on finance@1, which has the same weights (No cards)"
    assert needs in missing_for(registry, other)[1]
    file(other, "policy", policy("no-advice"))
    assert missing_for(registry, other)[1] == [needs]
    with pytest.raises(Refused, match="every check that failed on finance@1"):
        lifecycle.promote(registry, other, "validated", actor="ci", reason="next")
    file(other, "policy", policy("no-advice", "no cards"))
    assert missing_for(registry, other)[1] == []
    assert "a policy report (rows.jsonl, " in warnings(registry, other)


def test_a_lost_vote_of_a_twin_is_answered_by_as_many(
    registry: Registry, package: Build, story: Story, file: File
) -> None:
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "validated")
    file_votes(registry, "finance@1", losing(16), pairs=26)
    other = twin(registry, package)
    file(other, "policy", policy("no-advice"))
    needs = (
        "a human evaluation of at least 26 pairs, as many as one that was lost by finance@1, which has the "
        "same weights (it has {})"
    )
    assert missing_for(registry, other)[1] == [needs.format(0)]
    file_votes(registry, other, losing(0))
    assert missing_for(registry, other)[1] == [needs.format(20)]
    file_votes(registry, other, losing(1), pairs=26)
    assert missing_for(registry, other)[1] == []


FEW = (
    "an evaluation of at least 300 rows (it has 20), as many as that in which finance@1, which has the same "
    "weights, does not beat its base model"
)


@pytest.mark.usefixtures("written_by_hand")
def test_fewer_rows_answer_no_evaluation_of_an_older_twin(
    older_registry: Registry, registry: Registry, package: Build, story: Story
) -> None:
    """Nobody filed a report on it, and its own evaluation counts all the same."""
    folder, manifest = package(1)
    older_registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    other = twin(registry, package, rows=20)
    assert FEW in missing_for(registry, other)[1]
    assert "its evaluation, where an evaluation in which it beats" in warnings(registry, other)
    with pytest.raises(Refused, match=re.escape(FEW)):
        story.to(other, "validated")


@pytest.mark.usefixtures("written_by_hand")
@pytest.mark.parametrize("is_same", [True, False])
def test_another_tenant_of_the_same_data_answers_its_evaluation(
    registry: Registry, package: Build, is_same: bool
) -> None:
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    folder, renamed = package(1, tenant="retail")
    data = manifest.data.model_copy(update={"tenant": "retail"}) if is_same else renamed.data
    digest = data.splits["train"].sha256
    training = renamed.training.model_copy(
        update={"train_sha256": digest, "base_model_sha256": data.base_model_sha256}
    )
    base = renamed.base_model.model_copy(update={"sha256": data.base_model_sha256})
    renamed = renamed.model_copy(update={"data": data, "training": training, "base_model": base})
    fewer = with_evaluation(folder, saved_again(folder, renamed), rows=20)
    registry.register(folder, fewer, actor=AUTHOR)
    assert (FEW in missing_for(registry, "retail@1")[1]) == is_same
    assert ("against that one speaks its evaluation" in warnings(registry, "retail@1")) == is_same


@pytest.mark.usefixtures("written_by_hand")
@pytest.mark.parametrize(("rows", "missing"), [(100, 1), (400, 0)])
def test_fewer_rows_answer_no_evaluation_of_a_twin(
    registry: Registry, package: Build, rows: int, missing: int
) -> None:
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, beats_base=False), actor=AUTHOR)
    needs = (
        f"an evaluation of at least 300 rows (it has {rows}), as many as that in which finance@1, which has "
        "the same weights, does not beat its base model"
    )
    assert missing_for(registry, twin(registry, package, rows=rows))[1].count(needs) == missing


def test_verify_rechecks_the_twins_of_each_step(
    registry: Registry,
    package: Build,
    story: Story,
    file: File,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code that forgot to look at a twin; what is said of it later, and after it is closed, changes nothing."""
    registry.register(*package(1), actor=AUTHOR)
    other = twin(registry, package)
    story.to(other, "validated")
    file("finance@1", "policy", policy("No cards", failed=3))
    assert verify(registry).problems == ()
    monkeypatch.setattr(requirements, "twin_objections", lambda *_, **__: iter(()))
    story.to(other, "shadow")
    lacked = "without a policy report with every check that failed on finance@1"
    [problem] = verify(registry).problems
    assert "makes finance@2 'shadow'" in problem and lacked in problem
    lifecycle.reject(registry, "finance@1", actor="ben", reason="leaks")
    monkeypatch.setattr(requirements, "closed_alike", lambda *_: None)
    monkeypatch.setattr(lifecycle, "closed_alike", lambda *_: None)
    story.to(other, "canary")
    shadow, canary = verify(registry).problems
    assert shadow == problem
    assert "makes finance@2 'canary'" in canary
    assert "without other weights (finance@1, which has the same, was rejected)" in canary


@pytest.mark.parametrize("said", ["same", "revoked", "incident"])
def test_verify_rechecks_the_twins_of_a_rollback(
    registry: Registry, package: Build, story: Story, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """Code that forgot to look at the weights that came back; what is said of them later changes nothing."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    story.to(twin(registry, package), "production")
    leaves, returns = "finance@2", "finance@1"
    if said != "same":
        registry.register(*package(3), actor=AUTHOR)
        story.to("finance@3", "production")
        leaves, returns = "finance@3", "finance@2"
    lacked = "without other weights than finance@2, which leaves"
    if said == "revoked":
        lifecycle.revoke(registry, "finance@1", actor="ci", reason="leaks")
        lacked = "without other weights (finance@1, which was in production with the same, was revoked)"
    elif said == "incident":
        story.file("incident")
        lacked = "without other weights (finance@1 has the same, and had an incident"
    assert verify(registry).problems == ()
    with monkeypatch.context() as forgetful:
        forgetful.setattr(requirements, "returning_lacks", lambda *_: [])
        told = story.evidence("incident", about=leaves)
        lifecycle.promote(registry, returns, "production", actor="ci", reason="leaks", evidence=told)
    [problem] = verify(registry).problems
    assert f"makes {returns} 'production'" in problem and lacked in problem


def test_verify_passes_a_rollback_that_was_right_then(
    registry: Registry, bad_release: None, package: Build, story: Story, tmp_path: Path
) -> None:
    other = twin(registry, package)
    roll_back(registry, tmp_path)
    story.to(other, "production")
    lifecycle.revoke(registry, other, actor="ci", reason="leaks")
    story.file("incident")
    assert verify(registry).problems == ()


@pytest.mark.usefixtures("older_packages")
@pytest.mark.parametrize(
    ("left_out", "says"),
    [
        ("nothing", []),
        (
            "macro_f1",
            ["macro_f1 against base, macro_f1 against base few shot, macro_f1 against base labels"],
        ),
        ("base_few_shot", ["exact_match against base few shot, macro_f1 against base few shot"]),
        ("base_labels", ["exact_match against base labels, macro_f1 against base labels"]),
    ],
)
def test_fewer_comparisons_answer_no_evaluation_of_a_twin(
    registry: Registry, package: Build, left_out: str, says: list[str]
) -> None:
    """Leaving out the metric or the opponent that was lost answers nothing."""
    folder, manifest = package(1)
    won = PairedDifference(value=0.2, low=0.1, high=0.3, p_value=0.001, p_corrected=0.001)
    lost = PairedDifference(value=0.0, low=-0.1, high=0.1, p_value=0.9, p_corrected=0.9)
    versus = {"base": {"exact_match": won, "macro_f1": won}}
    versus["base_few_shot"] = versus["base_labels"] = {"exact_match": won, "macro_f1": lost}
    failed = with_evaluation(folder, manifest, beats_base=False, differences=versus)
    registry.register(folder, failed, actor=AUTHOR)
    fewer = {
        system: {metric: won for metric in of if metric != left_out}
        for system, of in versus.items()
        if system != left_out
    }
    [measured] = manifest.evaluation.metrics.values()
    measured = {name: measured[name] for name in ("adapter", *fewer)}
    metrics = {"exact_match": measured}
    other = twin(registry, package, beats_base=True, differences=fewer, metrics=metrics)
    needs = [one for one in missing_for(registry, other)[1] if one.startswith("an evaluation with")]
    assert needs == [
        f"an evaluation with {one}, as that in which finance@1, which has the same weights, does not beat its "
        "base model"
        for one in says
    ]


@pytest.mark.usefixtures("older_packages")
@pytest.mark.parametrize("rows", [60, 9])
def test_groups_too_small_to_compare_answer_no_gap(registry: Registry, package: Build, rows: int) -> None:
    """A column whose groups have fewer than ten rows has no gap, and looked as fair as one without a fault."""
    registry.max_gap = {"finance": 0.3}
    high, low = Interval(value=0.9, low=0.85, high=0.95), Interval(value=0.4, low=0.3, high=0.5)
    groups = {"north": GroupMetric(rows=rows, value=high), "south": GroupMetric(rows=rows, value=low)}
    gap = Interval(value=0.5, low=0.38, high=0.61)
    unfair = ColumnBias(groups=groups, best="north", worst="south", gap=gap)
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, bias={"region": unfair}), actor=AUTHOR)
    fair = unfair.model_copy(update={"gap": gap.model_copy(update={"low": 0.0})})
    other = twin(registry, package, bias={"region": fair if rows >= 10 else ColumnBias(groups=groups)})
    needs = [one for one in missing_for(registry, other)[1] if "by region" in one]
    said = "an evaluation by region that compares its groups and of at least 300 rows (it has 300), as that in"
    assert [one.startswith(said) for one in needs] == ([] if rows >= 10 else [True])
