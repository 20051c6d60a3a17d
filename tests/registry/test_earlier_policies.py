"""A policy report that did not pass is not replaced by one of a kinder suites/policy.yaml."""

from pathlib import Path
from typing import Any

import pytest

from lora_ops.errors import Refused
from lora_ops.gates.gate import exit_code, gate_rows
from lora_ops.gates.policy import policy_report
from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.policy import PolicyPromptsRecord
from lora_ops.registry import lifecycle
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.reports import Report, make
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify

from ..gates.policy_sources import BUDGETS, MANY, detector, policy_prompts, policy_source
from .conftest import AUTHOR, Build, Story, saved_again

OFF = {f"{kind}-{place}": "no label" for place in range(1, 31) for kind in ("ordinary", "wording")}
"""Half of the answers to rows name no label."""


@pytest.fixture
def asking(registry: Registry, package: Build, story: Story) -> Registry:
    """finance@1 is in production by typed rows; from now on the gate computes the report."""
    registry.register(*package(1), actor=AUTHOR)
    story.to("finance@1", "production")
    registry.register(*package(2), actor=AUTHOR)
    registry.least = registry.least.model_copy(update={"policy": "computed"})
    return registry


def judged(registry: Registry, about: str = "finance@2", by: float | None = None, **changed: Any) -> Report:
    """File what a policy suite says of a version; `by` is another threshold of the detector of insults."""
    digest = registry.get(about).summary.content_digest
    given = policy_source(adapter=about, digest=digest, **changed)
    budgets = canonical({name: one.budget for name, one in given.budgets.items()})
    given = given.model_copy(update={"policy_sha256": sha256_text(budgets)})
    if by is not None:
        scores = given.insults.model_copy(update={"measured": detector(threshold=by)})
        given = given.model_copy(update={"insults": scores})
    document = policy_report(given, "finance", registry.clock())
    report = Report(document, given.to_json().encode(), "policy prompts")
    lifecycle.file_evidence(registry, about, report, actor="ci")
    return report


def lacking(registry: Registry, about: str = "finance@2") -> str:
    return "; ".join(missing_for(registry, about)[1])


def reviewed(registry: Registry, folder: Path, actor: str, reason: str) -> None:
    path = folder / "review.txt"
    path.write_text("The budgets of the earlier suite were looked at one by one.")
    given = make(registry, "finance@2", "review", path)
    lifecycle.review(registry, "finance@2", actor=actor, reason=reason, evidence=[given])


def without() -> PolicyPromptsRecord:
    """A suite that leaves out the rows whose answer is no label."""
    prompts = policy_prompts()
    chosen = [one for one in prompts.prompts if one.id not in OFF]
    return prompts.model_copy(update={"prompts": tuple(chosen)})


KINDER: dict[str, tuple[dict[str, Any], str]] = {
    "a budget": ({"budgets": {**BUDGETS, "off_label": 0.9}, "said": OFF}, "off_label budget 0.9, not 0.1"),
    "other rows": ({"prompts": without()}, "without the prompts ordinary-1, ordinary-2"),
    "easy rows": (
        {"prompts": policy_prompts({**MANY, "ordinary": 900, "wording": 900}), "said": OFF},
        "with prompts added to what did not pass (ordinary-61, ordinary-62",
    ),
    "labels": (
        {"prompts": policy_prompts(labels=("Food", "Travel", "no label")), "said": OFF},
        "with the further labels no label",
    ),
    "short answers": (
        {
            "prompts": policy_prompts().model_copy(
                update={
                    "prompts": tuple(
                        one.model_copy(update={"max_tokens": 1}) for one in policy_prompts().prompts
                    )
                }
            )
        },
        "with shorter answers to red_team-1",
    ),
    "a canary": (
        {"prompts": policy_prompts().model_copy(update={"canary": "The word is quail-5528-green."})},
        "with another planted sentence",
    ),
    "a threshold": ({"by": 0.9}, "insults found from a score of 0.9 on, not 0.5"),
}


@pytest.mark.parametrize("name", KINDER)
def test_a_kinder_policy_answers_no_failure(asking: Registry, name: str) -> None:
    changed, said = KINDER[name]
    old = judged(asking, said=OFF).reference.sha256[:8]
    judged(asking, **changed)
    assert f"a policy report that answers the earlier one ({old}, off_label: fail; now " in lacking(asking)
    assert said in lacking(asking)
    with pytest.raises(Refused, match="whose reason names the earlier one"):
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes now")
    rows = [one for one in gate_rows(asking, asking.get("finance@2")) if "policy" in one.gate]
    assert exit_code(rows) == 3 and any(old in one.note for one in rows)


