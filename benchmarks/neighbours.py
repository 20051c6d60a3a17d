"""A tenant's time to its first token and per token beside hostile neighbours, and beside as many ordinary ones.

    python benchmarks/neighbours.py [--runs 10] [long] [large] [many] [unload] [sockets] [scrape] [console]

Needs models/base (`make repro`). Everything is real, as in gateway.py. The quiet tenant streams one answer at a
time. No prompt is sent twice, so each is read. Ordinary neighbours send prompts of 25 tokens, `long` ones of
6,000 tokens, and `large` ones texts of 1 MB, which never fit and are refused unread. `many` sends 64 texts of
16 kB in a request, which fit and are read. With `unload` the loud tenant's adapter is unloaded each time that
it is loaded. With `sockets` 1,000 connections send half a request head. With `scrape` and `console` a monitor
reads /metrics or the console's data without end, of a gateway that remembers 50,000 requests to 1,000 adapters;
these two come last. Runs are interleaved: each measures every pair.

The goal is 1.25 times the ordinary time and one step of the engine with a full chunk of a prompt. A prompt of
512 tokens that is read alone measures that in each run; at the end of a long prompt a step takes longer.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from clients import ask, completion
from gateway import Site, console
from rich.table import Table

from lora_ops.engines.torch_engine.engine import PREFILL_CHUNK
from lora_ops.serving.events import Event
from lora_ops.serving.gateway import Gateway

ANSWERS = 4  # of the quiet tenant, in each run and beside each neighbour
NUMBERS = itertools.count()
STEP_TOKENS = 512
# name -> hostile neighbours, and the ordinary ones that stand in their place
PAIRS = {
    "long": (["long"] * 3, ["ordinary"] * 3),
    "large": (["large"], ["ordinary"]),
    "many": (["many"], ["ordinary"]),
    "unload": (["ordinary", "unload"], ["ordinary"]),
    "sockets": (["ordinary", "sockets"], ["ordinary"]),
    "scrape": (["ordinary", "scrape"], ["ordinary"]),
    "console": (["ordinary", "console"], ["ordinary"]),
}
MONITORS = {"scrape", "console"}
ADAPTERS, REQUESTS = 1000, 50_000  # that the gateway remembers beside a monitor


@contextmanager
def beside(kinds: list[str], port: int) -> Iterator[None]:
    """While these neighbours are at work."""
    clients = Path(__file__).with_name("clients.py")
    processes = [subprocess.Popen([sys.executable, str(clients), kind, str(port)]) for kind in kinds]
    time.sleep(1)
    yield
    for process in processes:
        process.kill()
        process.wait()


def measure(kinds: list[str], port: int) -> tuple[float, float]:
    """Return the medians of the quiet tenant's seconds to the first token and per token beside these."""
    with beside(kinds, port):
        taken = [ask(port, completion("quiet", "ordinary", next(NUMBERS))) for _ in range(ANSWERS)]
    assert {status for status, _, _ in taken} == {200}, taken
    first, each = zip(*(times for _, *times in taken), strict=True)
    return statistics.median(first), statistics.median(each)


def full_step(port: int, context: int) -> float:
    """Return the seconds of one step with a full chunk, as the mean over a prompt that is read alone."""
    tokens = [5] * min(STEP_TOKENS, context // 2)
    # Of the KV cache nobody else has this salt.
    body = {
        "model": "loud",
        "prompt": tokens,
        "max_tokens": 1,
        "stream": True,
        "cache_salt": f"{next(NUMBERS)}",
    }
    status, first, _ = ask(port, json.dumps(body).encode())
    assert status == 200, status
    return first / (len(tokens) / PREFILL_CHUNK["cpu"])


def remember(gateway: Gateway) -> None:
    """Let the gateway remember as many requests and adapters as it may have seen in five minutes."""
    random = Random(0)
    for number in range(REQUESTS):
        adapter = f"t{number % ADAPTERS}@1"
        gateway.traffic.add(
            Event(
                time=datetime.now(UTC),
                request_id=f"r{number}",
                endpoint="chat",
                key=None,
                tenant=adapter.removesuffix("@1"),
                model=adapter,
                adapter=adapter,
                digest="",
                base_model="base",
                route="pinned",
                epoch=1,
                status=200,
                code=None,
                streamed=False,
                system_prompt="none",
                choices=1,
                finish=["stop"],
                prompt_tokens=25,
                generated_tokens=16,
                queue_seconds=0.0,
                first_token_seconds=random.random(),
                seconds=random.random(),
                device_seconds=0.1,
            )
        )
    metrics = gateway.telemetry
    for number in range(ADAPTERS):
        labels = (f"t{number}", f"t{number}@1", "base", "pinned")
        for counter in (metrics.requests, metrics.prompt_tokens, metrics.generated_tokens, metrics.device):
            counter.labels(*labels).inc()
        for histogram in (metrics.first_token, metrics.per_token):
            histogram.labels(*labels).observe(0.1)
        for histogram in (metrics.latency, metrics.queue):
            histogram.labels(*labels, "answered").observe(0.1)


def main() -> None:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=list(PAIRS), metavar="NEIGHBOUR", help=", ".join(PAIRS))
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    steps: list[float] = []
    with ExitStack() as stack:
        site = Site(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        site.register(["loud", "quiet"], 8, "all-linear")
        port, engine = stack.enter_context(site.gateway(max_running=8))
        for model in ("loud", "quiet"):
            ask(port, completion(model, "ordinary", next(NUMBERS)))
        # What the gateway remembers must not slow down the measurements beside tenants.
        for chosen in (set(options.pairs) - MONITORS, set(options.pairs) & MONITORS):
            if chosen & MONITORS:
                remember(site.served)
            for _ in range(options.runs if chosen else 0):
                steps.append(full_step(port, engine.context_length))
                for name in [one for one in options.pairs if one in chosen]:
                    for side, kinds in zip(("hostile", "ordinary"), PAIRS[name], strict=True):
                        found.setdefault((name, side), []).append(measure(kinds, port))
    step = statistics.median(steps) * 1000
    table = Table(
        title=f"A tenant beside neighbours, medians of {options.runs} interleaved runs, ms. "
        f"A step with a full chunk: {step:.0f}"
    )
    table.add_column("neighbour")
    for column in ("first token", "per token"):
        for heading in (column, "ordinary", "ratio", "goal"):
            table.add_column(heading, justify="right")
    for name in options.pairs:
        row = [name]
        for place in (0, 1):
            hostile, ordinary = (
                statistics.median(one[place] for one in found[name, side]) * 1000
                for side in ("hostile", "ordinary")
            )
            goal = 1.25 * ordinary + step
            row += [f"{hostile:.0f}", f"{ordinary:.0f}", f"{hostile / ordinary:.2f}", f"{goal:.0f}"]
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
