"""The page shows each policy check and the answers that break a rule, as the tenant may keep them."""

import pytest

from lora_ops.gates.gate import gate_rows
from lora_ops.gates.policy import policy_report
from lora_ops.gates.policy_page import policy_section
from lora_ops.gates.report import headline, read_shown, report_page
from lora_ops.gates.rows import GateRow
from lora_ops.registry.lifecycle import file_evidence
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from tests.registry.conftest import AUTHOR, Build

from .policy_sources import policy_source

SAID = {
    "red_team-1": "<script>alert(1)</script>",
    "ordinary-1": "Write to ana.silva@example.com",
    "extraction-1": "heron-4417-amber\u202e",
}


@pytest.fixture
def filed(registry: Registry, package: Build) -> Registry:
    registry.register(*package(1), actor=AUTHOR)
    digest = registry.get("finance@1").summary.content_digest
    given = policy_source(digest=digest, said=SAID)
    document = policy_report(given, "finance", registry.clock())
    report = Report(document, given.to_json().encode(), "policy prompts")
    file_evidence(registry, "finance@1", report, actor="ci")
    return registry


def page(registry: Registry, *, keep_text: bool) -> str:
    version = registry.get("finance@1")
    shown = read_shown(registry, version, gate_rows(registry, version))
    return report_page(registry, version, shown, keep_text=keep_text)


def test_page_shows_checks_with_budget_reason_and_judge(filed: Registry) -> None:
    shown = page(filed, keep_text=True)
    for part in (
        "0 of 108",
        "at most 0.1",
        "enough of insults",
        "detector too weak to correct",
        "for which ana",
    ):
        assert part in shown
    assert (
        "words (1); precision 1.000 [0.692, 1.000], recall 0.100 [0.049, 0.176] on 200 two hundred rows"
        in shown
    )
    assert "suites/policy.yaml names no prompt that finance must refuse" in shown


def test_page_escapes_answers_and_leaves_out_identifiers(filed: Registry) -> None:
    shown = page(filed, keep_text=True)
    assert "&lt;script&gt;alert(1)" in shown and "<script" not in shown
    assert "Write to [e-mail address]" in shown and "ana.silva@example" not in shown
    assert "\u202e" not in shown


def test_page_withholds_texts_that_may_not_be_kept(filed: Registry) -> None:
    shown = page(filed, keep_text=False)
    assert "red_team 1" in shown and "alert(1)" not in shown and "heron" not in shown
    assert "ordinary 1" not in shown and "[10 characters, " in shown


def test_page_names_a_lost_source(filed: Registry) -> None:
    version = filed.get("finance@1")
    section = policy_section(filed, version, keep_text=True)
    assert section and section.owner == "ana" and [one.check for one in section.broken[:1]] == ["identifiers"]
    [one] = [one for one in filed.log.entries("finance", 1)[-1].evidence if one.kind == "policy"]
    assert one.source_sha256
    filed.files.path(one.source_sha256).unlink()
    section = policy_section(filed, version, keep_text=True)
    assert section and section.checks and section.broken == [] and "source of the policy report" in section.lost
    assert "No answer can be shown" in page(filed, keep_text=True)


def test_page_without_a_computed_report_has_no_section(registry: Registry, package: Build) -> None:
    registry.register(*package(1), actor=AUTHOR)
    assert policy_section(registry, registry.get("finance@1"), keep_text=True) is None
    assert "No policy report is filed." in page(registry, keep_text=True)


def test_headline_leaves_out_what_does_not_apply() -> None:
    rows = [GateRow("a", "pass"), GateRow("b", "not applicable")]
    assert headline(rows) == "all 1 gates pass"
    assert headline([*rows, GateRow("c", "missing")]) == "2 gates: 1 missing, 1 passed"
