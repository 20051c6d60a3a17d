"""Gates that a tenant loosened since its last version in production are named in words."""

from typing import Any

import pytest

from lora_ops.records.manifest import Manifest
from lora_ops.registry.cards import record
from lora_ops.registry.loosened import gate_notes
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build, Clock, Story, with_evaluation

USUAL = {
    "evaluate": {
        "max_gap": 0.1,
        "must_beat_base": True,
        "metrics": ["exact_match", "macro_f1"],
        "few_shot": 6,
        "bootstrap": 2000,
    },
    "data": {"bias_columns": ["region", "age"], "contract": {"max_near_duplicates": 0.05}},
}
THAN = "it is judged by looser gates than finance@1, which was in production: "


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
    assert gate_notes(serving, serving.get("finance@1")) == []


@pytest.mark.parametrize(
    ("evaluate", "told"),
    [
        ({"must_beat_base": False}, "evaluate.must_beat_base false, not true"),
        ({"metrics": ["exact_match"]}, "evaluate.metrics exact_match, not exact_match, macro_f1"),
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


def test_gates_name_fewer_rows_columns_and_evidence(serving: Registry, package: Build) -> None:
    folder, manifest = package(2)
    fewer = with_evaluation(folder, made(manifest), rows=80)
    params = {**fewer.params, "data": {"bias_columns": ["age"], "contract": {"max_near_duplicates": None}}}
    serving.register(folder, fewer.model_copy(update={"params": params}), actor=AUTHOR)
    serving.least = serving.least.model_copy(update={"policy_prompts": 5})
    serving.approvals = "unsigned"
    assert gate_notes(serving, serving.get("finance@2")) == [
        f"{THAN}data.bias_columns age, not region, age; data.contract.max_near_duplicates none, not 0.05; rows "
        "of the test split 80, not 300; registry.approvals unsigned, not signed; "
        "registry.evidence.policy_prompts 5, not 30"
    ]


def test_gates_without_production_are_held_to_defaults(registry: Registry, package: Build) -> None:
    folder, manifest = package(1)
    registry.register(folder, made(manifest, bootstrap=500, must_beat_base=False), actor=AUTHOR)
    assert gate_notes(registry, registry.get("finance@1")) == [
        "it is judged by looser gates than the defaults: evaluate.must_beat_base false, not true; "
        "evaluate.bootstrap 500, not 2000"
    ]


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
    assert "manifest of finance@1 does not fit its schema" in note
