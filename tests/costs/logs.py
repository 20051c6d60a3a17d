"""Logs as a gateway keeps them, written down by the tests."""

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lora_ops.costs.usage import UsedEvent
from lora_ops.records.usage import UsageKind, UsageLine
from lora_ops.windows import Window

NOON = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
MIB = 2**20


def hours(first: float, last: float) -> Window:
    """The window between two hours after noon."""
    return Window(NOON + timedelta(hours=first), NOON + timedelta(hours=last))


class Logs:
    """One gateway's files in `.serving`; seconds are since it started, at `begins`."""

    def __init__(
        self,
        folder: Path,
        gateway: str = "a" * 32,
        begins: datetime = NOON,
        devices: float = 1.0,
        device: str = "cpu",
        heartbeat: float = 60.0,
    ) -> None:
        self.folder, self.gateway, self.begins = folder, gateway, begins
        self.devices, self.device, self.heartbeat = devices, device, heartbeat
        self._lines: list[tuple[float, UsageKind, dict[str, Any]]] = []
        self._lost: list[float] = []
        for name in ("events", "usage"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def line(self, second: float, kind: UsageKind, busy: float = 0.0, **facts: Any) -> None:
        self._lines.append((second, kind, {"busy_seconds": busy, **facts}))
        self._lines.sort(key=lambda line: line[0])
        made = [self._line(number, *line) for number, line in enumerate(self._lines)]
        self._file("usage").write_text("".join(f"{one.model_dump_json(exclude_none=True)}\n" for one in made))

    def lose(self, second: float) -> None:
        """Let lines be lost before this second; call it first."""
        self._lost.append(second)

    def _line(self, number: int, second: float, kind: UsageKind, facts: dict[str, Any]) -> UsageLine:
        return UsageLine(
            **{
                "time": self.begins + timedelta(seconds=second),
                "gateway": self.gateway,
                "number": number + sum(second >= lost for lost in self._lost),
                "kind": kind,
                "uptime_seconds": second,
                "heartbeat_seconds": self.heartbeat,
                "device": self.device,
                "devices": self.devices,
                **facts,
            }
        )

    def up(self, first: float, last: float, busy: float = 0.0, before: float = 0.0) -> None:
        """Heartbeats from one second to another; in each second it is busy for this part of it."""
        second = first
        while second <= last:
            self.line(second, "heartbeat", before + busy * (second - first))
            second += self.heartbeat

    def event(self, second: float, seconds: float, adapter: str = "finance@1", **facts: Any) -> None:
        made = UsedEvent(
            **{
                "id": uuid.uuid4().hex,
                "request_id": "r",
                "status": 200,
                "prompt_tokens": 10,
                "generated_tokens": 3,
                "time": self.begins + timedelta(seconds=second),
                "gateway": self.gateway,
                "tenant": adapter.partition("@")[0],
                "adapter": adapter,
                "device_seconds": seconds,
                "adapter_hit": True,
                **facts,
            },
        )
        self._append("events", made.model_dump_json())

    def _append(self, name: str, line: str) -> None:
        with self._file(name).open("a") as file:
            file.write(f"{line}\n")

    def _file(self, name: str) -> Path:
        return self.folder / name / f"{name}-20260302T120000000000-{self.gateway[:4]}.jsonl"
