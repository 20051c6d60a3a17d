"""`lora-ops cases` in a real process: what it leaves where the disk is full."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from lora_ops.paths import CASES, POLICY_PROMPTS
from lora_ops.records.data import PromptRecord

from .policy_repository import policy_repository


@pytest.fixture
def root(tmp_path: Path, tiny_base: Path) -> Path:
    """A repository with a policy suite and with the prepared data of finance."""
    found = policy_repository(tmp_path / "repository", tiny_base)
    (found / "dvc.yaml").write_text("stages: {}\n")
    folder = found / "data/prepared/finance"
    folder.mkdir(parents=True)
    (folder / "prompt.json").write_text(PromptRecord(system=None, labels=["Food"]).to_json())
    row = {"group": "a", "target": "Food", "prompt": "a", "completion": "Food"}
    lines = [json.dumps({**row, "id": str(place), "text": f"row {place}"}) for place in range(40)]
    (folder / "test.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return found


def cases(root: Path, most: int | None = None) -> "subprocess.CompletedProcess[str]":
    """Run it; no file may grow beyond `most` bytes."""

    def limit() -> None:
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    command = [sys.executable, "-m", "lora_ops", "cases", "finance"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, preexec_fn=limit)


def test_cases_leaves_the_old_file_where_a_new_one_cannot_end(root: Path) -> None:
    """Half of the new prompts stood under the good name."""
    assert cases(root).returncode == 0
    folder = root / "reports/finance"
    before = {name: (folder / name).read_bytes() for name in (CASES, POLICY_PROMPTS)}
    (root / "data/prepared/finance/prompt.json").write_text(
        PromptRecord(system="Name the category.", labels=["Food"]).to_json()
    )
    refused = cases(root, most=2_000)
    assert refused.returncode == 5 and "Traceback" not in refused.stderr
    assert (folder / POLICY_PROMPTS).read_bytes() == before[POLICY_PROMPTS]
    assert sorted(one.name for one in folder.iterdir()) == sorted(before)
    assert cases(root).returncode == 0
    assert (folder / POLICY_PROMPTS).read_bytes() != before[POLICY_PROMPTS]
