"""The run of the weekly page: numbers that W&B draws over the weeks, tables, and the page as an artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.hashing import sha256_text
from lora_ops.settings.tracking import TrackingSettings
from lora_ops.tracking.artifacts import TrackedArtifact, content_alias
from lora_ops.tracking.gates import log_artifact

ALL = "all"
"""The name of a page about every tenant; no tenant may have it."""


def log_monitoring(
    tenant: str | None, numbers: Mapping[str, Any], page: Path, settings: TrackingSettings, root: Path
) -> str | None:
    """Log a weekly page as `TENANT-monitor`, or as `all-monitor`.

    Args:
        tenant: whose page; None: everybody's.
        numbers: of the page, as `monitoring.page.numbers` gives them.
        page: its file.
        settings: where runs go.
        root: the repository.

    Returns:
        A sentence if W&B could not be told; the page stands all the same.
    """
    about = tenant or ALL
    text = page.read_text(encoding="utf-8")
    made = TrackedArtifact(
        name=f"{about}-monitor",
        type="page",
        alias=content_alias({page.name: sha256_text(text)}),
        facts={},
        metadata={"start": numbers["start"], "end": numbers["end"]},
        files={},
        texts={page.name: text},
    )
    config = {"start": numbers["start"], "end": numbers["end"]}
    drawn = {
        f"{one['tenant']}/{one['question']}": one["number"]
        for one in numbers["verdicts"]
        if one["number"] is not None
    }
    return log_artifact("monitor", about, config, tables(numbers), made, settings, root, numbers=drawn)


def tables(numbers: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Return a table for each part of a page's numbers; a part that could not be read has none."""
    drift = [
        {"adapter": adapter, "verdict": one["verdict"], "at": one["made_at"], **metric}
        for adapter, one in numbers["drift"].items()
        if isinstance(one, Mapping)
        for metric in one["metrics"]
    ]
    rows = {
        "verdicts": numbers["verdicts"],
        "latency": _rows(numbers["latency"], "adapters"),
        "risk": _rows(numbers["risk"], "risks"),
        "drift": drift,
        "kpis": _rows(numbers["kpis"], "versions"),
        "uplifts": _rows(numbers["kpis"], "uplifts"),
        "costs": _rows(numbers["costs"], "versions"),
    }
    return {name: pd.json_normalize(found, sep="_") for name, found in rows.items()}


def _rows(part: Mapping[str, Any] | str, name: str) -> list[dict[str, Any]]:
    return [] if isinstance(part, str) else part[name]
