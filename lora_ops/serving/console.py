"""What the console shows: who answers, how fast, what fails, what is in memory; from this process alone.
Only the budgets of risky answers are counted by another one.

Whoever looks at the page must hold up no answer. What belongs to the event loop is read there by turns with
them. All that grows with the traffic is counted and written in a thread.
"""

import asyncio
import base64
import hashlib
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
from pydantic_core import to_json

from lora_ops.errors import LoraOpsError
from lora_ops.registry.eligibility import expiry_reason, expiry_warning, hold_reason
from lora_ops.serving.errors import CLIENT_GONE, NOT_FAILED
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.traffic import WINDOW_SECONDS, Recent, Window
from lora_ops.serving.turns import in_turns

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


async def snapshot(gateway: Gateway) -> bytes:
    """Return everything on the page as JSON; times in seconds, sizes in bytes.

    Raises:
        LoraOpsError: the registry can't be read.
    """
    counts = await asyncio.to_thread(_counts, gateway.traffic.copy())
    board = await asyncio.to_thread(gateway.rollouts.read, gateway.rules_seen(), gateway.registry.clock())
    for rollout in board["rollouts"]:
        rollout["route"] = _route(gateway, rollout["tenant"])
    page = {
        "window_seconds": WINDOW_SECONDS,
        "bar_seconds": BAR_SECONDS,
        **_now(gateway),
        "total": counts.total,
        "bars": counts.bars,
        "tenants": await _tenants(gateway, counts),
        "adapters": await _adapters(gateway, counts),
        "rollouts": board,
        "risk": gateway.risk.read(),
        "errors": counts.errors,
        "refused": gateway.telemetry.refusals(),
    }
    return await asyncio.to_thread(_written, page)


def percentile(ordered: Sequence[float], part: float) -> float | None:
    """Return the smallest of the ordered values that at least `part` of them do not exceed."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


@dataclass(frozen=True)
class _Counts:
    """What the requests of the window come to.

    Attributes:
        total, tenants, adapters: `_numbers` of all requests, and of each tenant's and adapter's.
        splits: of each tenant, who answered its requests.
    """

    total: dict[str, Any]
    tenants: dict[str, dict[str, Any]]
    splits: dict[str, list[dict[str, Any]]]
    adapters: dict[str, dict[str, Any]]
    bars: list[list[int]]
    errors: list[dict[str, Any]]


def _counts(traffic: Recent) -> _Counts:
    window = traffic.since(WINDOW_SECONDS)
    every = range(len(window.ago))
    by_tenant, by_adapter = _grouped(window.tenant), _grouped(window.adapter)
    failed = [row for row in reversed(every) if _failed(window.status[row])]
    return _Counts(
        total=_numbers(window, every),
        tenants={name: _numbers(window, rows) for name, rows in by_tenant.items()},
        splits={name: _split(window, rows) for name, rows in by_tenant.items()},
        adapters={name: _numbers(window, rows) for name, rows in by_adapter.items()},
        bars=_bars(window),
        errors=[_error(window, row) for row in failed[:ERRORS_SHOWN]],
    )


def _written(page: dict[str, Any]) -> bytes:
    page["tenants"].sort(key=lambda row: (-row["requests"], row["tenant"]))
    page["adapters"].sort(key=lambda row: (not row["loaded"], -row["requests"], row["adapter"]))
    return to_json(page)


def _now(gateway: Gateway) -> dict[str, Any]:
    """Return the gateway, and what it is doing."""
    status = gateway.engine.status()
    base = gateway.base_model
    return {
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
    }


def _failed(status: int) -> bool:
    return status not in NOT_FAILED


def _error(window: Window, row: int) -> dict[str, Any]:
    return {
        "ago": window.ago[row],
        "tenant": window.tenant[row],
        "adapter": window.adapter[row],
        "status": window.status[row],
        "code": window.code[row],
        "request_id": window.request_id[row],
    }


def _numbers(window: Window, rows: Sequence[int]) -> dict[str, Any]:
    """Return what these rows of the window come to."""
    status = [window.status[row] for row in rows]
    good = [row for row in rows if window.status[row] == 200]
    latency = _ordered(window.seconds[row] for row in good)
    first = _ordered(window.first_token_seconds[row] for row in good)
    return {
        "requests": len(rows),
        "errors": sum(map(_failed, status)),
        "gone": status.count(CLIENT_GONE),
        "tokens": sum(window.generated_tokens[row] for row in rows),
        "device_seconds": sum(window.device_seconds[row] for row in rows),
        "latency": [percentile(latency, part) for part in (0.5, 0.95, 0.99)],
        "first_token": [percentile(first, part) for part in (0.5, 0.95, 0.99)],
    }


def _ordered(values: Iterable[float | None]) -> list[float]:
    """Return the values that are there in their order, by numpy, which lets the event loop run meanwhile."""
    ordered: list[float] = numpy.sort(numpy.array([one for one in values if one is not None], float)).tolist()
    return ordered


def _split(window: Window, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Return who answered a tenant's requests, the most frequent first."""
    counted = Counter((window.adapter[row], window.route[row]) for row in rows)
    return [
        {"adapter": adapter, "route": route, "requests": count}
        for (adapter, route), count in counted.most_common()
    ]


