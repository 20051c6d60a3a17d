"""The command line: one sentence on stderr for what a person can mend, and the exit code of its kind."""

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
        (["report"], 2, "' is not packaged yet: run `make repro`"),
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


def test_a_page_about_all_tenants_runs_without_one(repository: Path) -> None:
    done = run("lora-ops", "run", "notebooks/traffic.ipynb", "-p", "days=0.5", cwd=repository)
    assert done.returncode == 0, done.stderr
    assert "No requests yet" in (repository / "reports/traffic.html").read_text()


def test_outside_a_repository_it_uses_the_one_that_it_is_installed_from(tmp_path: Path) -> None:
    shown = run("lora-ops", "registry", "schema", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr


def test_a_root_that_is_none_is_said(tmp_path: Path) -> None:
    import subprocess
    import sys

    command = [Path(sys.executable).parent / "lora-ops", "report"]
    refused = subprocess.run(
        command, cwd=ROOT, env={"LORA_OPS_ROOT": str(tmp_path), "PATH": "/bin"}, capture_output=True, text=True
    )
    assert refused.returncode == 2 and "No params.yaml and dvc.yaml in $LORA_OPS_ROOT" in refused.stderr


def test_every_command_explains_itself() -> None:
    for words in ([], ["tenant"], ["registry"]):
        assert run("lora-ops", *words, "--help", cwd=ROOT).returncode == 0
