"""params.yaml: what it accepts, and the sentence with which it refuses."""

import math
import os
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from lora_ops.errors import LoraOpsError
from lora_ops.records.evidence import EvidenceKind
from lora_ops.settings.files import find_root, parse_yaml, read_yaml
from lora_ops.settings.params import load_settings, settings_to_stop
from lora_ops.settings.rollout import RolloutSettings, ShadowSettings
from lora_ops.settings.section import colliding_tenant, refuse_reserved_name
from tests.conftest import ROOT, commit_all, write_params

MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)
BILLIONS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{one}: &a{one} [{', '.join([f'*a{one - 1}'] * 9)}]\n" for one in range(1, 10)
)


def write(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "dvc.yaml").touch()
    return write_params(folder, values)


def test_the_committed_file_is_valid() -> None:
    assert load_settings(ROOT).tenants


def test_settings_to_stop_are_of_the_last_commit(tmp_path: Path) -> None:
    """The registry is where today's file says, as far as that can be read: an uncommitted path counts."""
    root = write(tmp_path, {"registry.path": "committed", "rollout.interval_seconds": 7})
    commit_all(root)
    write(tmp_path, {"registry.path": "edited", "rollout.interval_seconds": -1})
    found = settings_to_stop(root)
    assert (found.registry.path, found.rollout.interval_seconds) == ("edited", 7)
    (root / "params.yaml").write_text("registry: [")
    assert settings_to_stop(root).registry.path == "committed"
    write(tmp_path, {"registry.path": "mended"})
    assert settings_to_stop(root).registry.path == "mended"


def test_settings_to_stop_are_refused_without_a_commit(tmp_path: Path) -> None:
    write(tmp_path, {"rollout.interval_seconds": -1})
    with pytest.raises(LoraOpsError, match=r"interval_seconds.*; correct params.yaml, or take .*`git checkout"):
        settings_to_stop(tmp_path)
    commit_all(tmp_path)
    with pytest.raises(LoraOpsError, match="interval_seconds"):
        settings_to_stop(tmp_path)


def test_a_learning_rate_in_yaml_1_2_notation_is_a_number(tmp_path: Path) -> None:
    rate = YAML().load("2e-4")  # keeps the way that it is written
    root = write(tmp_path, {"tenants.finance.train.learning_rate": rate})
    assert "learning_rate: 2e-4" in (root / "params.yaml").read_text()
    assert load_settings(root).tenants["finance"].train.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        ("tenants.finance.train.learning_rate", "fast", "tenants.finance.train.learning_rate"),
        ("tenants.finance.train.rank", 0, r"finance.train.rank: .*greater than or equal to 1.*got 0"),
        ("tenants.finance.train.learning_rate", math.inf, "learning_rate: Input should be a finite number"),
        ("tenants.finance.train.learning_rate", math.nan, "learning_rate: Input should be a finite number"),
        ("tenants.finance.train.rnak", 8, "train.rnak: is not a setting that exists"),
        ("tenants.finance.data.task", "text", "has free answers: remove labels"),
        ("tenants.finance.evaluate.metrics", ["chrf"], "chrf is a metric of free text: use exact_match or"),
        ("tenants.finance.data.source", "rows.xlsx", "must end in one of"),
        ("tenants.finance.data.labels", ["a", "b\u200b"], r"labels: the label 'b\\u200b' has a character that"),
        ("base_model.source", "folder", "source 'folder' also needs path"),
        ("base_model.id", "HuggingFaceTB/SmolLM2-135M-Instruct", "origin is another model than id"),
        (
            "base_model",
            {"id": "a/b", "source": "hub", "revision": "main"},
            "'main' can come to name other",
        ),
        ("tenants.finance.evaluate.metrics", ["bleu"], "evaluate.metrics"),
        ("registry", {"backend": "wandb", "mirror": "wandb"}, "registry: .*at W&B already: remove mirror"),
        ("registry.wandb", {"collection": "models"}, "registry.wandb.collection"),
        ("serving", {"tenants": {"gone": {"share": 1}}}, "serving.tenants has 'gone'.*remove it there too"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(tmp_path: Path, where: str, value: Any, told: str) -> None:
    with pytest.raises(LoraOpsError, match=told):
        load_settings(write(tmp_path, {where: value}))


@pytest.mark.parametrize("where", ["registry.path", "serving.path"])
@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("", "names no folder"),
        (" ", "names no folder"),
        ("a\0b", "names no folder"),
        ("~/registry", "'~' is not replaced here: write the whole path"),
        (".", "holds other things"),
        ("a/..", "holds other things"),
        ("..", "holds other things"),
        ("/", "holds other things"),
        (".git/registry", "is used already"),
        ("data", "is used already"),
        ("./lora_ops/", "is used already"),
    ],
)
def test_folder_that_something_else_has_is_refused(tmp_path: Path, where: str, path: str, told: str) -> None:
    with pytest.raises(LoraOpsError, match=f"params.yaml: {where}: .*{told}"):
        load_settings(write(tmp_path, {where: path}))


