"""params.yaml: what it accepts, and the sentence with which it refuses."""

from pathlib import Path

import pytest

from lora_ops.errors import LoraOpsError
from lora_ops.settings import find_root, load_settings
from tests.conftest import ROOT


def write(folder: Path, old: str, new: str) -> Path:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    (folder / "params.yaml").write_text(text.replace(old, new, 1))
    (folder / "dvc.yaml").touch()
    return folder


def test_the_committed_file_is_valid_and_has_the_three_tenants() -> None:
    assert {"finance", "healthcare", "media"} <= set(load_settings(ROOT).tenants)


def test_a_learning_rate_in_yaml_1_2_notation_is_a_number(tmp_path: Path) -> None:
    root = write(tmp_path, "learning_rate: 1e-3", "learning_rate: 2e-4")
    assert load_settings(root).tenants["finance"].train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("learning_rate: 1e-3", "learning_rate: fast", "tenants.finance.train.learning_rate"),
        ("rank: 8", "rank: 0", r"tenants.finance.train.rank: .*greater than or equal to 1.*got 0"),
        ("rank: 8", "rnak: 8", r"train.rnak: is not a setting that exists|train.rank: Field required"),
        ("task: labels", "task: text", "has free answers: remove labels"),
        ("source: lora_ops/datasets/finance.py", "source: rows.xlsx", "must end in one of"),
        ("source: package", "source: folder", "source 'folder' also needs path"),
        ("metrics: [exact_match, macro_f1]", "metrics: [bleu]", "evaluate.metrics"),
        ("backend: embedded", "backend: wandb\n  mirror: wandb", "registry: .*at W&B already: remove mirror"),
        ("backend: embedded", "wandb: {collection: models}", "registry.wandb.collection"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, old: str, new: str, told: str) -> None:
    with pytest.raises(LoraOpsError, match=told):
        load_settings(write(tmp_path, old, new))


def test_text_that_is_not_yaml_is_one_sentence(tmp_path: Path) -> None:
    root = write(tmp_path, "tracking:", "tracking: [")
    with pytest.raises(LoraOpsError, match="params.yaml is not valid YAML") as told:
        load_settings(root)
    assert "\n" not in str(told.value)


def test_an_unknown_tenant_is_answered_with_those_that_exist() -> None:
    with pytest.raises(LoraOpsError, match=r"no tenant 'retail' \(it has: finance, healthcare, media"):
        load_settings(ROOT).tenant("retail")


def test_the_root_is_found_from_any_folder_below_and_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORA_OPS_ROOT", raising=False)
    monkeypatch.chdir(ROOT / "notebooks")
    assert find_root() == ROOT
    monkeypatch.chdir(tmp_path)
    assert find_root() == ROOT
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    with pytest.raises(LoraOpsError, match="LORA_OPS_ROOT"):
        find_root()
