"""The event log as a reviewer reads it: notebooks/traffic.ipynb over what a real gateway wrote."""

import time
from pathlib import Path
from typing import Any

import papermill
import pytest

from lora_ops.engines.protocol import Engine
from lora_ops.serving.traffic_report import (
    NO_TRAFFIC,
    by_version,
    findings,
    plot_risk,
    plot_traffic,
    recent_events,
)
from lora_ops.settings.serving import TenantServing
from tests.conftest import ROOT
from tests.serving.conftest import Clone, served
from tests.serving.test_events import event, write

NOTEBOOK = ROOT / "notebooks" / "traffic.ipynb"


@pytest.fixture
def executed(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the notebook from another folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("LORA_OPS_ROOT", str(clone.root))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(**parameters: object) -> Any:
        return papermill.execute_notebook(
            NOTEBOOK, tmp_path / "traffic.ipynb", parameters, cwd=elsewhere, progress_bar=False
        )

    return run


def pictures(notebook: Any) -> int:
    return sum("image/png" in one.get("data", {}) for cell in notebook.cells for one in cell.get("outputs", []))


def test_it_shows_what_a_gateway_answered(clone: Clone, engine: Engine, executed: Any) -> None:
    settings = clone.settings(tenants={"healthcare": TenantServing(requests_per_minute=1)})
    with served(clone.root, settings, engine) as gateway:
        for model in ("finance", "finance", "finance@1", "healthcare", "healthcare", "base"):
            body = {"model": model, "prompt": "AIRBNB", "max_tokens": 4}
            gateway.http().post("/v1/completions", json=body)
    notebook = executed()
    said = notebook.cells[-1].outputs[0].text
    assert "6 requests reached 4 versions." in said
    assert "50.0% of the requests to healthcare@1 of healthcare failed." in said
    assert pictures(notebook) == 5


def test_without_events_it_says_how_to_make_some(executed: Any) -> None:
    notebook = executed(tenant="finance")
    assert notebook.cells[-1].outputs[0].text == f"{NO_TRAFFIC}\n"
    assert pictures(notebook) == 5


def test_versions_are_summed_by_tenant_and_route(tmp_path: Path) -> None:
    write(
        tmp_path,
        event(1, seconds=1.0, answer_text="fine"),
        event(2, seconds=3.0, answer_text="You idiot, write to jane.doe@example.com"),
        event(3, seconds=9.0, status=503, code="overloaded", generated_tokens=0),
        event(4, seconds=9.0, status=499, code="client_gone"),
        event(5, tenant="media", adapter="media@2", route="pinned"),
    )
    events = recent_events(tmp_path, 7)
    finance, media = by_version(events).to_dict("records")
    assert (finance["requests"], finance["failed"], finance["p50 s"]) == (4, 0.25, 2.0)
    assert (finance["identifiers"], finance["insulting"], finance["tokens written"]) == (0.5, 0.5, 9)
    assert (media["version"], media["route"], media["failed"]) == ("media@2", "pinned", 0)
    assert len(recent_events(tmp_path, 7, "media")) == 1
    assert len(recent_events(tmp_path, 1.5 / 86400)) == 2
    said = findings(by_version(events))
    assert "50.0% of the answers of finance@1 hold an identifier: read them." in said


def test_traffic_is_drawn_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The axis had the hours of the machine's zone, and the page's head and the log those of UTC."""
    write(tmp_path, event(1))
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    events = recent_events(tmp_path, 7)
    monkeypatch.undo()
    time.tzset()
    assert events["time"].tolist() == [event(1).time]
    assert str(events["time"].dt.tz) == "UTC"
    assert plot_traffic(events).axes[0].get_xlabel() == f"UTC, {event(1).time:%Y-%m-%d}"


def test_traffic_without_failures_or_risks_is_called_so(tmp_path: Path) -> None:
    write(tmp_path, event(1, answer_text="fine"), event(2, answer_text="Mental", answer_is_label=True))
    assert findings(by_version(recent_events(tmp_path, 7)))[-1].startswith("None failed")


def test_risks_that_nobody_scored_are_called_unknown(tmp_path: Path) -> None:
    write(tmp_path, event(1))
    frame = by_version(recent_events(tmp_path, 7))
    frame[["identifiers", "insulting"]] = float("nan")
    assert findings(frame)[-1] == "No answer of finance@1 was scored."
    shown = [text.get_text() for text in plot_risk(frame).axes[0].texts]
    assert shown == [" 0.0%", " unknown", " unknown"]
