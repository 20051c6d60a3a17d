"""`lora-ops review` from the plan to the filed evidence, by spreadsheets."""

import csv
import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lora_ops.errors import LoraOpsError, NotFound, Refused
from lora_ops.gates.review.commands import app
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import add_key
from lora_ops.registry.requirements import missing_for
from tests.conftest import small_clone
from tests.gates.sources import file_answers_again
from tests.registry.conftest import build_package, ssh_key

Cli = Callable[..., Result]
PEOPLE = ("chen.wei", "dana.roth")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small clone with finance@1, whose author is ana.silva."""
    small_clone(tmp_path)
    for person in PEOPLE:
        add_key(tmp_path / "owners.yaml", person, ssh_key(person).with_suffix(".pub"))
    folder = tmp_path / "package"
    with closing(open_registry(tmp_path, create=True)) as registry:
        registry.register(folder, build_package(folder, 1, fresh_days=36500), actor="ana.silva")
        file_answers_again(registry, "finance@1", "ana.silva")
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def cli(root: Path) -> Cli:
    def invoke(*words: str) -> Result:
        result = CliRunner().invoke(app, words)
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        return result

    return invoke


def filled(path: Path) -> None:
    """Vote in a spreadsheet: Food is right in every row."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["vote"] = "same" if row["left"] == row["right"] else "left" if row["left"] == "Food" else "right"
        row["accuracy_left"] = "5" if row["left"] == "Food" else "1"
        row["corrected"] = "Food" if row["left"] == row["right"] == "Travel" else ""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


def test_a_review_goes_from_plan_to_evidence(cli: Cli, root: Path) -> None:
    said = cli("start", "finance@1", *(f"--reviewer={one}" for one in PEOPLE), "--pairs=24", "--seed=5").output
    assert "finance@1 is compared with base: 24 pairs" in said and "suites/guidelines/finance.md" in said
    for person in PEOPLE:
        table = root / f"{person}.csv"
        cli("export", "finance@1", str(table), "--as", person)
        filled(table)
        assert "are new or changed" in cli("import", "finance@1", str(table), "--as", person).output
        key = str(ssh_key(person))
        assert "are submitted, signed" in cli("submit", "finance@1", "--actor", person, "--key", key).output
    told = json.loads(cli("status", "finance@1", "--json").output)
    assert [(one["reviewer"], one["is_submitted"]) for one in told["reviewers"]] == [
        (who, True) for who in PEOPLE
    ]
    said = cli("file", "finance@1").output
    assert "2 reviewers judged 24 pairs: finance@1 is better in 24, its base model in 0" in said
    assert "Krippendorff's alpha 1.000 [1.000, 1.000]" in said and "does not suffice" not in said
    assert "counting" in cli("recount", "finance@1").output
    with closing(open_registry(root)) as registry:
        assert not any("human" in one or "votes" in one for one in missing_for(registry, "finance@1")[1])


def test_a_review_that_nobody_started_says_how(cli: Cli, root: Path) -> None:
    for words in (["status"], ["submit"], ["export", str(root / "x.csv")], ["file"]):
        with pytest.raises(NotFound, match="Nobody has started a review of finance@1: `lora-ops review start"):
            cli(words[0], "finance@1", *words[1:])
    with pytest.raises(NotFound, match="finance@1 has no filed review"):
        cli("recount", "finance@1")


def test_start_says_whose_answers_are_packaged(cli: Cli, root: Path) -> None:
    folder = root / "second"
    with closing(open_registry(root)) as registry:
        registry.register(folder, build_package(folder, 2, fresh_days=36500), actor="ana.silva")
    told = json.loads(cli("start", "finance@1", "--against=finance@2", "--json").output)
    assert "no gate let finance@2 give its answers again, so reviewers see its packaged ones" in told["notes"]
    assert any(one.startswith("finance@2 was never in production, and a step needs") for one in told["notes"])


def test_status_shows_nobodys_votes(cli: Cli) -> None:
    cli("start", "finance@1", "--json")
    told = json.loads(cli("status", "finance@1", "--json").output)
    assert {one["reviewer"]: one["judged"] for one in told["reviewers"]} == {
        "ben.okafor": 0, "chen.wei": 0, "dana.roth": 0,
    }  # fmt: skip
    assert not {"vote", "votes"} & set(told["reviewers"][0])
    with pytest.raises(Refused, match="ana.silva is not|Ana Silva is the author"):
        cli("export", "finance@1", "x.csv", "--as", "ana.silva")
