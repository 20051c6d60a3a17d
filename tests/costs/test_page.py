"""`lora-ops cost` and notebooks/09_cost: what a registry and gateways' logs say together."""

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pytest
from typer.testing import CliRunner

from lora_ops.cli import app
from lora_ops.costs import page
from lora_ops.errors import LoraOpsError, NotFound
from lora_ops.notebooks import run_notebook
from lora_ops.registry import lifecycle
from lora_ops.registry.backends import open_registry
from lora_ops.registry.owners import Owners
from tests.conftest import ROOT, small_clone
from tests.costs.logs import MIB, Logs
from tests.registry.conftest import Story, build_package, owners  # noqa: F401 - a fixture

BEGINS = datetime.now(UTC) - timedelta(hours=2)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, owners: Owners) -> Path:  # noqa: F811
    """finance@4 is in production after @1, @2 and @3, media@1 is rejected, healthcare@1 a candidate.

    One gateway was up for an hour. finance@4 and a version that is gone were asked; finance@1 was in memory.
    """
    root = small_clone(tmp_path_factory.mktemp("costs") / "clone")
    (root / "owners.yaml").write_text(owners.model_dump_json())
    (root / "notebooks").symlink_to(ROOT / "notebooks")
    with closing(open_registry(root, create=True)) as registry:
        story = Story(registry, root / "evidence")
        for seed, tenant in enumerate(("finance", "finance", "finance", "finance", "media", "healthcare")):
            folder = root / f"package-{seed}"
            manifest = build_package(folder, seed, tenant, fresh_days=3650)
            registry.register(folder, manifest, actor="ana.silva")
        for number in (1, 2, 3, 4):
            story.to(f"finance@{number}", "production")
        lifecycle.reject(registry, "media@1", actor="ana.silva", reason="worse")
    logs = Logs(root / ".serving", begins=BEGINS)
    logs.line(0, "start")
    logs.up(60, 3540, busy=0.25)
    logs.line(120, "load", 0.25 * 60, adapter="finance@1", bytes=2048 * MIB, used_seconds=0)
    logs.line(3600, "stop", 0.25 * 3540)
    logs.event(600, 300.0, "finance@4", prompt_tokens=700, generated_tokens=77)
    logs.event(700, 200.0, "media@9", adapter_hit=False)
    return root


@pytest.fixture
def inside(clone: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone))
    monkeypatch.chdir(clone)
    yield clone


