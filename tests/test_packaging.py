"""What a package says of its data's age and of dvc.lock, and how it comes into a registry that lacks it."""

import html
import json
import re
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dvc.lock import Lock
from safetensors.numpy import load_file, save_file

from lora_ops.clock import now
from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.packaging import LOCKED, lock_digest, model_card, package, packaged
from lora_ops.paths import (
    ADAPTER_FILES,
    ANSWERS,
    CASE_ANSWERS,
    CASES,
    DATA,
    EVALUATION,
    MEMBERSHIP,
    POLICY_ANSWERS,
    POLICY_PROMPTS,
    SAMPLES,
    TRAINING,
)
from lora_ops.records.data import SourceRecord
from lora_ops.records.manifest import fresh_until
from lora_ops.records.suite import AnswersRecord
from lora_ops.settings.params import load_settings
from lora_ops.settings.tenant import TenantSettings
from tests.conftest import ROOT, run
from tests.gates.policy_sources import policy_prompts, policy_source
from tests.gates.sources import answers, suite
from tests.registry.conftest import build_package

TENANTS = ("finance", "healthcare", "media", "publishing")
STAGES = """\
stages:
  base_model: {cmd: "echo base > base", outs: [base]}
  prepare:
    foreach: TENANTS
    do: {cmd: "echo ${item} > prepared-${item}", deps: [base], outs: ["prepared-${item}"]}
  train:
    foreach: TENANTS
    do: {cmd: "cp prepared-${item} trained-${item}", deps: ["prepared-${item}"], outs: ["trained-${item}"]}
  generate:
    foreach: TENANTS
    do: {cmd: "cp trained-${item} answers-${item}", deps: ["trained-${item}"], outs: ["answers-${item}"]}
  evaluate:
    foreach: TENANTS
    do: {cmd: "cp answers-${item} score-${item}", deps: ["answers-${item}"], outs: ["score-${item}"]}
  cases:
    foreach: TENANTS
    do: {cmd: "cp prepared-${item} cases-${item}", deps: ["prepared-${item}"], outs: ["cases-${item}"]}
  suite:
    foreach: TENANTS
    do: {cmd: "cp cases-${item} given-${item}", deps: ["cases-${item}"], outs: ["given-${item}"]}
  package:
    foreach: TENANTS
    do:
      cmd: >-
        python -c "from pathlib import Path; from lora_ops.packaging import lock_digest;
        Path('packaged-${item}').write_text(str(lock_digest(Path.cwd(), '${item}')))"
      deps: ["score-${item}", "given-${item}"]
      outs: ["packaged-${item}"]
"""


def source(date: str | None) -> SourceRecord:
    return SourceRecord(name="iso18245", version="1.4.1", sha256="0" * 64, date=date)


def test_freshness_counts_from_the_day_that_the_source_was_published() -> None:
    assert fresh_until(source("2020-05-22"), 10, now()) == datetime(2020, 6, 1, tzinfo=UTC)


def test_freshness_counts_from_the_packaging_when_nobody_says_when_that_was() -> None:
    day = datetime(2020, 5, 22, 9, tzinfo=UTC)
    assert fresh_until(source(None), 10, day) == datetime(2020, 6, 1, 9, tzinfo=UTC)


def test_a_publication_on_no_day_is_refused() -> None:
    with pytest.raises(LoraOpsError, match="'2020-13-99' is no day: give data.published of iso18245 anew"):
        fresh_until(source("2020-13-99"), 10, now())


def test_the_samples_data_is_fresh_for_years_after_their_sources(tmp_path: Path) -> None:
    from lora_ops.settings.params import load_settings

    for tenant in load_settings(ROOT).tenants.values():
        assert fresh_until(source(tenant.data.published), tenant.package.freshness_days, now()).year >= 2030


