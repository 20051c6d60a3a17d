"""How long a bad version answers: from the start of `lora-ops rollback` to a client's first good answer."""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from clients import JSON, connect
from rich.table import Table

from lora_ops.settings.files import find_root

ACTOR, TENANT, GOOD = "ben", "finance", "finance@1"
LONG_TOKENS = 1000
SETTLE_SECONDS = 0.5


def mttr_options(parser: argparse.ArgumentParser) -> None:
    """Say how many rollbacks are measured, under how much load."""
    parser.add_argument("--rollbacks", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4, help="that ask again and again; one asks for long")
    parser.add_argument("--pause", type=float, default=0, help="seconds between an answer and the next request")


@dataclass
class Asked:
    """One request of a client, and what came back."""

    began: float
    ended: float
    status: int
    adapter: str


@dataclass
class Client:
    """Sends requests until the end, `pause` seconds after each answer."""

    port: int
    tokens: int
    pause: float
    answers: list[Asked] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Ask until the end; a connection that breaks counts as a status of 0."""
        connection = connect(self.port)
        body = json.dumps({"model": TENANT, "prompt": "AIRBNB", "max_tokens": self.tokens, "ignore_eos": True})
        while not self.ending.is_set():
            began, status, adapter = time.time(), 0, ""
            try:
                connection.request("POST", "/v1/completions", body, JSON)
                answer = connection.getresponse()
                answer.read()
                status, adapter = answer.status, answer.headers["x-lora-ops-adapter"] or ""
            except OSError:
                connection = connect(self.port)
            self.answers.append(Asked(began, time.time(), status, adapter))
            self.ending.wait(self.pause)


@dataclass
class Rollback:
    """One measured rollback: what left, and when its command was started and had ended."""

    leaves: str
    started: float
    ended: float


def mttr(given: argparse.Namespace) -> Iterator[Table]:
    """Roll bad versions back while clients ask, and yield how soon the good one answered.

    Everything is real but the model, which is tiny and random. Gateway and command are processes, and versions
    go through every stage with evidence that the tests' kit makes.
    """
    sys.path.insert(0, str(find_root()))
    from tests.conftest import make_base, make_tiny_base
    from tests.registry.conftest import make_owners
    from tests.serving.conftest import Clone, make_clone, register

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        os.environ["XDG_CONFIG_HOME"] = str(folder / "config")  # its keys are thrown away
        base = make_base(make_tiny_base(folder / "source"), folder / "base")
        root = make_clone(base, make_owners(), folder)
        (root / "runbooks").symlink_to(find_root() / "runbooks")
        clone = Clone(root, root / "models/base")
        with clone.registry() as registry:
            clone.story(registry).to(GOOD, "production")
        port = stack.enter_context(_gateway(root))
        clients = [
            Client(port, LONG_TOKENS if number == 0 else 8, given.pause)
            for number in range(max(2, given.clients))
        ]
        threads = [threading.Thread(target=client.run) for client in clients]
        for thread in threads:
            thread.start()
        done = []
        for number in range(given.rollbacks):
            with clone.registry() as registry:
                if number == 0:
                    bad = "finance@2"  # the clone has it
                else:
                    bad = register(registry, clone.base, folder / f"package{number}", TENANT, 10 + number)
                clone.story(registry).to(bad, "production")
            _until(partial(_answered_by, clients, bad))
            done.append(_roll_back(root, bad, port))
            _until(partial(_answered_by, clients, GOOD))
            time.sleep(SETTLE_SECONDS)
        for client, thread in zip(clients, threads, strict=True):
            client.ending.set()
            thread.join()
    yield _table(clients, done)


def _table(clients: list[Client], done: list[Rollback]) -> Table:
    answers = [one for client in clients for one in client.answers]
    firsts, wholes, in_flight, late = [], [], 0, 0
    for one in done:
        good = min(
            (answer for answer in answers if answer.began > one.started and answer.adapter == GOOD),
            key=lambda answer: answer.ended,
        )
        firsts.append(good.ended - one.started)
        wholes.append(one.ended - one.started)
        old = [answer for answer in answers if answer.adapter == one.leaves and answer.ended > good.began]
        in_flight += len(old)
        late += sum(answer.began > good.ended for answer in old)
    table = Table(
        "seconds",
        "median",
        "worst",
        title=f"{len(done)} rollbacks, {len(clients)} clients, pause {clients[0].pause} s",
    )
    table.add_row("the command's start to a client's first good answer", *_shown(firsts))
    table.add_row("the whole command, with its page", *_shown(wholes))
    failed = [answer.status for answer in answers if answer.status != 200]
    table.caption = (
        f"{len(answers)} requests, {len(failed)} failed {sorted(set(failed)) or ''}; {in_flight} in flight "
        f"ended on the version that left, {late} began there after the first good answer; "
        f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    return table


def _shown(values: list[float]) -> tuple[str, str]:
    return f"{statistics.median(values):.2f}", f"{max(values):.2f}"


def _roll_back(root: Path, bad: str, port: int) -> Rollback:
    command = [sys.executable, "-m", "lora_ops", "rollback", bad, "--reason", "A benchmark.", "--yes"]
    options = ["--actor", ACTOR, "--gateway", f"http://127.0.0.1:{port}"]
    started = time.time()
    subprocess.run(
        [*command, *options],
        env={**os.environ, "LORA_OPS_ROOT": str(root)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return Rollback(bad, started, time.time())


@contextmanager
def _gateway(root: Path) -> Iterator[int]:
    """Serve in a process of its own, whose GIL the clients don't take; its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "LORA_OPS_ROOT": str(root)}
    command = [sys.executable, "-m", "lora_ops", "serve", "--port", str(port)]
    with (root / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _until(lambda: _answers(port), seconds=120)
            yield port
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        connection = connect(port)
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


def _answered_by(clients: list[Client], version: str) -> bool:
    return all(client.answers and client.answers[-1].adapter == version for client in clients)


def _until(holds: Callable[[], bool], seconds: float = 60) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise SystemExit("what the benchmark waits for does not come")
        time.sleep(0.05)
