"""Seconds in which something was under way, and how things share them."""

import pytest

from lora_ops.engines.busy_clock import BusyClock


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_busy_clock_counts_each_second_once() -> None:
    clock = Clock()
    busy = BusyClock(clock)
    clock.now += 5
    busy.enter()
    clock.now += 2
    with busy.working():
        clock.now += 3
    clock.now += 1
    busy.leave()
    clock.now += 10
    assert (busy.seconds, busy.running) == (6, 0)


def test_busy_clock_shares_add_up_to_its_seconds() -> None:
    """Each request was charged with the time since its last piece: two took more than there was."""
    clock = Clock()
    busy = BusyClock(clock)
    busy.enter()
    first = busy.share
    clock.now += 4
    busy.enter()
    second = busy.share
    clock.now += 6
    busy.leave()
    second = busy.share - second
    clock.now += 2
    busy.leave()
    first = busy.share - first
    assert (first, second) == (4 + 3 + 2, 3)
    assert first + second == pytest.approx(busy.seconds) == 12


def test_busy_clock_goes_on_after_an_error() -> None:
    clock = Clock()
    busy = BusyClock(clock)
    with pytest.raises(ZeroDivisionError), busy.working():
        clock.now += 1
        1 / 0  # noqa: B018
    assert (busy.seconds, busy.running) == (1, 0)