def as_json(*words: str) -> Any:
    done = CliRunner().invoke(app, ["cost", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_cost_in_json_adds_up(inside: Path) -> None:
    told = as_json("--window", "24h")
    cpu = told["devices"]["cpu"]
    assert cpu["up_seconds"] == pytest.approx(3600)
    assert (cpu["busy_seconds"], cpu["busy_cost"]) == (500, pytest.approx(500 / 3600 * 0.2))
    parts = [cpu[f"{name}_seconds"] for name in ("busy", "shared", "idle")]
    assert sum(parts) == pytest.approx(cpu["up_seconds"])
    rows = {row["version"]: row for row in told["versions"]}
    assert rows["media@9"]["state"] is None and rows["media@9"]["misses"] == 1
    assert rows["finance@1"]["unused_memory"] == pytest.approx(2 * 3480 / 3600 * 0.005)
    assert rows["healthcare@1"]["hit_rate"] is None and rows["healthcare@1"]["storage"] > 0
    tenants = {row["tenant"]: row for row in told["tenants"]}
    assert tenants["finance"]["requests"] == 1 and tenants["media"]["hit_rate"] == 0
    (gateway,) = told["gateways"]
    assert gateway["ended"] == "stopped"
    assert told["notes"] == []


def test_cost_of_one_tenant_has_its_rows(inside: Path) -> None:
    told = as_json("--tenant", "finance", "--allocate")
    assert {row["tenant"] for row in told["versions"]} == {"finance"}
    assert told["devices"]["cpu"]["up_seconds"] == pytest.approx(3600)
    device = sum(row["device"] + row["allocated"] for row in told["versions"])
    assert device == pytest.approx(300 / 500 * 0.2)


def test_cost_for_people_names_what_is_idle(inside: Path) -> None:
    done = CliRunner().invoke(app, ["cost"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "finance@4" in done.output
    assert (
        "cpu: up 1.000 h = busy 0.139 h (0.0278), shared 0.107 h (0.0214), idle 0.754 h (0.1508)" in done.output
    )


@pytest.mark.parametrize(
    ("words", "error"), [(["--window", "a week"], LoraOpsError), (["--tenant", "x"], NotFound)]
)
def test_cost_refuses_what_it_does_not_know(inside: Path, words: list[str], error: type[Exception]) -> None:
    done = CliRunner().invoke(app, ["cost", *words])
    assert isinstance(done.exception, error)


def test_cost_before_anything_runs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORA_OPS_ROOT", str(small_clone(tmp_path / "new")))
    told = as_json()
    assert told["versions"] == told["tenants"] == told["gateways"] == []
    assert told["notes"] == ["No gateway has kept any usage yet: start one (`make serve`)."]


def test_page_archives_what_nobody_needs(clone: Path) -> None:
    """finance@3 would return in a rollback, and healthcare@1 is its team's to decide."""
    found = page.open_bill(clone, "7d")
    keeps = dict(zip(found.unasked["version"], found.unasked["keeps"], strict=True))
    assert keeps == {
        "finance@1": "",
        "finance@2": "",
        "finance@3": "returns when production is rolled back",
        "media@1": "",
        "healthcare@1": "is candidate",
    }
    month = found.unasked.set_index("version").loc["finance@1", "month"]
    assert month == pytest.approx(2 * 3480 / 3600 * 0.005 * 730 / 168, rel=0.001)
    said = page.decision(found)
    assert said[0].startswith("Archive these 3 (finance@1, ")
    assert said[0].endswith("nobody asked for them in 7 days, and 0.0420 USD a month is saved.")
    assert "lora-ops registry archive media@1 --reason 'nobody asks for it'" in said
    assert said[-1].startswith("Devices were idle for 75% of their cost")


def test_page_archives_nothing_that_is_in_shadow(clone: Path, tmp_path: Path) -> None:
    root = tmp_path / "clone"
    shutil.copytree(clone, root, symlinks=True)
    logs = Logs(root / ".serving", begins=BEGINS)
    logs.line(
        800,
        "background",
        0.25 * 740,
        adapter="finance@2",
        device_seconds=1,
        prompt_tokens=1,
        generated_tokens=1,
    )
    assert "finance@2" not in set(page.open_bill(root, "7d").unasked["version"])


def test_page_is_made_by_its_notebook(inside: Path) -> None:
    output = inside / "reports/09_cost.ipynb"
    run_notebook(ROOT / "notebooks/09_cost.ipynb", output, {"window": "7d"}, inside)
    shown = [one for cell in nbformat.read(output, as_version=4).cells for one in cell.get("outputs", [])]
    assert sum("image/png" in one.get("data", {}) for one in shown) == 3
    text = "\n".join(one.get("text", "") + one.get("data", {}).get("text/markdown", "") for one in shown)
    assert "finance cost most" in text and "Archive these 3" in text
    tables = "\n".join(one.get("data", {}).get("text/html", "") for one in shown)
    assert "not in the registry" in tables and "returns when production is rolled back" in tables


def test_page_of_an_empty_log_is_made(tmp_path: Path) -> None:
    found = page.open_bill(small_clone(tmp_path / "new"), "7d")
    assert page.decision(found)[0].startswith("Archive nothing")
    assert page.heading(found).endswith("0.00 USD was idle.")
    for plot in (page.plot_devices, page.plot_tenants, page.plot_memory):
        assert plot(found)._repr_png_().startswith(b"\x89PNG")
    assert page.version_table(found).empty and page.unasked_table(found).empty
    assert page.notes(found) == ["No gateway has kept any usage yet: start one (`make serve`)."]
