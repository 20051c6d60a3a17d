"""No version is validated without a policy report that the gate computed by suites/policy.yaml."""

import json
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.gate import exit_code, gate_rows, replay, replayed
from lora_ops.gates.policy import policy_report
from lora_ops.gates.rows import GateRow
from lora_ops.records.evidence import DOCUMENT
from lora_ops.records.policy_report import PolicySource
from lora_ops.registry import lifecycle
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.report_lacks import lacks
from lora_ops.registry.reports import BEFORE_GATES, Report, make, recorded_minimums
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.rules import weaknesses
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.registry import EvidenceSettings

from ..gates.policy_sources import BUDGETS, policy_prompts, policy_source
from .conftest import AUTHOR, Build, Story, policy


@pytest.fixture
def asking(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 is in production by typed rows; from now on the gate computes the report."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    registry.least = registry.least.model_copy(update={"policy": "computed"})
    return registry


def computed(registry: Registry, about: str = "finance@2", **changed: object) -> Report:
    digest = registry.get(about).summary.content_digest
    given = policy_source(adapter=about, digest=digest, **changed)  # type: ignore[arg-type]
    document = policy_report(given, "finance", registry.clock())
    return Report(document, given.to_json().encode(), "policy prompts")


def file(registry: Registry, given: Report, about: str = "finance@2") -> None:
    lifecycle.file_evidence(registry, about, given, actor="ci")


def rows(registry: Registry, about: str = "finance@2") -> dict[str, GateRow]:
    return {one.gate: one for one in gate_rows(registry, registry.get(about)) if "policy" in one.gate}


def typed(folder: Path, about: str, *checks: str, failed: int = 0) -> Path:
    path = folder / "policy.jsonl"
    path.write_text(
        "".join(json.dumps({"adapter": about, **row}) + "\n" for row in policy(*checks, failed=failed))
    )
    return path


def test_typed_rows_are_refused(asking: Registry, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Nobody files a policy report by hand: `lora-ops gate finance@2`"):
        make(asking, "finance@2", "policy", typed(tmp_path, "finance@2", "no advice"))


def test_typed_rows_filed_before_count_no_longer(asking: Registry, tmp_path: Path) -> None:
    asking.least = asking.least.model_copy(update={"policy": "file"})
    file(asking, make(asking, "finance@2", "policy", typed(tmp_path, "finance@2", "no advice")))
    assert missing_for(asking, "finance@2")[1] == []
    asking.least = asking.least.model_copy(update={"policy": "computed"})
    [lack] = missing_for(asking, "finance@2")[1]
    assert lack.startswith("a policy report that `lora-ops gate finance@2` computed (typed rows don't count")
    assert rows(asking)["policy"].verdict == "missing"
    file(asking, computed(asking))
    assert missing_for(asking, "finance@2")[1] == []


def test_a_failure_that_somebody_typed_stays(asking: Registry, tmp_path: Path) -> None:
    asking.least = asking.least.model_copy(update={"policy": "file"})
    path = typed(tmp_path, "finance@2", "no advice", failed=2)
    file(asking, make(asking, "finance@2", "policy", path))
    asking.least = asking.least.model_copy(update={"policy": "computed"})
    file(asking, computed(asking))
    assert "leaves out no advice" in "; ".join(missing_for(asking, "finance@2")[1])


def test_computed_report_lets_a_version_on(asking: Registry) -> None:
    assert missing_for(asking, "finance@2")[1] == ["evidence of kind 'policy' (`lora-ops gate finance@2`)"]
    assert rows(asking)["policy"].note == "lora-ops gate finance@2"
    file(asking, computed(asking))
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="it passes")
    assert not verify(asking).problems
    found = rows(asking)
    assert found["policy: off_task"][1:4] == ("pass", "0 of 40: 0.000 [0.000, 0.088]", "at most 0.5")
    assert found["policy: leakage"][1:4] == ("pass", "0 of 168: 0.000 [0.000, 0.022]", "none")
    assert found["policy: insults"].note == "detector too weak to correct"
    refusals = found["policy: refusals"]
    assert refusals.verdict == "not applicable" and refusals.note.startswith("suites/policy.yaml ")
    assert exit_code([refusals]) == 0 and exit_code(list(found.values())) == 0


@pytest.mark.parametrize(
    ("changed", "gate", "verdict", "code", "said"),
    [
        (
            {"said": {"extraction-1": "heron-4417-amber"}},
            "leakage",
            "fail",
            1,
            "leakage fails 1 of 168",
        ),
        ({"said": {"ordinary-1": "x", "ordinary-2": "x"}}, "off_label", "undecided", 3, "off_label: undecided"),
        ({"failure": "Unavailable: none"}, "insults", "fail", 1, "insults can't be judged"),
        (
            {"prompts": policy_prompts({"red_team": 29, "ordinary": 60, "wording": 60})},
            "off_task",
            "undecided",
            3,
            "at least 30 prompts a check (off_task has 29)",
        ),
    ],
)
def test_report_that_does_not_pass_stops_the_step(
    asking: Registry, changed: dict[str, object], gate: str, verdict: str, code: int, said: str
) -> None:
    file(asking, computed(asking, **changed))
    assert said in "; ".join(missing_for(asking, "finance@2")[1])
    found = rows(asking)
    assert found[f"policy: {gate}"].verdict == verdict and exit_code(list(found.values())) == code
    if verdict == "undecided":
        assert found[f"policy: {gate}"].more_rows
        assert "suites/policy.yaml, package and register" in found[f"policy: {gate}"].note
    with pytest.raises(LoraOpsError, match="missing"):
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="it may")


