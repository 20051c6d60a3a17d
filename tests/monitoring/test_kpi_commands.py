"""`lora-ops monitor kpi` as people and cron run it."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from lora_ops.cli import app
from lora_ops.errors import LoraOpsError
from lora_ops.monitoring.simulated_kpis import KNOWN
from lora_ops.registry.backends import open_registry
from tests.conftest import ROOT, small_clone, write_params
from tests.monitoring.kpi_files import write_csv, write_events

Cli = Callable[..., Result]


@pytest.fixture
def cli(staged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `lora-ops` in a small clone with finance@1 in production and finance@2 in canary."""
    small_clone(tmp_path)
    write_params(tmp_path, {"registry.evidence": {"rollout": "optional"}})  # people give versions users
    shutil.copytree(staged, tmp_path / ".registry")
    monkeypatch.setenv("LORA_OPS_ROOT", str(tmp_path))
    monkeypatch.setenv("LORA_OPS_ACTOR", "ben.okafor")
    monkeypatch.setenv("COLUMNS", "200")

    def invoke(*words: Any) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if isinstance(result.exception, LoraOpsError):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def root(cli: Cli, tmp_path: Path) -> Path:
    """Let 120 users of either arm get an answer now."""
    given = cli("route", "canary", "finance@2", "--percent", "50", "--reason", "try it")
    assert given.exit_code == 0, given.output
    with closing(open_registry(tmp_path)) as registry:
        digests = {one.id: one.content_digest for one in registry.summaries()}
    arms = {"canary": "finance@2", "control": "finance@1"}
    now = datetime.now(UTC)
    write_events(
        tmp_path,
        *(
            {
                "time": now,
                "arm": arm,
                "adapter": adapter,
                "digest": digests[adapter],
                "request_id": f"{arm}-{user}",
            }
            | {"unit": f"{arm} {user}"}
            for arm, adapter in arms.items()
            for user in range(120)
        ),
    )
    return tmp_path


def simulated(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write the file of `demo/simulated_kpis.py`."""
    spec = importlib.util.spec_from_file_location("demo_simulated_kpis", ROOT / "demo/simulated_kpis.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    out = root / "simulated_kpis.csv"
    monkeypatch.setattr(sys, "argv", ["x", "--serving", str(root / ".serving"), "--out", str(out)])
    made.main()
    return out


def test_simulated_uplift_is_found_by_the_commands(
    cli: Cli, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of the demo, from the answers of a gateway to the interval."""
    path = simulated(root, monkeypatch)
    # Readers click some seconds after an answer, and these answers are of now.
    future = cli("monitor", "kpi", "import", path)
    assert future.exit_code in (0, 1)
    text = path.read_text().splitlines()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text("\n".join([text[0], *(",".join([now, *line.split(",")[1:]]) for line in text[1:])]) + "\n")
    imported = cli("monitor", "kpi", "import", path, "--json")
    assert imported.exit_code == 0
    assert json.loads(imported.stdout)["joined"] == 240 * len(KNOWN)
    again = cli("monitor", "kpi", "import", path)
    assert "1,200 of 1,200 rows count (1,200 by request)" in again.stdout
    shown = json.loads(cli("monitor", "kpi", "--tenant", "finance", "--json").stdout)
    found = {one["kind"]: one for one in shown["uplifts"]}
    assert found.keys() == KNOWN.keys()
    for kind, effect in KNOWN.items():
        assert found[kind]["low"] <= effect.canary - effect.control <= found[kind]["high"]
        assert found[kind]["simulated"] and found[kind]["method"] == "canary"
    text = cli("monitor", "kpi").stdout
    assert "finance@2" in text and "SIMULATED" in text and "assigned at random" in text
    with pytest.raises(LoraOpsError, match="never in production"):
        cli("monitor", "kpi", "file", "finance@2")


def test_import_says_what_it_left_out(cli: Cli, root: Path) -> None:
    now = datetime.now(UTC).isoformat()
    rows = (f"{now},ctr,1,canary-1", f"{now},dwell_seconds,-3,canary-1", f"{now},ctr,1,[red]x")
    path = write_csv(root / "kpis.csv", *rows)
    said = cli("monitor", "kpi", "import", path, "--rejected", root / "rejected.csv")
    assert said.exit_code == 0
    assert "kpis.csv: 1 of 3 rows count (1 by request)." in said.stdout
    assert "1 left out: dwell_seconds is not from 0 to 86400 (rows 3)" in said.stdout
    assert (root / "rejected.csv").read_text().splitlines() == [
        "row,reason",
        "3,dwell_seconds is not from 0 to 86400",
        "4,request_id is no id of the gateway",
    ]
    with pytest.raises(LoraOpsError, match="exists already"):
        cli("monitor", "kpi", "import", path, "--rejected", root / "rejected.csv")
    none = write_csv(root / "none.csv", rows[2])
    assert cli("monitor", "kpi", "import", none).exit_code == 1


def test_due_lists_what_nobody_measures(cli: Cli, root: Path) -> None:
    """finance@1 came into production long ago, and only finance@2 has a KPI; a damaged file hides no review."""
    before = json.loads(cli("registry", "due", "--json").stdout)
    assert {one["what"] for one in before} == {"review"}
    row = f"{datetime.now(UTC).isoformat()},ctr,1,canary-1"
    assert cli("monitor", "kpi", "import", write_csv(root / "kpis.csv", row)).exit_code == 0
    found = json.loads(cli("registry", "due", "finance", "--json").stdout)
    (one,) = [each for each in found if each["what"] == "retirement"]
    assert (one["id"], one["state"], one["overdue"], one["team"]) == (
        "finance@1",
        "production",
        True,
        "Payments intelligence",
    )
    assert "retirement" in cli("registry", "due").stdout
    (path,) = (root / ".serving/kpis").glob("*/import.json")
    path.write_text("{}")
    said = cli("registry", "due", "--json")
    assert (said.exit_code, json.loads(said.stdout)) == (6, before)
    assert "No retirement is listed." in said.stderr and str(path.parent) in said.stderr


def test_report_without_kpis_says_how_to_import(cli: Cli) -> None:
    shown = cli("monitor", "kpi")
    assert shown.exit_code == 0 and "`lora-ops monitor kpi import FILE`" in shown.stdout
    with pytest.raises(LoraOpsError, match="There is no tenant 'nobody'"):
        cli("monitor", "kpi", "--tenant", "nobody")
