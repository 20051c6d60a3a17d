"""How often the 95 % interval of an uplift holds, by simulation, and how long a million rows take to import.

python benchmarks/kpis.py coverage [--runs 2000]
python benchmarks/kpis.py import [--rows 1000000]
"""

import argparse
import tempfile
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from lora_ops.monitoring.kpi_import import import_kpis
from lora_ops.monitoring.kpi_uplift import samples, user_means, welch
from lora_ops.monitoring.simulated_kpis import KNOWN, NONE, simulate
from lora_ops.settings.kpis import KpiSettings

USERS = (25, 100, 400)
EACH = 3
MORNING = datetime(2026, 3, 2, 9, tzinfo=UTC)


def main() -> None:
    """Run one part and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("coverage").add_argument("--runs", type=int, default=2000)
    parts.add_parser("import").add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    found = coverage(given.runs) if given.part == "coverage" else importing(given.rows)
    for table in found:
        Console().print(table)


def answers(users: int) -> pd.DataFrame:
    """Return `EACH` answers of so many users of each arm."""
    numbers = np.arange(2 * users * EACH)
    return pd.DataFrame(
        {
            "request_id": [f"r{number}" for number in numbers],
            "time": pd.Timestamp(MORNING) + pd.to_timedelta(numbers, unit="s"),
            "unit": [f"user {number}" for number in numbers % (2 * users)],
            "arm": [("canary", "control")[number % 2] for number in numbers],
        }
    )


def coverage(runs: int) -> Iterable[Table]:
    """Yield how often the truth is in the interval, and how often two equal versions are said to differ."""
    columns = (
        "KPI",
        "users in each arm",
        "holds",
        "holds, one row a unit",
        "false alarms",
        "half width / effect",
    )
    table = Table(*columns, title=f"95 % intervals of an uplift, {runs} runs, {EACH} answers a user")
    for kind in KNOWN:
        for users in USERS:
            asked = answers(users)
            truth = KNOWN[kind].canary - KNOWN[kind].control
            held = naive = alarms = 0
            width = []
            for seed in range(runs):
                rows = asked.assign(
                    value=simulate(asked, seed, {kind: KNOWN[kind]})["value"].to_numpy(), count=1
                )
                means = user_means(rows, ["unit"])
                low, high = interval(means)
                held += low <= truth <= high
                width.append((high - low) / 2)
                low, high = interval(rows)
                naive += low <= truth <= high
                equal = asked.assign(
                    value=simulate(asked, seed, {kind: NONE[kind]})["value"].to_numpy(), count=1
                )
                low, high = interval(user_means(equal, ["unit"]))
                alarms += not low <= 0 <= high
            shown = (held, naive, alarms)
            table.add_row(
                kind, str(users), *(f"{one / runs:.1%}" for one in shown), f"{np.mean(width) / truth:.2f}"
            )
    yield table


def interval(units: pd.DataFrame) -> tuple[float, float]:
    """Return the interval of canary less control over rows that are units."""
    arms = [units.loc[units["arm"] == arm, "value"].to_numpy(float) for arm in ("canary", "control")]
    part = samples(arms[0], arms[1])
    found = welch([part] if part else [])
    assert found
    return found.low, found.high


def importing(rows: int) -> Iterable[Table]:
    """Yield the seconds of an import of so many rows beside as many events."""
    table = Table("what", "seconds", "of a processor", title=f"{rows:,} rows, 1 % of them wrong")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "events").mkdir()
        version, digest = "finance@2", "b" * 64
        tail = f'"tenant":"finance","adapter":"{version}","digest":"{digest}","arm":"canary","status":200'
        with (folder / "events/events-1.jsonl").open("w") as file:
            for number in range(rows):
                at = (MORNING + timedelta(seconds=number / 100)).isoformat()
                ids = f'"id":"e{number}","request_id":"r{number}","unit":"u{number // 3}"'
                file.write(f'{{{ids},"time":"{at}",{tail}}}\n')
        path = folder / "kpis.csv"
        draw = np.random.default_rng(1)
        values = (draw.random(rows) < 0.1).astype(int)
        bad = draw.random(rows) < 0.01
        with path.open("w") as file:
            file.write("time,kind,value,request_id\n")
            at = (MORNING + timedelta(hours=4)).isoformat()
            file.writelines(
                f"{at},ctr,{-1 if wrong else value},r{number}\n"
                for number, (value, wrong) in enumerate(zip(values, bad, strict=True))
            )
        for what in ("import", "import again"):
            started, used = time.perf_counter(), time.process_time()
            made = import_kpis(path, folder, {version: digest}, KpiSettings(), MORNING + timedelta(days=1))
            seconds = (time.perf_counter() - started, time.process_time() - used)
            table.add_row(f"{what}: {made.joined:,} count", *(f"{one:.1f}" for one in seconds))
    yield table


if __name__ == "__main__":
    main()
