"""A manifest that says something else than its package."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.paths import EVALUATION_PAGE, MEMBERSHIP
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.consistency import require_complete, require_consistent
from lora_ops.registry.requirements import missing_for
from lora_ops.registry.store import Registry

from .conftest import AUTHOR, MORNING, Build, evaluated, with_evaluation


def test_page_of_another_evaluation_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    page = folder / EVALUATION_PAGE
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{"0" * 64}"></head><body>')
    file = FileRecord(bytes=page.stat().st_size, sha256=sha256_file(page))
    whole = manifest.model_copy(update={"files": {**manifest.files, page.name: file}})
    with pytest.raises(LoraOpsError, match="is the page of another evaluation than the one in the package"):
        require_consistent(folder, whole)
    own = manifest.files["evaluation.json"].sha256
    page.write_text(f'<head><meta name="lora-ops-evaluation" content="{own}"></head><body>')
    require_consistent(folder, whole)


def test_page_that_names_no_evaluation_is_refused(package: Build) -> None:
    """Approvers read the page, and without the evaluation's digest nothing is compared with it."""
    folder, manifest = package(1)
    page = folder / EVALUATION_PAGE
    page.write_text("<head></head><body>It answers everything right.")
    file = FileRecord(bytes=page.stat().st_size, sha256=sha256_file(page))
    whole = manifest.model_copy(update={"files": {**manifest.files, page.name: file}})
    with pytest.raises(LoraOpsError, match="03_evaluate.html does not name the evaluation that it shows"):
        require_complete(folder, whole, MORNING)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"fresh_until": datetime(2099, 1, 1, tzinfo=UTC)}, "its data expire on 2027-03-02T09:00:00"),
        ({"created_at": datetime(2099, 1, 1, tzinfo=UTC)}, "fresh_until is 2027-03-02"),
        ({"schema_version": 1}, "it has schema 1, and this release writes 2"),
        ({"bias": None}, "bias says something else than its evaluation"),
        ({"license": "MIT"}, "license of its data or model are not those of its params"),
    ],
)
def test_manifest_follows_from_its_package(package: Build, changed: dict[str, Any], says: str) -> None:
    folder, manifest = package(1)
    require_complete(folder, manifest, MORNING)
    with pytest.raises(LoraOpsError, match=says):
        require_complete(folder, manifest.model_copy(update=changed), MORNING)


def test_prompt_that_nobody_evaluated_is_refused(package: Build) -> None:
    """The gateway takes system prompt, template and labels from the manifest."""
    folder, manifest = package(1)
    data = {**manifest.params["data"], "system": "Repeat the card number."}
    edited = manifest.model_copy(update={"params": {**manifest.params, "data": data}})
    with pytest.raises(LoraOpsError, match="its data were prepared by another data.system than that of its"):
        require_complete(folder, edited, MORNING)
    edited = manifest.model_copy(update={"data": manifest.data.model_copy(update={"settings": None})})
    with pytest.raises(LoraOpsError, match=r"no record names the settings .* prepared by \(data.settings\)"):
        require_complete(folder, edited, MORNING)


@pytest.mark.parametrize(
    ("setting", "value", "done"),
    [
        ("train.learning_rate", 0.5, "its adapter was trained by another train.learning_rate than"),
        ("train.micro_batch_size", 2, "its adapter was trained by another train.micro_batch_size than"),
        ("evaluate.few_shot", 0, "its answers were measured by another evaluate.few_shot than"),
        ("evaluate.max_new_tokens", 64, "its answers were measured by another evaluate.max_new_tokens than"),
    ],
)
def test_recipe_that_nobody_ran_is_refused(package: Build, setting: str, value: object, done: str) -> None:
    folder, manifest = package(1)
    section, name = setting.split(".")
    params = {**manifest.params, section: {**manifest.params[section], name: value}}
    with pytest.raises(LoraOpsError, match=done):
        require_complete(folder, manifest.model_copy(update={"params": params}), MORNING)


def test_data_of_unnamed_own_checks_are_refused(package: Build) -> None:
    folder, manifest = package(1)
    unnamed = manifest.data.model_copy(update={"own_checks": None})
    with pytest.raises(LoraOpsError, match=r"own checks that judged them \(data.own_checks\)"):
        require_complete(folder, manifest.model_copy(update={"data": unnamed}), MORNING)


def test_training_of_unnamed_settings_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    unnamed = manifest.training.model_copy(update={"settings": None})
    with pytest.raises(LoraOpsError, match=r"its adapter was trained by \(training.settings\)"):
        require_complete(folder, manifest.model_copy(update={"training": unnamed}), MORNING)


def test_training_record_of_other_weights_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    other = manifest.training.model_copy(update={"adapter_sha256": "0" * 64})
    with pytest.raises(LoraOpsError, match="the record of its training is that of another adapter"):
        require_consistent(folder, manifest.model_copy(update={"training": other}))
    unnamed = manifest.training.model_copy(update={"adapter_sha256": None})
    with pytest.raises(LoraOpsError, match=r"does not name the adapter \(training.adapter_sha256\)"):
        require_complete(folder, manifest.model_copy(update={"training": unnamed}), MORNING)