def test_the_same_policy_answers_a_failure(asking: Registry) -> None:
    """Smaller budgets and further prompts of what passed are no kinder suite."""
    judged(asking, said=OFF)
    more = policy_prompts({**MANY, "red_team": 50})
    judged(asking, prompts=more, budgets={**BUDGETS, "off_task": 0.3})
    assert lacking(asking) == ""


def test_further_prompts_answer_what_was_undecided(asking: Registry) -> None:
    judged(asking, said={"ordinary-1": "x", "ordinary-2": "x"})
    assert "off_label: undecided" in lacking(asking)
    judged(asking, prompts=policy_prompts({**MANY, "ordinary": 200, "wording": 200}))
    assert lacking(asking) == ""


def test_a_policy_is_answered_by_an_approver(asking: Registry, tmp_path: Path) -> None:
    name = judged(asking, said=OFF).reference.sha256[:8]
    reviewed(asking, tmp_path, "ben", f"{name}: before anybody saw the new budget")
    judged(asking, said=OFF, budgets={**BUDGETS, "off_label": 0.9, "unchanged": 0.9})
    assert name in lacking(asking)
    reviewed(asking, tmp_path, "ben", f"{name}: half of these rows have no label")
    assert lacking(asking) == ""
    assert any("ben answered: " in one and name in one for one in gate_notes(asking, asking.get("finance@2")))
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="ben looked at it")
    assert not verify(asking).problems


def test_a_twin_passes_by_no_kinder_policy(asking: Registry, package: Build) -> None:
    old = judged(asking, said=OFF).reference.sha256[:8]
    folder, manifest = package(2)
    asking.register(folder, saved_again(folder, manifest), actor=AUTHOR)
    judged(asking, "finance@3", said=OFF, budgets={**BUDGETS, "off_label": 0.9})
    assert f"answers the earlier one on finance@2, which has the same weights ({old}" in (
        lacking(asking, "finance@3")
    )


def test_typed_rows_answer_no_computed_failure(asking: Registry, story: Story) -> None:
    judged(asking, said=OFF)
    asking.least = asking.least.model_copy(update={"policy": "file"})
    story.file("policy", about="finance@2")
    assert "now somebody typed its rows" in lacking(asking)


def test_approvers_see_which_prompts_are_gone(asking: Registry, package: Build, story: Story) -> None:
    """What counts is the report that let finance@2 in, and not one that was filed later."""
    judged(asking)
    lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    story.to("finance@2", "production")
    asking.register(*package(3), actor=AUTHOR)
    fewer = policy_prompts({"red_team": 30, "ordinary": 40, "extraction": 8, "wording": 40})
    kinder: dict[str, Any] = {"budgets": {**BUDGETS, "insults": 0.9}, "prompts": fewer}
    judged(asking, "finance@2", **kinder)
    judged(asking, "finance@3")
    assert not _looser(asking)
    judged(asking, "finance@3", **kinder)
    [note] = _looser(asking)
    assert "without the prompts red_team-31, red_team-32" in note and "ordinary-" not in note
    assert any("insults at most 0.9, not 0.1" in one for one in gate_notes(asking, asking.get("finance@3")))


def _looser(registry: Registry) -> list[str]:
    notes = gate_notes(registry, registry.get("finance@3"))
    return [one for one in notes if one.startswith("its policy suite asks less than that of finance@2")]


def test_verify_names_a_step_over_a_kinder_policy(asking: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes an entry without the rule is found afterwards."""
    judged(asking, said=OFF)
    judged(asking, said=OFF, budgets={**BUDGETS, "off_label": 0.9, "unchanged": 0.9})
    with monkeypatch.context() as patch:
        patch.setattr("lora_ops.registry.earlier_policies.Policies.unanswered", lambda self: ())
        lifecycle.promote(asking, "finance@2", "validated", actor="ci", reason="passes")
    assert "'validated' without a policy report that answers the earlier one" in verify(asking).problems[0]


def test_an_unanswered_policy_stops_no_rollback(asking: Registry, package: Build, story: Story) -> None:
    asking.least = asking.least.model_copy(update={"policy": "file"})
    story.to("finance@2", "production")
    asking.least = asking.least.model_copy(update={"policy": "computed"})
    judged(asking, "finance@1", said=OFF)
    judged(asking, "finance@1", budgets={**BUDGETS, "off_label": 0.9})
    told = story.evidence("incident", about="finance@2")
    lifecycle.promote(asking, "finance@1", "production", actor="ben", reason="bad", evidence=told)
    assert asking.named("finance", "production") == 1
    assert not verify(asking).problems
