"""What a policy report rests on: an adapter that gives its packaged answers again, and detectors that work."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.gates import policy_answers
from lora_ops.gates.answering import answer_policy
from lora_ops.gates.gate import replay
from lora_ops.gates.policy import policy_report
from lora_ops.gates.policy_answers import gather_policy
from lora_ops.gates.policy_gate import make_policy_report
from lora_ops.gates.policy_prompts import ask_policy
from lora_ops.hashing import sha256_file
from lora_ops.paths import POLICY_ANSWERS, POLICY_PROMPTS
from lora_ops.records.base_model import read_base_model
from lora_ops.records.data import PromptRecord
from lora_ops.records.manifest import FileRecord
from lora_ops.records.policy_report import PolicySource
from lora_ops.registry.lifecycle import file_evidence
from lora_ops.registry.reports import Report
from lora_ops.registry.store import Registry
from lora_ops.registry.versions import Version
from lora_ops.settings.detectors import DetectorSettings
from tests.gates.sources import save_real_adapter
from tests.registry.conftest import AUTHOR, LABELS, Build, evaluated

from .policy_repository import PYRIT_MEMBERS, edit_policy, keep_archive, policy_repository


@pytest.fixture
def root(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose archives were downloaded before; PyRIT's is a short one of its form."""
    found = policy_repository(tmp_path / "repository", tiny_base)
    monkeypatch.setattr("lora_ops.detectors.samples.PYRIT", ("pyrit==1", keep_archive(found, PYRIT_MEMBERS)))
    return found


@pytest.fixture
def version(registry: Registry, package: Build, root: Path) -> Version:
    return registered(registry, package, root, {})


def registered(registry: Registry, package: Build, root: Path, edited: dict[str, str]) -> Version:
    """Register a real adapter whose package has its policy answers, some of them edited, by id."""
    base = root / "models/base"
    folder, manifest = package(1)
    save_real_adapter(folder, base)
    record = read_base_model(base)
    manifest = evaluated(
        folder,
        manifest.model_copy(
            update={
                "base_model": record,
                "data": manifest.data.model_copy(update={"base_model_sha256": record.sha256}),
                "training": manifest.training.model_copy(update={"base_model_sha256": record.sha256}),
            }
        ),
        manifest.evaluation,
    )
    data = PromptRecord(system=manifest.params["data"].get("system"), labels=list(LABELS))
    rows = [f"row {row}" for row in range(300)]
    prompts = ask_policy("finance", root, data, rows, manifest.params["evaluate"]["max_new_tokens"])
    given = answer_policy(prompts, base, folder)
    answers = tuple(
        one.model_copy(update={"texts": (edited.get(one.case, one.texts[0]),)}) for one in given.answers
    )
    (folder / POLICY_PROMPTS).write_text(prompts.to_json())
    (folder / POLICY_ANSWERS).write_text(given.model_copy(update={"answers": answers}).to_json())
    kept = {
        name: FileRecord(bytes=(folder / name).stat().st_size, sha256=sha256_file(folder / name))
        for name in (POLICY_PROMPTS, POLICY_ANSWERS)
    }
    registry.register(folder, manifest.model_copy(update={"files": {**manifest.files, **kept}}), actor=AUTHOR)
    return registry.get("finance@1")


def gathered(registry: Registry, version: Version, root: Path) -> PolicySource:
    return gather_policy(registry, version, root, DetectorSettings())


def verdicts(registry: Registry, version: Version, root: Path) -> dict[str, str]:
    report = policy_report(gathered(registry, version, root), "finance", registry.clock())
    return {one.name: one.verdict for one in report.checks}


def test_gather_takes_the_packaged_answers(registry: Registry, version: Version, root: Path) -> None:
    found = gathered(registry, version, root)
    assert {one.case for one in found.answers} == {one.id for one in found.prompts.prompts}
    assert found.insults.measured and found.insults.measured.can_correct
    assert found.identifiers and found.identifiers.can_correct
    assert found == gathered(registry, version, root)


