"""A repository that every stage of one tenant has run in, and a W&B on loopback to log to."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import wandb_server
from tests.conftest import ROOT
from tests.wandb_server import WandbServer

BASE = {"id": "tiny", "revision": "r1", "sha256": "b" * 64, "parameters": 5, "source": "folder"}
SOURCE = {"name": "iso18245", "version": "1.4.1", "sha256": "5" * 64, "url": None, "date": "2025-09-03"}
DATA = {
    "tenant": "finance",
    "source": SOURCE,
    "splits": {name: {"rows": 1, "groups": 1, "sha256": name[0] * 64} for name in ("train", "test")},
}


def write(path: Path, content: Any) -> None:
    """Write bytes, or anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with what the stages made, on a machine where nobody has logged in to W&B."""
    root, home = tmp_path / "repository", tmp_path / "home"
    home.mkdir()
    write(root / "models/base/base_model.json", BASE)
    write(root / "data/prepared/finance/data.json", DATA)
    write(root / "data/prepared/finance/train.jsonl", b"{}")
    write(root / "models/adapters/finance/adapter_model.safetensors", b"weights")
    write(root / "models/adapters/finance/adapter_config.json", {})
    write(root / "reports/finance/training.json", {"tenant": "finance", "steps": 2})
    write(
        root / "reports/finance/evaluation.json",
        {"tenant": "finance", "test_sha256": "t" * 64, "adapter_sha256": "a" * 64},
    )
    write(root / "reports/finance/answers.csv", b"id,target,base,adapter")
    files = {"adapter_model.safetensors": {"bytes": 7, "sha256": "a" * 64}}
    write(root / "packages/finance/manifest.json", {"tenant": "finance", "files": files})
    write(root / "packages/finance/adapter_model.safetensors", b"weights")
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *command], check=True)
    # SERVICE: else a process would use the Go core of the tests' own client, and its settings.
    for name in ("MODE", "API_KEY", "BASE_URL", "DATA_DIR", "CACHE_DIR", "CONFIG_DIR", "DIR", "SERVICE"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(home))
    return root


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with wandb_server.serving() as server:
        yield server
