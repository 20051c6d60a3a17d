"""Read the usage logs of gateways: when each was up, and how long each adapter was in its memory."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ops.line_files import line_files, read_line_files
from lora_ops.records.usage import UsageLine
from lora_ops.windows import Window

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SILENT_HEARTBEATS = 3.0
"""A gateway that wrote nothing for so long is not up any more, or can't write."""
AHEAD_SECONDS = 5.0
"""A gateway whose lines are so far in the future has another clock than this machine."""
# A line that no gateway wrote must not hide all others. NaN is above every number here.
WHOLE = (
    "gateway IS NOT NULL AND kind IS NOT NULL AND device IN ('cpu', 'gpu') AND devices BETWEEN 0 AND 1e6 "
    "AND uptime_seconds BETWEEN 0 AND 1e10 AND busy_seconds BETWEEN 0 AND 1e10 "
    "AND heartbeat_seconds BETWEEN 0 AND 1e6 AND number IS NOT NULL"
)
MEMORY = ("load", "held", "evict", "unload")
Ending = Literal["stopped", "running", "silent"]
Span = tuple[float, float]


@dataclass(frozen=True)
class Residency:
    """An adapter's stay in the memory of one gateway, as far as it is known and in the window.

    Attributes:
        held_seconds: in which it took memory.
        used_seconds: of them, in which anything was answered with it.
    """

    adapter: str
    bytes: float
    held_seconds: float
    used_seconds: float


