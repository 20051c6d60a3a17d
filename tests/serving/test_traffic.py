"""The requests that the console counts."""

import gc
from typing import Any

import pytest

from lora_ops.serving import traffic
from lora_ops.serving.traffic import RecentTraffic, Window
from tests.serving.test_events import event


def test_recent_traffic_is_columns_oldest_first() -> None:
    recent = RecentTraffic(limit=2)
    assert recent.copy().since(300) == Window()
    for number in (1, 2, 3):
        recent.add(event(number, code=None if number == 2 else "overloaded"))
    window = recent.copy().since(300)
    assert list(window.request_id) == ["r2", "r3"] and list(window.code) == [None, "overloaded"]
    assert window.ago[0] >= window.ago[1] >= 0
    assert recent.copy().since(-1) == Window()


def test_recent_traffic_forgets_what_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    recent, now = RecentTraffic(), 1000.0
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now)
    recent.add(event(1))
    now += traffic.WINDOW_SECONDS + 1
    recent.add(event(2))
    assert list(recent.copy().since(1e9).request_id) == ["r2"]


def test_recent_traffic_is_nothing_to_collect() -> None:
    """Garbage collection went through 50,000 events, and nothing was answered meanwhile."""
    recent = RecentTraffic()
    for number in (1, 2):
        recent.add(event(number))
    gc.collect()
    gc.collect()
    kept: Any = recent._ended
    assert not any(gc.is_tracked(one) for one in kept)
