"""One table of exit codes, and JSON of every command, refusals too."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError
from lora_ops.exit_codes import MEANINGS, ExitCode
from tests.conftest import ROOT, run
from tests.registry.conftest import owners  # noqa: F401 - a fixture
from tests.serving.conftest import Clone, clone, clone_source  # noqa: F401 - fixtures


def commands(group: Any, *words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *words, name)
        else:
            yield " ".join([*words, name]), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_readme_shows_the_exit_codes() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", (ROOT / "docs/ci.md").read_text(), re.M)
    assert rows == [(str(int(code)), code.name.lower(), said) for code, said in MEANINGS.items()]
    assert list(MEANINGS) == list(ExitCode)


def test_every_kind_of_error_has_a_code_of_the_table() -> None:
    kinds = [LoraOpsError, *LoraOpsError.__subclasses__()]
    assert {kind.exit_code for kind in kinds} <= set(ExitCode) - {ExitCode.OK, ExitCode.INTERNAL}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json(command: str) -> None:
    assert "--json" in [option for one in COMMANDS[command].params for option in one.opts]


def in_json(repository: Path, *words: str, **environment: str) -> tuple[int, Any]:
    done = run("lora-ops", *words, "--json", cwd=repository, **environment)
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["registry", "show", "finance@9"], ExitCode.NOT_FOUND, "There is no registry in"),
        (["registry", "list", "nobody"], ExitCode.NOT_FOUND, "There is no registry in"),
        (["run", "notebooks/09_pray.ipynb"], ExitCode.NOT_FOUND, "There is no notebook"),
        (["run", "notebooks/01_prepare.ipynb", "-p", "x"], ExitCode.INVALID, "write name=value"),
        (["tenant", "check", "retail"], ExitCode.NOT_FOUND, "params.yaml has no tenant 'retail'"),
        (["profile", "vast"], ExitCode.NOT_FOUND, "There is no profile"),
        (["keys", "revoke", "k-1"], ExitCode.NOT_FOUND, "There is no key 'k-1'"),
        (["keys", "create"], ExitCode.INVALID, "Say whose key it is"),
        (["report"], ExitCode.INVALID, "is not packaged yet"),
        (["registry", "shwo"], ExitCode.INVALID, "No such command 'shwo'"),
        (["chat", "finance"], ExitCode.INVALID, "Ask with TEXT"),
        (["chat", "finance", "x", "--loud"], ExitCode.INVALID, "No such option"),
    ],
)
def test_a_refusal_in_json_is_one_object(
    repository: Path, words: list[str], code: ExitCode, message: str
) -> None:
    returned, printed = in_json(repository, *words)
    assert returned == code
    error = printed["error"]
    assert (error["code"], error["exit_code"]) == (code.name.lower(), code)
    assert message in error["message"]


def test_a_rule_that_forbids_it_is_refused(clone: Clone) -> None:  # noqa: F811
    """Through a notebook too: the runbook's own error keeps its kind."""
    (clone.root / "runbooks").symlink_to(ROOT / "runbooks")
    words = ("rollback", "finance@1", "--reason", "leaks", "--actor", "ben")
    returned, printed = in_json(clone.root, *words)
    assert returned == ExitCode.REFUSED
    assert "was never in production" in printed["error"]["message"]


def test_a_fault_of_our_own_is_internal(repository: Path) -> None:
    script = "import lora_ops.settings.files as f, lora_ops.cli as c; f.find_root = lambda: 1 / 0; c.main()"
    for words, out in ((["report"], False), (["report", "--json"], True)):
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == ExitCode.INTERNAL
        assert "ZeroDivisionError" in done.stderr
        if out:
            assert json.loads(done.stdout)["error"]["code"] == "internal"


def test_json_of_a_notebook_is_alone_on_stdout(repository: Path) -> None:
    returned, printed = in_json(repository, "run", "notebooks/traffic.ipynb")
    assert returned == ExitCode.OK
    assert printed["page"] == str(repository / "reports/traffic.html")


def test_json_of_keys_is_what_the_table_shows(repository: Path) -> None:
    _, made = in_json(repository, "keys", "create", "finance", "--note", "[red]card team")
    assert made["secret"].startswith("lora-finance-")
    assert made["logged"] is False  # there is no registry yet
    _, listed = in_json(repository, "keys", "list")
    assert [(key["id"], key["note"]) for key in listed] == [(made["id"], "[red]card team")]
    assert in_json(repository, "keys", "revoke", made["id"])[1]["revoked_at"]


def test_what_follows_two_dashes_is_no_option(repository: Path) -> None:
    done = run("lora-ops", "chat", "finance", "--", "--json", cwd=repository)
    assert done.returncode == ExitCode.NOT_FOUND
    assert done.stdout == "" and done.stderr.startswith("lora-ops: ")


def test_ctrl_c_before_the_command_begins_is_no_fault() -> None:
    """The commands are built before typer takes an interrupt: then its traceback came, and code 1."""
    # Python takes the signal between two steps, so that there must be one after it.
    interrupt = "t.get_command = lambda _: (signal.raise_signal(signal.SIGINT), time.sleep(5))"
    # A shell's background job ignores SIGINT, and so does what it starts.
    heeded = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"import signal, time, typer.main as t, lora_ops.cli as c; {heeded}; {interrupt}; c.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (ExitCode.INTERRUPTED, "")
