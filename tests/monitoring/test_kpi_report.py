"""What KPIs say of versions: means, uplift, an addendum of the release notes, and who is to be retired."""

import json
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from lora_ops.errors import LoraOpsError, Refused
from lora_ops.gates.release import addenda_text
from lora_ops.monitoring.kpi_addendum import addendum
from lora_ops.monitoring.kpi_import import import_kpis
from lora_ops.monitoring.kpi_report import KpiReport, kpi_report
from lora_ops.monitoring.kpi_store import KpiStore
from lora_ops.records.evidence import DOCUMENT, KpiEvidence
from lora_ops.registry import lifecycle
from lora_ops.registry.owners import Owners
from lora_ops.registry.reports import load, make
from lora_ops.registry.served_times import canary_shares, in_production
from lora_ops.registry.store import Registry
from lora_ops.registry.verification import verify
from lora_ops.settings.kpis import KpiSettings
from tests.monitoring.kpi_files import write_csv, write_events
from tests.registry.conftest import MORNING, Build, Clock, Story

SETTINGS = KpiSettings(retire_weeks=4)
MIDNIGHT = MORNING.replace(hour=0)


def follow(registry: Registry, story: Story, package: Build, clock: Clock) -> None:
    """Let finance@1 be in production for 20 days, and finance@2 after it for 20 days."""
    for seed in (1, 2):
        registry.register(*package(seed), actor="ana")
        story.to(f"finance@{seed}", "production")
        clock.move(days=20)


def measure(root: Path, registry: Registry, name: str = "kpis.csv") -> KpiStore:
    """Import a row for each day without request ids; finance@2 earns 1 more a thousand views."""
    draw = np.random.default_rng(3)
    lines, events = [], []
    for day in range(40):
        version = "finance@1" if day < 20 else "finance@2"
        start = MIDNIGHT + timedelta(days=day)
        digest = registry.get(version).summary.content_digest
        times = [start + timedelta(hours=hour) for hour in (10, 12, 14)]
        events += [
            {"time": at, "adapter": version, "digest": digest, "request_id": f"{day} {at:%H}"} for at in times
        ]
        value = 3 + (day >= 20) + draw.normal(0, 0.2)
        lines.append(
            f"{start.isoformat()},rpm,{value:.4f},finance,{(start + timedelta(days=1)).isoformat()},900"
        )
    write_events(root, *events)
    path = write_csv(root / name, *lines, header="time,kind,value,tenant,until,count")
    versions = {one.id: one.content_digest for one in registry.summaries()}
    # The last day is not over at nine in the morning.
    now = MORNING + timedelta(days=41)
    assert import_kpis(path, root / ".serving", versions, SETTINGS, now).joined == 40
    return KpiStore(root / ".serving/kpis")


@pytest.fixture
def measured(
    registry: Registry, story: Story, package: Build, clock: Clock, tmp_path: Path
) -> tuple[Registry, KpiStore, KpiReport]:
    follow(registry, story, package, clock)
    store = measure(tmp_path, registry)
    return registry, store, kpi_report(store, registry, SETTINGS)


def test_report_compares_before_and_after(measured: tuple[Registry, KpiStore, KpiReport]) -> None:
    *_, report = measured
    assert [(one.adapter, one.kind, one.rows, one.by_time) for one in report.versions] == [
        ("finance@1", "rpm", 20, 20),
        ("finance@2", "rpm", 20, 20),
    ]
    (uplift,) = report.uplifts
    assert uplift.low is not None and uplift.high is not None
    assert uplift.low < 1 < uplift.high and uplift.verdict == "better"
    # Neither counts its first day, on which it came in the morning.
    assert (uplift.units, uplift.baseline_units, uplift.method) == (19, 19, "before_after")
    assert report.unmeasured == [] and any("without a request id" in note for note in report.notes)
    assert json.loads(json.dumps(report.as_json()))["uplifts"][0]["verdict"] == "better"


def test_version_that_nobody_measures_is_listed(
    measured: tuple[Registry, KpiStore, KpiReport], clock: Clock, package: Build, story: Story
) -> None:
    """The one in production, and a candidate; not a superseded one, nor a tenant that has no KPIs at all."""
    registry, store, _ = measured
    registry.register(*package(3), actor="ana")
    registry.register(*package(4, tenant="media"), actor="ana")
    clock.move(weeks=4, days=1)
    found = kpi_report(store, registry, SETTINGS).unmeasured
    assert [(one.adapter, one.state, one.weeks) for one in found] == [
        ("finance@2", "production", 4),
        ("finance@3", "candidate", 4),
    ]


