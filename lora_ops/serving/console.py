"""What the console shows: who answers, how fast, what fails, what is in memory; from this process alone."""

import base64
import hashlib
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_ops.errors import LoraOpsError
from lora_ops.serving.errors import CLIENT_GONE, NOT_FAILED
from lora_ops.serving.events import Event
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.traffic import WINDOW_SECONDS

PAGE = (Path(__file__).parent / "console.html").read_text(encoding="utf-8")
BAR_SECONDS = 5
ERRORS_SHOWN = 15
FRESH_SECONDS = 1.0


def security_policy() -> str:
    """A content security policy that allows the page its own script and nothing else."""
    script = re.findall(r"<script>(.*?)</script>", PAGE, re.S)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Console:
    """The page's data, counted anew at most once in `FRESH_SECONDS`, however many look at it."""

    def __init__(self, gateway: Gateway, clock: Callable[[], float] = time.monotonic) -> None:
        self._gateway = gateway
        self._clock = clock
        self._at = -math.inf
        self._data: dict[str, Any] = {}

    def data(self) -> dict[str, Any]:
        """A snapshot that is fresh enough.

        Raises:
            LoraOpsError: the registry can't be read.
        """
        if self._clock() - self._at >= FRESH_SECONDS:
            self._data, self._at = snapshot(self._gateway), self._clock()
        return self._data


def snapshot(gateway: Gateway) -> dict[str, Any]:
    """Everything on the page, as JSON values; times in seconds, sizes in bytes.

    Raises:
        LoraOpsError: the registry can't be read.
    """
    recent = gateway.traffic.since(WINDOW_SECONDS)
    events = [event for _, event in recent]
    status = gateway.engine.status()
    base = gateway.base_model
    return {
        "window_seconds": WINDOW_SECONDS,
        "bar_seconds": BAR_SECONDS,
        "gateway": {
            "ready": gateway.ready,
            "uptime": time.monotonic() - gateway.started,
            "engine": gateway.settings.engine,
            "base_model": base.id,
            "base_digest": base.sha256,
            "needs_keys": gateway.settings.require_keys or gateway.keys.any(),
            "serves_candidates": gateway.settings.allow_candidates,
        },
        "now": {
            "running": gateway.queue.running,
            "slots_used": gateway.queue.used,
            "slots": gateway.settings.max_running,
            "waiting": sum(gateway.queue.waiting().values()),
            "places": gateway.settings.max_waiting,
            "kv_tokens": status.kv_tokens,
            "kv_capacity": status.kv_capacity,
            "adapter_bytes": gateway.cache.bytes,
            "adapter_budget": int(gateway.settings.adapter_memory),
        },
        "total": _numbers(events),
        "bars": _bars(recent),
        "tenants": _tenants(gateway, events),
        "adapters": _adapters(gateway, events),
        "errors": [
            {
                "ago": ago,
                "tenant": event.tenant,
                "adapter": event.adapter,
                "status": event.status,
                "code": event.code,
                "request_id": event.request_id,
            }
            for ago, event in [one for one in reversed(recent) if _failed(one[1])][:ERRORS_SHOWN]
        ],
        "refused": gateway.telemetry.refusals(),
    }


def percentile(values: Sequence[float], part: float) -> float | None:
    """The smallest value that at least `part` of the values do not exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def _failed(event: Event) -> bool:
    return event.status not in NOT_FAILED


def _numbers(events: Iterable[Event]) -> dict[str, Any]:
    events = list(events)
    good = [event for event in events if event.status == 200]
    latency = [event.seconds for event in good]
    first = [event.first_token_seconds for event in good if event.first_token_seconds is not None]
    return {
        "requests": len(events),
        "errors": sum(map(_failed, events)),
        "gone": sum(event.status == CLIENT_GONE for event in events),
        "tokens": sum(event.generated_tokens for event in events),
        "device_seconds": sum(event.device_seconds for event in events),
        "latency": [percentile(latency, part) for part in (0.5, 0.95, 0.99)],
        "first_token": [percentile(first, part) for part in (0.5, 0.95, 0.99)],
    }


def _grouped(events: Iterable[Event], key: Callable[[Event], str]) -> dict[str, list[Event]]:
    groups: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        groups[key(event)].append(event)
    return groups


def _bars(recent: list[tuple[float, Event]]) -> list[list[int]]:
    """[answered, failed] for each `BAR_SECONDS` of the window, oldest first."""
    bars = [[0, 0] for _ in range(WINDOW_SECONDS // BAR_SECONDS)]
    for ago, event in recent:
        bars[-1 - min(len(bars) - 1, int(ago // BAR_SECONDS))][_failed(event)] += 1
    return bars


def _tenants(gateway: Gateway, events: list[Event]) -> list[dict[str, Any]]:
    names = dict.fromkeys([*gateway.router.tenants(), *sorted({event.tenant for event in events})])
    waiting = gateway.queue.waiting()
    by_tenant = _grouped(events, lambda event: event.tenant)
    rows = []
    for name in names:
        mine = by_tenant[name]
        split = Counter((event.adapter, event.route) for event in mine)
        serving, why = None, None
        try:
            serving = gateway.router.route(name).name
        except LoraOpsError as error:
            why = str(error)
        rows.append(
            {
                "tenant": name,
                "serving": serving,
                "why_not": why,
                "split": [
                    {"adapter": adapter, "route": route, "requests": count}
                    for (adapter, route), count in split.most_common()
                ],
                "waiting": waiting.get(name, 0),
                **_numbers(mine),
            }
        )
    return sorted(rows, key=lambda row: (-row["requests"], row["tenant"]))


def _adapters(gateway: Gateway, events: list[Event]) -> list[dict[str, Any]]:
    now = time.monotonic()
    entries = {entry.name: entry for entry in gateway.cache.entries()}
    states = {one.id: one for one in gateway.router.versions()}
    shown = [name for name, one in states.items() if name in entries or one.aliases]
    by_adapter = _grouped(events, lambda event: event.adapter)
    rows = []
    for name in shown:
        entry, summary = entries.get(name), states[name]
        mine = by_adapter[name]
        rows.append(
            {
                "adapter": name,
                "digest": summary.content_digest,
                "state": summary.state,
                "aliases": list(summary.aliases),
                "fresh_until": summary.fresh_until,
                "loaded": bool(entry and entry.loaded),
                "pinned": entry.pin if entry else "no",
                "bytes": entry.bytes if entry and entry.loaded else 0,
                "users": entry.users if entry else 0,
                "idle": now - entry.last_used if entry and entry.last_used else None,
                "problem": str(entry.fault) if entry and entry.fault else None,
                **_numbers(mine),
            }
        )
    return sorted(rows, key=lambda row: (not row["loaded"], -row["requests"], row["adapter"]))
