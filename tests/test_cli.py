"""The command line: one sentence on stderr for what a person can mend, and the exit code of its kind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run


@pytest.mark.parametrize(
    ("command", "code", "told"),
    [
        (["run", "notebooks/01_prepare.ipynb", "--tenant", "retail"], 4, "params.yaml has no tenant 'retail'"),
        (["run", "notebooks/09_pray.ipynb", "--tenant", "finance"], 4, "There is no notebook"),
        (["run", "notebooks/01_prepare.ipynb", "--tenant", "finance", "-p", "speed=9"], 2,
         "01_prepare.ipynb declares no parameter 'speed' (it declares: tenant)"),
        (["run", "notebooks/01_prepare.ipynb", "--tenant", "finance", "-p", "speed"], 2, "write name=value"),
        (["run", "notebooks/01_prepare.ipynb"], 2, "is about one tenant: say which one with --tenant"),
        (["run", "notebooks/01_prepare.ipynb", "-p", "tenant=media"], 2, "Name the tenant with --tenant"),
        (["run", "runbooks/rollback.ipynb", "--tenant", "finance", "-p", "confirm=maybe"], 2,
         "'confirm' takes True or False"),
        (["report"], 2, "' is not packaged yet: run `dvc repro package@"),
        (["chat", "finance", "hello"], 4, "There is no"),
        (["registry", "show", "finance@9"], 4, "There is no registry in"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(
    repository: Path, command: list[str], code: int, told: str
) -> None:
    refused = run("lora-ops", *command, cwd=repository)
    assert refused.returncode == code
    assert told in refused.stderr
    assert refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_no_message_floods_a_terminal(repository: Path, words: list[str]) -> None:
    given = ("-p", "x" * 100_000)
    refused = run("lora-ops", "run", "notebooks/01_prepare.ipynb", *given, *words, cwd=repository)
    assert refused.returncode == 2
    said = refused.stdout + refused.stderr
    assert len(said) < 500 and "x… (100,001 characters) write name=value" in said


def test_a_source_that_leads_in_a_circle_is_one_sentence(repository: Path) -> None:
    (repository / "data/sources/rows.csv").symlink_to("rows.csv")
    refused = run("lora-ops", "tenant", "add", "support", "data/sources/rows.csv", cwd=repository)
    assert refused.returncode == 2
    assert refused.stderr.endswith("rows.csv is a symlink that leads back to itself: mend it.\n")


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_full_disk_under_stdout_is_one_sentence(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [Path(sys.executable).parent / "lora-ops", "registry", "schema", *words]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 5
    assert done.stderr == "lora-ops: No space left on device; free some space and run this again.\n"


@pytest.mark.parametrize(
    ("redirected", "code"),
    [
        ("tenant list | true", 0),
        ("tenant list >&-", 0),
        ("tenant list --json >&- 2>&- <&-", 0),
        ("tenant check nobody 2>&-", 4),
        ("tenant check nobody 2>/dev/full", 4),
        ("tenant check 2>/dev/full", 2),
        ("tenant check nobody --json | true", 4),
        ("--help | true", 0),
        ("tenant list >/dev/full", 5),
        ("tenant remove media >/dev/full", 0),
        ("tenant remove media --json >/dev/full", 0),
        ("tenant remove nobody --json >/dev/full", 4),
        ("profile tiny >/dev/full", 0),
        ("run notebooks/traffic.ipynb >&- 2>&-", 0),
    ],
)
def test_closed_streams_change_no_exit_code(repository: Path, redirected: str, code: int) -> None:
    """A revocation into `| head -1` ended with code 1, and with `>&-` in a traceback."""
    done = run("bash", "-c", f"lora-ops {redirected}; echo ${{PIPESTATUS[0]}} > code", cwd=repository)
    assert (repository / "code").read_text() == f"{code}\n"
    assert "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize("encoding", ["utf-8:strict", "ascii:strict"])
def test_json_holds_in_every_encoding(repository: Path, encoding: str) -> None:
    with (repository / os.fsdecode(b"profiles/\xff.yaml")).open("w"):
        pass
    refused = run("lora-ops", "profile", "é", "--json", cwd=repository, PYTHONIOENCODING=encoding)
    assert refused.returncode == 4
    message = json.loads(refused.stdout)["error"]["message"]
    assert "é.yaml (there are: demo, gpu, small, tiny, trial, \udcff)" in message


def test_a_name_that_is_too_long_is_wrong_input(repository: Path) -> None:
    refused = run("lora-ops", "registry", "check-export", "x" * 300, cwd=repository)
    assert refused.returncode == 2 and "File name too long" in refused.stderr


def test_a_page_about_all_tenants_runs_without_one(repository: Path) -> None:
    done = run("lora-ops", "run", "notebooks/traffic.ipynb", "-p", "days=0.5", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "No requests yet" in (repository / "reports/traffic.html").read_text()


def test_outside_a_repository_it_uses_the_one_that_it_is_installed_from(tmp_path: Path) -> None:
    shown = run("lora-ops", "registry", "schema", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr


def test_a_root_that_is_none_is_said(tmp_path: Path) -> None:
    command = [Path(sys.executable).parent / "lora-ops", "report"]
    refused = subprocess.run(
        command, cwd=ROOT, env={"LORA_OPS_ROOT": str(tmp_path), "PATH": "/bin"}, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "No params.yaml and dvc.yaml in $LORA_OPS_ROOT" in refused.stderr


def test_every_command_explains_itself() -> None:
    for words in ([], ["tenant"], ["registry"]):
        assert run("lora-ops", *words, "--help", cwd=ROOT).returncode == 0


def test_the_version_is_that_of_the_package() -> None:
    from importlib.metadata import version

    shown = run("lora-ops", "--version", cwd=ROOT)
    assert (shown.returncode, shown.stdout) == (0, f"lora-ops {version('lora-ops')}\n")
    assert run(sys.executable, "-m", "lora_ops", "--version", cwd=ROOT).stdout == shown.stdout


def test_the_shell_completes_commands() -> None:
    asked = {"_LORA_OPS_COMPLETE": "complete_bash", "COMP_WORDS": "lora-ops reg", "COMP_CWORD": "1"}
    assert run("lora-ops", cwd=ROOT, **asked).stdout.split() == ["register", "registry"]
    assert "--install-completion" in run("lora-ops", "--help", cwd=ROOT, COLUMNS="200").stdout


def test_tenants_are_listed_with_their_rows(repository: Path) -> None:
    listed = json.loads(run("lora-ops", "tenant", "list", "--json", cwd=repository).stdout)
    assert listed["finance"]["data"]["rows"]["test"] > 0
    page = run("lora-ops", "tenant", "list", cwd=repository, COLUMNS="60").stdout
    for name, tenant in listed.items():
        assert name in page and str(tenant["data"]["rows"]["train"]) in page


def test_help_imports_nothing_heavy() -> None:
    """So that `lora-ops --help` and completion stay quick."""
    heavy = ("torch", "pandas", "wandb", "papermill", "matplotlib", "pydantic")
    code = f"import sys, lora_ops.cli; print([name for name in {heavy} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=ROOT).stdout == "[]\n"
