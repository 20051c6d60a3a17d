"""The part of `rollout.py` that measures a controller's looks at a canary: the first one, and later ones."""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

BEGAN = datetime(2026, 3, 2, 9, tzinfo=UTC)
DIGESTS = {"canary": ("finance@2", "a" * 64), "control": ("finance@1", "b" * 64)}
EVERY_SECONDS = 10


def look_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `look`."""
    parser.add_argument("--events", type=int, default=200_000, help="of canary and control group in a day")
    parser.add_argument("--users", type=int, help="who send them; default: a tenth of the events")
    parser.add_argument("--looks", type=int, default=10, help="that follow the first one, every 10 seconds")
    parser.add_argument(
        "--beside", type=Path, help="a checkout of another commit, which looks at the same files"
    )


def look(given: argparse.Namespace) -> Iterator[Table]:
    """Yield processor and clock time of looks at one day's events of two gateways.

    Each checkout looks in a process of its own, one after the other. The last looks' events are appended before
    each of them, as gateways do. The verdicts must be the same.
    """
    checkouts = {"this checkout": Path(__file__).parents[1]}
    if given.beside:
        checkouts[str(given.beside)] = given.beside
    found = {}
    for name, root in checkouts.items():
        with tempfile.TemporaryDirectory() as folder:
            known = [folder, str(given.events), str(given.users or given.events // 10), str(given.looks)]
            environment = {**os.environ, "PYTHONPATH": str(root)}
            shown = subprocess.run(
                [sys.executable, __file__, *known],
                cwd=root,
                env=environment,
                check=True,
                stdout=subprocess.PIPE,
            )
            found[name] = json.loads(shown.stdout)
    yield table(given, found)


def table(given: argparse.Namespace, found: dict[str, dict[str, list[Any]]]) -> Table:
    """Return a row for each checkout and kind of look, with its ratio to the first row of its kind."""
    made = Table(
        title=f"Looks at a canary with {given.events:,} events of {given.users or given.events // 10:,} users"
    )
    for column in (
        "checkout",
        "look",
        "CPU s",
        "clock s",
        "CPU ms an event",
        "CPU, ratio to this checkout's first",
    ):
        made.add_column(column)
    base = found["this checkout"]["cpu"][0]
    for name, one in found.items():
        for kind, looks in (("first", slice(1)), ("each one after it (median)", slice(1, None))):
            cpu, clock = (statistics.median(one[what][looks]) for what in ("cpu", "clock"))
            made.add_row(
                name,
                kind,
                f"{cpu:.3f}",
                f"{clock:.3f}",
                f"{1000 * cpu / given.events:.4f}",
                f"{cpu / base:.4f}",
            )
    same = len({str(one["said"]) for one in found.values()}) == 1
    made.caption = (
        f"verdicts: {'the same' if same else 'NOT the same'}; {next(iter(found.values()))['said'][-1]}"
    )
    return made


def lines(begun: datetime, seconds: float, count: int, users: int, draw: random.Random) -> Iterator[bytes]:
    """Yield so many events, evenly over some seconds."""
    for number in range(count):
        user = draw.randrange(users)
        arm = "canary" if user % 2 else "control"
        adapter, digest = DIGESTS[arm]
        event = {
            "id": f"{draw.getrandbits(128):032x}",
            "time": (begun + timedelta(seconds=seconds * (number + 0.5) / count)).isoformat(),
            "request_id": f"{draw.getrandbits(64):016x}",
            "endpoint": "chat",
            "key": "key-1",
            "tenant": "finance",
            "model": "finance",
            "adapter": adapter,
            "digest": digest,
            "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "route": "canary" if arm == "canary" else "production",
            "arm": arm,
            "unit": f"{user:064x}",
            "epoch": 7,
            "status": 500 if draw.random() < 0.001 else 200,
            "code": None,
            "streamed": False,
            "system_prompt": "adapter",
            "choices": 1,
            "finish": ["stop"],
            "prompt_tokens": 120,
            "generated_tokens": draw.randint(4, 8),
            "queue_seconds": 0.001,
            "first_token_seconds": 0.1,
            "seconds": draw.lognormvariate(-1, 0.3),
            "device_seconds": 0.05,
            "answer_task": 1.0,
            "answer_insults": 0.01,
            "answer_new_identifiers": 0,
        }
        yield json.dumps(event).encode() + b"\n"


def measure(folder: Path, events: int, users: int, looks: int) -> dict[str, list[Any]]:
    """Write a day of events, look, and look again as often as asked while more of them come."""
    from lora_ops.records.rollout import Rollout, RolloutPlan
    from lora_ops.registry.store import Registry
    from lora_ops.rollout.traffic import GatewayTraffic
    from lora_ops.settings.registry import SigningSettings
    from lora_ops.settings.rollout import RolloutSettings

    draw, day = random.Random(0), 86_400.0
    files = [folder / f".serving/events/events-20260302T09000{process}-{process}.jsonl" for process in (1, 2)]
    files[0].parent.mkdir(parents=True)
    with files[0].open("wb") as first, files[1].open("wb") as second:
        for number, line in enumerate(lines(BEGAN, day, events, users, draw)):
            (first, second)[number % 2].write(line)
    plan = RolloutPlan.of(
        "finance@2", DIGESTS["canary"][1], "finance@1", DIGESTS["control"][1], RolloutSettings()
    )
    rollout = Rollout(
        plan=plan, phase="canary", since=BEGAN, began=BEGAN, canary_since=BEGAN, seq=1, started_by="benchmark"
    )
    now = BEGAN + timedelta(seconds=day)
    found: dict[str, list[Any]] = {"cpu": [], "clock": [], "said": []}
    signing = SigningSettings(key=str(folder / "signing.key"))
    with closing(Registry(folder / ".registry", create=True, signing=signing)) as registry:
        registry.clock = lambda: now
        traffic = GatewayTraffic(registry, folder / ".serving", 0.5)
        for number in range(looks + 1):
            begun = (time.process_time(), time.perf_counter())
            verdict = traffic.canary(rollout).verdict
            ended = (time.process_time(), time.perf_counter())
            found["cpu"].append(ended[0] - begun[0])
            found["clock"].append(ended[1] - begun[1])
            found["said"].append(str(verdict))
            more = lines(now, EVERY_SECONDS, max(1, round(events * EVERY_SECONDS / day)), users, draw)
            with files[number % 2].open("ab") as file:
                file.writelines(more)
            now += timedelta(seconds=EVERY_SECONDS)
    return found


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
