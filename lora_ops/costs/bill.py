"""What each tenant and version costs in a window, by the price table of params.yaml."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from lora_ops.costs.usage import DEVICES, HOUR, DeviceTime, Usage
from lora_ops.registry.versions import Summary
from lora_ops.settings.costs import CostSettings

if TYPE_CHECKING:
    import pandas as pd

MONTH_HOURS = 730.0
GB = 1e9
CAUSED = ("device", "memory", "storage")
MONEY = (*CAUSED, "allocated", "total")


@dataclass(frozen=True)
class Bill:
    """A window's usage and its price.

    Attributes:
        usage: what was used.
        currency: of all money.
        versions: one row for each version: what it used, its `state` in the registry (None: the registry has
            no such version, or it is the base model), `stored_gb`, and its money, `MONEY`. `unused_memory` is
            the part of `memory` in which nothing was answered with it.
        devices: money of `up`, `busy`, `shared`, `idle` and `unknown` time by kind of device.
        allocated: whether shared and idle money was allocated to versions.
    """

    usage: Usage
    currency: str
    versions: "pd.DataFrame"
    devices: dict[str, DeviceTime]
    allocated: bool

    @property
    def tenants(self) -> "pd.DataFrame":
        """One row for each tenant: the sums of its versions, and its `hit_rate`; NaN without any use."""
        numbers = [
            str(name)
            for name in self.versions.columns
            if name not in ("tenant", "version", "state", "hit_rate")
        ]
        summed = self.versions.groupby("tenant", as_index=False)[numbers].sum()
        return summed.assign(hit_rate=_hit_rates(summed))

    def money(self, part: str) -> float:
        """Return the money of `up`, `busy`, `shared`, `idle` or `unknown` time of all devices."""
        return sum(getattr(one, part) for one in self.devices.values())


def bill(usage: Usage, summaries: Sequence[Summary], prices: CostSettings, *, allocate: bool = False) -> Bill:
    """Return what a window's usage costs.

    Args:
        usage: of the window.
        summaries: the registry's versions, whose files are stored.
        prices: of params.yaml.
        allocate: give shared and idle device time to versions, by their parts of the busy time of its kind.
            Without any busy time it stays apart.
    """
    hourly = prices.device_hour.model_dump()
    devices = {kind: _priced(usage.devices[kind], hourly[kind]) for kind in DEVICES}
    frame = _with_stored(usage, summaries)
    frame["device"] = sum(frame[f"{kind}_seconds"] / HOUR * hourly[kind] for kind in DEVICES)
    frame["memory"] = frame["held_gib_hours"] * prices.memory_gib_hour
    frame["unused_memory"] = frame["unused_gib_hours"] * prices.memory_gib_hour
    frame["storage"] = frame["stored_gb"] * frame["stored_hours"] / MONTH_HOURS * prices.storage_gb_month
    frame["allocated"] = 0.0
    if allocate:
        for kind in DEVICES:
            busy = frame[f"{kind}_seconds"].sum()
            if busy:
                apart = devices[kind].shared + devices[kind].idle
                frame["allocated"] += apart * frame[f"{kind}_seconds"] / busy
    frame["total"] = frame[[*CAUSED, "allocated"]].sum(axis="columns")
    frame["hit_rate"] = _hit_rates(frame)
    return Bill(usage, prices.currency, frame.drop(columns="stored_hours"), devices, allocate)


def _with_stored(usage: Usage, summaries: Sequence[Summary]) -> "pd.DataFrame":
    """Return usage's rows, and one for each stored version that used nothing."""
    import pandas as pd

    stored = pd.DataFrame(
        [(one.tenant, one.id, one.state, one.size_bytes / GB, _stored_hours(one, usage)) for one in summaries],
        columns=["tenant", "version", "state", "stored_gb", "stored_hours"],
    )
    frame = usage.versions.merge(stored, how="outer", on=["tenant", "version"])
    numbers = [str(name) for name in frame.columns if name not in ("tenant", "version", "state")]
    frame[numbers] = frame[numbers].fillna(0)
    frame["state"] = frame["state"].astype(object).where(frame["state"].notna(), None)
    return frame.sort_values(["tenant", "version"], ignore_index=True)


def _stored_hours(summary: Summary, usage: Usage) -> float:
    """Return the hours of a window in which a version's files were stored."""
    since = max(datetime.fromisoformat(summary.registered_at), usage.window.start)
    return max(0.0, (usage.window.end - since).total_seconds() / HOUR)


def _priced(time: DeviceTime, hourly: float) -> DeviceTime:
    parts = (time.up, time.busy, time.shared, time.idle, time.unknown)
    return DeviceTime(*(seconds / HOUR * hourly for seconds in parts))


def _hit_rates(frame: "pd.DataFrame") -> "pd.Series[Any]":
    asked = frame["hits"] + frame["misses"]
    return (frame["hits"] / asked.where(asked > 0)).astype(float)


def as_json(found: Bill) -> dict[str, Any]:
    """Return a bill for programs; times are in seconds, money in its currency."""
    window = found.usage.window
    parts = ("up", "busy", "shared", "idle", "unknown")
    return {
        "window": {"start": window.start.isoformat(), "end": window.end.isoformat()},
        "currency": found.currency,
        "allocated": found.allocated,
        "devices": {
            kind: {
                **{f"{name}_seconds": getattr(seconds, name) for name in parts},
                **{f"{name}_cost": getattr(found.devices[kind], name) for name in parts},
            }
            for kind, seconds in found.usage.devices.items()
        },
        "gateways": [
            {
                "gateway": run.gateway,
                "device": run.device,
                "devices": run.devices,
                "first": run.first.isoformat(),
                "last": run.last.isoformat(),
                "known_seconds": run.known_seconds,
                "unknown_seconds": run.unknown_seconds,
                "ended": run.ended,
            }
            for run in found.usage.runs
        ],
        "tenants": _rows(found.tenants),
        "versions": _rows(found.versions),
        "notes": found.usage.notes,
    }


def _rows(frame: Any) -> list[dict[str, Any]]:
    """Return rows for JSON, which knows no NaN."""
    return [
        {name: None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
