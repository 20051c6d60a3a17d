"""The usage log: one line for each start, heartbeat and stop of a gateway, and for each load and eviction.

Lines are written off the request's path, as those of events are. A heartbeat carries the counters of the whole
run, so that a lost line loses detail and no seconds. A gateway that is killed loses what came since its last
heartbeat.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_ops.engines.protocol import EngineStatus
from lora_ops.records.usage import UsageKind, UsageLine
from lora_ops.serving.cached_adapter import CachedAdapter
from lora_ops.serving.line_log import LineLog
from lora_ops.serving.requests import RequestStats
from lora_ops.settings.serving import EventSettings

FOLDER = "usage"
# Each adapter in memory has a line so often, used or not: its load may be in a file that is gone.
HELD_SECONDS = 3600.0
LINE_CHARACTERS = 400


class UsageLog(LineLog[UsageLine]):
    """The log of one run of a gateway; all of its methods are called from the event loop.

    Args:
        folder: where the files go.
        settings: when a new file begins, and when an old one goes.
        heartbeat_seconds: between two calls of `beat`.
        status: gives the engine's.
        adapters: gives what was ever in memory.
        lost: called with a number of lines that are lost.
    """

    def __init__(
        self,
        folder: Path,
        settings: EventSettings,
        heartbeat_seconds: float,
        status: Callable[[], EngineStatus],
        adapters: Callable[[], Iterable[CachedAdapter]],
        lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.gateway = uuid.uuid4().hex
        self._heartbeat_seconds = heartbeat_seconds
        self._status, self._adapters = status, adapters
        self._started = time.monotonic()
        self._number = 0
        self._told: dict[str, tuple[float, float]] = {}
        super().__init__(folder, "usage", settings, lost=lost)

    def start(self) -> None:
        """The gateway starts: from here on its device is taken."""
        self._started = time.monotonic()
        self._add("start")

    def beat(self) -> None:
        """The gateway is up; say of each adapter that was used since how long it was."""
        now = time.monotonic()
        for entry in self._adapters():
            used, at = self._told.get(entry.name, (0.0, 0.0))
            if entry.loaded and (entry.in_use.seconds != used or now - at >= HELD_SECONDS):
                self._add_adapter("held", entry)
        self._add("heartbeat")

    def stop(self) -> None:
        """The gateway stops, and its memory is free."""
        for entry in self._adapters():
            if entry.loaded:
                self._add_adapter("held", entry)
        self._add("stop")

    def entered(self, adapter: CachedAdapter, seconds: float) -> None:
        """An adapter is in memory, after a load that took so long."""
        self._add_adapter("load", adapter, load_seconds=seconds)

    def left(self, adapter: CachedAdapter, *, made_room: bool) -> None:
        """An adapter has left the memory."""
        self._add_adapter("evict" if made_room else "unload", adapter)
        self._told.pop(adapter.name, None)

    def answered_in_background(self, adapter: str, stats: RequestStats) -> None:
        """An answer in the background has ended, whole or not; no event tells of it."""
        if stats.device_seconds or stats.read:
            self._add(
                "background",
                adapter=adapter,
                device_seconds=stats.device_seconds,
                prompt_tokens=stats.read,
                generated_tokens=stats.generated,
            )

    def _add_adapter(self, kind: UsageKind, entry: CachedAdapter, load_seconds: float | None = None) -> None:
        used = entry.in_use.seconds
        self._told[entry.name] = used, time.monotonic()
        self._add(
            kind,
            adapter=entry.name,
            digest=entry.digest,
            bytes=entry.bytes,
            used_seconds=used,
            load_seconds=load_seconds,
        )

    def _add(self, kind: UsageKind, **facts: Any) -> None:
        status = self._status()
        self.append(
            UsageLine(
                time=datetime.now(UTC),
                gateway=self.gateway,
                number=self._number,
                kind=kind,
                uptime_seconds=time.monotonic() - self._started,
                heartbeat_seconds=self._heartbeat_seconds,
                busy_seconds=status.busy_seconds,
                device=status.device,
                devices=status.devices,
                **facts,
            )
        )
        self._number += 1

    def _size(self, item: UsageLine) -> int:
        return LINE_CHARACTERS

    def _prepared(self, items: Sequence[UsageLine]) -> Callable[[UsageLine], str]:
        return lambda line: line.model_dump_json(exclude_none=True)

    def _end(self) -> None:
        """Nothing is held."""
