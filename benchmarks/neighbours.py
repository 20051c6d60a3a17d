"""A tenant's time to its first token and per token beside hostile neighbours, and beside as many ordinary ones.

    python benchmarks/neighbours.py [--runs 10] [long] [large] [unload] [sockets]

Needs models/base (`make repro`). Everything is real, as in gateway.py. The quiet tenant streams one answer at a
time. Ordinary neighbours send prompts of 25 tokens, `long` ones of 6,000 tokens, and `large` ones texts of
1 MB, which never fit. With `unload` the loud tenant's adapter is unloaded without end while it answers. With
`sockets` 1,000 connections send half a request head. Runs are interleaved: each of them measures every pair.
"""

import argparse
import json
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gateway import Site, connect, console
from rich.table import Table

WORD = " part"  # one token
ORDINARY, LONG = WORD * 25, WORD * 6000
LARGE = "x y " * 250_000
TOKENS = 16
ANSWERS = 4  # of the quiet tenant, in each run and beside each neighbour
SOCKETS = 1000
Work = Callable[[int, threading.Event], None]


def ask(port: int, model: str, prompt: str, tokens: int = TOKENS) -> tuple[int, float, float]:
    """Return status, seconds to the first token and seconds per token of one streamed answer."""
    connection = connect(port)
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True}
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        answer.read()
        return answer.status, 0.0, 0.0
    times = []
    for line in answer:
        if line.startswith(b"data: {"):
            times.append(time.perf_counter())
    connection.close()
    return 200, times[0] - started, (times[-1] - times[0]) / max(1, len(times) - 1)


def sending(prompt: str) -> Work:
    """Return a neighbour that sends this prompt without end."""

    def work(port: int, stop: threading.Event) -> None:
        while not stop.is_set():
            ask(port, "loud", prompt)

    return work


def unloading(port: int, stop: threading.Event) -> None:
    """Unload the loud tenant's adapter without end."""
    while not stop.is_set():
        connection = connect(port)
        body = json.dumps({"lora_name": "loud@1"})
        connection.request("POST", "/v1/unload_lora_adapter", body, {"content-type": "application/json"})
        connection.getresponse().read()
        connection.close()


def half_open(port: int, stop: threading.Event) -> None:
    """Keep as many connections as can be that sent half a head."""
    opened: list[socket.socket] = []
    while not stop.is_set():
        if len(opened) >= SOCKETS:
            opened.pop(0).close()
        try:
            one = socket.create_connection(("127.0.0.1", port), timeout=5)
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")
            opened.append(one)
        except OSError:
            time.sleep(0.01)
        if len(opened) >= SOCKETS:
            time.sleep(0.01)
    for one in opened:
        one.close()


# name -> what is hostile, and the ordinary neighbours that stand in its place
PAIRS: dict[str, tuple[list[Work], list[Work]]] = {
    "long": ([sending(LONG)] * 3, [sending(ORDINARY)] * 3),
    "large": ([sending(LARGE)], [sending(ORDINARY)]),
    "unload": ([sending(ORDINARY), unloading], [sending(ORDINARY)]),
    "sockets": ([sending(ORDINARY), half_open], [sending(ORDINARY)]),
}


@contextmanager
def beside(works: list[Work], port: int) -> Iterator[None]:
    """While these neighbours are at work."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(port, stop)) for work in works]
    for thread in threads:
        thread.start()
    time.sleep(1)
    yield
    stop.set()
    for thread in threads:
        thread.join()


def measure(works: list[Work], port: int) -> tuple[float, float]:
    """Return the medians of the quiet tenant's seconds to the first token and per token beside `works`."""
    with beside(works, port):
        taken = [ask(port, "quiet", ORDINARY) for _ in range(ANSWERS)]
    assert {status for status, _, _ in taken} == {200}, taken
    first, each = zip(*(times for _, *times in taken), strict=True)
    return statistics.median(first), statistics.median(each)


def main() -> None:
    """Print a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", default=list(PAIRS), metavar="NEIGHBOUR", help=", ".join(PAIRS))
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        site = Site(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        site.register(["loud", "quiet"], 8, "all-linear")
        port, _ = stack.enter_context(site.gateway(max_running=8))
        for model in ("loud", "quiet"):
            ask(port, model, ORDINARY)
        for _ in range(options.runs):
            for name in options.pairs:
                for kind, works in zip(("hostile", "ordinary"), PAIRS[name], strict=True):
                    found.setdefault((name, kind), []).append(measure(works, port))
    table = Table(title=f"A tenant beside neighbours, medians of {options.runs} interleaved runs, ms")
    for column in (
        "neighbour",
        "first token",
        "beside ordinary",
        "ratio",
        "per token",
        "beside ordinary",
        "ratio",
    ):
        table.add_column(column, justify="left" if column == "neighbour" else "right")
    for name in options.pairs:
        row = [name]
        for place in (0, 1):
            hostile, ordinary = (
                statistics.median(one[place] for one in found[name, kind]) for kind in ("hostile", "ordinary")
            )
            row += [f"{hostile * 1000:.0f}", f"{ordinary * 1000:.0f}", f"{hostile / ordinary:.2f}"]
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
