"""What `on_breach` costs a client: flag, redact and block, interleaved, at one gateway.

    python benchmarks/on_breach.py [--rounds 30] [--clients 1 8] [--tokens 64]

Needs models/base (`make repro`). Three tenants ask the base model the same in turns, so that they see the
machine alike: each writes the same answer. Everything is real: uvicorn on loopback, the embedded engine, and
the process that looks at answers. The time to the first text is that of the first event with some. The last
table says how long one look takes: in the gateway's own process, all other answers would wait so long.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from gateway import Site, console, ms, quantile
from rich.table import Table

# After the gateway's, which imports the engine before torch.
# isort: split
from clients import connect

from lora_ops.detectors.identifiers import redacted_parts
from lora_ops.registry.backends import open_registry
from lora_ops.serving.keys import KeyStore
from lora_ops.settings.serving import TenantServing

HOW = ("flag", "redact", "block")
QUESTIONS = (
    "Explain how a card payment is settled between two banks.",
    "Describe a walk through a small town on a winter morning.",
    "What should a letter to a landlord about a broken heater say?",
    "Give me an invoice for three chairs, with prices and dates.",
)
TEXTS = {
    "words": "The meeting is on the third floor, as every week. ",
    "numbers": "12 apples of 2024 cost 3.50 each, 017 of 40. ",
    "identifiers": "jo@example.org, +49 30 1234567, 4111 1111 1111 1111. ",
}


def ask(port: int, key: str, question: str, tokens: int, *, stream: bool) -> tuple[float, float, str]:
    """Return seconds to the whole answer and to its first text, and how it ended."""
    body = {"model": "base", "messages": [{"role": "user", "content": question}], "max_tokens": tokens}
    connection = connect(port)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    started, first, finish = time.perf_counter(), 0.0, ""
    connection.request("POST", "/v1/chat/completions", json.dumps({**body, "stream": stream}), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"The gateway answered {answer.status}: {answer.read().decode()}")
    if stream:
        for line in answer:
            if line.startswith(b"data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                finish = choice["finish_reason"] or finish
                if not first and choice["delta"].get("content"):
                    first = time.perf_counter() - started
    else:
        finish = json.loads(answer.read())["choices"][0]["finish_reason"]
    seconds = time.perf_counter() - started
    connection.close()
    return seconds, first or seconds, finish


def compared(folder: Path, clients: Sequence[int], rounds: int, tokens: int) -> None:
    """Print whole answers and times to the first text, of each tenant and as a ratio to flag."""
    site = Site(folder)
    open_registry(folder, create=True).close()
    with closing(KeyStore(folder / ".serving/keys.sqlite")) as store:
        keys = {how: store.create("tenant", how, base=True)[1] for how in HOW}
    table = Table(title=f"Answers of {tokens} tokens, ms (and ratio to flag)")
    for column in (
        "streamed",
        "clients",
        "on_breach",
        "P50",
        "P95",
        "first text P50",
        "P95",
        "blocked",
    ):
        table.add_column(column, justify="right")
    with site.gateway(tenants={how: TenantServing(on_breach=how) for how in HOW}) as (port, _):
        for stream, count in itertools.product((False, True), clients):
            taken: dict[str, list[tuple[float, float, str]]] = {how: [] for how in HOW}

            def run(worker: int, stream: bool = stream, taken: dict[str, list] = taken) -> None:
                for number in range(rounds):
                    for turn in range(len(HOW)):  # each comes first as often
                        how = HOW[(worker + number + turn) % len(HOW)]
                        question = f"{QUESTIONS[number % len(QUESTIONS)]} ({worker}-{number})"
                        taken[how].append(ask(port, keys[how], question, tokens, stream=stream))

            with ThreadPoolExecutor(count) as pool:
                list(pool.map(run, range(count)))
            show(table, stream, count, taken)
    console.print(table)


def show(table: Table, stream: bool, clients: int, taken: dict[str, list[tuple[float, float, str]]]) -> None:
    """Add a row for each tenant."""

    def figures(how: str) -> list[float]:
        whole, first = [one[0] for one in taken[how]], [one[1] for one in taken[how]]
        times = [quantile(whole, 0.5), quantile(whole, 0.95)]
        return times + ([quantile(first, 0.5), quantile(first, 0.95)] if stream else [])

    base = figures("flag")
    for how in HOW:
        cells = [f"{ms(one)} ({one / other:.2f}x)" for one, other in zip(figures(how), base, strict=True)]
        blocked = sum(one[2] == "content_filter" for one in taken[how])
        table.add_row(str(stream), str(clients), how, *cells, *[""] * (4 - len(cells)), str(blocked))


def looks() -> None:
    """Print how long a look at a text takes."""
    table = Table(title="One look at a text, median of 5, ms")
    for column in ("text", "400 characters", "4,000", "40,000"):
        table.add_column(column, justify="right")
    for name, unit in TEXTS.items():
        row = []
        for size in (400, 4_000, 40_000):
            times = []
            for _ in range(5):
                started = time.perf_counter()
                redacted_parts((unit * (size // len(unit) + 1))[:size])
                times.append(time.perf_counter() - started)
            row.append(ms(statistics.median(times)))
        table.add_row(name, *row)
    console.print(table)


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30, help="questions of each client to each tenant")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compared(Path(folder), options.clients, options.rounds, options.tokens)
    looks()


if __name__ == "__main__":
    main()
