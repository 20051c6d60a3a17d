"""Whose work comes next."""

import threading

import pytest

from lora_ops.engines.protocol import EngineError
from lora_ops.engines.tenant_threads import TenantThreads


def test_work_of_another_tenant_comes_before_the_next() -> None:
    threads, goes_on, done = TenantThreads(1, "test"), threading.Event(), []
    futures = [threads.submit("first", goes_on.wait)]
    for number in range(3):
        futures.append(threads.submit("first", lambda number=number: done.append(("first", number))))
    futures.append(threads.submit("second", lambda: done.append(("second", 0))))
    goes_on.set()
    for future in futures:
        future.result(10)
    assert done == [("second", 0), *(("first", number) for number in range(3))]
    assert not threads._lines
    threads.close()


def test_work_that_fails_or_is_cancelled_holds_up_nothing() -> None:
    threads, goes_on, done = TenantThreads(1, "test"), threading.Event(), []
    threads.submit("one", goes_on.wait)
    cancelled = threads.submit("one", lambda: done.append("cancelled"))
    fails = threads.submit("one", lambda: {}["missing"])
    last = threads.submit("one", lambda: done.append("last"))
    assert cancelled.cancel()
    assert len(threads._lines["one"]) == 3  # what was cancelled keeps nothing in memory
    goes_on.set()
    with pytest.raises(KeyError):
        fails.result(10)
    last.result(10)
    assert done == ["last"]
    threads.close()


def test_what_waits_at_the_end_is_told_so() -> None:
    threads, goes_on = TenantThreads(1, "test"), threading.Event()
    runs = threads.submit("one", goes_on.wait)
    waiting = [threads.submit(tenant, goes_on.wait) for tenant in ("one", "one", "two")]
    threads.close()
    goes_on.set()
    assert runs.result(10)
    for future in [*waiting, threads.submit("two", goes_on.wait)]:
        with pytest.raises(EngineError, match="stopped"):
            future.result(10)