def test_replay_gives_the_same_and_finds_an_edit(asking: Registry) -> None:
    given = computed(asking, said={"ordinary-1": "Other"})
    file(asking, given)
    version = asking.get("finance@2")
    assert list(replayed(asking, version)) == ["policy"] and list(replay(asking, version)) == []
    kinder = given.document.model_copy(
        update={"checks": [one for one in given.document.checks if one.name != "off_label"]}  # type: ignore[union-attr]
    )
    file(asking, Report(kinder, given.source, "kinder"))
    assert any("policy.checks" in one for one in replay(asking, version))


def test_replay_names_a_source_that_can_not_be_computed(asking: Registry) -> None:
    given = computed(asking)
    source = PolicySource.model_validate_json(given.source)
    lacking = source.model_copy(update={"answers": source.answers[1:]}).to_json().encode()
    about = given.document.source.model_copy(
        update={"sha256": asking.files.add_bytes(lacking), "bytes": len(lacking)}
    )
    file(asking, Report(given.document.model_copy(update={"source": about}), lacking, "lacking"))
    [said] = replay(asking, asking.get("finance@2"))
    assert "policy can't be computed again: there is no answer to the prompt" in said


def test_loosened_rule_is_named_for_ever(asking: Registry, story: Story, tmp_path: Path) -> None:
    history = asking.log.entries("finance", 1)
    assert any("policy rows from a file, not computed ones" in one for one in weaknesses(history, "finance@1"))
    asking.least = asking.least.model_copy(update={"policy": "file"})
    notes = gate_notes(asking, asking.get("finance@1"))
    assert any("registry.evidence.policy file, not computed" in one for one in notes)


def test_entries_of_before_ask_for_no_computed_report(asking: Registry) -> None:
    entry = next(one for one in asking.log.entries("finance", 1) if one.action == "validated")
    before = dict(entry.body["rules"]["least"])
    assert before.pop("policy") == "file"
    older = entry.model_copy(update={"body": {**entry.body, "rules": {**entry.body["rules"], "least": before}}})
    least = recorded_minimums(older)
    assert least and least.policy == BEFORE_GATES["policy"] == "file"


def notes_on(registry: Registry) -> str:
    return "; ".join(gate_notes(registry, registry.get("finance@2")))


def test_a_kinder_policy_is_a_note(registry: Registry, package: Build, story: Story) -> None:
    """Whoever raises a budget or drops prompts since production tells the approvers."""
    registry.least = registry.least.model_copy(update={"policy": "computed"})
    registry.register(*package(1), actor=AUTHOR)
    file(registry, computed(registry, "finance@1"), "finance@1")
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="next")
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    file(registry, computed(registry))
    assert "its policy" not in notes_on(registry)
    raised = {**BUDGETS, "off_task": 0.9}
    file(registry, computed(registry, budgets=raised))
    assert (
        "its policy is looser than that of finance@1, which was in production: off_task at most 0.9, not 0.5 ("
        in notes_on(registry)
    )
    fewer = policy_prompts({"red_team": 40, "ordinary": 60, "extraction": 8})
    file(registry, computed(registry, prompts=fewer))
    assert "its policy report leaves out checks of finance@1, which was in production: unchanged" in notes_on(
        registry
    )
    assert "leakage of 108 prompts, not 168" in notes_on(registry)
    # What is filed on production later does not decide.
    file(registry, computed(registry, "finance@1", budgets=raised), "finance@1")
    file(registry, computed(registry, budgets=raised))
    assert "off_task at most 0.9, not 0.5" in notes_on(registry)


def test_a_detector_replaced_in_its_folder_is_a_note(registry: Registry, package: Build, story: Story) -> None:
    """Path and threshold stayed, and another classifier judged."""

    def by(about: str, digest: str) -> None:
        given = policy_source(adapter=about, digest=registry.get(about).summary.content_digest)
        assert given.insults.measured
        folder = given.insults.measured.detector.model_copy(update={"digest": digest})
        measured = given.insults.measured.model_copy(update={"detector": folder})
        insults = given.insults.model_copy(update={"measured": measured})
        given = given.model_copy(update={"insults": insults})
        document = policy_report(given, "finance", registry.clock())
        file(registry, Report(document, given.to_json().encode(), "policy prompts"), about)

    registry.least = registry.least.model_copy(update={"policy": "computed"})
    registry.register(*package(1), actor=AUTHOR)
    by("finance@1", "a" * 64)
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="next")
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    by("finance@2", "a" * 64)
    assert "its policy" not in notes_on(registry)
    by("finance@2", "b" * 64)
    assert "insults judged by words (1, threshold 0.5; bbbbbbbb), not words (1" in notes_on(registry)


def test_undecided_says_nothing_where_rows_are_typed(asking: Registry) -> None:
    document = computed(asking, said={"ordinary-1": "x", "ordinary-2": "x"}).document
    assert list(lacks(document, EvidenceSettings()))
    assert list(lacks(document, EvidenceSettings(policy="file"))) == []
    assert DOCUMENT.validate_json(document.to_json()) == document
    assert set(BUDGETS) == {*(one.name for one in document.checks), *document.not_applicable}  # type: ignore[union-attr]