@dataclass(frozen=True)
class GatewayRun:
    """One run of a gateway, as far as it is in the window.

    Attributes:
        gateway: its id.
        device, devices: what its engine computes on, and how many of them work together.
        first, last: times of its first and last line, by its own clock.
        known_seconds: that it was up and its log tells of.
        busy_seconds: of them, those in which the engine answered or loaded anything.
        unknown_seconds: that it was up and of which its log lost the lines.
        ended: `silent`: it was killed, or its last lines were lost.
        heartbeat_seconds: what may be missing at the end of a run that is silent.
        ahead_seconds: how far its last line is in the future; 0 where it is not.
        walls: when it was known to be up, by its own clock: beginnings and ends in seconds since 1970.
    """

    gateway: str
    device: Literal["cpu", "gpu"]
    devices: float
    first: datetime
    last: datetime
    known_seconds: float
    busy_seconds: float
    unknown_seconds: float
    ended: Ending
    heartbeat_seconds: float
    ahead_seconds: float
    walls: tuple[Span, ...]
    residencies: tuple[Residency, ...]

    def knows(self, times: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        """Return for each time, in seconds since 1970, whether the gateway is known to have been up then."""
        import numpy as np

        found = np.zeros(len(times), dtype=bool)
        for start, end in self.walls:
            found |= (times >= start) & (times <= end)
        return found


def read_usage(folder: Path) -> "pd.DataFrame":
    """Return every line of the usage logs in a folder; none where no gateway has run.

    Raises:
        LoraOpsError: a file can't be read.
    """
    import pandas as pd

    if not line_files(folder, "usage"):
        return pd.DataFrame({name: [] for name in UsageLine.model_fields})
    return read_line_files(folder, "usage", UsageLine, WHOLE)


def runs_in(lines: "pd.DataFrame", window: Window, now: datetime) -> list[GatewayRun]:
    """Return the runs of gateways that were up in a window, the first one first.

    Durations are differences of a gateway's uptime, which no change of its clock touches. The clock only says
    what is in the window: of two lines between which it jumped, the time is shared evenly.

    Args:
        lines: as `read_usage` gives them.
        window: what counts.
        now: by this machine's clock, to tell a run that goes on from one that is silent.
    """
    found = [
        run
        for gateway, mine in lines.groupby("gateway")
        if (run := _run(str(gateway), mine.sort_values("number"), window, now))
    ]
    return sorted(found, key=lambda run: (run.first, run.gateway))


def _run(gateway: str, lines: "pd.DataFrame", window: Window, now: datetime) -> GatewayRun | None:
    import numpy as np

    number, uptime = (lines[name].to_numpy(dtype=float) for name in ("number", "uptime_seconds"))
    wall = np.array([moment.timestamp() for moment in lines["time"]])
    busy = np.maximum.accumulate(lines["busy_seconds"].to_numpy(dtype=float))
    last = lines.iloc[-1]
    heartbeat = float(last["heartbeat_seconds"])
    known, walls, unknown = list[Span](), list[Span](), 0.0
    start, end = window.start.timestamp(), window.end.timestamp()
    for place in range(len(lines) - 1):
        part = _inside(uptime[place : place + 2], wall[place : place + 2], start, end)
        if part is None:
            continue
        if number[place + 1] - number[place] > 1:
            unknown += part[1] - part[0]
            continue
        known.append(part)
        walls += _walls(uptime[place : place + 2], wall[place : place + 2])
    known, seen = _joined(known), lines["time"].between(window.start, window.end, inclusive="left")
    if not known and not unknown and not seen.any():
        return None
    return GatewayRun(
        gateway,
        last["device"],
        float(last["devices"]),
        lines["time"].iloc[0].to_pydatetime(),
        last["time"].to_pydatetime(),
        sum(b - a for a, b in known),
        sum(float(np.interp(b, uptime, busy) - np.interp(a, uptime, busy)) for a, b in known),
        unknown,
        _ending(last["kind"], (now - last["time"]).total_seconds(), heartbeat),
        heartbeat,
        max(0.0, float(wall[-1] - now.timestamp())),
        tuple(_joined(walls)),
        tuple(_residencies(lines, known)),
    )


def _inside(uptime: Any, wall: Any, start: float, end: float) -> Span | None:
    """Return the part of the time between two lines that is in the window, by the gateway's uptime."""
    (u0, u1), (t0, t1) = uptime, wall
    if u1 <= u0:
        return None
    if t1 <= t0:  # the clock was set back
        return (u0, u1) if start <= t1 < end else None
    low, high = (min(1.0, max(0.0, (edge - t0) / (t1 - t0))) for edge in (start, end))
    return (u0 + low * (u1 - u0), u0 + high * (u1 - u0)) if low < high else None


def _walls(uptime: Any, wall: Any) -> list[Span]:
    """Return when events between two lines may have been, by the gateway's clock."""
    took = float(uptime[1] - uptime[0])
    if wall[1] > wall[0]:
        return [(float(wall[0]), float(wall[1]))]
    return [(float(wall[0]), float(wall[0]) + took), (float(wall[1]) - took, float(wall[1]))]


def _joined(spans: list[Span]) -> list[Span]:
    """Return spans in order, those that touch as one."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _ending(kind: str, silent_seconds: float, heartbeat: float) -> Ending:
    if kind == "stop":
        return "stopped"
    return "running" if silent_seconds <= SILENT_HEARTBEATS * heartbeat else "silent"


def _residencies(lines: "pd.DataFrame", known: list[Span]) -> Iterator[Residency]:
    """Yield each adapter's stays in memory; where the load's line was lost, from its first line on."""
    import numpy as np

    up_to = float(lines["uptime_seconds"].iloc[-1])
    mine = lines[lines["kind"].isin(MEMORY) & lines["adapter"].notna() & (lines["bytes"] >= 0)]
    for adapter, told in mine.groupby("adapter"):
        stay: list[tuple[float, float, float]] = []
        rows = zip(
            told["kind"], told["uptime_seconds"], told["used_seconds"].fillna(0), told["bytes"], strict=True
        )
        stays = []
        for kind, uptime, used, size in rows:
            if kind == "load" and stay:  # the line of its eviction was lost
                stays.append((stay, float(uptime)))
                stay = []
            stay.append((float(uptime), float(used), float(size)))
            if kind in ("evict", "unload"):
                stays.append((stay, float(uptime)))
                stay = []
        if stay:
            stays.append((stay, up_to))
        for points, left in stays:
            uptimes, used_seconds, sizes = (np.array(column) for column in zip(*points, strict=True))
            spans = [(max(a, uptimes[0]), min(b, left)) for a, b in known if min(b, left) > max(a, uptimes[0])]
            used = sum(
                float(np.interp(b, uptimes, used_seconds) - np.interp(a, uptimes, used_seconds))
                for a, b in spans
            )
            held = float(sum(b - a for a, b in spans))
            yield Residency(str(adapter), float(sizes.max()), held, min(held, max(0.0, used)))