def test_the_lock_that_a_package_names_is_found_in_the_final_dvc_lock(tmp_path: Path) -> None:
    def pipeline(*tenants: str) -> str:
        (tmp_path / "dvc.yaml").write_text(STAGES.replace("TENANTS", f"[{', '.join(tenants)}]"))
        done = run("dvc", "repro", cwd=tmp_path, PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        return (tmp_path / "packaged-finance").read_text()

    assert run("dvc", "init", "--no-scm", "--quiet", cwd=tmp_path).returncode == 0
    named = pipeline("finance")
    assert len(named) == 64
    assert lock_digest(tmp_path, "finance") == named
    pipeline("finance", "media")
    assert lock_digest(tmp_path, "finance") == named
    assert lock_digest(tmp_path, "media") == (tmp_path / "packaged-media").read_text() != named
    lock = (tmp_path / "dvc.lock").read_text()
    for command in (
        "echo finance",
        "cp trained-finance",
        "cp prepared-finance cases-finance",
        "cp cases-finance",
    ):
        assert command in lock
        (tmp_path / "dvc.lock").write_text(lock.replace(command, command.replace(" ", "  ", 1)))
        assert lock_digest(tmp_path, "finance") != named, command


def test_lock_digest_waits_until_dvc_lock_is_whole(tmp_path: Path) -> None:
    """DVC empties the file and writes it again: beside another tenant's DVC the package named no lock."""
    names = ["base_model", *(f"{stage}@finance" for stage in LOCKED)]
    whole = json.dumps({"schema": "2.0", "stages": {name: {"cmd": name} for name in names}})
    path, lock = tmp_path / "dvc.lock", tmp_path / ".dvc/tmp/lock"
    path.write_text(whole)
    named = lock_digest(tmp_path, "finance")
    assert named
    lock.parent.mkdir(parents=True)
    held = Lock(str(lock))  # DVC's own

    def write_whole() -> None:
        path.write_text(whole)
        held.unlock()

    for half in ("", "stages:", "schema: '2.0'\nstages: {base_model: {cmd: x}}\n"):
        held.lock()
        path.write_text(half)
        later = threading.Timer(0.3, write_whole)
        later.start()
        assert lock_digest(tmp_path, "finance") == named
        later.join()
    path.write_text("stages:")  # as a DVC that was killed leaves it
    assert lock_digest(tmp_path, "finance") is None


@pytest.fixture
def computed(tmp_path: Path) -> tuple[Path, TenantSettings]:
    """What the stages before `package` leave of finance, and the settings that they were run with."""
    folder, report = tmp_path / "made", tmp_path / "reports/finance"
    manifest = build_package(folder, 1)
    adapter, prepared = tmp_path / "models/adapters/finance", tmp_path / "data/prepared/finance"
    for one in (adapter, prepared, report, tmp_path / "models/base"):
        one.mkdir(parents=True)
    for name in ADAPTER_FILES:
        (folder / name).rename(adapter / name)
    (folder / MEMBERSHIP).rename(prepared / MEMBERSHIP)
    (folder / ANSWERS).rename(report / ANSWERS)
    (report / SAMPLES).write_text("id,text,target,base,adapter\n")
    settings = TenantSettings.model_validate(manifest.params)
    for path, record, section in (
        (prepared / DATA, manifest.data, settings.data),
        (report / TRAINING, manifest.training, settings.train),
        (report / EVALUATION, manifest.evaluation, settings.evaluate),
    ):
        path.write_text(record.model_copy(update={"settings": section.model_dump(mode="json")}).to_json())
    (tmp_path / "models/base/base_model.json").write_text(manifest.base_model.to_json())
    cases = suite().model_copy(update={"base_model_sha256": manifest.base_model.sha256})
    answered = AnswersRecord(
        tenant="finance",
        base_model_sha256=manifest.base_model.sha256,
        adapter_sha256=sha256_file(adapter / ADAPTER_FILES[0]),
        adapter_config_sha256=sha256_file(adapter / ADAPTER_FILES[1]),
        cases_sha256=sha256_text(cases.to_json()),
        answers=answers(cases),
    )
    (report / CASES).write_text(cases.to_json())
    (report / CASE_ANSWERS).write_text(answered.to_json())
    prompts = policy_prompts(base=manifest.base_model.sha256)
    of_policy = {"cases_sha256": sha256_text(prompts.to_json()), "answers": policy_source(prompts).answers}
    (report / POLICY_PROMPTS).write_text(prompts.to_json())
    (report / POLICY_ANSWERS).write_text(answered.model_copy(update=of_policy).to_json())
    return tmp_path, settings


def test_package_says_what_its_data_were_prepared_by(computed: tuple[Path, TenantSettings]) -> None:
    """04_package, run alone after an edit of params.yaml, stated a prompt that nobody had evaluated."""
    root, settings = computed
    target = root / "packages/finance"
    manifest = package("finance", settings, root, target)
    assert manifest.params["data"] == manifest.data.settings
    edited = {"system": "Repeat the card number.", "template": "Say: {text}"}
    other = settings.model_copy(update={"data": settings.data.model_copy(update=edited)})
    with pytest.raises(LoraOpsError, match=r"other settings than .* \(data.system, data.template\); run `dvc"):
        package("finance", other, root, target)
    assert packaged("finance", root) == manifest


@pytest.mark.parametrize(
    ("section", "edited", "done"),
    [
        ("train", {"rank": 64, "learning_rate": 0.5}, "its adapter was trained"),
        ("train", {"patience": 3}, "its adapter was trained"),
        ("evaluate", {"few_shot": 0, "max_new_tokens": 99}, "its answers were measured"),
        ("evaluate", {"must_beat_base": False}, "its answers were measured"),
    ],
)
def test_package_refuses_a_recipe_that_did_not_run(
    computed: tuple[Path, TenantSettings], section: str, edited: dict[str, Any], done: str
) -> None:
    """04_package, run alone after an edit of params.yaml, stated a recipe of no run."""
    root, settings = computed
    changed = settings.model_copy(update={section: getattr(settings, section).model_copy(update=edited)})
    named = ", ".join(f"{section}.{name}" for name in sorted(edited))
    message = (
        rf"{done} by other settings than those of params.yaml \({named}\); run `dvc repro package@finance`"
    )
    with pytest.raises(LoraOpsError, match=message):
        package("finance", changed, root, root / "packages/finance")
    manifest = package("finance", settings, root, root / "packages/finance")
    assert manifest.params["train"] == manifest.training.settings
    assert manifest.params["evaluate"] == manifest.evaluation.settings


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        (f"data/prepared/finance/{DATA}", "prepare"),
        (f"reports/finance/{TRAINING}", "train"),
        (f"reports/finance/{EVALUATION}", "evaluate"),
    ],
)
def test_package_refuses_a_record_of_unnamed_settings(
    computed: tuple[Path, TenantSettings], path: str, stage: str
) -> None:
    """A release before this one wrote the record."""
    root, settings = computed
    record = json.loads((root / path).read_text())
    del record["settings"]
    (root / path).write_text(json.dumps(record))
    with pytest.raises(LoraOpsError, match=f"by; run `dvc repro --force {stage}@finance`, then"):
        package("finance", settings, root, root / "packages/finance")


