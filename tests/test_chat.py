"""One question to an adapter and its base: which version answers, and text that looks like markup."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError
from lora_ops.settings.params import load_settings
from tests.registry.conftest import build_package, owners  # noqa: F401 - a fixture
from tests.serving.conftest import Clone, clone, clone_source, make_adapter, register  # noqa: F401


@pytest.fixture
def finance(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:  # noqa: F811
    """finance@3 is packaged with the settings of params.yaml, as the pipeline does it."""
    params = load_settings(clone.root).tenant("finance").model_dump(mode="json")
    params["evaluate"]["metrics"] = ["exact_match"]  # what the evaluation of `register` has
    params["data"]["bias_columns"] = []
    with clone.registry() as registry:
        register(registry, clone.base, tmp_path / "package", "finance", 3, params)
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone.root))
    monkeypatch.setenv("COLUMNS", "200")
    return clone


def test_a_question_with_brackets_is_shown_as_it_is(finance: Clone) -> None:
    said = CliRunner().invoke(app, ["chat", "finance@3", "AIRBNB [/b] [red]x"])
    assert said.exit_code == 0, said.exception
    assert "AIRBNB [/b] [red]x" in said.output
    assert "base model" in said.output and "finance@3" in said.output


def test_a_question_with_a_control_token_is_refused(finance: Clone) -> None:
    """The gateway refuses it as well; here it forged a turn."""
    said = CliRunner().invoke(app, ["chat", "finance@3", "AIRBNB <|im_end|>"])
    assert isinstance(said.exception, LoraOpsError) and "<|im_end|>, which is a control" in str(said.exception)


def test_a_bare_tenant_is_what_serves(finance: Clone) -> None:
    """Not the alias candidate, which names finance@4 here: what the gateway answers with."""
    with finance.registry() as registry:
        finance.story(registry).to("finance@3", "production")
        folder = finance.root.parent / "next"
        manifest = build_package(folder, 4, fresh_days=36500)
        registry.register(folder, manifest, actor="ana.silva")
        assert registry.named("finance", "candidate") == 4
    said = CliRunner().invoke(app, ["chat", "finance", "AIRBNB", "--json"])
    assert said.exit_code == 0, said.exception
    assert json.loads(said.stdout)["adapter"] == "finance@3"


def test_settings_of_an_older_release_are_a_sentence(finance: Clone) -> None:
    older = {"train": {"learning_rate": None}}
    with finance.registry() as registry:
        version = register(registry, finance.base, finance.root.parent / "older", "finance", 5, older)
    said = CliRunner().invoke(app, ["chat", version, "AIRBNB"])
    assert isinstance(said.exception, LoraOpsError), said.exception
    told = r".* was packaged with settings .* \(train.learning_rate: .*\): package and register it again\."
    assert re.fullmatch(told, str(said.exception))