def _grouped(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each name."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        groups[name].append(row)
    return groups


def _bars(window: Window) -> list[list[int]]:
    """[answered, failed] for each `BAR_SECONDS` of the window, oldest first."""
    bars = [[0, 0] for _ in range(WINDOW_SECONDS // BAR_SECONDS)]
    for ago, status in zip(window.ago, window.status, strict=True):
        bars[-1 - min(len(bars) - 1, int(ago // BAR_SECONDS))][_failed(status)] += 1
    return bars


async def _tenants(gateway: Gateway, counts: _Counts) -> list[dict[str, Any]]:
    names = dict.fromkeys([*gateway.router.tenants(), *counts.tenants])
    waiting, nothing = gateway.queue.waiting(), _numbers(Window(), ())
    rows: list[dict[str, Any]] = []
    async for name in in_turns(names):
        serving, why = None, None
        try:
            serving = gateway.router.route(name).name
        except LoraOpsError as error:
            why = str(error)
        rows.append(
            {
                "tenant": name,
                "serving": serving,
                "refusal": why,
                "shares": _shares(gateway, name),
                "split": counts.splits.get(name, []),
                "waiting": waiting.get(name, 0),
                **counts.tenants.get(name, nothing),
            }
        )
    return rows


def _route(gateway: Gateway, tenant: str) -> dict[str, Any]:
    """Return who answers a tenant's users now, and with whom the route shares them."""
    route = gateway.router.tenant_route(tenant)
    canary = route.route.canary if route else None
    try:
        stable = gateway.router.route(tenant).name
    except LoraOpsError:  # the table of tenants says why
        stable = None
    return {
        "stable": stable,
        "canary": f"{tenant}@{canary.number}" if canary else None,
        "percent": canary.percent if canary else 0,
        "shares": _shares(gateway, tenant),
    }


def _shares(gateway: Gateway, tenant: str) -> list[str]:
    """Return who shares a tenant's requests with production, as its route says."""
    found = gateway.router.tenant_route(tenant)
    if found is None:
        return []
    route = found.route
    pins = len(route.users) + len(route.segments)
    return [
        *([f"{tenant}@{route.canary.number} canary of {route.canary.percent:g} %"] if route.canary else ()),
        *([f"{tenant}@{route.shadow.number} shadow of {route.shadow.percent:g} %"] if route.shadow else ()),
        *([f"{pins} pinned"] if pins else ()),
        *(f"{tenant}@{number} stopped" for number in route.stopped),
    ]


async def _adapters(gateway: Gateway, counts: _Counts) -> list[dict[str, Any]]:
    now, nothing = time.monotonic(), _numbers(Window(), ())
    today = gateway.registry.clock()
    entries = {entry.name: entry for entry in gateway.cache.entries()}
    rows: list[dict[str, Any]] = []
    async for summary in in_turns(gateway.router.versions()):
        name = summary.id
        entry = entries.get(name)
        if entry is None and not summary.aliases:
            continue
        rows.append(
            {
                "adapter": name,
                "digest": summary.content_digest,
                "state": summary.state,
                "aliases": list(summary.aliases),
                "fresh_until": summary.fresh_until,
                "held": hold_reason(gateway.registry, summary),
                "expired": expiry_reason(summary, today),
                "expires_soon": expiry_warning(summary, today),
                "loaded": bool(entry and entry.loaded),
                "pinned": entry.pin if entry else "no",
                "bytes": entry.bytes if entry and entry.loaded else 0,
                "users": entry.users if entry else 0,
                "idle": now - entry.last_used if entry and entry.last_used else None,
                "problem": str(entry.fault) if entry and entry.fault else None,
                **counts.adapters.get(name, nothing),
            }
        )
    return rows