@pytest.mark.parametrize(
    "path", [".registry", "./.registry", "/srv/registry", "data/registry", "../shared registry"]
)
def test_folder_of_its_own_is_accepted(tmp_path: Path, path: str) -> None:
    assert load_settings(write(tmp_path, {"registry.path": path})).registry.path == path


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("base", "tenants.base: 'base' is reserved"),
        ("incidents", "'incidents' is reserved"),
        ("audit", "'audit' is reserved"),
        ("production", "'production' is reserved"),
        ("policy", "'policy' is reserved"),
        ("lora_adapter", "'lora_adapter' is reserved"),
        ("finance-data", "collide with what lora-ops stores of a tenant 'finance'.*not end in '-data'"),
        ("finance_policy", "not end in '-policy'"),
        ("finance-human-evaluation", "not end in '-evaluation'"),
        ("finance-1", "'finance-1' reads like a version"),
        ("finance_", "params.yaml: tenants 'finance_' and 'finance' are the same name"),
        ("Finance", "should match pattern"),
    ],
)
def test_a_tenant_name_that_would_collide_is_refused(tmp_path: Path, name: str, told: str) -> None:
    root = write(tmp_path, {})
    yaml = YAML()
    params = yaml.load((root / "params.yaml").read_text())
    params["tenants"][name] = params["tenants"]["finance"]
    with (root / "params.yaml").open("w") as file:
        yaml.dump(params, file)
    with pytest.raises(LoraOpsError, match=told):
        load_settings(root)


def test_a_tenant_named_like_the_base_model_is_refused(tmp_path: Path) -> None:
    root = write(tmp_path, {"base_model.id": "media"})
    with pytest.raises(LoraOpsError, match="'media' is both base_model.id and a tenant"):
        load_settings(root)


def test_no_evidence_of_a_tenant_is_stored_under_anothers_name() -> None:
    for kind in get_args(EvidenceKind):
        with pytest.raises(ValueError, match=f"'finance-{kind}' would collide"):
            refuse_reserved_name(f"finance-{kind}")


def test_no_artifact_of_a_tenant_is_stored_under_anothers_name() -> None:
    """Each collection `{tenant}-WORD` that the package writes at W&B."""
    sources = [path.read_text() for path in (ROOT / "lora_ops").rglob("*.py")]
    words = {word for text in sources for word in re.findall(r'f"\{[\w.]*tenant\}-([a-z_]+)"', text)}
    assert {"data", "adapter", "source"} <= words
    for word in words:
        with pytest.raises(ValueError, match=f"'finance-{word}' would collide"):
            refuse_reserved_name(f"finance-{word}")


@pytest.mark.parametrize("name", ["finance", "database", "credit-risk", "eu-finance", "line2", "policyholders"])
def test_an_ordinary_tenant_name_is_accepted(name: str) -> None:
    assert refuse_reserved_name(name) == name


@pytest.mark.parametrize(
    ("name", "others", "found"),
    [
        ("a_b", ["x", "a-b"], "a-b"),
        ("a--b", ["a-b"], "a-b"),
        ("a-b-", ["a-b"], "a-b"),
        ("a-b", ["a-b"], None),
        ("ab", ["a-b", "b"], None),
    ],
)
def test_names_that_a_store_cannot_tell_apart_collide(name: str, others: list[str], found: str | None) -> None:
    assert colliding_tenant(name, others) == found


