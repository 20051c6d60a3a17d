"""A tenant's time to its first token and per token beside hostile neighbours, and beside as many ordinary ones.

    python benchmarks/neighbours.py [--runs 10] [long] [large] [unload] [sockets]

Needs models/base (`make repro`). Everything is real, as in gateway.py. The quiet tenant streams one answer at a
time. No prompt is sent twice, so each is read. Ordinary neighbours send prompts of 25 tokens, `long` ones of
6,000 tokens, and `large` ones texts of 1 MB, which never fit. With `unload` the loud tenant's adapter is
unloaded each time that it is loaded. With `sockets` 1,000 connections send half a request head. Runs are
interleaved: each measures every pair.
"""

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from clients import ask, completion
from gateway import Site, console
from rich.table import Table

ANSWERS = 4  # of the quiet tenant, in each run and beside each neighbour
NUMBERS = itertools.count()
# name -> hostile neighbours, and the ordinary ones that stand in their place
PAIRS = {
    "long": (["long"] * 3, ["ordinary"] * 3),
    "large": (["large"], ["ordinary"]),
    "unload": (["ordinary", "unload"], ["ordinary"]),
    "sockets": (["ordinary", "sockets"], ["ordinary"]),
}


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
            ask(port, completion(model, "ordinary", next(NUMBERS)))
        for _ in range(options.runs):
            for name in options.pairs:
                for side, kinds in zip(("hostile", "ordinary"), PAIRS[name], strict=True):
                    found.setdefault((name, side), []).append(measure(kinds, port))
    table = Table(title=f"A tenant beside neighbours, medians of {options.runs} interleaved runs, ms")
    table.add_column("neighbour")
    for column in ("first token", "per token"):
        for heading in (column, "ordinary", "ratio"):
            table.add_column(heading, justify="right")
    for name in options.pairs:
        row = [name]
        for place in (0, 1):
            hostile, ordinary = (
                statistics.median(one[place] for one in found[name, side]) for side in ("hostile", "ordinary")
            )
            row += [f"{hostile * 1000:.0f}", f"{ordinary * 1000:.0f}", f"{hostile / ordinary:.2f}"]
        table.add_row(*row)
    console.print(table)


if __name__ == "__main__":
    main()
