"""The budgets of risky answers on the console: what `lora-ops monitor risk` counts, in a process of its own.

A budget is for a month of events. To count them in this process, in a thread too, would hold up answers.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_ops.serving.risk_worker import NICENESS, package_environment
from lora_ops.serving.turns import REST

COMMAND = ("-m", "lora_ops", "monitor", "risk", "--json")
FRESH_SECONDS = 60.0
"""How long a count is shown at least; counting takes a fifth of the time at most."""
LONGEST_SECONDS = 120.0
SHOWN = 60
"""Rows on the page: whole tenants, and of their versions those that burn most."""
COLUMNS = ("tenant", "adapter", "kind", "scored", "flagged", "share", "corrected", "budget", "burnt")


class RiskBoard:
    """Counts the budgets while somebody looks; used by one event loop.

    Args:
        root: of the repository, whose events and registry the command reads.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._due = 0.0
        self._counted: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._board: dict[str, Any] = {"risks": [], "problem": None}
        # Guards the two below: the thread that counts sets them, and the event loop ends the process.
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def read(self) -> dict[str, Any]:
        """Return the last count and how many seconds ago it was, None before the first; begin the next one."""
        now = time.monotonic()
        if now >= self._due and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._count())
        return {**self._board, "ago": None if self._counted is None else now - self._counted}

    async def close(self) -> None:
        """End the count that runs."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()
        if self._task:
            await self._task

    async def _count(self) -> None:
        began = time.monotonic()
        try:
            self._board = await asyncio.to_thread(self._asked)
        except (OSError, ValueError, LookupError, TypeError) as error:  # it was killed, or broke off
            self._board = {"risks": [], "problem": f"`lora-ops monitor risk` broke off ({error}): run it."}
        self._counted = time.monotonic()
        self._due = self._counted + max(FRESH_SECONDS, REST * (self._counted - began))

    def _asked(self) -> dict[str, Any]:
        """Return the rows of the page, or why there are none.

        Raises:
            OSError: the process can't be started.
            ValueError, LookupError, TypeError: it printed something else.
        """
        with self._lock:
            if self._closed:
                return self._board
            self._process = process = subprocess.Popen(
                [sys.executable, *COMMAND],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=package_environment() | {"LORA_OPS_ROOT": str(self._root)},
            )
        with suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        try:
            printed, _ = process.communicate(timeout=LONGEST_SECONDS)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise ValueError(f"it took more than {LONGEST_SECONDS:g} seconds") from error
        finally:
            with self._lock:
                self._process = None
        told = json.loads(printed)
        if "error" in told:
            return {"risks": [], "problem": str(told["error"]["message"])}
        return board(told)


def board(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of a report of `monitor risk`; the tenant that burns most comes first.

    Args:
        report: what the command prints with `--json`.
    """
    rows = report["risks"]
    burnt = {row["tenant"]: 0.0 for row in rows}
    for row in rows:
        if row["adapter"] is None:
            burnt[row["tenant"]] = max(burnt[row["tenant"]], row["burnt"] or 0.0)
    # A tenant's own row stands before those of its versions.
    rows.sort(
        key=lambda row: (
            -burnt[row["tenant"]],
            row["tenant"],
            row["kind"],
            row["adapter"] is not None,
            -(row["burnt"] or 0.0),
        )
    )
    # Where not all have room, no tenant is left out for the versions of another one.
    whole = [row for row in rows if row["adapter"] is None][:SHOWN]
    room = SHOWN - len(whole)
    most = sorted((row for row in rows if row["adapter"] is not None), key=lambda row: -(row["burnt"] or 0.0))[
        :room
    ]
    chosen = {id(row) for row in (*whole, *most)}
    return {
        "risks": [_shown(row) for row in rows if id(row) in chosen],
        "left_out": len(rows) - len(chosen),
        "start": report["start"],
        "notes": report["notes"],
        "problem": None,
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*COLUMNS, "burn_rates", "verdict", "said")}