def test_text_that_is_not_yaml_is_one_sentence(tmp_path: Path) -> None:
    root = write(tmp_path, {})
    with (root / "params.yaml").open("a") as file:
        file.write("tracking: [\n")
    with pytest.raises(LoraOpsError, match="params.yaml is not valid YAML") as told:
        load_settings(root)
    assert "\n" not in str(told.value)


def test_an_unknown_tenant_is_answered_with_those_that_exist() -> None:
    known = ", ".join(load_settings(ROOT).tenants)
    with pytest.raises(LoraOpsError, match=rf"no tenant 'retail' \(it has: {known}\)"):
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


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_root_is_not_another_clone_without_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A profile was laid over the clone that lora-ops is installed from."""
    params = write(tmp_path, {}) / "params.yaml"
    params.unlink()
    if kind == "folder":
        params.mkdir()
    elif kind == "pipe":
        os.mkfifo(params)
    else:
        params.symlink_to(tmp_path / "gone.yaml")
    monkeypatch.delenv("LORA_OPS_ROOT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoraOpsError, match="params.yaml is no file"):
        find_root()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("base_model: é".encode("latin-1"), "is not UTF-8"),
        (b"base_model: " + b"[" * 3000, "is not valid YAML"),
        (b"base_model: " + b"9" * 5000, "is not valid YAML"),
        (b"base_model: 0x" + b"f" * 5000, "a whole number has more than 18 digits"),
        (BILLIONS.encode(), "more than 100,000 values"),
        (b"base_model: &a [*a]", "more than 100,000 values"),
        (b"base_model: 1\nbase_model: 2", "duplicate key"),
        (MERGES.encode(), "more than 100,000 values"),
        (b"base_model: !!bool maybe", "not what its tag or its escapes say"),
        (b'base_model: !!int ""', "not what its tag or its escapes say"),
        (b'base_model: "\\UFFFFFFFF"', "not what its tag or its escapes say"),
        (b"# a comment\n" * 200_000, "at most 2,000,000 are read"),
    ],
)
def test_params_that_can_not_be_read_are_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(LoraOpsError, match=says):
        load_settings(tmp_path)


def test_read_yaml_waits_for_no_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "odd.yaml")
    with pytest.raises(LoraOpsError, match="this is a pipe, and no file"):
        read_yaml(tmp_path / "odd.yaml")


@pytest.mark.parametrize(
    ("canary", "said"),
    [
        ({"steps": [5, 1]}, "steps rise"),
        ({"steps": [5, 5]}, "steps rise"),
        ({"steps": [5, 75]}, "no step is above 50"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [math.nan]}, "finite number"),
    ],
)
def test_rollout_settings_refuse_steps_without_order(canary: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RolloutSettings.model_validate({"canary": canary})


@pytest.mark.parametrize(
    "canary", [{"period_hours": 1e-320}, {"period_hours": 1e9}, {"window_seconds": 1e9}, {"window_seconds": -1}]
)
def test_rollout_settings_refuse_units_that_never_count(canary: dict[str, float]) -> None:
    """Users whose window never ends show no breach, and a period of no time can't be counted."""
    with pytest.raises(ValidationError, match="less than or equal|greater than or equal"):
        RolloutSettings.model_validate({"canary": canary})


@pytest.mark.parametrize(
    "url", ["staging:8000", "http://staging/v1", "http://user:key@staging", "ftp://staging"]
)
def test_shadow_target_is_the_address_of_a_gateway(url: str) -> None:
    with pytest.raises(ValidationError, match="write one such as http://staging:8000, without /v1"):
        ShadowSettings(target=url)
    assert ShadowSettings(target="http://staging:8000/").target == "http://staging:8000"


def test_parse_yaml_gives_each_reader_values_of_its_own() -> None:
    first = parse_yaml("tenants: {finance: [1]}", "params.yaml")
    first["tenants"]["finance"].append(2)
    assert parse_yaml("tenants: {finance: [1]}", "params.yaml") == {"tenants": {"finance": [1]}}
