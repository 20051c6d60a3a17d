"""Gates and release notes at W&B: tables for reviewers, and the page with the version's number."""

import sys
from pathlib import Path

import pytest

from tests import wandb_server
from tests.conftest import run
from tests.wandb_server import WandbServer

LOG = """
import sys
from pathlib import Path
import pandas as pd
from lora_ops.records.manifest import FileRecord
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.gates import log_gates, log_kpis, log_release_notes, log_rollout_pages
from lora_ops.tracking.monitoring import log_monitoring

class Packaged:
    files = {"adapter_model.safetensors": FileRecord(bytes=7, sha256="a" * 64)}

root, settings = Path(sys.argv[1]), TrackingSettings(project="adapters")
tables = {"gates": pd.DataFrame([{"gate": "suite", "verdict": "pass"}]), "annotations": pd.DataFrame([])}
print(log_gates("finance@3", Packaged, tables, "<p>all pass</p>", settings, root))
print(log_release_notes("finance@3", Packaged, {}, "# finance@3", settings, root))
uplift = pd.DataFrame([{"kind": "ctr", "low": 0.01, "high": None}])
print(log_kpis("finance@3", Packaged, {"uplift": uplift}, "# KPIs", settings, root))
pages = [root / "06_shadow.html", root / "07_canary.html"]
for page in pages:
    page.write_text(f"<p>{page.stem}</p>")
print(log_rollout_pages("finance@3", Packaged, pages, settings, root))
verdict = {"tenant": "finance", "question": "fast", "state": "ok", "number": 0.99, "budget": None}
numbers = {
    "start": "2026-11-21", "end": "2026-11-28", "verdicts": [verdict], "drift": {"finance@3": "never measured"},
    "latency": {"adapters": [{"adapter": "finance@3", "burn": {"latency": 0.2}, "exact": None}]},
    "risk": "no events", "kpis": "no registry", "costs": {"versions": []},
}
print(log_monitoring(None, numbers, pages[0], settings, root))
"""


def log(root: Path, **environment: str) -> list[str]:
    done = run(sys.executable, "-c", LOG, root, cwd=root, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def check(server: WandbServer) -> None:
    for name, files in (
        ("finance-gates", {"finance@3.html"}),
        ("finance-release-notes", {"finance@3.md"}),
        ("finance-kpi", {"finance@3.md"}),
        ("finance-rollout", {"06_shadow.html", "07_canary.html"}),
    ):
        (version,) = server.collection(name, project="adapters").versions
        assert "version-3" in version.aliases and files <= {*server.files_of(version)}
    (page,) = server.collection("all-monitor", project="adapters").versions
    assert {"06_shadow.html"} <= {*server.files_of(page)}


def test_gates_and_notes_are_artifacts_online(root: Path, server: WandbServer) -> None:
    key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    assert log(root, **key) == ["None"] * 5
    check(server)


def test_gates_and_notes_are_sent_later(root: Path, server: WandbServer) -> None:
    assert log(root) == ["None"] * 5
    key = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": wandb_server.API_KEY}
    sent = run("lora-ops", "wandb-sync", cwd=root, **key)
    assert sent.returncode == 0, sent.stderr
    check(server)


@pytest.mark.parametrize("mode", ["online", "disabled"])
def test_gates_stand_when_wandb_is_not_told(root: Path, mode: str) -> None:
    said = log(root, WANDB_MODE=mode)
    if mode == "disabled":
        assert said == ["None"] * 5 and not list(root.glob("wandb/*run*"))
    else:
        assert "W&B was not told of the gate of finance@3: WANDB_MODE is online" in said[0]
