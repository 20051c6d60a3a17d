"""Evidence as the record quotes it: what lora-ops counted, and what an older release kept."""

import json
from datetime import timedelta
from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_text
from lora_ops.records.evaluation import EvaluationRecord, PairedDifference
from lora_ops.records.evidence import Evidence, PolicyCheck
from lora_ops.registry import lifecycle
from lora_ops.registry.files import FileStore
from lora_ops.registry.owners import Owners
from lora_ops.registry.report_lacks import evaluation_lacks
from lora_ops.registry.reports import human_evaluation, load, make, policy_checks
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, Build, Clock, Story, reviewed, won

VOTES = '{"annotators": 2, "pairs": 20, "adapter_better": 12, "same": 6, "base_better": 2}'
CHECK = '{"name": "no-advice", "passed": true, "prompts": 40, "failed": 0}'


@pytest.fixture
def files(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "files")


def kept(files: FileStore, kind: str, text: str) -> Evidence:
    return Evidence(kind=kind, sha256=files.add_bytes(text.encode()), summary="it is fine")


def test_report_is_kept_with_what_it_was_counted_from(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(), actor=AUTHOR)
    [report] = story.evidence("policy")
    assert not registry.files.holds(report.reference.sha256)
    found = report.keep(registry.files)
    assert found == report.reference
    assert load(registry.files, found) == report.document
    assert found.source_sha256 is not None
    assert registry.files.path(found.source_sha256).read_bytes() == report.source
    assert policy_checks(registry.files, found) == [
        PolicyCheck(name="no-advice", passed=True, prompts=40, failed=0, report_sha256=found.sha256)
    ]


def test_reports_of_an_older_release_are_still_quoted(files: FileStore) -> None:
    votes = human_evaluation(files, kept(files, "human_evaluation", VOTES))
    assert votes is not None and (votes.adapter_better, votes.report_sha256) == (12, sha256_text(VOTES))
    for text in (CHECK, f"[{CHECK}]"):
        checks = policy_checks(files, kept(files, "policy", text))
        assert checks is not None and [one.name for one in checks] == ["no-advice"]


@pytest.mark.parametrize("text", ["<html>fine</html>", "3", "[3]", '{"name": "no-advice"}'])
def test_what_has_another_form_is_left_to_people(files: FileStore, text: str) -> None:
    page = kept(files, "policy", text)
    assert (load(files, page), policy_checks(files, page), human_evaluation(files, page)) == (None, None, None)


def test_evidence_of_an_older_release_is_filed_again(registry: Registry, package: Build, story: Story) -> None:
    registry.register(*package(), actor=AUTHOR)
    with registry.change("ci") as change:
        one = kept(registry.files, "policy", f"[{CHECK}]").model_dump()
        change.record("reviewed", "finance", 1, reason="by 0.0", evidence=[one])
    with pytest.raises(LoraOpsError, match="policy report that lora-ops counted .*file it again"):
        validate(registry)
    story.file("policy")
    validate(registry)


def test_no_votes_are_counted_while_the_author_is_unknown(
    registry: Registry, package: Build, story: Story, owners: Owners
) -> None:
    """An author voted on their own version, and a login that was added later let the report count."""
    registry.register(*package(), actor="laptop")
    with pytest.raises(
        LoraOpsError, match=r"can't be started yet; missing: its author 'laptop' in owners.yaml"
    ):
        story.evidence("human_evaluation")
    people = [
        one.model_copy(update={"logins": ("laptop",)}) if one.id == "dana" else one
        for one in owners.default.people
    ]
    team = owners.default.model_copy(update={"people": tuple(people)})
    registry.owners = owners.model_copy(update={"default": team})
    with pytest.raises(LoraOpsError, match="Dana is the author of finance@1: others must judge its answers"):
        reviewed(registry, "finance@1", won, ("ben", "dana"))


def validate(registry: Registry) -> None:
    lifecycle.promote(registry, "finance@1", "validated", actor="ci", reason="next")


@pytest.mark.parametrize("kind", ["gossip", "evaluation"])
def test_make_refuses_what_is_no_kind_of_evidence(
    registry: Registry, package: Build, tmp_path: Path, kind: str
) -> None:
    registry.register(*package(), actor=AUTHOR)
    (tmp_path / "ev.txt").write_text(json.dumps({"beats_base": True}))
    with pytest.raises(LoraOpsError, match=r"no evidence of kind 'gossip'|nothing else counts"):
        make(registry, "finance@1", kind, tmp_path / "ev.txt")


