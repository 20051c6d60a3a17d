"""What is sent later: each run once, whatever its neighbours met, and the edges from artifacts to runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_ops.exit_codes import ExitCode
from tests import wandb_server
from tests.conftest import run
from tests.wandb_server import WandbServer

# Every stage, with the inputs and outputs that the notebooks name.
STAGES = """
import os, sys
from pathlib import Path
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.runs import track

root, settings = Path(sys.argv[1]), TrackingSettings(project="adapters")
for job_type, inputs, outputs in (
    ("prepare", ["source", "base_model"], ["data"]),
    ("train", ["data", "base_model"], ["adapter"]),
    ("evaluate", ["adapter", "data", "base_model"], ["evaluation"]),
    ("package", ["adapter", "data", "base_model", "evaluation"], ["package"]),
):
    with track(job_type, "finance", {"seed": 7}, settings, root, inputs, outputs) as run:
        pass
"""
EDGES = {
    "finance-prepare": ({"finance-source", "base-model"}, {"finance-data"}),
    "finance-train": ({"finance-data", "base-model"}, {"finance-adapter"}),
    "finance-evaluate": ({"finance-adapter", "finance-data", "base-model"}, {"finance-evaluation"}),
    "finance-package": (
        {"finance-adapter", "finance-data", "base-model", "finance-evaluation"},
        {"finance-package"},
    ),
}

# A run whose log the kill finds empty, as it is for 15 seconds; the client then sends no run at all.
KILLED = """
import os, sys
from pathlib import Path
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.runs import track

with track("train", "finance", {}, TrackingSettings(project="adapters"), Path(sys.argv[1])) as run:
    run.log({"step": 1, "loss": 0.5})
    os.kill(os.getpid(), 9)
"""


def log(script: str, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", script, root, cwd=root, **environment)


def sync(root: Path, server: WandbServer) -> subprocess.CompletedProcess[str]:
    return run(
        "lora-ops", "wandb-sync", cwd=root, WANDB_BASE_URL=server.url, WANDB_API_KEY=wandb_server.API_KEY
    )


def edges(server: WandbServer) -> dict[str, tuple[set[str], set[str]]]:
    """Each run's inputs and outputs; a table that W&B makes an artifact of is left out."""
    return {
        one.fields["displayName"]: (
            {version.collection.name for version in one.inputs},
            {version.collection.name for version in one.outputs},
        )
        for one in server.runs.values()
    }


def counted(server: WandbServer) -> tuple[int, int, int]:
    inputs = sum(len(one.inputs) for one in server.runs.values())
    versions = sum(len(one.versions) for one in server.collections.values())
    return len(server.runs), inputs, versions


def test_online_lineage_is_whole(root: Path, server: WandbServer) -> None:
    done = log(STAGES, root, WANDB_BASE_URL=server.url, WANDB_API_KEY=wandb_server.API_KEY)
    assert done.returncode == 0, done.stderr
    assert edges(server) == EDGES
    train = next(one for one in server.runs.values() if one.fields["displayName"] == "finance-train")
    config = train.config
    assert config["seed"] == 7
    assert {name: config["base_model"][name] for name in ("id", "revision")} == {"id": "tiny", "revision": "r1"}
    assert config["base_model"]["sha256"] == "b" * 64
    assert config["data"]["source"] == "iso18245 1.4.1" and config["data"]["train_sha256"] == "t" * 64
    assert config["data"]["content"].startswith("content-") and config["commit_dirty"] is not None
    (base,) = server.collection("base-model", project="adapters").versions
    assert base.run is None and set(server.files_of(base)) == {"base_model.json"}


def test_offline_lineage_is_whole_after_a_sync(root: Path, server: WandbServer) -> None:
    assert log(STAGES, root).returncode == 0
    sent = sync(root, server)
    assert sent.returncode == 0, sent.stderr
    assert edges(server) == EDGES
    before, asked = counted(server), len(server.requests)
    assert sync(root, server).returncode == 0
    assert counted(server) == before and len(server.requests) == asked
    # A sync that was killed between an edge and its marker.
    for marker in (root / "wandb").glob("offline-run-*/lineage.sent"):
        marker.unlink()
    assert sync(root, server).returncode == 0
    assert counted(server) == before
    assert {one.state for one in server.runs.values()} == {"finished"}


def test_sync_goes_on_after_a_failure(root: Path, server: WandbServer) -> None:
    assert log(STAGES, root).returncode == 0
    server.fail("UseArtifact", status=400, times=1000)
    failed = sync(root, server)
    assert failed.returncode == ExitCode.UNAVAILABLE and "could not be declared" in failed.stderr
    assert len(server.runs) == 4
    server.faults.clear()
    assert sync(root, server).returncode == 0
    assert edges(server) == EDGES


def test_run_killed_at_once_holds_up_no_other(root: Path, server: WandbServer) -> None:
    log(KILLED, root)
    assert log(STAGES, root).returncode == 0
    sent = sync(root, server)
    assert sent.returncode == 0, sent.stderr
    assert "was killed before it logged anything" in sent.stdout
    assert edges(server) == EDGES


def test_damaged_log_holds_up_no_other(root: Path, server: WandbServer) -> None:
    assert log(STAGES, root).returncode == 0
    damaged = next((root / "wandb").glob("offline-run-*/run-*.wandb"))
    damaged.write_bytes(b"no log of W&B at all")
    sent = sync(root, server)
    assert sent.returncode == ExitCode.UNAVAILABLE and f"{damaged.parent.name} could not be sent" in sent.stderr
    assert len(server.runs) == 3


def test_changed_input_is_named_not_sent(root: Path, server: WandbServer) -> None:
    assert log(STAGES.replace('("prepare"', '# ("prepare"'), root).returncode == 0
    (root / "data/prepared/finance/train.jsonl").write_bytes(b"other rows")
    sent = sync(root, server)
    assert sent.returncode == ExitCode.UNAVAILABLE and "finance-data:content-" in " ".join(sent.stderr.split())


@pytest.mark.parametrize("online", [True, False], ids=["online", "offline"])
def test_killed_training_goes_on_as_one_run(root: Path, server: WandbServer, online: bool) -> None:
    script = """
import os, sys
from pathlib import Path
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.runs import track

root, settings, seed = Path(sys.argv[1]), TrackingSettings(project="adapters"), SEED
kept = root / ".checkpoints/finance.run.json"
with track("train", "finance", {"seed": seed}, settings, root, ["data"], ["adapter"], resume=kept) as run:
    for step in STEPS:
        run.log({"step": step, "loss": 1 / step})
    if KILLED:
        raise RuntimeError("killed")
"""

    def train(killed: bool, steps: list[int], seed: int = 0) -> subprocess.CompletedProcess[str]:
        text = script.replace("STEPS", str(steps)).replace("SEED", str(seed)).replace("KILLED", str(killed))
        key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY} if online else {}
        return log(text, root, **key)

    assert train(True, [1, 2]).returncode == 1
    assert train(False, [2, 3]).returncode == 0
    assert train(False, [1, 2, 3]).returncode == 0  # the same recipe after it was finished: another run
    assert train(True, [1], seed=1).returncode == 1
    assert train(False, [1], seed=2).returncode == 0  # another recipe
    if not online:
        assert sync(root, server).returncode == 0
    histories = [[line["step"] for line in one.history] for one in server.runs.values()]
    assert sorted(histories) == [[1], [1], [1, 2, 2, 3], [1, 2, 3]]
