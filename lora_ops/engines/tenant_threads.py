"""Threads that give way to the engine and work for the tenants by turns."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from lora_ops.engines.protocol import EngineError

NICENESS = 10

T = TypeVar("T")


class TenantThreads:
    """A tenant has one piece of work under way at a time, and its next one waits behind the other tenants'.

    Args:
        threads: pieces of work that are done at the same time.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, name, initializer=_give_way)
        self._closed = False
        self._lock = threading.Lock()  # of the lines
        # What waits of each tenant that has work under way.
        self._lines: dict[str | None, deque[Callable[[], None]]] = {}

    def submit(self, tenant: str | None, work: Callable[[], T]) -> "Future[T]":
        """Return what `work` will return, or `EngineError` once this is closed.

        A future that is cancelled in time is never begun, and leaves the line.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self._closed:
                    raise EngineError("The engine was stopped.")
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001 - whoever waits for the future gets it
                future.set_exception(error)

        def leave(done: "Future[T]") -> None:
            with self._lock:
                line = self._lines.get(tenant)
                # The first one is a thread's already, which takes it out of the line.
                if done.cancelled() and line and run in line and line[0] is not run:
                    line.remove(run)

        with self._lock:
            waits = tenant in self._lines
            self._lines.setdefault(tenant, deque()).append(run)
        future.add_done_callback(leave)
        if not waits:
            self._hand_over(tenant)
        return future

    def close(self) -> None:
        """Let what runs finish, and begin nothing more."""
        self._closed = True
        self._threads.shutdown(wait=False)

    def _hand_over(self, tenant: str | None) -> None:
        try:
            self._threads.submit(self._work, tenant)
        except RuntimeError:  # closed: each says so by itself
            self._work(tenant)

    def _work(self, tenant: str | None) -> None:
        """Do the first piece of a tenant's work, and let the next one wait behind other tenants'."""
        self._lines[tenant][0]()
        with self._lock:
            self._lines[tenant].popleft()
            more = bool(self._lines[tenant])
            if not more:
                del self._lines[tenant]
        if more:
            self._hand_over(tenant)


def _give_way() -> None:
    # Linux keeps the niceness of each thread. Elsewhere it is the whole process's, engine included.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