def test_a_clock_set_back_lengthens_no_stage(
    registry: Registry, package: Build, story: Story, clock: Clock
) -> None:
    """Shadow was entered with a clock of two days ago, so requests from before it counted."""
    registry.register(*package(), actor=AUTHOR)
    story.to("finance@1", "validated")
    registered = clock.time
    clock.move(seconds=-120)
    story.to("finance@1", "shadow")
    clock.time = registered
    path = story.folder / "early.jsonl"
    row = {"adapter": "finance@1", "status": 200, "time": (registered - timedelta(seconds=60)).isoformat()}
    path.write_text(json.dumps(row))
    with pytest.raises(LoraOpsError, match="no request to finance@1 that was answered or failed since"):
        make(registry, "finance@1", "shadow", path)


def test_evidence_of_tomorrow_does_not_count(
    registry: Registry, package: Build, story: Story, clock: Clock
) -> None:
    registry.register(*package(), actor=AUTHOR)
    clock.move(days=1)
    [report] = story.evidence("policy")
    clock.move(days=-1)
    lifecycle.file_evidence(registry, "finance@1", report, actor="ci")
    with pytest.raises(LoraOpsError, match="a policy report of the past .the last one is dated 2026-03-03"):
        validate(registry)


def test_evaluation_lacks_names_what_was_measured(package: Build) -> None:
    """Without the metric nobody knows what to work on."""
    clear = PairedDifference(value=0.4, low=0.3, high=0.5, p_value=0.001, p_corrected=0.002)
    tie = PairedDifference(value=0.01, low=-0.1, high=0.1, p_value=0.8, p_corrected=0.8)
    differences = {"base": {"exact_match": clear, "macro_f1": tie}}
    manifest = package(1)[1]
    lost = manifest.evaluation.model_copy(update={"beats_base": False, "differences": differences})
    worse = manifest.model_copy(update={"evaluation": lost})
    assert list(evaluation_lacks(worse, max_gap=None, fair_opponent=False)) == [
        "an evaluation in which it beats its base model "
        "(it does not: macro_f1 +0.010 [-0.100, +0.100] against base, corrected p 0.8)"
    ]


def without(evaluation: EvaluationRecord, system: str) -> EvaluationRecord:
    """Leave out a system, as an evaluation that never asked it."""
    metrics = {
        name: {one: value for one, value in of.items() if one != system}
        for name, of in evaluation.metrics.items()
    }
    rest = {name: of for name, of in evaluation.differences.items() if name != system}
    return evaluation.model_copy(update={"metrics": metrics, "differences": rest})


@pytest.mark.parametrize(
    ("system", "settings", "said"),
    [
        ("base_few_shot", {"few_shot": 0}, "with examples (evaluate.few_shot is 0: set it in params.yaml, run"),
        ("base_few_shot", {"few_shot": 6}, "not one example has room in the prompt"),
        ("base_few_shot", {}, "it was made by an earlier release: run `dvc repro package@finance`"),
        ("base_labels", {"few_shot": 6}, "likeliest labels (base_labels is missing: run"),
    ],
)
def test_evaluation_lacks_names_an_unfair_opponent(
    package: Build, system: str, settings: dict[str, int], said: str
) -> None:
    """With few_shot 0 an adapter had to beat a bare prompt only, and nothing but a note said so."""
    manifest = package(1)[1]
    assert not list(evaluation_lacks(manifest, None, fair_opponent=True))
    weak = without(manifest.evaluation, system).model_copy(update={"settings": settings})
    lacking = manifest.model_copy(update={"evaluation": weak})
    (found,) = evaluation_lacks(lacking, None, fair_opponent=True)
    assert said in found
    assert not list(evaluation_lacks(lacking, None, fair_opponent=False))


def test_fair_opponent_of_texts_needs_no_labels(package: Build) -> None:
    manifest = package(1)[1]
    written = manifest.model_copy(
        update={
            "data": manifest.data.model_copy(update={"task": "text"}),
            "evaluation": without(manifest.evaluation, "base_labels"),
        }
    )
    assert not list(evaluation_lacks(written, None, fair_opponent=True))
