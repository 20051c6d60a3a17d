"""`lora-ops route` as people and CI run it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError, NotFound, Refused
from tests.conftest import small_clone, write_params

Cli = Callable[..., str]
WHY = ("--reason", "next step")


@pytest.fixture
def cli(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `lora-ops` in a small clone with finance@1 in production, @2 in canary and @3 in shadow."""
    small_clone(tmp_path)
    write_params(tmp_path, {"registry.evidence": {"rollout": "optional"}})  # people give versions users
    shutil.copytree(staged, tmp_path / ".registry")
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("COLUMNS", "250")

    def invoke(*words: str) -> str:
        result = CliRunner().invoke(app, words)
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return invoke


def test_route_commands_change_and_show(cli: Cli) -> None:
    said = cli("route", "canary", "finance@2", "--percent", "5", *WHY)
    assert "finance@2 answers 5 % of the users (entry " in said
    assert "is asked in shadow for 20 %" in cli("route", "shadow", "finance@3", "--percent", "20", *WHY)
    pin = ("--user", "ann", "--user", "bo", "--segment", "beta")
    assert "finance@2 answers 2 users and 1 segment" in cli("route", "pin", "finance@2", *pin, *WHY)
    shown = cli("route", "show", "finance")
    for text in ("finance@1", "finance@2 5 %", "finance@3 20 %", "finance@2: 2 users", "finance@2: beta"):
        assert text in shown
    assert "pinned finance@2 by ben.okafor" in shown and "next step" in shown and "ann" not in shown
    assert "for 1 user" in cli("route", "unpin", "finance", "--user", "ann", *WHY)
    assert "has a share in canary" in cli("route", "clear", "finance", "--canary", *WHY)
    assert "finance@2: 1 user" in cli("route", "show")
    assert "canary set to 5 %" in cli("registry", "history", "finance@2")


def test_route_stop_says_what_happens_to_production(cli: Cli) -> None:
    said = cli("route", "stop", "finance@1", "--reason", "says odd things")
    assert "answers nobody until" in said and "requests of 'finance' that reach production are refused" in said
    assert "finance@1 is stopped" in cli("registry", "status", "finance")
    assert "is stopped" in cli("registry", "show", "finance@1")
    assert "finance@1 is stopped no more" in cli("route", "resume", "finance@1", *WHY)
    assert "refused" not in cli("route", "show")


def test_route_json_gives_what_a_controller_needs(cli: Cli) -> None:
    [before] = json.loads(cli("route", "show", "--json"))
    assert (before["seq"], before["canary"], before["changed_by"]) == (0, None, None)
    done = json.loads(
        cli("route", "canary", "finance@2", "--percent", "5", "--expect-seq", "0", "--json", *WHY)
    )
    assert (done["canary"], done["canary_percent"], done["changed_by"]) == ("finance@2", 5, "ben.okafor")
    assert done["seq"] > 0 and done["head_remembered"] is True
    with pytest.raises(Refused, match="changed meanwhile"):
        cli("route", "canary", "finance@2", "--percent", "25", "--expect-seq", "0", *WHY)
    assert json.loads(cli("registry", "status", "finance", "--json"))[0]["route"] == [
        "finance@2 answers 5 % of the users"
    ]


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (("show", "nobody"), NotFound, "no adapter of 'nobody'"),
        (("show", "<b>[/]\n"), LoraOpsError, "names no version"),
        (("clear", "finance", *WHY), LoraOpsError, "--canary or --shadow"),
        (("clear", "finance", "--canary", "--shadow", *WHY), LoraOpsError, "--canary or --shadow"),
        (("clear", "finance@2", "--canary", *WHY), LoraOpsError, "names no tenant"),
        (("pin", "finance@2", *WHY), LoraOpsError, "at least one user or segment"),
        (("canary", "finance@2", "--percent", "nan", *WHY), LoraOpsError, "above 0"),
        (("stop", "finance", *WHY), LoraOpsError, "name the exact one"),
        (("stop", "finance@9", *WHY), NotFound, "no finance@9"),
    ],
)
def test_route_refuses_bad_input_in_one_sentence(
    cli: Cli, words: tuple[str, ...], kind: type[LoraOpsError], text: str
) -> None:
    with pytest.raises(kind, match=text):
        cli("route", *words)
