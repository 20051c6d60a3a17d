"""How soon two gateways follow a route: from the commit of a change to the first answer decided by it."""

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from clients import JSON, connect
from rich.table import Table

from lora_ops.registry import routes
from lora_ops.registry.backends import open_registry
from lora_ops.registry.store import Registry
from lora_ops.settings.files import find_root

ASKED, CHANGED = "finance", "healthcare"
PAUSE_SECONDS = 0.3


def switch_options(parser: argparse.ArgumentParser) -> None:
    """Say how many changes are measured."""
    parser.add_argument("--changes", type=int, default=40, help="of a tenant's route")


@dataclass
class Client:
    """Sends requests without a pause; of each it notes when it began and ended, and the epoch of its answer."""

    port: int
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until the end."""
        connection = connect(self.port)
        body = json.dumps({"model": ASKED, "prompt": "AIRBNB", "max_tokens": 1})
        while not self.ending.is_set():
            began = time.perf_counter()
            connection.request("POST", "/v1/completions", body, JSON)
            answer = connection.getresponse()
            answer.read()
            self.answers.append((began, time.perf_counter(), int(answer.headers["x-lora-ops-epoch"])))


@dataclass
class Change:
    """A change of a route: when it began, when it was committed, and its entry in the audit log."""

    began: float
    committed: float
    seq: int


def switch(given: argparse.Namespace) -> Iterator[Table]:
    """Change a route while two gateways answer, and yield how soon their answers are decided by it.

    An answer's epoch is the last entry of the log that the gateway knew when it decided. Stopping and resuming
    a version of a tenant that nobody asks takes the same way as a canary's share, and loads no adapter.
    """
    from gateway import Site, ms

    with ExitStack() as stack:
        site = Site(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        shutil.copy(find_root() / "owners.yaml", site.root)
        site.register([ASKED, CHANGED], rank=8, modules="all-linear")
        clients = [Client(stack.enter_context(site.gateway())[0]) for _ in range(2)]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        while min(len(client.answers) for client in clients) < 5:  # both have loaded what they are asked for
            time.sleep(0.1)
        registry = stack.enter_context(closing(open_registry(site.root)))
        changes = [_change(registry, number) for number in range(given.changes)]
        for client, thread in zip(clients, threads, strict=True):
            client.ending.set()
            thread.join()
    table = Table("", "median", "P95", "slowest", title=f"{given.changes} changes of a route, milliseconds")
    table.add_row(
        "the change, up to its commit", *map(ms, _shown([one.committed - one.began for one in changes]))
    )
    for number, client in enumerate(clients, 1):
        waits = [_first(client, change) for change in changes]
        table.add_row(f"from there to the first answer, gateway {number}", *map(ms, _shown(waits)))
        times = [end - began for began, end, _ in client.answers]
        table.add_row("one answer, for comparison", *map(ms, _shown(times)))
    old = sum(
        began > change.committed and epoch < change.seq
        for client in clients
        for change in changes
        for began, _, epoch in client.answers
    )
    table.caption = f"{old} answers to requests that were sent after a commit did not know it"
    yield table


def _change(registry: Registry, number: int) -> Change:
    assert registry.owners is not None
    people = registry.owners.team(CHANGED).people
    actor = next(one.id for one in people if "operator" in one.roles)
    change = routes.resume if number % 2 else routes.stop
    began = time.perf_counter()
    routed = change(registry, f"{CHANGED}@1", actor=actor, reason="a benchmark")
    made = Change(began, time.perf_counter(), routed.seq)
    time.sleep(PAUSE_SECONDS)
    return made


def _first(client: Client, change: Change) -> float:
    """Return how long after a commit the first answer that knows it had arrived."""
    ends = (end for _, end, epoch in client.answers if epoch >= change.seq)
    return max(0.0, next(ends) - change.committed)


def _shown(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return statistics.median(ordered), ordered[max(0, -(-95 * len(ordered) // 100) - 1)], ordered[-1]
