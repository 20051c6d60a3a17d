"""Who used what in a window: requests, tokens, device and memory of each version, and what nobody caused.

`busy` is device time that requests were charged with. `shared` is other work of the engine: loads, copies for a
version in shadow, answers that were cut off, steps' own upkeep. `idle` is the rest of the time that gateways
were up. Device time is that of all devices of a gateway together.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lora_ops.costs.usage_log import AHEAD_SECONDS, GatewayRun, read_usage, runs_in
from lora_ops.line_files import line_files, read_line_files
from lora_ops.records.record import Record
from lora_ops.windows import Window

if TYPE_CHECKING:
    import pandas as pd

HOUR = 3600.0
GIB = 2**30
DEVICES = ("cpu", "gpu")
EVENTS, USAGE = "events", "usage"
# A line that no gateway wrote must not hide all others. NaN is above every number here.
WHOLE = (
    "tenant IS NOT NULL AND adapter IS NOT NULL AND device_seconds BETWEEN 0 AND 1e9 "
    "AND prompt_tokens BETWEEN 0 AND 1e12 AND generated_tokens BETWEEN 0 AND 1e12"
)
COUNTS = ("requests", "hits", "misses", "prompt_tokens", "generated_tokens", "loads", "evictions")
AMOUNTS = (
    "cpu_seconds",
    "gpu_seconds",
    "unknown_seconds",
    "shadow_cpu_seconds",
    "shadow_gpu_seconds",
    "load_seconds",
    "held_seconds",
    "held_gib_hours",
    "unused_gib_hours",
)


class UsedEvent(Record):
    """The fields of an event of the gateway that say what a request used; see `serving.events.Event`."""

    id: str
    time: datetime
    request_id: str
    tenant: str
    adapter: str
    status: int
    prompt_tokens: int
    generated_tokens: int
    device_seconds: float
    adapter_hit: bool | None = None
    gateway: str | None = None


@dataclass(frozen=True)
class DeviceTime:
    """What became of the time of one kind of device, in seconds times devices.

    Attributes:
        up: that gateways were up and known to be.
        busy, shared, idle: see the module.
        unknown: that gateways were up, and of which the log lost the lines.
    """

    up: float = 0.0
    busy: float = 0.0
    shared: float = 0.0
    idle: float = 0.0
    unknown: float = 0.0


@dataclass(frozen=True)
class Usage:
    """What was used in a window.

    Attributes:
        versions: one row for each tenant and version that used anything; columns `COUNTS` and `AMOUNTS`.
            `cpu_seconds` and `gpu_seconds` are device time, `unknown_seconds` such of requests at times when
            nothing is known of their gateway. `held_gib_hours` is memory times the time that it was taken;
            `unused_gib_hours` is the part of it in which nothing was answered with the adapter.
        devices: by kind.
        notes: what a reader of the numbers must know, a sentence each.
    """

    window: Window
    versions: "pd.DataFrame"
    devices: dict[str, DeviceTime]
    runs: list[GatewayRun]
    notes: list[str]


def usage_in(folder: Path, window: Window, now: datetime) -> Usage:
    """Return what was used in a window.

    Args:
        folder: `.serving` of the gateways.
        window: what counts.
        now: by this machine's clock.

    Raises:
        LoraOpsError: a file can't be read.
    """
    lines = read_usage(folder / USAGE)
    runs = runs_in(lines, window, now)
    events = _events(folder / EVENTS, window, runs)
    versions = _versions(events, lines, window, runs)
    devices = {kind: _device_time(kind, events, runs) for kind in DEVICES}
    return Usage(window, versions, devices, runs, _notes(events, lines, runs, window))


def _events(folder: Path, window: Window, runs: list[GatewayRun]) -> "pd.DataFrame":
    """Return the events of a window, with the device time of each and whether its gateway is known then."""
    import pandas as pd

    columns = [*UsedEvent.model_fields]
    if line_files(folder, "events"):
        start, end = (moment.isoformat() for moment in (window.start, window.end))
        where = f"{WHOLE} AND time >= TIMESTAMPTZ '{start}' AND time < TIMESTAMPTZ '{end}'"
        events = read_line_files(folder, "events", UsedEvent, where)
    else:
        events = pd.DataFrame({name: [] for name in columns})
    events = events.assign(known=False, device="", seconds=events["device_seconds"].astype(float))
    for run in runs:
        mine = events["gateway"] == run.gateway
        if mine.any():
            times = events.loc[mine, "time"].map(datetime.timestamp).to_numpy(dtype=float)
            events.loc[mine, "known"] = run.knows(times)
            events.loc[mine, "device"] = run.device
            events.loc[mine, "seconds"] *= run.devices
    return events


def _device_time(kind: str, events: "pd.DataFrame", runs: list[GatewayRun]) -> DeviceTime:
    up = worked = busy = shared = unknown = 0.0
    for run in (run for run in runs if run.device == kind):
        mine = float(events.loc[(events["gateway"] == run.gateway) & events["known"], "seconds"].sum())
        up += run.known_seconds * run.devices
        worked += run.busy_seconds * run.devices
        busy += mine
        shared += max(0.0, run.busy_seconds * run.devices - mine)
        unknown += run.unknown_seconds * run.devices
    return DeviceTime(up, busy, shared, max(0.0, up - worked), unknown)


def _versions(
    events: "pd.DataFrame", lines: "pd.DataFrame", window: Window, runs: list[GatewayRun]
) -> "pd.DataFrame":
    """Return one row for each tenant and version that used anything."""
    import pandas as pd

    rows: dict[tuple[str, str], dict[str, float]] = {}

    def row(tenant: str, version: str) -> dict[str, float]:
        return rows.setdefault((tenant, version), dict.fromkeys((*COUNTS, *AMOUNTS), 0.0))

    for (tenant, adapter), mine in events.groupby(["tenant", "adapter"]):
        found, hits = row(str(tenant), str(adapter)), mine["adapter_hit"].dropna().astype(bool)
        found["requests"] = len(mine)
        found["hits"], found["misses"] = int(hits.sum()), int((~hits).sum())
        for name in ("prompt_tokens", "generated_tokens"):
            found[name] = int(mine[name].sum())
        for kind in DEVICES:
            found[f"{kind}_seconds"] = float(
                mine.loc[mine["known"] & (mine["device"] == kind), "seconds"].sum()
            )
        found["unknown_seconds"] = float(mine.loc[~mine["known"], "seconds"].sum())
    for run in runs:
        for stay in run.residencies:
            found = row(tenant_of(stay.adapter), stay.adapter)
            found["held_seconds"] += stay.held_seconds
            found["held_gib_hours"] += stay.held_seconds * stay.bytes / GIB / HOUR
            unused = stay.held_seconds - stay.used_seconds
            found["unused_gib_hours"] += unused * stay.bytes / GIB / HOUR
    seen = lines[lines["time"].between(window.start, window.end, inclusive="left") & lines["adapter"].notna()]
    for one in seen[seen["kind"].isin(("load", "evict", "background"))].to_dict("records"):
        found = row(tenant_of(one["adapter"]), one["adapter"])
        if one["kind"] == "background":
            found[f"shadow_{one['device']}_seconds"] += _amount(one["device_seconds"]) * one["devices"]
        elif one["kind"] == "load":
            found["loads"] += 1
            found["load_seconds"] += _amount(one["load_seconds"])
        else:
            found["evictions"] += 1
    frame = pd.DataFrame(
        [{"tenant": tenant, "version": version, **found} for (tenant, version), found in rows.items()],
        columns=["tenant", "version", *COUNTS, *AMOUNTS],
    )
    frame = frame.astype(dict.fromkeys(COUNTS, int))
    return frame.sort_values(["tenant", "version"], ignore_index=True)


def _amount(value: float) -> float:
    """Return an amount of a line; what no gateway writes (a negative one, none) is nothing."""
    return value if value >= 0 else 0.0


def tenant_of(adapter: str) -> str:
    """Return whose version `finance@3` is."""
    return adapter.partition("@")[0]


def _notes(events: "pd.DataFrame", lines: "pd.DataFrame", runs: list[GatewayRun], window: Window) -> list[str]:
    notes = []
    if lines.empty and events.empty:
        return ["No gateway has kept any usage yet: start one (`make serve`)."]
    if not runs:
        first = min((moment for frame in (lines, events) for moment in frame["time"]), default=None)
        before = first is not None and first >= window.end
        notes.append(
            f"No gateway is known to have run in this window{', the first came later' if before else ''}."
        )
    for run in runs:
        name = f"gateway {run.gateway[:8]}"
        if run.unknown_seconds:
            notes.append(
                f"{name} was up for {run.unknown_seconds / HOUR:,.2f} h of which its usage log lost the lines: "
                "they are unknown and not billed."
            )
        if run.ended == "silent":
            notes.append(
                f"{name} ended at {run.last:%Y-%m-%d %H:%M:%S} UTC without saying so: up to "
                f"{run.heartbeat_seconds:g} s after that are unknown and not billed."
            )
        if run.ahead_seconds > AHEAD_SECONDS:
            notes.append(
                f"{name} has a clock that is {run.ahead_seconds:,.0f} s ahead of this machine's: what it did "
                "near an end of the window may be counted in another one."
            )
    unknown = events[~events["known"].astype(bool)]
    if len(unknown):
        notes.append(
            f"{unknown['seconds'].sum():,.1f} s of device time of {len(unknown):,} request"
            f"{'s' if len(unknown) > 1 else ''} came while nothing is known of their gateway: not billed."
        )
    return notes
