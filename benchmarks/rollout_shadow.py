"""The part of `rollout.py` that measures what shadow traffic costs the clients: P95 with and without it."""

import argparse
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from scipy.stats import t as student

if TYPE_CHECKING:  # the other parts need no engine
    from lora_ops.serving.gateway import Gateway

TOKENS = 8
AIM = 1.05


def shadow_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `shadow`."""
    parser.add_argument("--runs", type=int, default=20, help="pairs of runs, with and without shadow")
    parser.add_argument("--requests", type=int, default=100, help="of each run")
    parser.add_argument(
        "--load", type=float, default=0.3, help="part of the time that one request at a time fills"
    )
    parser.add_argument("--percent", type=float, default=20, help="of the requests that are asked again")


def shadow(given: argparse.Namespace) -> Iterator[Table]:
    """Yield the P95 of the primary's answers with and without shadow, by runs that take turns.

    Requests arrive at random (Poisson) and at the same moments in both runs of a pair. Which run comes first is
    drawn. What was not copied when a run ends is dropped before the next one.
    """
    from gateway import Client, Site, quantile

    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        site.register(["finance", "media"], 8, "all-linear")
        with site.gateway() as (port, _):
            mirror = Mirror(site.served, given.percent)
            alone = statistics.median(Client(port).ask("finance", TOKENS)[0] for _ in range(12))
            drawn, ratios = random.Random(0), []
            p95: dict[bool, list[float]] = {True: [], False: []}
            for _ in range(given.runs):
                times = arrivals(drawn, given.requests, alone / given.load)
                for on in drawn.sample([True, False], 2):
                    mirror.on = on
                    p95[on].append(quantile(run(port, times), 0.95))
                    mirror.on = False
                    mirror.drain()
                ratios.append(p95[True][-1] / p95[False][-1])
            copies = mirror.copies()
    yield table(given, alone, p95, ratios, copies)


class Mirror:
    """Copies requests of a gateway for another adapter while it is on; no version of it needs a stage."""

    def __init__(self, gateway: "Gateway", percent: float) -> None:
        from lora_ops.serving.after_answer import Answered
        from lora_ops.serving.keys import OPEN
        from lora_ops.serving.shadow import ShadowVersion

        self.on = False
        self._gateway = gateway
        gateway.shadow._version = lambda tenant: (
            ShadowVersion(gateway.route(OPEN, "media@1"), percent) if self.on else None
        )

        async def copy(answered: Answered) -> None:
            request = answered.request
            production = replace(request, route=replace(request.route, decision="production"))
            await gateway.shadow.after_answer(Answered(production, answered.stats))

        gateway.after_answer.add(copy)

    def drain(self) -> None:
        """Wait until the copies are dropped, as those of a version that was stopped are."""
        while self._gateway.shadow._copies:
            time.sleep(0.02)

    def copies(self) -> dict[str, int]:
        """Return what became of the copies."""
        counter: Any = self._gateway.telemetry.shadow_copies
        return {
            outcome: int(counter.labels("media@1", outcome)._value.get())
            for outcome in ("asked", "answered", "preempted", "dropped", "failed")
        }


def arrivals(drawn: random.Random, requests: int, apart: float) -> list[float]:
    """Return when each request comes, in seconds."""
    times, now = [], 0.0
    for _ in range(requests):
        now += drawn.expovariate(1 / apart)
        times.append(now)
    return times


def run(port: int, times: list[float]) -> list[float]:
    """Return the seconds of each answer, of requests that come at these times."""
    from gateway import Client

    seconds: list[float] = []
    began = time.perf_counter()

    def ask(at: float) -> None:
        time.sleep(max(0.0, began + at - time.perf_counter()))
        seconds.append(Client(port).ask("finance", TOKENS)[0])

    threads = [threading.Thread(target=ask, args=(at,)) for at in times]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    return seconds


def table(
    given: argparse.Namespace,
    alone: float,
    p95: dict[bool, list[float]],
    ratios: list[float],
    copies: dict[str, int],
) -> Table:
    """Return the P95s, and their ratio with its interval over the pairs of runs."""
    logs = [math.log(one) for one in ratios]
    mean = statistics.fmean(logs)
    half = math.inf
    if len(logs) > 1:
        half = student.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    found = Table(
        title=f"P95 of the primary beside shadow traffic: {given.runs} pairs of runs of {given.requests} "
        f"requests, {given.load:.0%} busy ({alone * 1000:.0f} ms alone), {given.percent:g} % asked again"
    )
    for column in ("without ms", "with ms", "ratio", "95 % interval", "aim"):
        found.add_column(column, justify="right")
    found.add_row(
        f"{statistics.median(p95[False]) * 1000:.0f}",
        f"{statistics.median(p95[True]) * 1000:.0f}",
        f"{math.exp(mean):.3f}",
        f"{math.exp(mean - half):.3f} to {math.exp(mean + half):.3f}",
        f"upper end at most {AIM}",
    )
    found.caption = "copies: " + ", ".join(f"{count} {outcome}" for outcome, count in copies.items())
    return found