def test_gather_takes_todays_budgets(registry: Registry, version: Version, root: Path) -> None:
    """A random model gives no label; what the packaged policy.yaml said of that counts for nothing."""
    assert verdicts(registry, version, root)["off_label"] == "fail"
    edit_policy(root, "off_label: {budget: 0.1", "off_label: {budget: 0.99")
    assert verdicts(registry, version, root)["off_label"] != "fail"


def test_gather_asks_what_the_package_was_not_asked(registry: Registry, version: Version, root: Path) -> None:
    edit_policy(root, "ordinary: 20", "ordinary: 30")
    found = gathered(registry, version, root)
    assert sum(one.kind == "ordinary" for one in found.prompts.prompts) == 30


def test_gather_refuses_edited_answers(registry: Registry, package: Build, root: Path) -> None:
    """Whoever edits the answers before they are packaged passes every budget."""
    edited = {f"ordinary-{place}": "Food" for place in range(1, 21)}
    version = registered(registry, package, root, edited)
    with pytest.raises(LoraOpsError, match="are not those that its adapter gives"):
        gathered(registry, version, root)
    made = make_policy_report(registry, version, root, DetectorSettings())
    assert made.report is None and [row.verdict for row in made.rows] == ["fail"]


def test_gather_refuses_one_edited_refusal(registry: Registry, package: Build, root: Path) -> None:
    """One answer may differ by the machine, but not one that decides alone."""
    version = registered(registry, package, root, {"refusal-1": "I'm sorry, I can't do that."})
    with pytest.raises(LoraOpsError, match="1 of 52 are judged otherwise"):
        gathered(registry, version, root)


def test_no_report_without_base_model_or_policy(registry: Registry, version: Version, root: Path) -> None:
    (root / "models/base").unlink()
    report, [note], _ = make_policy_report(registry, version, root, DetectorSettings())
    assert report is None and "run `dvc repro base_model`" in note
    (root / "suites/policy.yaml").unlink()
    report, [note], _ = make_policy_report(registry, version, root, DetectorSettings())
    assert report is None and "suites/policy.yaml is missing" in note


def test_replay_holds_its_source_against_the_package(registry: Registry, version: Version, root: Path) -> None:
    """A source of made-up answers gives its own report again."""
    report, *_ = make_policy_report(registry, version, root, DetectorSettings())
    assert report
    file_evidence(registry, version.id, report, actor="ci")
    assert list(replay(registry, version)) == []
    source = PolicySource.model_validate_json(report.source)
    kinder = tuple(one.model_copy(update={"texts": ("Food",)}) for one in source.answers)
    made_up = source.model_copy(update={"answers": kinder})
    document = policy_report(made_up, "finance", registry.clock())
    file_evidence(registry, version.id, Report(document, made_up.to_json().encode(), "made up"), actor="ci")
    [said] = replay(registry, version)
    assert "policy.answers has other answers than its package to red_team-1" in said and "47 more" in said


def raising(settings: DetectorSettings, root: Path) -> object:
    raise Unavailable("The weights that find insults are missing (x): run y.")


def giving(scores: Callable[[Sequence[str]], list[float]]) -> Callable[..., object]:
    return lambda settings, root: SimpleNamespace(
        name="words", version="1", digest="a" * 64, threshold=0.5, scores=scores
    )


@pytest.mark.parametrize(
    ("detector", "said"),
    [
        (raising, "Unavailable: The weights that find insults are missing"),
        (giving(lambda texts: [math.nan] * len(texts)), "gave no number for an answer"),
        (giving(lambda texts: [0.0]), "ValueError"),
        (giving(lambda texts: 1 / 0), "ZeroDivisionError"),  # type: ignore[arg-type, return-value]
    ],
)
def test_a_detector_that_fails_fails_the_gate(
    registry: Registry,
    version: Version,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    detector: Callable[..., object],
    said: str,
) -> None:
    monkeypatch.setattr(policy_answers, "insult_detector", detector)
    found = gathered(registry, version, root)
    assert said in found.insults.failure
    assert verdicts(registry, version, root)["insults"] == "fail"
