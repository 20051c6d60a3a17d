"""A regression report that did not pass is not replaced by one of a kinder suite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import Refused
from lora_ops.gates.gate import exit_code, gate_rows
from lora_ops.gates.regression import regression_report
from lora_ops.gates.rows import GateRow
from lora_ops.records.suite import AskedCase, CasesRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.reports import Report, make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.suite import Slice

from ..gates.sources import BASE, source, suite, with_answers_again
from .conftest import AUTHOR, Build, Story, saved_again

PLAIN = Slice(about="plain cases", margin=0.15)


@pytest.fixture
def asking(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 is in production, finance@2 waits for its report and has all else."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    registry.least = registry.least.model_copy(update={"regression": True})
    story.file("policy", about="finance@2")
    return registry


def gated(
    registry: Registry,
    cases: CasesRecord,
    wrong: Sequence[int] = (),
    about: str = "finance@2",
    against: str = "finance@1",
) -> Report:
    """File what a suite says of a version that answers the cases at the places `wrong` wrongly."""
    digest = registry.get(about).summary.content_digest
    production = ("production", against, registry.get(against).summary.content_digest, ())
    given = source(cases, wrong, about, digest, base=BASE, production=production)  # type: ignore[arg-type]
    report = Report(
        regression_report(given, "finance", registry.clock()), given.to_json().encode(), "its suite"
    )
    lifecycle.file_evidence(registry, about, report, actor="ci")
    return report


def lacking(registry: Registry, about: str = "finance@2") -> str:
    return "; ".join(missing_for(registry, about)[1])


def changed(cases: CasesRecord, places: Sequence[int], **how: Any) -> CasesRecord:
    """Change the cases at some places: `expect`, `group`, `must_pass`, or `gone`."""
    kept = []
    for place, one in enumerate(cases.cases):
        if place not in places:
            kept.append(one)
        elif "gone" not in how:
            kept.append(one.model_copy(update={"case": one.case.model_copy(update=how)}))
    return cases.model_copy(update={"cases": tuple(kept)})


def more(cases: CasesRecord, rows: int) -> CasesRecord:
    """Add cases to the slice `plain`, which `answers` gets right."""
    added = [
        AskedCase(
            case=cases.cases[0].case.model_copy(update={"id": f"plain-{place}", "text": f"plain {place}"}),
            prompt=f"plain {place}",
            max_tokens=8,
            seed=0,
        )
        for place in range(100, 100 + rows)
    ]
    return cases.model_copy(update={"cases": (*cases.cases, *added)})


def reviewed(registry: Registry, folder: Path, actor: str, reason: str, about: str = "finance@2") -> None:
    path = folder / "review.txt"
    path.write_text("The cases of the earlier suite were looked at one by one.")
    given = make(registry, about, "review", path)
    lifecycle.review(registry, about, actor=actor, reason=reason, evidence=[given])


KINDER = {
    "cases removed": (changed(suite(), range(20), gone=True), "without the cases plain-0, plain-1"),
    "cases rewritten": (
        changed(suite(), range(20), expect=suite().cases[0].case.expect.model_copy(update={"label": "Travel"})),  # type: ignore[union-attr]
        "with other cases under the names plain-0, plain-1",
    ),
    "a wider margin": (suite(plain=Slice(about="plain cases", margin=0.6)), "plain margin 0.6, not 0.15"),
    "no gate": (
        suite(plain=PLAIN.model_copy(update={"gating": False}), other=PLAIN),
        "plain is not gating",
    ),
    "easy cases": (more(suite(), 400), "with cases added to what did not pass (plain-100, plain-101"),
    "no opponent": (
        suite(plain=PLAIN.model_copy(update={"against": ("base",)})),
        "not compared with production",
    ),
}


@pytest.mark.parametrize("name", KINDER)
def test_a_kinder_suite_answers_no_failure(asking: Registry, name: str) -> None:
    cases, said = KINDER[name]
    old = gated(asking, suite(), range(20)).reference.sha256[:8]
    gated(asking, cases, range(0 if name == "cases removed" else 20) if name != "cases rewritten" else ())
    assert f"a regression report that answers the earlier one ({old}, plain against finance@1: fail" in (
        lacking(asking)
    )
    assert said in lacking(asking)
    with pytest.raises(Refused, match="whose reason names the earlier one"):
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes now")


def test_other_groups_answer_no_failure(asking: Registry) -> None:
    """Ten wordings of one question counted once, and without `group` ten times."""
    grouped = changed(suite(), range(60), group="one")
    gated(asking, changed(suite(), range(10), group="one"), range(12))
    gated(asking, grouped)
    assert "with other groups of the cases plain-0, plain-1" in lacking(asking)


def test_a_case_that_must_pass_stays_one(asking: Registry) -> None:
    gated(asking, suite(must_pass=3), [1])
    gated(asking, suite(must_pass=1), [1])
    assert "with other cases under the names plain-1, plain-2" in lacking(asking)


def test_the_same_cases_answer_a_failure(asking: Registry, story: Story) -> None:
    """Other names, another prompt around them, a stricter margin and new slices are no kinder suite."""
    gated(asking, suite(), range(20))
    cases = suite(must_pass=2, plain=Slice(about="plain cases", margin=0.12), other=PLAIN)
    renamed = [
        one.model_copy(
            update={
                "prompt": f"Another system prompt. {one.prompt}",
                "case": one.case.model_copy(update={"id": f"named-{one.case.id}"}),
            }
        )
        for one in cases.cases
    ]
    gated(asking, cases.model_copy(update={"cases": tuple(renamed)}))
    assert lacking(asking) == ""


def test_more_cases_answer_an_undecided_report(asking: Registry) -> None:
    """The gate asks for more rows there, and must not refuse them."""
    gated(asking, suite(rows=12))
    assert "undecided" in lacking(asking)
    gated(asking, suite())
    assert lacking(asking) == ""
    gated(asking, changed(suite(), range(3), gone=True))
    assert "without the cases plain-0, plain-1, plain-2" in lacking(asking)


def test_an_approver_answers_for_another_suite(asking: Registry, tmp_path: Path) -> None:
    old = gated(asking, suite(), range(20)).reference.sha256[:8]
    reviewed(asking, tmp_path, "ben", f"{old} is nothing")  # before the newer suite was seen
    gated(asking, changed(suite(), range(20), gone=True))
    reviewed(asking, tmp_path, AUTHOR, f"{old} asked wrong cases")  # the author
    reviewed(asking, tmp_path, "eve", f"{old} asked wrong cases")  # no approver
    reviewed(asking, tmp_path, "ben", "wrong cases")  # names no report
    assert old in lacking(asking)
    reviewed(asking, tmp_path, "ben", f"{old} asked cases that have no right answer")
    assert lacking(asking) == ""
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    assert not verify(asking).problems
    gated(asking, changed(suite(), range(30), gone=True))  # an even kinder one
    assert old in lacking(asking)


def test_verify_names_a_step_over_a_kinder_suite(asking: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes an entry without the rule is found afterwards."""
    gated(asking, suite(), range(20))
    gated(asking, changed(suite(), range(20), gone=True))
    with monkeypatch.context() as patch:
        patch.setattr("lora_ops.registry.earlier_suites.Suites.unanswered", lambda self: ())
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    assert "'validated' without a regression report that answers the earlier one" in verify(asking).problems[0]


