"""W&B runs: offline without a key, and sent later by the real client to a W&B on loopback."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import wandb_server
from tests.conftest import run
from tests.wandb_server import WandbServer

STAGE = """
import sys
from pathlib import Path
import pandas as pd
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.runs import log_table, track

root, settings = Path(sys.argv[1]), TrackingSettings(project="adapters")
with track("train", "finance", {"rank": 8}, settings, root, outputs=["adapter"]) as run:
    run.log({"step": 1, "loss": 0.5})
    log_table(run, "samples", pd.DataFrame({"text": ["AIRBNB"]}))
"""


ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def log_in(home: Path, server: WandbServer) -> None:
    """As `wandb login` leaves it."""
    netrc = home / ".netrc"
    netrc.write_text(
        f"machine {server.url.partition('//')[2]}\n  login user\n  password {wandb_server.API_KEY}\n"
    )
    netrc.chmod(0o600)


def commit(root: Path) -> str:
    return run("git", "rev-parse", "HEAD", cwd=root).stdout.strip()


def stage(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", STAGE, root, cwd=root, **environment)


def logged_files(server: WandbServer) -> dict[str, bytes]:
    """The content of every file of the adapter's only version at the server."""
    (version,) = server.collection("finance-adapter", project="adapters").versions
    return {name: server.storage[path] for name, path in server.files_of(version).items()}


def test_what_was_logged_without_a_key_is_sent_whole_once_there_is_one(root: Path, server: WandbServer) -> None:
    assert stage(root).returncode == 0
    assert not list((root.parent / "home").rglob("staging"))  # everything that is needed lies in wandb/
    refused = run("lora-ops", "wandb-sync", cwd=root, WANDB_BASE_URL=server.url)
    assert refused.returncode == 2 and "There is no API key" in refused.stderr
    assert server.requests == []
    log_in(root.parent / "home", server)
    for _ in range(2):
        sent = run("lora-ops", "wandb-sync", cwd=root, WANDB_BASE_URL=server.url, WANDB_MODE="offline")
        assert sent.returncode == 0, sent.stderr
    assert logged_files(server) == ADAPTER
    (logged,) = server.runs.values()
    assert logged.config["rank"] == 8 and logged.config["commit"] == commit(root)
    assert logged.fields["displayName"] == "finance-train"
    assert server.collection(f"run-{logged.name}-samples", project="adapters").live()
    assert server.refusals == []


def test_runs_of_another_folder_are_sent_when_it_is_linked_there_and_not_before(
    root: Path, server: WandbServer
) -> None:
    stage(root)
    moved = root.rename(root.parent / "moved")
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    refused = run("lora-ops", "wandb-sync", cwd=moved, **environment)
    assert refused.returncode == 2 and f"was recorded in {root}" in refused.stderr
    root.symlink_to(moved)
    assert run("lora-ops", "wandb-sync", cwd=moved, **environment).returncode == 0
    assert logged_files(server) == ADAPTER


def test_after_a_login_runs_are_logged_while_they_run(root: Path, server: WandbServer) -> None:
    log_in(root.parent / "home", server)
    done = stage(root, WANDB_BASE_URL=server.url)
    assert done.returncode == 0, done.stderr
    assert logged_files(server) == ADAPTER
    assert not list((root / "wandb").glob("offline-run-*"))


def test_online_without_a_key_is_one_sentence(root: Path) -> None:
    refused = stage(root, WANDB_MODE="online")
    assert refused.stderr.splitlines()[-1].endswith("set WANDB_API_KEY or run `wandb login`.")
    assert not (root / "wandb").exists()


@pytest.mark.parametrize("listening", [True, False], ids=["silent", "refusing"])
def test_key_without_network_logs_offline(root: Path, listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        if listening:
            silent.listen()
        done = stage(root, WANDB_BASE_URL=url, WANDB_API_KEY=wandb_server.API_KEY)
    assert done.returncode == 0, done.stderr
    assert f"W&B at {url} does not answer" in done.stdout and "`lora-ops wandb-sync`" in done.stdout
    assert len(list((root / "wandb").glob("offline-run-*"))) == 1


def test_failing_server_counts_as_none(root: Path, server: WandbServer) -> None:
    server.fail("^download /$", status=503)
    done = stage(root, WANDB_BASE_URL=server.url, WANDB_API_KEY=wandb_server.API_KEY)
    assert done.returncode == 0 and server.runs == {}
    assert len(list((root / "wandb").glob("offline-run-*"))) == 1


def test_wandb_mode_set_by_the_user_is_kept(root: Path, server: WandbServer) -> None:
    environment = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    assert stage(root, **environment, WANDB_MODE="offline").returncode == 0
    assert server.requests == []
    server.fail("^download /$", status=503)
    assert stage(root, **environment, WANDB_MODE="online").returncode == 0
    assert len(server.runs) == 1
