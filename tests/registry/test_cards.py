"""One version on one page: the whole record, the verdict of the day, and what differs from another."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lora_ops.hashing import sha256_text
from lora_ops.records.evaluation import BiasAssessment, GroupMetric, Interval
from lora_ops.records.evidence import Evidence, HumanEvaluation, PolicyCheck
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import differences, record
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, FIRST, SECOND, Build, Clock, Story, with_evaluation


@pytest.mark.usefixtures("older_packages")
def test_the_record_tells_lineage_performance_risk_and_ownership(
    registry: Registry, package: Build, story: Story
) -> None:
    folder, manifest = package()
    digest = sha256_text("report")
    interval = Interval(value=0.8, low=0.7, high=0.9)
    low = Interval(value=0.5, low=0.4, high=0.6)
    groups = {
        "travel": GroupMetric(rows=100, value=interval),
        "retail": GroupMetric(rows=30, value=low),
    }
    full = with_evaluation(folder, manifest, groups=groups).model_copy(
        update={
            "evaluation_report_sha256": digest,
            "policy": [PolicyCheck(name="no-advice", passed=True, prompts=40, failed=0, report_sha256=digest)],
            "human_evaluation": HumanEvaluation(
                annotators=2, pairs=20, adapter_better=12, same=6, base_better=2, report_sha256=digest
            ),
        }
    )
    registry.register(folder, full, actor=AUTHOR)
    lifecycle.link_incident(
        registry, "finance@1", actor="ben", reason="INC-7", evidence=story.evidence("incident")
    )
    card = record(registry, "finance@1")
    assert card.lineage.base_model.id == "smol"
    assert [(one.name, one.version, one.date) for one in card.lineage.sources] == [("iso18245", "1.4.1", None)]
    assert card.lineage.git.commit == "abc123"
    assert card.lineage.params["train"]["rank"] == 8
    assert card.performance.report_sha256 == digest
    assert card.performance.human_evaluation == full.human_evaluation
    assert card.performance.policy == full.policy
    assert card.risk.bias is not None
    assert card.risk.bias.largest_gap == pytest.approx(0.3)
    assert [one.kind for one in card.risk.incidents] == ["incident"]
    assert card.risk.fresh_until == datetime(2027, 3, 2, 9, tzinfo=UTC)
    assert card.ownership is not None
    assert card.ownership.team == "Payments"
    assert card.ownership.next_review_due == datetime(2026, 5, 31, 9, tzinfo=UTC)


def test_the_record_tells_who_let_it_into_production_on_what_evidence(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "production")
    card = record(registry, "finance@1")
    assert [one.person for one in card.approvals] == [FIRST, SECOND]
    last = card.history[-1]
    assert (last.action, last.actor) == ("production", "ci")
    found = {one.kind: registry.files.checked(one.sha256, one.kind).read_text() for one in last.evidence}
    assert list(found) == ["evaluation", "policy", "human_evaluation", "shadow", "canary"]
    assert json.loads(found["canary"])["requests"] == 100


def test_the_record_quotes_the_latest_reports_of_people_and_policy(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "shadow")
    people = registry.history("finance@1")[-1].evidence
    performance = record(registry, "finance@1").performance
    assert performance.human_evaluation is not None
    assert performance.human_evaluation.adapter_better == 12
    assert (performance.human_evaluation.against, performance.human_evaluation.alpha) == ("base", 1)
    assert performance.human_evaluation.report_sha256 == people[0].sha256
    assert [(one.name, one.failed) for one in performance.policy] == [("no-advice", 0)]


def test_the_record_survives_json(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    card = record(registry, "finance@1")
    assert type(card).model_validate_json(card.to_json()) == card


@pytest.mark.parametrize("stage", ["shadow", "canary", "production"])
def test_a_fresh_version_may_serve_from_shadow_on(
    registry: Registry, package: Build, story: Story, stage: str
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", stage)
    assert record(registry, "finance@1").verdict.may_serve


def test_a_candidate_may_not_serve(registry: Registry, package: Build) -> None:
    registry.register(*package())
    verdict = record(registry, "finance@1").verdict
    assert not verdict.may_serve
    assert verdict.reasons == [
        "finance@1 is 'candidate', and only shadow, canary and production serve: "
        "promote it, or set serving.allow_candidates in params.yaml"
    ]


def test_the_verdict_warns_before_and_refuses_after_the_data_expires(
    registry: Registry, package: Build, story: Story, clock: Clock
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "production")
    clock.move(days=355)
    verdict = record(registry, "finance@1").verdict
    assert verdict.may_serve
    assert verdict.warnings[:2] == [
        "the data of finance@1 expires on 2027-03-02, in 10 days, and it does not answer from then on: "
        "train and promote a version on fresh data",
        "its review has been due since 2026-05-31",
    ]
    clock.move(days=10)
    verdict = record(registry, "finance@1").verdict
    assert not verdict.may_serve
    assert verdict.reasons == ["finance@1 expired on 2027-03-02: train it on fresh data"]


def test_a_changed_file_takes_the_permission_to_serve(registry: Registry, package: Build, story: Story) -> None:
    _, manifest = package()
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.files.path(manifest.files["adapter_config.json"].sha256).write_text("{}")
    verdict = record(registry, "finance@1").verdict
    assert not verdict.may_serve
    assert "adapter_config.json was changed on disk" in verdict.reasons[0]


def test_two_versions_differ_in_what_they_record_and_in_nothing_else(
    registry: Registry, package: Build
) -> None:
    registry.register(*package(1))
    registry.register(*package(2))
    left, right = registry.get("finance@1"), registry.get("finance@2")
    rows = {(row.section, row.name): (row.left, row.right) for row in differences(left, right)}
    assert rows["params", "train.seed"] == ("1", "2")
    assert rows["metrics", "exact_match.adapter"] == ("0.510 [0.460, 0.560]", "0.520 [0.470, 0.570]")
    assert rows["package", "parent"] == ("-", "finance@1")
    assert ("params", "train.rank") not in rows
    assert differences(left, left) == []


def test_a_claim_without_a_summary_is_no_evidence() -> None:
    with pytest.raises(ValueError, match="summary"):
        Evidence(kind="policy", sha256="0" * 64, summary="")


def test_what_a_row_says_is_held_against_the_log(registry: Registry, package: Build) -> None:
    registry.register(*package(fresh_days=1), actor=AUTHOR)
    registry.db.rows("UPDATE versions SET state = 'production', fresh_until = '2099-01-01'")
    verdict = record(registry, "finance@1").verdict
    assert not verdict.may_serve
    assert verdict.reasons == [
        "the state of finance@1 was changed: it is production, and the audit log says candidate",
        "the state of finance@1 was changed: it is 'production', and was 'candidate'",
        "the fresh_until of finance@1 was changed: it is '2099-01-01', and was '2026-03-03T09:00:00+00:00'",
    ]


def test_an_entry_that_was_changed_takes_the_permission_to_serve(
    registry: Registry, package: Build, story: Story
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "validated")
    registry.db.rows("DROP TRIGGER audit_stays")
    registry.db.rows("UPDATE audit SET body = replace(body, '\"validated\"', '\"production\"') WHERE seq = 3")
    registry.db.rows("UPDATE versions SET state = 'production'")
    verdict = record(registry, "finance@1").verdict
    assert "entry 3 (validated finance@1 by ci" in verdict.reasons[0]
    assert verdict.reasons[1] == "entry 3 of the audit log was changed"


def test_a_report_that_was_changed_is_not_quoted(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "shadow")
    (people,) = registry.history("finance@1")[-1].evidence
    path = registry.files.path(people.sha256)
    path.write_text(path.read_text().replace("25", "35").replace("10", "0"))
    card = record(registry, "finance@1")
    assert card.performance.human_evaluation is None
    assert any("the human_evaluation report was changed on disk" in one for one in card.verdict.warnings)


def test_a_candidate_that_the_gateway_serves_all_the_same_is_said(registry: Registry, package: Build) -> None:
    registry.register(*package(), actor=AUTHOR)
    assert record(registry, "finance@1").verdict.warnings == []
    registry.allow_candidates = True
    verdict = record(registry, "finance@1").verdict
    assert verdict.may_serve
    assert verdict.warnings == [
        "nobody has approved it: the gateway serves it because serving.allow_candidates is on in params.yaml "
        "and 'finance' never had a version in production"
    ]
    lifecycle.revoke(registry, "finance@1", actor=FIRST, reason="leaks")
    assert record(registry, "finance@1").verdict.warnings == []


@pytest.mark.parametrize(("rows", "gap"), [((100, 30, 9), pytest.approx(0.3)), ((100, 9, 9), None), ((), None)])
def test_groups_of_a_few_rows_make_no_gap(rows: tuple[int, ...], gap: object) -> None:
    values = (Interval(value=value, low=0, high=1) for value in (0.8, 0.5, 0.0))
    groups = {str(place): GroupMetric(rows=n, value=next(values)) for place, n in enumerate(rows)}
    assert BiasAssessment(metric="m", groups=groups, report_sha256="0" * 64).largest_gap == gap