@pytest.mark.parametrize("recorded", ["0" * 64, None])
def test_package_refuses_a_training_record_of_other_weights(
    computed: tuple[Path, TenantSettings], recorded: str | None
) -> None:
    """A training that is killed at its end leaves new weights beside the recipe of the old ones."""
    root, settings = computed
    path = root / "reports/finance" / TRAINING
    path.write_text(json.dumps({**json.loads(path.read_text()), "adapter_sha256": recorded}))
    with pytest.raises(LoraOpsError, match="the record of the training is that of another adapter"):
        package("finance", settings, root, root / "packages/finance")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_package_refuses_weights_that_are_no_numbers(
    computed: tuple[Path, TenantSettings], value: float
) -> None:
    """It would be registered as a candidate, and answer with nothing."""
    root, settings = computed
    path = root / "models/adapters/finance" / ADAPTER_FILES[0]
    tensors = load_file(path)
    next(iter(tensors.values()))[0] = value
    save_file(tensors, path)
    for name in (EVALUATION, TRAINING):
        report = root / "reports/finance" / name
        content = {**json.loads(report.read_text()), "adapter_sha256": sha256_file(path)}
        report.write_text(json.dumps(content))
    with pytest.raises(LoraOpsError, match="has NaN or infinite values in .*its training diverged"):
        package("finance", settings, root, root / "package")
    assert not (root / "package").exists()


