"""What the gateway adds to its engine, a cold adapter's cost, 1,000 adapters beside 8, a tenant beside a flood.

    python benchmarks/gateway.py [overhead] [cold] [many] [fair]

Needs models/base (`make repro`). Everything is real: uvicorn on loopback, the embedded engine with the base
model, a registry with signed packages of rank 8 on all linear layers (for `many`: rank 1, to spare the disk).
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from lora_ops.engines.torch_engine import TorchEngine

# Before torch, as the server imports it: it sets how threads wait for each other.
from lora_ops.registry import packages

# isort: split
import torch
from clients import connect
from peft import LoraConfig, get_peft_model
from registry import manifest
from rich.console import Console
from rich.table import Table
from serving import round_file
from transformers import AutoModelForCausalLM

from lora_ops.engines.protocol import Chunk, Generation
from lora_ops.hashing import sha256_file
from lora_ops.records.base_model import read_base_model
from lora_ops.records.manifest import FileRecord
from lora_ops.registry.backends import open_registry
from lora_ops.registry.store import Registry
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.server import bind, serve
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings

PARTS = ("overhead", "cold", "many", "fair")
PROMPT = "AIRBNB * HM2X 402-555-0100 CA"
console = Console()


class Timed(TorchEngine):
    """The embedded engine, which notes how long each generation took it."""

    seconds: dict[str, float]

    async def generate(self, generation: Generation) -> AsyncIterator[Chunk]:
        """As the engine does."""
        started = time.perf_counter()
        async for chunk in super().generate(generation):
            if chunk.finish:
                self.seconds[generation.id.removesuffix("-0")] = time.perf_counter() - started
            yield chunk


class Site:
    """A clone's worth of folders with a registry of random adapters of the real base model.

    Attributes:
        served: the gateway that runs.
    """

    served: Gateway

    def __init__(self, folder: Path) -> None:
        root = find_root()
        self.root = folder
        shutil.copy(root / "params.yaml", folder)
        (folder / "dvc.yaml").touch()
        (folder / "models").mkdir()
        (folder / "models/base").symlink_to(root / "models/base")
        self.base = read_base_model(root / "models/base")

    def register(self, tenants: list[str], rank: int, modules: str | list[str]) -> None:
        """One version for each tenant, of random weights."""
        torch.manual_seed(0)
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(self.root / "models/base"), config)
        package = self.root / "package"
        model.save_pretrained(package)
        round_file(package)
        # The key of a registry that is thrown away must not be made in the real home.
        os.environ["LORA_OPS_SIGNING_KEY"] = str(self.root / "signing.key")
        with closing(open_registry(self.root, create=True)) as registry:
            # Nobody evaluated random weights, so a new package of them would be refused.
            registry._require_fit = lambda package, manifest: None
            for number, tenant in enumerate(tenants, 1):
                self._register(registry, package, tenant, number)

    def _register(self, registry: Registry, package: Path, tenant: str, number: int) -> None:
        files = {
            path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_file(path))
            for path in package.iterdir()
        }
        update = {
            "tenant": tenant,
            "base_model": self.base,
            "files": files,
            "params": {"data": {"system": "Name the merchant category."}, "train": {"seed": number}},
            "size_bytes": files["adapter_model.safetensors"].bytes,
        }
        registry.register(package, manifest(number).model_copy(update=update), actor="benchmark")

    @contextmanager
    def gateway(self, **serving: object) -> "Iterator[tuple[int, Timed]]":
        """Its port and its engine, while it runs in a thread."""
        settings = load_settings(self.root)
        changed = {"port": 0, "allow_candidates": True, "warm": (), "tenants": {}, **serving}
        settings = settings.model_copy(update={"serving": settings.serving.model_copy(update=changed)})
        engine = Timed(self.root / "models/base", max_batch=settings.serving.max_running)
        engine.seconds = {}
        port = bind(settings.serving)
        servers: list = []
        thread = threading.Thread(
            target=lambda: asyncio.run(serve(self.root, settings, engine, port, started=servers.append))
        )
        thread.start()
        while not servers or not servers[0].started:
            time.sleep(0.01)
        self.served = servers[0].gateway
        try:
            yield port.getsockname()[1], engine
        finally:  # else a fault would wait for the thread for ever
            servers[0].should_exit = True
            thread.join()


class Client:
    """One connection that is kept; as little of a client as can be."""

    def __init__(self, port: int) -> None:
        self._connection = connect(port)

    def ask(self, model: str, max_tokens: int, request_id: str = "") -> tuple[float, int]:
        """Seconds and status of one chat."""
        message = {"role": "user", "content": PROMPT}
        body = json.dumps({"model": model, "messages": [message], "max_tokens": max_tokens})
        headers = {"content-type": "application/json", "x-request-id": request_id}
        started = time.perf_counter()
        self._connection.request("POST", "/v1/chat/completions", body, headers)
        answer = self._connection.getresponse()
        answer.read()
        return time.perf_counter() - started, answer.status


def ms(seconds: float) -> str:
    """Milliseconds for people."""
    return f"{seconds * 1000:.2f}"


def quantile(values: list[float], part: float) -> float:
    """The value at this part of the sorted values."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def overhead(site: Site) -> None:
    """Each request's time at the client, less what its generation took within the engine."""
    site.register(["finance"], 8, "all-linear")
    table = Table(title="What the gateway adds to the engine, ms (client and loopback included)")
    for column in ("requests", "at a time", "engine P50", "added P50", "added P99", "goal P50"):
        table.add_column(column, justify="right")
    with site.gateway() as (port, engine):
        for clients, requests in ((1, 200), (8, 400)):
            engine.seconds.clear()

            def run(worker: int, share: int = requests // clients) -> list[tuple[str, float]]:
                client = Client(port)
                names = [f"w{worker}-{number}" for number in range(share)]
                return [(name, client.ask("finance", 4, name)[0]) for name in names]

            run(99, 5)
            with ThreadPoolExecutor(clients) as pool:
                taken = [one for many in pool.map(run, range(clients)) for one in many]
            added = [seconds - engine.seconds[name] for name, seconds in taken]
            inside = statistics.median(engine.seconds.values())
            row = (ms(inside), ms(quantile(added, 0.5)), ms(quantile(added, 0.99)), "< 3")
            table.add_row(str(requests), str(clients), *row)
    console.print(table)


def cold(site: Site) -> None:
    """A load from the registry into the engine, part by part; then as the first request sees it."""
    if not (site.root / ".registry").exists():
        site.register(["finance"], 8, "all-linear")
    table = Table(title="Cold load of rank 8 on all linear layers, disk warm, medians in ms")
    for column in ("part", "ms"):
        table.add_column(column, justify="right" if column == "ms" else "left")

    def median(action, times: int = 15) -> float:  # type: ignore[no-untyped-def]
        action()
        taken = []
        for _ in range(times):
            started = time.perf_counter()
            action()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken)

    path = site.root / ".registry"
    with closing(open_registry(site.root)) as registry:
        version = registry.get("finance@1")
        folder = packages.verified_path(registry, "finance@1")
        shutil.rmtree(folder)

        def first_time() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            packages.verified_path(registry, "finance@1")

        table.add_row("open the registry", ms(median(lambda: Registry(path).close())))
        table.add_row("first time: export and verify", ms(median(first_time, 5)))
        table.add_row(
            "later: digests and signature", ms(median(lambda: packages.verified_path(registry, "finance@1")))
        )
        signer, signature = registry.signer, folder / "model.sig"
        table.add_row(
            "  of that the signature", ms(median(lambda: signer.check(folder, signature, version.id)))
        )
    with site.gateway() as (port, engine):
        client = Client(port)
        connection = connect(port)
        reads: list[float] = []
        load = engine.load

        async def timed(name: str, folder: Path) -> int:
            started = time.perf_counter()
            size = await load(name, folder)
            reads.append(time.perf_counter() - started)
            return size

        engine.load = timed  # type: ignore[method-assign]

        def post(call: str) -> float:
            started = time.perf_counter()
            body = json.dumps({"lora_name": "finance@1"})
            connection.request("POST", f"/v1/{call}_lora_adapter", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            return time.perf_counter() - started

        client.ask("finance", 1)
        loads = []
        for _ in range(20):
            post("unload")
            loads.append(post("load"))
        table.add_row("the engine's load", ms(statistics.median(reads)))
        table.add_row("/v1/load_lora_adapter, all of it (goal < 50)", ms(statistics.median(loads)))
    console.print(table)


def many(site: Site) -> None:
    """Zipf traffic over 8 adapters and over 1,000, the memory holding 64."""
    started = time.perf_counter()
    tenants = [f"t{number}" for number in range(1000)]
    site.register(tenants, 1, ["q_proj", "v_proj"])
    console.print(f"registered and signed 1,000 versions in {time.perf_counter() - started:.0f} s")
    with closing(open_registry(site.root)) as registry:
        size = registry.get("t0").summary.size_bytes
    table = Table(title="Zipf traffic (s = 1.1), 8 at a time, 4 tokens each, memory for 64 adapters")
    for column in ("adapters", "requests/s", "P50 ms", "P99 ms", "hits", "loads", "evictions"):
        table.add_column(column, justify="right")
    rates = []
    for count in (8, 1000):
        weights = [1 / (rank + 1) ** 1.1 for rank in range(count)]
        models = random.Random(0).choices(tenants[:count], weights, k=320)
        with site.gateway(adapter_memory=size * 64) as (port, _), ThreadPoolExecutor(8) as pool:

            def ask(model: str, port: int = port, local: threading.local = threading.local()) -> float:  # noqa: B008
                local.client = getattr(local, "client", None) or Client(port)
                seconds, status = local.client.ask(model, 4)
                assert status == 200
                return seconds

            started = time.perf_counter()
            taken = list(pool.map(ask, models))
            rates.append(len(models) / (time.perf_counter() - started))
            connection = connect(port)
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()

        def total(name: str, lines: list[str] = lines) -> int:
            return int(
                sum(float(li.rsplit(" ", 1)[1]) for li in lines if li.startswith(f"lora_ops_{name}_total"))
            )

        hits, misses = total("adapter_cache_hits"), total("adapter_cache_misses")
        table.add_row(
            f"{count:,}",
            f"{rates[-1]:.1f}",
            ms(quantile(taken, 0.5)),
            ms(quantile(taken, 0.99)),
            f"{hits / (hits + misses):.0%}",
            str(total("adapter_loads")),
            str(total("adapter_evictions")),
        )
    console.print(table)
    console.print(f"1,000 adapters give {rates[1] / rates[0]:.2f} of the requests a second that 8 give")


def fair(site: Site) -> None:
    """A tenant that fills its half of the gateway, beside another that does so too, then at ten times that."""
    site.register(["loud", "quiet"], 8, "all-linear")
    table = Table(title="A tenant's latency beside another one at its share and at ten times that (16 tokens)")
    for column in ("loud clients", "quiet P50 ms", "quiet P99 ms", "quiet refused", "loud requests/s"):
        table.add_column(column, justify="right")
    medians = []
    with site.gateway(max_running=8) as (port, _):
        Client(port).ask("loud", 2)
        for loud in (4, 40):
            stop, answered = threading.Event(), [0] * loud

            def flood(index: int, stop: threading.Event = stop, answered: list[int] = answered) -> None:
                client = Client(port)
                while not stop.is_set():
                    answered[index] += client.ask("loud", 16)[1] == 200

            threads = [threading.Thread(target=flood, args=(index,)) for index in range(loud)]
            for thread in threads:
                thread.start()
            time.sleep(2)
            started, before = time.perf_counter(), sum(answered)

            def asking(_: int) -> list[tuple[float, int]]:
                client = Client(port)
                return [client.ask("quiet", 16) for _ in range(10)]

            with ThreadPoolExecutor(4) as pool:
                taken = [one for many in pool.map(asking, range(4)) for one in many]
            rate = (sum(answered) - before) / (time.perf_counter() - started)
            stop.set()
            for thread in threads:
                thread.join()
            good = [seconds for seconds, status in taken if status == 200]
            medians.append(statistics.median(good))
            refused = str(len(taken) - len(good))
            table.add_row(str(loud), ms(medians[-1]), ms(quantile(good, 0.99)), refused, f"{rate:.1f}")
    console.print(table)
    console.print(f"ten times the load of one tenant: {medians[1] / medians[0]:.2f} times the other's latency")


def main() -> None:
    """Measure the parts that are asked for, in folders that are removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=", ".join(PARTS))
    for part in parser.parse_args().parts:
        with tempfile.TemporaryDirectory() as folder:
            {"overhead": overhead, "cold": cold, "many": many, "fair": fair}[part](Site(Path(folder)))


if __name__ == "__main__":
    main()
