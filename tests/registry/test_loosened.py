"""Gates that a tenant loosened since its last version in production are named in words."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_ops.records.evaluation import Agreement, ColumnBias
from lora_ops.records.manifest import Manifest
from lora_ops.registry import lifecycle
from lora_ops.registry.cards import record
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.reports import make
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, GATES, Build, Clock, Story, with_evaluation

# Each manifest names settings that it was not made with, as no package of today may.
pytestmark = pytest.mark.usefixtures("older_packages")

USUAL = {
    "evaluate": {
        "max_gap": 0.1,
        "must_beat_base": True,
        "metrics": ["exact_match", "macro_f1"],
        "few_shot": 6,
        "bootstrap": 2000,
    },
    "data": {
        "bias_columns": ["region", "age"],
        "group": "code",
        "contract": {**GATES["data"]["contract"], "max_near_duplicates": 0.05},
    },
    "package": {"freshness_days": 365},
}
THAN = "it is judged by looser gates than finance@1, which was in production: "


@pytest.fixture
def package(package: Build) -> Build:
    """Build packages whose evaluation has what `USUAL` asks for."""

    def build(seed: int, left_out: Sequence[str] = ()) -> tuple[Path, Manifest]:
        folder, manifest = package(seed)
        [measured] = manifest.evaluation.metrics.values()
        measured = {name: value for name, value in measured.items() if name not in left_out}
        metrics = dict.fromkeys(USUAL["evaluate"]["metrics"], measured)
        bias = {name: ColumnBias(groups={}) for name in USUAL["data"]["bias_columns"]}
        return folder, with_evaluation(folder, manifest, metrics=metrics, bias=bias)

    return build


def made(manifest: Manifest, **evaluate: Any) -> Manifest:
    params = {**USUAL, "evaluate": {**USUAL["evaluate"], **evaluate}, "train": manifest.params["train"]}
    return manifest.model_copy(update={"params": params})


@pytest.fixture
def serving(registry: Registry, package: Build, story: Story) -> Registry:
    """Let finance@1 into production by the usual gates, and a limit of 0.1."""
    folder, manifest = package(1)
    registry.max_gap["finance"] = 0.1
    registry.register(folder, made(manifest), actor=AUTHOR)
    story.to("finance@1", "production")
    return registry


def dated(manifest: Manifest, day: str | None, sha256: str) -> Manifest:
    source = manifest.data.source.model_copy(update={"date": day, "sha256": sha256})
    return manifest.model_copy(update={"data": manifest.data.model_copy(update={"source": source})})


def judged_by(manifest: Manifest, own_checks: dict[str, str] | None) -> Manifest:
    data = manifest.data.model_copy(update={"own_checks": own_checks})
    return made(manifest).model_copy(update={"data": data})


@pytest.mark.parametrize("stage", ["candidate", "production"])
def test_gates_name_a_suite_that_was_removed(
    registry: Registry, package: Build, story: Story, stage: str
) -> None:
    """suites/data/finance.json was removed, and nobody saw that nothing had judged the rows."""
    before = {"no link": "a" * 64, "article is a number": "b" * 64}
    folder, manifest = package(1)
    registry.register(folder, judged_by(manifest, before), actor=AUTHOR)
    story.to("finance@1", stage)
    told = "its data were not judged by all checks that judged those of finance@1 (suites/data/finance.json): "
    for seed, own, gone in ((2, {}, "article is a number, no link"), (3, {"no link": "a" * 64}, "article")):
        folder, manifest = package(seed)
        version, _ = registry.register(folder, judged_by(manifest, own), actor=AUTHOR)
        named = [note for note in gate_notes(registry, version) if note.startswith(told + gone)]
        assert len(named) == (stage == "production" or seed == 2)
    assert "; ".join(record(registry, "finance@1").lineage.data_checks or []) == "no link; article is a number"


def test_gates_name_a_check_that_was_changed(registry: Registry, package: Build) -> None:
    """The name stayed, and `mostly` let half of the rows pass."""
    for seed, digest in ((1, "a"), (2, "b")):
        folder, manifest = package(seed)
        version, _ = registry.register(folder, judged_by(manifest, {"no link": digest * 64}), actor=AUTHOR)
    told = (
        "its data were judged by checks that finance@1 has in another form (suites/data/finance.json): no link"
    )
    assert told in gate_notes(registry, version)


@pytest.mark.parametrize(("day", "named"), [("2025-12-24", 0), ("2026-03-01", 1), (None, 1)])
def test_gates_name_the_same_data_of_a_later_day(
    registry: Registry, package: Build, day: str | None, named: int
) -> None:
    """Expired data served on under another number: their day of publication was a later one."""
    for seed, published in ((1, "2025-12-24"), (2, day)):
        folder, manifest = package(seed)
        version, _ = registry.register(folder, dated(manifest, published, "a" * 64), actor=AUTHOR)
    told = (
        f"its data count as published on {day or '2026-03-02'}, and those of finance@1, which has the same, on "
        "2025-12-24 (data.published): they expire later"
    )
    assert gate_notes(registry, version).count(told) == named


def test_gates_name_a_changed_manifest_of_production(serving: Registry, package: Build) -> None:
    """With looser settings in the row of production, nothing of the next version was looser than there."""
    folder, manifest = package(2)
    version, _ = serving.register(folder, made(manifest, few_shot=1), actor=AUTHOR)
    assert "evaluate.few_shot 1, not 6" in " ".join(gate_notes(serving, version))
    changed = "UPDATE manifests SET manifest = (SELECT manifest FROM manifests WHERE number = 2)"
    serving.db.rows(changed)
    assert "the manifest of finance@1 was changed" in " ".join(gate_notes(serving, version))


@pytest.mark.parametrize("limit", [0.9, None])
def test_gates_name_a_limit_that_was_loosened(
    serving: Registry, package: Build, story: Story, limit: float | None
) -> None:
    """The limit is that of params.yaml, and of the promotion's entry once the version is in production."""
    folder, manifest = package(2)
    serving.register(folder, made(manifest), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == []
    serving.max_gap["finance"] = limit
    told = f"{THAN}evaluate.max_gap {'none' if limit is None else '0.9'}, not 0.1"
    assert gate_notes(serving, serving.get("finance@2")) == [told]
    story.to("finance@2", "production")
    serving.max_gap["finance"] = 0.1
    assert told in record(serving, "finance@2").verdict.warnings
    without = "registry.evidence.regression false, not true; registry.evidence.release_notes false, not true"
    typed = "registry.evidence.policy file, not computed"
    by_hand = "registry.evidence.rollout optional, not required; registry.evidence.hours 0, not 24"
    defaults = f"it is judged by looser gates than the defaults: {without}; {typed}; {by_hand}"
    assert gate_notes(serving, serving.get("finance@1")) == [defaults]


@pytest.mark.parametrize(
    ("evaluate", "told"),
    [
        ({"must_beat_base": False}, "evaluate.must_beat_base false, not true"),
        ({"metrics": ["exact_match"]}, "evaluate.metrics exact_match, not exact_match, macro_f1"),
        (
            {"metrics": ["macro_f1", "exact_match"]},
            "evaluate.metrics macro_f1, exact_match, not exact_match, macro_f1",
        ),
        ({"few_shot": 2}, "evaluate.few_shot 2, not 6"),
        ({"bootstrap": 100}, "evaluate.bootstrap 100, not 2000"),
        ({"bootstrap": "many"}, "evaluate.bootstrap many, not 2000"),
    ],
)
def test_gates_name_each_setting_of_the_evaluation(
    serving: Registry, package: Build, evaluate: dict[str, Any], told: str
) -> None:
    folder, manifest = package(2)
    serving.register(folder, made(manifest, **evaluate), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == [THAN + told]


@pytest.mark.parametrize(
    ("contract", "told"),
    [
        ({"allow_pii": True}, "data.contract.allow_pii true, not false"),
        ({"min_rows": 1}, "data.contract.min_rows 1, not 30"),
        ({"min_label_rows": 1}, "data.contract.min_label_rows 1, not 5"),
        ({"max_label_shift": 1.0}, "data.contract.max_label_shift 1, not 0.25"),
        ({"max_rows_lost": 0.9}, "data.contract.max_rows_lost 0.9, not 0.5"),
        ({"min_label_share": 0.1, "min_rows": 100}, None),
    ],
)
def test_gates_name_each_limit_of_the_contract(
    serving: Registry, package: Build, contract: dict[str, Any], told: str | None
) -> None:
    """An adapter that learned telephone numbers went to production without a word of it."""
    folder, manifest = package(2)
    data = {**USUAL["data"], "contract": {**USUAL["data"]["contract"], **contract}}
    params = {**made(manifest).params, "data": data}
    serving.register(folder, manifest.model_copy(update={"params": params}), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == ([THAN + told] if told else [])


def test_gates_name_a_group_that_was_left_out(serving: Registry, package: Build) -> None:
    """Without it rows that are alike are in training and test, and every metric looks better."""
    folder, manifest = package(2)
    params = {**made(manifest).params, "data": {**USUAL["data"], "group": None}}
    serving.register(folder, manifest.model_copy(update={"params": params}), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == [f"{THAN}data.group none, not code"]


def test_gates_name_fewer_rows_columns_and_evidence(serving: Registry, package: Build) -> None:
    folder, manifest = package(2)
    fewer = made(with_evaluation(folder, manifest, rows=80))
    params = {
        **fewer.params,
        "data": {
            **USUAL["data"],
            "bias_columns": ["age"],
            "contract": {**USUAL["data"]["contract"], "max_near_duplicates": None},
        },
        "package": {"freshness_days": 3650},
    }
    serving.register(folder, fewer.model_copy(update={"params": params}), actor=AUTHOR)
    serving.least = serving.least.model_copy(update={"policy_prompts": 5})
    serving.approvals = "unsigned"
    assert gate_notes(serving, serving.get("finance@2")) == [
        f"{THAN}data.bias_columns age, not region, age; data.contract.max_near_duplicates none, not 0.05; "
        "package.freshness_days 3650, not 365; rows of the test split 80, not 300; registry.approvals "
        "unsigned, not signed; registry.evidence.policy_prompts 5, not 30"
    ]


@pytest.mark.parametrize(
    ("left_out", "said"),
    [
        ([], []),
        (["base_few_shot"], ["its evaluation has no few-shot answers"]),
        (["base_labels"], ["no answers of it are the likeliest label"]),
        (
            ["base_few_shot", "base_labels"],
            ["its evaluation has no few-shot answers", "no answers of it are the likeliest label"],
        ),
    ],
)
def test_gates_name_ways_that_the_base_was_not_asked(
    serving: Registry, package: Build, left_out: list[str], said: list[str]
) -> None:
    """The params name six examples; they had no room, or an earlier release made the evaluation."""
    folder, manifest = package(2, left_out=left_out)
    serving.register(folder, made(manifest), actor=AUTHOR)
    notes = [f"its base model was not measured at its best ({one})" for one in said]
    assert gate_notes(serving, serving.get("finance@2")) == notes


def test_gates_are_not_those_of_a_revoked_version(serving: Registry, package: Build, story: Story) -> None:
    """A loosened version that was revoked lowers nothing for the next one."""
    told = f"{THAN}evaluate.few_shot 1, not 6; evaluate.bootstrap 100, not 2000"
    folder, manifest = package(2)
    serving.register(folder, made(manifest, few_shot=1, bootstrap=100), actor=AUTHOR)
    story.to("finance@2", "production")
    folder, manifest = package(3)
    serving.register(folder, made(manifest, few_shot=1, bootstrap=100), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@3")) == []
    lifecycle.revoke(serving, "finance@2", actor="ci", reason="it repeats card numbers")
    assert gate_notes(serving, serving.get("finance@3")) == [told]
    story.to("finance@3", "production")
    assert gate_notes(serving, serving.get("finance@3")) == [told]


def test_gates_that_nobody_recorded_are_named(serving: Registry, package: Build) -> None:
    folder, manifest = package(2)
    params = {name: USUAL[name] for name in ("data", "package")}
    params["evaluate"] = {"max_gap": 0.1, "metrics": ["exact_match", "macro_f1"], "must_beat_base": True}
    serving.register(folder, manifest.model_copy(update={"params": params}), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == [
        f"{THAN}evaluate.few_shot not recorded, not 6; evaluate.bootstrap not recorded, not 2000"
    ]


def test_gates_that_production_did_not_record(registry: Registry, package: Build, story: Story) -> None:
    folder, manifest = package(1)
    bare = {**USUAL, "package": {}}
    registry.register(folder, manifest.model_copy(update={"params": bare}), actor=AUTHOR)
    story.to("finance@1", "production")
    folder, manifest = package(2)
    registry.register(folder, made(manifest), actor=AUTHOR)
    told = f"{THAN}package.freshness_days 365, there not recorded"
    assert gate_notes(registry, registry.get("finance@2")) == [told]


def test_gates_without_production_are_held_to_defaults(registry: Registry, package: Build) -> None:
    folder, manifest = package(1)
    registry.register(folder, made(manifest, bootstrap=500, must_beat_base=False), actor=AUTHOR)
    assert gate_notes(registry, registry.get("finance@1")) == [
        "it is judged by looser gates than the defaults: evaluate.must_beat_base false, not true; "
        "evaluate.bootstrap 500, not 2000"
    ]


def test_gates_of_a_first_version_include_the_evidence(registry: Registry, package: Build) -> None:
    folder, manifest = package(1)
    registry.register(folder, made(manifest), actor=AUTHOR)
    registry.least = registry.least.model_copy(update={"requests": 1, "error_share": 0.5})
    registry.approvals = "unsigned"
    assert gate_notes(registry, registry.get("finance@1")) == [
        "it is judged by looser gates than the defaults: registry.approvals unsigned, not signed; "
        "registry.evidence.requests 1, not 100; registry.evidence.error_share 0.5, not 0.01"
    ]


@pytest.mark.parametrize(
    ("recorded", "told"),
    [
        (
            {"answered_by": "transformers"},
            "its evaluation's answers are those of transformers, not of the engine that serves",
        ),
        (
            {"answered_by": None},
            "its evaluation does not record who gave the answers (evaluation.answered_by)",
        ),
        (
            {"agreement": {"base": Agreement(rows=8, equal=8), "adapter": Agreement(rows=8, equal=6)}},
            "engine and transformers did not give all sampled answers alike: adapter 6 of 8",
        ),
    ],
)
def test_notes_say_whose_answers_were_evaluated(
    registry: Registry, package: Build, recorded: dict[str, Any], told: str
) -> None:
    folder, manifest = package(1)
    registry.register(folder, made(with_evaluation(folder, manifest, **recorded)), actor=AUTHOR)
    assert record(registry, "finance@1").verdict.warnings == [told]


def test_gates_name_a_base_that_saw_no_examples(registry: Registry, package: Build, clock: Clock) -> None:
    folder, manifest = package(1)
    registry.register(folder, made(manifest, few_shot=0), actor=AUTHOR)
    told = "its base model was not measured at its best (evaluate.few_shot: 0)"
    assert record(registry, "finance@1").verdict.warnings == [told]


def test_gates_of_a_damaged_record_are_a_note(serving: Registry, package: Build) -> None:
    folder, manifest = package(2)
    serving.register(folder, made(manifest), actor=AUTHOR)
    serving.db.rows("UPDATE manifests SET manifest = '{}' WHERE number = 1")
    [note] = gate_notes(serving, serving.get("finance@2"))
    assert "the manifest of finance@1 was changed" in note


def test_gates_name_policy_checks_that_were_left_out(serving: Registry, package: Build, story: Story) -> None:
    """A version that nobody had asked production's prompts looked as well checked as production."""
    folder, manifest = package(2)
    serving.register(folder, made(manifest), actor=AUTHOR)
    assert gate_notes(serving, serving.get("finance@2")) == []
    raw = story.folder / "policy.jsonl"
    rows = [{"adapter": "finance@2", "check": "is text", "prompt": str(i), "passed": True} for i in range(30)]
    raw.write_text("\n".join(map(json.dumps, rows)))
    lifecycle.file_evidence(serving, "finance@2", make(serving, "finance@2", "policy", raw), actor="ci")
    told = "its policy report leaves out checks of finance@1, which was in production: no-advice"
    assert gate_notes(serving, serving.get("finance@2")) == [told]
    story.file("policy", about="finance@2")
    assert gate_notes(serving, serving.get("finance@2")) == []
