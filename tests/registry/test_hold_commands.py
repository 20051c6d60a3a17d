"""What the commands say of a version that was revoked on this machine alone, and of one that W&B took."""

import json
from pathlib import Path

import pytest

from lora_ops.errors import Refused
from tests.conftest import write_params
from tests.wandb_server import WandbServer

from .test_commands import Cli, cli, root  # noqa: F401 - fixtures


@pytest.fixture
def shared(root: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer) -> Path:  # noqa: F811
    """The clone with its registry at W&B, which is not asked for anything."""
    write_params(root, {"registry.evidence": {"hours": 0}, "registry": {"backend": "wandb"}})
    monkeypatch.setenv("WANDB_MODE", "offline")
    return root


@pytest.mark.usefixtures("shared")
def test_revoke_says_that_it_holds_here_and_why(cli: Cli) -> None:  # noqa: F811
    done = cli("revoke", "finance@2", "--reason", "it leaks")
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert said.startswith(
        "finance@2 does not answer on this machine any more. W&B has not taken the revocation"
    )
    assert "is not asked: WANDB_MODE is 'offline'. It is queued: a running gateway, the next change" in said
    assert "Until then other machines serve finance@2: run this command there." in said
    again = json.loads(cli("revoke", "finance@2", "--reason", "again", "--json").stdout)
    assert (again["state"], again["held"]["reason"]) == ("candidate", "it leaks")
    with pytest.raises(Refused, match="mallory may not make finance@1 'revoked'"):
        cli("revoke", "finance@1", "--reason", "it leaks", "--actor", "mallory")


@pytest.mark.usefixtures("shared")
def test_every_page_names_what_is_held(cli: Cli) -> None:  # noqa: F811
    cli("revoke", "finance@2", "--reason", "it leaks")
    said = "finance@2 was revoked on this machine by ben.okafor on "
    for words in (("list",), ("list", "finance"), ("status",), ("show", "finance@2"), ("verify",)):
        done = cli(*words)
        assert (done.exit_code, said in " ".join(done.stdout.split())) == (0, True), words
    listed = {row["adapter"]: row["held"] for row in json.loads(cli("list", "--json").stdout)}
    assert (listed["finance@1"], listed["finance@2"]["actor"]) == (None, "ben.okafor")
    verdict = json.loads(cli("show", "finance@2", "--json").stdout)["verdict"]
    assert verdict["may_serve"] is False
    assert said in verdict["reasons"][0]


def test_sync_sends_what_is_held(
    shared: Path,
    cli: Cli,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cli("revoke", "finance@2", "--reason", "it leaks")
    monkeypatch.setenv("WANDB_MODE", "online")
    done = cli("sync")
    assert "finance@2, which was stopped here, is now 'revoked' at W&B, too." in done.stdout
    assert [row["state"] for row in json.loads(cli("list", "--json").stdout)] == ["candidate", "revoked"]
    assert "(on one machine" in cli("history", "finance@2").stdout
    again = json.loads(cli("sync", "--json").stdout)
    assert (again["revoked"], again["waiting"]) == ([], [])


def test_restore_keeps_stopped_what_was_stopped(shared: Path, cli: Cli) -> None:  # noqa: F811
    cli("backup", str(shared / "backups"))
    cli("revoke", "finance@2", "--reason", "it leaks")
    (shared / ".registry").rename(shared / "lost")
    done = cli("restore", str(shared / "backups"), "--json")
    assert [one.split(" by ")[0] for one in json.loads(done.stdout)["held"]] == [
        "finance@2 was revoked on this machine"
    ]
    assert cli("verify").exit_code == 0
