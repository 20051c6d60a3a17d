"""The price table over what was used."""

from datetime import timedelta
from pathlib import Path

import pytest

from lora_ops.costs.bill import Bill, bill
from lora_ops.costs.usage import usage_in
from lora_ops.registry.versions import Summary
from lora_ops.settings.costs import CostSettings, DeviceHour
from tests.costs.logs import MIB, NOON, Logs, hours

PRICES = CostSettings(
    currency="EUR", device_hour=DeviceHour(cpu=1, gpu=10), memory_gib_hour=0.5, storage_gb_month=7.3
)


def summary(
    version: str, size: int, registered: str = "2026-01-01T00:00:00+00:00", state: str = "production"
) -> Summary:
    tenant, _, number = version.partition("@")
    return Summary(tenant, int(number), state, "ana", registered, "", None, "f1", 0.5, size, "ab", None, ())  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One hour on a CPU: finance caused 900 s, media 300 s, and 600 s nobody."""
    logs = Logs(tmp_path)
    logs.up(0, 3600, busy=0.5)
    logs.event(100, 900.0, "finance@1")
    logs.event(200, 300.0, "media@1", adapter_hit=False)
    logs.line(10, "load", adapter="finance@1", bytes=1024 * MIB, used_seconds=0)
    logs.line(1810, "evict", adapter="finance@1", bytes=1024 * MIB, used_seconds=900)
    return tmp_path


def billed(folder: Path, *summaries: Summary, allocate: bool = False) -> Bill:
    usage = usage_in(folder, hours(0, 1), NOON + timedelta(hours=1))
    return bill(usage, summaries, PRICES, allocate=allocate)


def test_bill_shows_idle_apart(folder: Path) -> None:
    made = billed(folder, summary("finance@1", 2 * 10**9))
    finance, media = made.versions.set_index("version").loc[["finance@1", "media@1"]].to_dict("records")
    assert (finance["device"], media["device"]) == (pytest.approx(0.25), pytest.approx(1 / 12))
    assert (finance["memory"], finance["unused_memory"]) == (pytest.approx(0.25), pytest.approx(0.125))
    assert (finance["storage"], media["storage"]) == (pytest.approx(2 * 7.3 / 730), 0)
    assert (finance["hit_rate"], media["hit_rate"]) == (1, 0)
    assert (finance["state"], media["state"]) == ("production", None)
    assert made.money("up") == pytest.approx(1)
    assert made.money("busy") == pytest.approx(1 / 3)
    assert made.money("shared") == pytest.approx(1 / 6)
    assert made.money("idle") == pytest.approx(1 / 2)
    assert finance["total"] == pytest.approx(0.25 + 0.25 + 0.02)
    assert made.versions["allocated"].sum() == 0


def test_bill_allocates_all_that_was_up(folder: Path) -> None:
    made = billed(folder, allocate=True)
    finance, media = made.tenants.to_dict("records")
    assert finance["device"] + finance["allocated"] == pytest.approx(0.75)
    assert media["device"] + media["allocated"] == pytest.approx(0.25)


def test_bill_allocates_nothing_to_nobody(tmp_path: Path) -> None:
    Logs(tmp_path).up(0, 3600)
    made = billed(tmp_path, summary("finance@1", 10**9), allocate=True)
    assert made.versions["allocated"].sum() == 0
    assert made.money("idle") == pytest.approx(1)


def test_bill_of_storage_begins_with_registration(tmp_path: Path) -> None:
    later = summary("finance@2", 10**9, registered="2026-03-02T12:45:00+00:00")
    ahead = summary("finance@3", 10**9, registered="2026-03-02T15:00:00+00:00")
    made = billed(tmp_path, summary("finance@1", 10**9), later, ahead).versions.set_index("version")
    assert made["storage"].tolist() == pytest.approx([0.01, 0.0025, 0])
    assert made["hit_rate"].isna().all()


def test_bill_of_tenants_is_the_sum_of_versions(folder: Path) -> None:
    made = billed(folder, summary("finance@1", 10**9), summary("finance@2", 10**9))
    assert list(made.tenants["tenant"]) == ["finance", "media"]
    assert made.tenants["total"].sum() == pytest.approx(made.versions["total"].sum())
    assert made.tenants["hit_rate"].tolist() == [1, 0]
