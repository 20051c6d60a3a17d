"""The contracts that `make validate` holds: golden prompts, schemas, and plain peft."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lora_ops import validation
from lora_ops.errors import LoraOpsError
from lora_ops.plain_peft import make_tiny
from lora_ops.settings.params import load_settings
from lora_ops.tenants import edit_params
from tests.conftest import ROOT, run


@pytest.fixture
def contracts(repository: Path) -> Path:
    shutil.copytree(ROOT / "suites", repository / "suites", dirs_exist_ok=True)
    return repository


def broken(root: Path) -> dict[str, str]:
    settings = load_settings(root)
    found = [*validation._prompts(settings, root), *validation._schemas(root)]
    return {one.what: one.problem for one in found if one.problem}


def test_shipped_contracts_hold(contracts: Path) -> None:
    assert broken(contracts) == {}


def test_validate_finds_a_prompt_that_changed(contracts: Path) -> None:
    def other(params: dict[str, Any]) -> None:
        params["tenants"]["finance"]["data"]["template"] = "Merchant: {text}"

    edit_params(contracts, other)
    [(what, problem)] = broken(contracts).items()
    assert what == "golden prompt of finance"
    assert "Merchant: <text>" in problem and "lora-ops validate --update" in problem


def test_validate_finds_a_field_that_is_gone(contracts: Path) -> None:
    path = contracts / validation.SCHEMAS / "manifest.json"
    schema = json.loads(path.read_text())
    schema["properties"]["blessed_by"] = {"type": "string"}
    path.write_text(json.dumps(schema))
    assert broken(contracts)["schema of manifest"].startswith("blessed_by is gone")


def test_validate_asks_for_contracts_that_are_missing(contracts: Path) -> None:
    (contracts / validation.GOLDEN).unlink()
    (contracts / validation.SCHEMAS / "data.json").unlink()
    found = broken(contracts)
    assert len(found) == 5 and all("validate --update" in problem for problem in found.values())
    validation.write_contracts(load_settings(contracts), contracts)
    assert broken(contracts) == {}


@pytest.mark.parametrize("content", ["{", "null", "[1]", '{"properties": [1]}', '{"maxLength": "x"}'])
@pytest.mark.parametrize("name", [validation.GOLDEN, f"{validation.SCHEMAS}/data.json"])
def test_validate_refuses_a_contract_that_is_none(contracts: Path, name: str, content: str) -> None:
    """A schema of another form promised nothing, so every schema kept its promises."""
    if name == validation.GOLDEN and content.startswith('{"'):
        pytest.skip("an object of prompts")
    (contracts / name).write_text(content)
    with pytest.raises(LoraOpsError, match="git checkout"):
        broken(contracts)


@pytest.mark.parametrize(
    ("kept", "now", "said"),
    [
        ({"type": "string"}, {"type": "integer"}, "it has type 'integer', not 'string'"),
        ({"enum": ["a", "b"]}, {"enum": ["a"]}, "it takes 'b' no more"),
        ({"enum": ["a"]}, {"enum": ["a", "b"]}, None),
        ({"properties": {"a": {}}}, {"properties": {"a": {}, "b": {}}}, None),
        ({"properties": {"a": {}}}, {"properties": {"a": {}}, "required": ["a"]}, "it must have a"),
        ({"anyOf": [{"type": "null"}]}, {"anyOf": [{"type": "null"}, {"type": "string"}]}, None),
        ({"anyOf": [{"type": "null"}, {"type": "string"}]}, {"type": "string"}, "takes one form less"),
        ({"anyOf": [{"enum": ["a"]}]}, {"anyOf": [{"enum": ["a", "b"]}]}, None),
        ({"anyOf": [{"enum": ["a", "b"]}]}, {"anyOf": [{"enum": ["a"]}]}, "takes one form less"),
        ({"anyOf": [{}, {"type": "null"}]}, {"anyOf": [{"type": "null"}]}, "takes one form less"),
        ({"items": {"type": "string"}}, {"items": {"type": "number"}}, "it[] has type"),
        ({"maxLength": 100}, {"maxLength": 50}, "it has maxLength 50, not 100"),
        ({"maxLength": 50}, {"maxLength": 100}, None),
        ({"maxLength": 50}, {}, None),
        ({"type": "integer"}, {"type": "integer", "minimum": 0}, "it has minimum 0, not any"),
        ({"properties": {"a": {}}}, {"properties": {"a": {"pattern": "x"}}}, "a has pattern x, not any"),
        ({"type": "object"}, {"type": "object", "additionalProperties": False}, "takes no other properties"),
        ({"$defs": {"A": {"type": "object"}}}, {"$defs": {}}, "A is gone"),
    ],
)
def test_losses_name_what_others_relied_on(kept: Any, now: Any, said: str | None) -> None:
    found = list(validation.losses(kept, now))
    assert (said is None) == (not found)
    assert said is None or said in found[0]


def test_validate_loads_a_tiny_adapter_with_plain_peft() -> None:
    assert [one.problem for one in validation._tiny_adapter()] == [None]


def test_load_problem_says_why_an_adapter_does_not_load(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_tiny(base, adapter)
    (adapter / "adapter_config.json").write_text("{}")
    assert validation.load_problem(base, adapter)


def test_validate_command_ends_with_1_where_a_contract_is_broken(contracts: Path) -> None:
    (contracts / validation.GOLDEN).write_text("{}")
    done = run("lora-ops", "validate", "--json", cwd=contracts, LORA_OPS_ROOT=str(contracts))
    assert done.returncode == 1, done.stderr
    assert "golden prompt of finance" in json.loads(done.stdout)["broken"]