def test_show_names_what_a_newer_report_replaced(asking: Registry) -> None:
    gated(asking, suite(rows=12))
    gated(asking, suite())
    [note] = [one for one in record(asking, "finance@2").verdict.warnings if "earlier regression" in one]
    assert "did not pass (its suite, " in note and "plain against finance@1: undecided" in note
    assert "now with cases added to what did not pass (plain-12, plain-13" in note
    assert note in gate_notes(asking, asking.get("finance@2"))


def test_a_failure_of_a_twin_is_answered_by_its_cases(
    asking: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """The same weights under another number began with a clean sheet."""
    old = gated(asking, suite(), range(20)).reference.sha256[:8]
    folder, manifest = package(2)
    asking.register(folder, saved_again(folder, manifest), actor=AUTHOR)
    story.file("policy", about="finance@3")
    gated(asking, changed(suite(), range(20), gone=True), about="finance@3")
    said = f"answers the earlier one on finance@2, which has the same weights ({old}, "
    assert said in lacking(asking, "finance@3")
    reviewed(asking, tmp_path, "ben", f"{old} asked wrong cases", about="finance@3")
    assert lacking(asking, "finance@3") == ""
    lifecycle.promote(asking, "finance@3", "validated", actor="ci", reason="passes")
    assert not verify(asking).problems


def test_an_unanswered_report_stops_no_rollback(asking: Registry, story: Story, package: Build) -> None:
    """finance@2 was gated by a kinder suite and failed, after it had served well."""
    asking.least = asking.least.model_copy(update={"regression": False})
    story.to("finance@2", "production")
    asking.register(*package(3), actor=AUTHOR)
    story.to("finance@3", "production")
    gated(asking, suite(), range(20))
    gated(asking, changed(suite(), range(20), gone=True))
    told = story.evidence("incident", about="finance@3")
    lifecycle.promote(asking, "finance@2", "production", actor="ben", reason="bad", evidence=told)
    assert asking.named("finance", "production") == 2
    assert not verify(asking).problems
    lifecycle.revoke(asking, "finance@2", actor="ci", reason="bad, too")


def rows(registry: Registry, about: str) -> dict[str, GateRow]:
    return {row.gate: row for row in gate_rows(registry, registry.get(about)) if row.verdict != "pass"}


def test_gate_says_what_promote_refuses(asking: Registry, package: Build, story: Story, tmp_path: Path) -> None:
    """The gate passed reports that promote refused."""
    gated(asking, suite(), range(20))
    kinder = changed(suite(), range(20), gone=True)
    gated(asking, kinder)
    row = rows(asking, "finance@2")["regression"]
    assert row.verdict == "missing" and "answers the earlier one" in row.note and exit_code([row]) == 3
    folder, manifest = package(2)
    asking.register(folder, saved_again(folder, manifest), actor=AUTHOR)
    gated(asking, kinder, about="finance@3")
    row = rows(asking, "finance@3")["versions with the same weights"]
    assert row.verdict == "missing" and "the earlier one on finance@2" in row.note
    lifecycle.revoke(asking, "finance@2", actor="ci", reason="bad")
    row = rows(asking, "finance@3")["versions with the same weights"]
    assert row.verdict == "fail" and "finance@2, which is 'revoked'" in row.note
    gated(asking, suite(), about="finance@3", against="finance@3")
    row = rows(asking, "finance@3")["regression"]
    assert "a regression report against finance@1, which is in production now" in row.note


def lose(registry: Registry, given: Report) -> None:
    registry.files.path(given.document.source.sha256).unlink()


def test_a_lost_suite_of_production_is_told(
    registry: Registry, package: Build, story: Story, tmp_path: Path
) -> None:
    """Whoever lost it hid every note on looser gates, and that a follower is asked less."""
    registry.register(*package(1), actor=AUTHOR)
    digest = registry.get("finance@1").summary.content_digest
    given = source(suite(), adapter="finance@1", digest=digest, base=BASE)
    given = with_answers_again(registry, registry.get("finance@1"), given)
    old = Report(regression_report(given, "finance", registry.clock()), given.to_json().encode(), "suite")
    lifecycle.file_evidence(registry, "finance@1", old, actor="ci")
    registry.least = registry.least.model_copy(update={"regression": True})
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    story.file("policy", about="finance@2")
    gated(registry, suite())
    registry.least = registry.least.model_copy(update={"pairs": 1})
    assert lacking(registry) == ""
    lose(registry, old)
    notes = "; ".join(gate_notes(registry, registry.get("finance@2")))
    assert "nobody can tell what its suite asks less than that of finance@1: " in notes
    assert "registry.evidence.pairs 1, not 20" in notes
    assert "the suite of finance@1, which is in production (" in lacking(registry)
    assert rows(registry, "finance@2")["regression"].verdict == "missing"
    reviewed(registry, tmp_path, "ben", f"the suite of {digest[:8]} is lost for good; this one is larger")
    assert lacking(registry) == ""


def test_a_lost_suite_refuses_the_step(asking: Registry) -> None:
    lose(asking, gated(asking, suite()))
    assert "what its regression report was computed from (" in lacking(asking)


def test_a_lost_earlier_suite_answers_nothing(asking: Registry) -> None:
    old = gated(asking, suite(), range(20))
    gated(asking, suite(rows=80))
    lose(asking, old)
    assert "nobody can tell how they differ: " in lacking(asking)
    assert "nobody can tell" in " ".join(record(asking, "finance@2").verdict.warnings)