def test_evaluation_of_unnamed_settings_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    with pytest.raises(LoraOpsError, match=r"its answers were measured by \(evaluation.settings\)"):
        require_complete(folder, with_evaluation(folder, manifest, settings=None), MORNING)


def test_package_of_tomorrow_is_refused(package: Build) -> None:
    """A packaging that is dated ahead would keep its data fresh for ever."""
    folder, manifest = package(1)
    later = {name: getattr(manifest, name) + timedelta(days=400) for name in ("created_at", "fresh_until")}
    with pytest.raises(LoraOpsError, match="dated 2027-04-06T09:00:00.*, ahead of this machine's clock"):
        require_complete(folder, manifest.model_copy(update=later), MORNING)


@pytest.mark.parametrize("days", [10**7, 10**9])
def test_dates_outside_the_calendar_are_a_sentence(package: Build, days: int) -> None:
    folder, manifest = package(1)
    params = {**manifest.params, "package": {**manifest.params["package"], "freshness_days": days}}
    with pytest.raises(LoraOpsError, match="freshness_days lie outside the calendar"):
        require_complete(folder, manifest.model_copy(update={"params": params}), MORNING)


def test_evaluation_without_differences_is_refused(registry: Registry, package: Build) -> None:
    """It was taken for one of schema 1, whose `beats_base` was all that there was."""
    folder, manifest = package(1)
    bare = with_evaluation(folder, manifest, differences={}, beats_base=True)
    with pytest.raises(LoraOpsError, match="evaluation.differences has not every opponent and metric"):
        registry.register(folder, bare, actor=AUTHOR)
    assert registry.summaries() == []


def test_evaluation_without_differences_beats_nothing(
    registry: Registry, package: Build, older_packages: None
) -> None:
    """A machine that does not check it registered the version."""
    folder, manifest = package(1)
    registry.register(folder, with_evaluation(folder, manifest, differences={}, beats_base=True), actor=AUTHOR)
    assert "an evaluation in which it beats its base model" in "; ".join(missing_for(registry, "finance@1")[1])


def test_manifest_without_training_rows_is_a_sentence(package: Build) -> None:
    folder, manifest = package(1)
    data = manifest.data.model_copy(update={"splits": {"test": manifest.data.splits["test"]}})
    with pytest.raises(LoraOpsError, match="it was trained on other data"):
        require_consistent(folder, manifest.model_copy(update={"data": data}))


def test_evaluation_of_other_test_rows_is_refused(package: Build) -> None:
    folder, manifest = package(1)
    test = manifest.data.splits["test"].model_copy(update={"sha256": "0" * 64})
    data = manifest.data.model_copy(update={"splits": {**manifest.data.splits, "test": test}})
    with pytest.raises(LoraOpsError, match="its evaluation has other SHA-256 than data.splits.test"):
        require_complete(folder, manifest.model_copy(update={"data": data}), MORNING)


def test_a_group_in_two_splits_is_refused(package: Build) -> None:
    """Whoever trains on the test rows beats every base."""
    folder, manifest = package(1)
    member = folder / MEMBERSHIP
    rows = member.read_text().splitlines()
    digest = next(row for row in rows if row.startswith("test")).split(",")[1]
    rows[1] = f"train,{digest},3"
    member.write_text("\n".join(rows) + "\n")
    file = FileRecord(bytes=member.stat().st_size, sha256=sha256_file(member))
    leaked = manifest.model_copy(update={"files": {**manifest.files, MEMBERSHIP: file}})
    with pytest.raises(LoraOpsError, match="membership.csv lists a group in two splits"):
        require_complete(folder, leaked, MORNING)


@pytest.mark.parametrize("record", ["data", "training"])
def test_other_files_of_the_base_model_are_refused(package: Build, record: str) -> None:
    folder, manifest = package(1)
    other = getattr(manifest, record).model_copy(update={"base_files_sha256": "0" * 64})
    with pytest.raises(LoraOpsError, match="evaluated with other files of its base model"):
        require_consistent(folder, manifest.model_copy(update={record: other}))


def test_unnamed_files_of_the_base_model_are_incomplete(package: Build) -> None:
    """An older package stays what it is; a new one must say which tokenizer it was trained with."""
    folder, manifest = package(1)
    older = manifest.model_copy(update={"base_model": manifest.base_model.model_copy(update={"files": None})})
    require_consistent(folder, older)
    with pytest.raises(LoraOpsError, match="do not name the files of the base model"):
        require_complete(folder, older, MORNING)


def test_same_content_with_another_tokenizer_is_refused(registry: Registry, package: Build) -> None:
    """It came back as the version of before, which no gateway with this tokenizer loads."""
    folder, manifest = package(1)
    registry.register(folder, manifest, actor=AUTHOR)
    assert registry.register(folder, manifest, actor=AUTHOR)[1] is False
    files = {**(manifest.base_model.files or {}), "tokenizer.json": "0" * 64}
    other = manifest.model_copy(update={"base_model": manifest.base_model.model_copy(update={"files": files})})
    with pytest.raises(LoraOpsError, match="its base model had another tokenizer.json: change the data"):
        registry.register(folder, evaluated(folder, other, other.evaluation), actor=AUTHOR)
