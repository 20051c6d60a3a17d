"""Events of a gateway and files of KPIs, as a test writes them."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from lora_ops.monitoring.kpi_import import import_kpis
from lora_ops.records.kpi import KpiImport
from lora_ops.settings.kpis import KpiSettings
from tests.registry.conftest import MORNING
from tests.serving.test_events import event

VERSIONS = {"finance@1": "a" * 64, "finance@2": "b" * 64}
SOON = MORNING + timedelta(days=3)
"""The time of the imports."""


def write_events(root: Path, *changes: dict[str, Any], name: str = "20260302T090000-1") -> None:
    """Append events r0, r1, ... of finance@1 to the gateway's log, a second apart, each with some changes."""
    folder = root / ".serving/events"
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, changed in enumerate(changes):
        adapter = changed.get("adapter", "finance@1")
        known = {
            "time": MORNING + timedelta(seconds=number),
            "request_id": f"r{number}",
            "unit": f"user {number}",
            "digest": VERSIONS.get(adapter, "c" * 64),
        }
        lines.append(event(0, **{**known, **changed}).model_dump_json())
    with (folder / f"events-{name}.jsonl").open("a") as file:
        file.writelines(f"{line}\n" for line in lines)


def write_csv(path: Path, *rows: str, header: str = "time,kind,value,request_id") -> Path:
    """Write a file of KPIs."""
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def take(root: Path, path: Path, now: datetime = SOON, zone: str | None = None, **settings: Any) -> KpiImport:
    """Import a file beside the events of `root`."""
    return import_kpis(path, root / ".serving", VERSIONS, KpiSettings(**settings), now, zone)


def reasons(made: KpiImport) -> dict[int, str]:
    """Return the reason of each rejected row."""
    return {row: one.reason for one in made.rejected for row in one.first}