def test_addendum_is_a_later_record(measured: tuple[Registry, KpiStore, KpiReport]) -> None:
    registry, store, report = measured
    before = registry.get("finance@2")
    made = addendum(registry, before, report, store).report
    assert made.document == DOCUMENT.validate_json(made.document.to_json())
    lifecycle.file_evidence(registry, "finance@2", made, actor="eve")
    assert registry.get("finance@2").summary == before.summary
    text = addenda_text(registry, before)
    assert "## KPIs of finance@2" in text and "before/after" in text and "season" in text
    assert load(registry.files, made.reference) == made.document and isinstance(made.document, KpiEvidence)
    assert verify(registry).problems == ()
    with pytest.raises(LoraOpsError, match="was filed on 2026-04-11 already"):
        addendum(registry, before, kpi_report(store, registry, SETTINGS), store)


def test_addendum_needs_an_uplift_and_production(
    measured: tuple[Registry, KpiStore, KpiReport], package: Build
) -> None:
    registry, store, report = measured
    with pytest.raises(Refused, match="No uplift of finance@1 is known yet"):
        addendum(registry, registry.get("finance@1"), report, store)
    registry.register(*package(3), actor="ana")
    with pytest.raises(Refused, match="finance@3 was never in production"):
        addendum(registry, registry.get("finance@3"), report, store)
    with pytest.raises(LoraOpsError, match="lora-ops monitor kpi file finance@2"):
        make(registry, "finance@2", "kpi", Path("kpis.csv"))


def test_simulated_rows_take_no_measured_one_its_place(
    registry: Registry, story: Story, package: Build, clock: Clock, tmp_path: Path
) -> None:
    """Whatever was imported first: nobody measured them, so that they count where nobody measured anything."""
    follow(registry, story, package, clock)
    measure(tmp_path, registry, "Simulated_kpis.csv")
    text = (tmp_path / "Simulated_kpis.csv").read_text()
    (tmp_path / "kpis.csv").write_text("\n".join(text.splitlines()[:-3]) + "\n")
    versions = {one.id: one.content_digest for one in registry.summaries()}
    now = MORNING + timedelta(days=42)
    import_kpis(tmp_path / "kpis.csv", tmp_path / ".serving", versions, SETTINGS, now)
    rows = KpiStore(tmp_path / ".serving/kpis").rows()
    assert len(rows) == 37 and not rows["simulated"].any()


def test_rows_of_an_earlier_registry_do_not_count(
    measured: tuple[Registry, KpiStore, KpiReport], package: Build, tmp_path: Path, owners: Owners, clock: Clock
) -> None:
    """Its versions have the same names, and other content."""
    _, store, report = measured
    assert report.strange == 0
    with closing(Registry(tmp_path / "other", create=True, owners=owners, clock=clock)) as other:
        other.register(*package(8), actor="ana")
        found = kpi_report(store, other, SETTINGS)
        assert (found.versions, found.uplifts, found.unmeasured, found.strange) == ([], [], [], 40)
        assert "40 rows are about versions of another registry" in found.notes[0]


def test_simulated_kpis_are_named_and_not_filed(
    registry: Registry, story: Story, package: Build, clock: Clock, tmp_path: Path
) -> None:
    follow(registry, story, package, clock)
    store = measure(tmp_path, registry, "simulated_kpis.csv")
    report = kpi_report(store, registry, SETTINGS, "finance")
    assert report.notes[0].startswith("SIMULATED KPIs")
    with pytest.raises(Refused, match="are simulated: nobody measured them"):
        addendum(registry, registry.get("finance@2"), report, store)


def test_served_times_are_those_of_the_log(
    registry: Registry, story: Story, package: Build, clock: Clock
) -> None:
    from lora_ops.registry import routes

    follow(registry, story, package, clock)
    assert in_production(registry.log, "finance") == [(MORNING, 1), (MORNING + timedelta(days=20), 2)]
    registry.register(*package(3), actor="ana")
    story.to("finance@3", "canary")
    start = registry.clock()
    for percent in (5, 50):
        routes.set_canary(registry, "finance@3", percent, actor="ben", reason="try it")
        clock.move(hours=1)
    found = canary_shares(registry.log, "finance")
    assert [(one.since, one.number, one.percent) for one in found] == [
        (start, 3, 5),
        (start + timedelta(hours=1), 3, 50),
    ]
    assert len({one.salt for one in found}) == 1
    assert canary_shares(registry.log, "media") == [] and isinstance(start, datetime)