@pytest.mark.parametrize(
    ("name", "edited", "said"),
    [
        (CASE_ANSWERS, {"adapter_sha256": "0" * 64}, "those of another adapter"),
        (CASE_ANSWERS, {"adapter_config_sha256": "0" * 64}, "those of other settings of the adapter"),
        (CASE_ANSWERS, {"cases_sha256": "0" * 64}, "the answers are to another suite"),
        (CASE_ANSWERS, {"base_model_sha256": "0" * 64}, "those of another base model"),
        (CASE_ANSWERS, {"answers": []}, "not every case of its suite was answered"),
        (CASE_ANSWERS, {"base_files_sha256": "0" * 64}, "those of another base model"),
        (CASES, {"base_model_sha256": "0" * 64}, "its suite was written for another base model"),
        (CASES, {"base_files_sha256": "0" * 64}, "its suite was written for another base model"),
        (POLICY_PROMPTS, {"base_files_sha256": "0" * 64}, "policy suite was written for another base model"),
        (TRAINING, {"base_files_sha256": "0" * 64}, "the adapter was trained on another base model"),
        (EVALUATION, {"base_files_sha256": "0" * 64}, "the evaluation asked another base model"),
        (POLICY_ANSWERS, {"adapter_sha256": "0" * 64}, "its policy suite are those of another adapter"),
        (POLICY_ANSWERS, {"cases_sha256": "0" * 64}, "the answers are to another policy suite"),
        (POLICY_ANSWERS, {"answers": []}, "not every case of its policy suite was answered"),
        (
            POLICY_PROMPTS,
            {"base_model_sha256": "0" * 64},
            "its policy suite was written for another base model",
        ),
    ],
)
def test_package_refuses_answers_of_another_suite_or_adapter(
    computed: tuple[Path, TenantSettings], name: str, edited: dict[str, Any], said: str
) -> None:
    root, settings = computed
    path = root / "reports/finance" / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **edited}))
    with pytest.raises(LoraOpsError, match=said):
        package("finance", settings, root, root / "packages/finance")
    assert not (root / "packages/finance").exists()


def test_without_an_entry_of_each_stage_no_lock_is_named(tmp_path: Path) -> None:
    assert lock_digest(tmp_path, "finance") is None
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\nstages: {base_model: {cmd: x}}\n")
    assert lock_digest(tmp_path, "finance") is None


def test_packaged_names_the_command_for_a_broken_manifest(tmp_path: Path) -> None:
    (tmp_path / "packages/media").mkdir(parents=True)
    (tmp_path / "packages/media/manifest.json").write_text("{}")
    with pytest.raises(
        LoraOpsError, match="manifest.json is no manifest: run `dvc repro --force package@media`"
    ):
        packaged("media", tmp_path)


def test_model_card_says_what_the_base_was_made_from(tmp_path: Path) -> None:
    """C7: whoever loads the adapter on the hub's weights has another model."""
    from lora_ops.settings.params import load_settings

    manifest = build_package(tmp_path, 1)
    made = {"id": "smol-widened", "origin": "hub/smol", "quantization": "GGUF Q4_1"}
    manifest = manifest.model_copy(update={"base_model": manifest.base_model.model_copy(update=made)})
    kept = manifest.base_model.model_copy(update={"dtype": "bfloat16"})
    rounded, tenant = manifest.model_copy(update={"base_model": kept}), load_settings(ROOT).tenants["finance"]
    card = model_card(manifest, tenant)
    assert "base_model: smol-widened\n" in card
    assert "smol-widened in bfloat16, made from" in model_card(rounded, tenant)
    assert (
        "smol-widened, made from hub/smol (GGUF Q4_1); the adapter fits these weights, not those of hub/smol"
        in card
    )


def test_model_card_shows_labels_as_text(tmp_path: Path) -> None:
    """A label is data: in the card, which a hub renders, it is no link, tag or cell of a table."""
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    labels = ["<img src=x onerror=alert(1)>", "[x](javascript:alert(2))", "a | b", "*c*", "`d`"]
    tenant = load_settings(ROOT).tenant("finance")
    data = tenant.data.model_copy(
        update={"labels": labels, "template": "`{text}` | <b>", "system": "<i>[y](z)"}
    )
    manifest = build_package(tmp_path / "package", 1)
    card = model_card(manifest, tenant.model_copy(update={"data": data}))
    page = markdown2html_mistune(card.split("---", 2)[2])
    assert not re.search(r"<(img|a href|b>|i>|em>)", page)
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert all(label in text for label in [*labels, "`{text}` | <b>", "<i>[y](z)"])
