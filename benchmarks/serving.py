"""Tokens per second and time to first token, a different adapter in each row, beside every peer, in one run.

    python benchmarks/serving.py [--vllm .venv-vllm/bin/python] [--llama-cpp /path/to/llama.cpp]
    python benchmarks/serving.py --llama-cpp /path/to/llama.cpp --only bfloat16 llama.cpp   # these rows
    python benchmarks/serving.py --resident 256   # what many adapters in memory cost

All answer the same random prompts with the same base model and the same adapters (rank 8 on every linear
layer, saved in bfloat16 as the pipeline saves them), greedily, to the full length. Tokens per second are new
tokens by the time until the last of them, prompts included; the time to the first token is the median of the
rows. Each number is the median of as many runs, each after one that warms up. All systems take turns, so that
they see the machine alike; each is started for its turn. `--only` measures some of the rows.

vLLM is measured when the Python of a virtual environment is given (`make test-vllm` makes
.venv-vllm/bin/python), and llama.cpp, whose base model is in bfloat16, when the folder of its sources is given,
with `build/bin/llama-server` in it (its converters need `pip install sentencepiece`). Everything
else computes in float32.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch, as the server imports it: it sets how threads wait for each other.
from lora_ops.engines.torch_engine import TorchEngine

# isort: split
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from lora_ops.engines.protocol import Generation, Sampling
from lora_ops.loading import load_base_model
from lora_ops.paths import BASE_MODEL
from lora_ops.records.base_model import read_base_model
from lora_ops.settings.files import find_root
from lora_ops.weights_digest import file_digests

BATCHES = (1, 8, 32)
RANK = 8


@dataclass(frozen=True)
class Measured:
    """One system at one batch size."""

    tokens_per_second: float
    first_token_ms: float


@dataclass(frozen=True)
class Setting:
    """What every system is given."""

    base: Path
    adapters: list[Path]
    prompts: list[list[int]]
    new_tokens: int
    repeats: int


Results = dict[int, Measured]
Systems = dict[str, Callable[[], dict[str, Results]]]


def without_end(base: Path, folder: Path) -> Path:
    """The base model without an end token, so that every answer has the same length everywhere."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((base / name).read_text()) | {"eos_token_id": None}
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(settings))
    record = read_base_model(base).model_copy(update={"files": file_digests(folder)})
    (folder / BASE_MODEL).unlink()
    (folder / BASE_MODEL).write_text(record.to_json())
    return folder


def random_adapters(base: Path, folder: Path, count: int) -> list[Path]:
    """Adapters that all differ, small enough that the model still writes text."""
    model, _ = load_base_model(base)
    adapted: Any = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    made = []
    for number in range(count):
        torch.manual_seed(number)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.005)
        made.append(folder / f"adapter-{number}")
        adapted.save_pretrained(made[-1], save_embedding_layers=False)
        round_file(made[-1])
    return made


def round_file(adapter: Path) -> None:
    """Its weights in bfloat16, as the pipeline saves them."""
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)


def middle(runs: list[Measured]) -> Measured:
    """The medians of several runs."""
    return Measured(
        statistics.median(run.tokens_per_second for run in runs),
        statistics.median(run.first_token_ms for run in runs),
    )


def medians(runs: list[Results]) -> Results:
    """The medians of several runs, at each batch size that all of them have."""
    return {size: middle([run[size] for run in runs]) for size in runs[0]}


@dataclass
class Engine:
    """This project's engine, through the interface that the gateway uses."""

    setting: Setting
    engine: TorchEngine
    # Another first token in each run: what an earlier run left in the KV cache must not help.
    fresh: Iterator[int] = field(default_factory=lambda: iter(range(1000, 10**9)))

    @classmethod
    async def started(cls, setting: Setting, dtype: str = "float32", adapter_dtype: str = "auto") -> "Engine":
        """With all of the setting's adapters loaded."""
        engine = TorchEngine(setting.base, max_batch=max(BATCHES), dtype=dtype, adapter_dtype=adapter_dtype)
        await engine.start()
        for number, folder in enumerate(setting.adapters):
            await engine.load(str(number), folder)
        return cls(setting, engine)

    async def one(self, row: int, adapter: str | None, new_tokens: int) -> list[float]:
        """When each token came."""
        prompt = (next(self.fresh), *self.setting.prompts[row][1:])
        chunks = self.engine.generate(Generation(str(row), prompt, adapter, Sampling(new_tokens)))
        return [time.perf_counter() async for _ in chunks]

    async def batch(self, adapters: Sequence[str | None]) -> Measured:
        """One row for each of these adapters, all at once."""
        started, count = time.perf_counter(), self.setting.new_tokens
        rows = await asyncio.gather(*(self.one(row, name, count) for row, name in enumerate(adapters)))
        assert all(len(times) == count for times in rows)
        took = max(times[-1] for times in rows) - started
        first = statistics.median(times[0] for times in rows) - started
        return Measured(len(adapters) * count / took, first * 1000)

    async def median(self, draw: Callable[[], Sequence[str | None]]) -> Measured:
        """Of several runs after one that warms up; `draw` names the adapters of each."""
        await self.batch(draw())
        return middle([await self.batch(draw()) for _ in range(self.setting.repeats)])


OURS: dict[str, dict[str, str]] = {
    "this engine, an adapter in each row": {},
    "this engine, base model in bfloat16": {"dtype": "bfloat16"},
    "this engine, adapters kept in float32": {"adapter_dtype": "float32"},
}
BASE_ONLY = {
    "this engine, an adapter in each row": "this engine, base only",
    "this engine, base model in bfloat16": "this engine, base only, in bfloat16",
}


async def engine(setting: Setting, name: str, batches: Sequence[int] = BATCHES) -> dict[str, Results]:
    """Return one run of one of this engine's settings: an adapter in each row, and none where that is asked."""
    running = await Engine.started(setting, **OURS[name])
    found: dict[str, Results] = {}
    for size in batches:
        rows: dict[str, list[str | None]] = {name: [str(row) for row in range(size)]}
        if name in BASE_ONLY:
            rows[BASE_ONLY[name]] = [None] * size
        for measured, adapters in rows.items():
            await running.batch(adapters)  # warms up
            found.setdefault(measured, {})[size] = await running.batch(adapters)
    # Not beside the next one: OpenMP's threads wait otherwise where there are more of them than cores.
    await running.engine.close()
    return found


def started_bytes(base: Path, dtype: str) -> float:
    """Return how many bytes are resident in a process of its own that started an engine and answered."""
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from lora_ops.engines.torch_engine import TorchEngine\n"
        "from lora_ops.engines.protocol import Generation, Sampling\n"
        "from lora_ops.serving.server import return_freed\n"
        "async def run():\n"
        "    engine = TorchEngine(Path(sys.argv[1]), dtype=sys.argv[2])\n"
        "    await engine.start()\n"
        "    async for _ in engine.generate(Generation('t', (5,), None, Sampling(8))): pass\n"
        "    return_freed()  # as the server does\n"
        "    print(Path('/proc/self/statm').read_text().split()[1])\n"
        "    await engine.close()\n"
        "asyncio.run(run())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(base), dtype], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) * os.sysconf("SC_PAGE_SIZE")


async def residency(setting: Setting, count: int) -> None:
    """Print what `count` adapters in memory cost, and what loading one costs those who generate."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def draw(among: int) -> Callable[[], list[str]]:
        generator = random.Random(0)
        return lambda: [str(number) for number in generator.sample(range(among), size)]

    size, first = max(BATCHES), len(setting.adapters)
    running = await Engine.started(setting)
    gc.collect()
    gc.freeze()  # as the server does
    few, before = await running.median(draw(first)), resident()
    task = asyncio.ensure_future(running.one(0, "0", 400))
    bytes_of_one = 0
    for number in range(first, count):
        bytes_of_one = await running.engine.load(str(number), setting.adapters[number % first])
    loaded = time.perf_counter()
    times = await task
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    busy = [gap for gap, time_of in zip(gaps, times[1:], strict=False) if time_of < loaded]
    idle = [gap for gap, time_of in zip(gaps, times[1:], strict=False) if time_of > loaded]
    each = (resident() - before) / (count - first)
    many = await running.median(draw(count))
    await running.engine.close()
    kept = {dtype: started_bytes(setting.base, dtype) / 1e6 for dtype in ("float32", "bfloat16")}
    lines = {
        "MB with the base model in float32, in bfloat16": ", ".join(f"{size:.0f}" for size in kept.values()),
        "MB for one more adapter": f"{each:.1f}, of which matrices {bytes_of_one / 1e6:.1f}",
        f"tokens/s, {size} rows drawn from {first} loaded": f"{few.tokens_per_second:.1f}",
        f"tokens/s, {size} rows drawn from {count} loaded": f"{many.tokens_per_second:.1f}",
        "ms between tokens while loading, median and worst": _gaps(busy),
        "ms between tokens afterwards, median and worst": _gaps(idle),
    }
    for name, value in lines.items():
        print(f"{name:52}{value}")


def _gaps(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}, {max(seconds) * 1000:.0f}" if seconds else "-"


def peer(setting: Setting, script: str, python: str = sys.executable, **options: Any) -> Results:
    """A peer in a process of its own, whose threads wait for each other as they are wont to."""
    given = asdict(setting) | {
        "base": str(setting.base),
        "adapters": [str(folder) for folder in setting.adapters],
        "batches": BATCHES,
        "rank": RANK,
        "repeats": 1,
        **options,
    }
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        command = [python, str(Path(__file__).with_name(script)), json.dumps(given), answer.name]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise SystemExit(f"{script} failed:\n{done.stderr[-3000:]}")
        for line in done.stdout.splitlines():
            if line.startswith("note: "):
                print(line.removeprefix("note: "))
        return {int(size): Measured(*values) for size, values in json.load(answer).items()}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="default: models/base of this repository")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="of a virtual environment with vLLM")
    parser.add_argument("--llama-cpp", metavar="FOLDER", help="of llama.cpp's sources, built in `build`")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="only rows whose name has one of these")
    parser.add_argument("--only-engine", action="store_true", help="leave the peers out")
    parser.add_argument(
        "--resident", type=int, metavar="N", help="measure what N adapters in memory cost instead"
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    base = options.base or find_root() / "models/base"
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1000, 40_000, (max(BATCHES), options.prompt_tokens), generator=generator).tolist()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        setting = Setting(
            without_end(base, folder / "base"),
            random_adapters(base, folder, max(BATCHES)),
            prompts,
            options.new_tokens,
            options.repeats,
        )
        if options.resident:
            asyncio.run(residency(setting, options.resident))
            return
        systems = chosen(setting, folder, options)
        runs: dict[str, list[Results]] = {}
        for turn in range(options.repeats):
            for name, measure in systems.items():
                print(f"turn {turn + 1}: {name} ...", file=sys.stderr, flush=True)
                for row, result in measure().items():
                    runs.setdefault(row, []).append(result)
    wanted = {row: found for row, found in runs.items() if not options.only or named(row, options.only)}
    show({row: medians(found) for row, found in wanted.items()}, options)


def named(name: str, only: list[str]) -> bool:
    """Return whether a row's name has one of these texts."""
    return any(text in name for text in only)


def chosen(setting: Setting, folder: Path, options: argparse.Namespace) -> Systems:
    """Return how each system is measured once; one measurement may give two rows."""

    def ours(name: str) -> Callable[[], dict[str, Results]]:
        return lambda: asyncio.run(engine(setting, name))

    def theirs(name: str, script: str, python: str = sys.executable, **given: Any) -> None:
        systems[name] = lambda: {name: peer(setting, script, python, **given)}

    systems: Systems = {name: ours(name) for name in OURS}
    if not options.only_engine:
        theirs("transformers generate, base only", "peft_peer.py", peer="transformers")
        theirs("PEFT adapter_names, an adapter in each row", "peft_peer.py", peer="mixed")
        theirs("PEFT set_adapter, one by one", "peft_peer.py", peer="one by one")
    if options.vllm:
        theirs("vLLM, an adapter in each row", "vllm_peer.py", options.vllm)
        theirs("vLLM, base only", "vllm_peer.py", options.vllm, adapters=[])
    if options.llama_cpp:
        given = {"sources": options.llama_cpp, "dtype": "bfloat16", "folder": str(folder)}
        theirs("llama.cpp in bf16, an adapter in each row", "llama_cpp_peer.py", **given)
        theirs("llama.cpp in bf16, base only", "llama_cpp_peer.py", **given, adapters=[])
    if not options.only:
        return systems
    kept = {
        name: measure
        for name, measure in systems.items()
        if named(name, options.only) or named(BASE_ONLY.get(name, ""), options.only)
    }
    if not kept:
        raise SystemExit(
            f"--only: no row is called so. There are: {', '.join([*systems, *BASE_ONLY.values()])}."
        )
    return kept


def show(results: dict[str, Results], options: argparse.Namespace) -> None:
    """One row for each system; ratios are this engine's tokens per second by the system's."""
    print(
        f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new ones, median of {options.repeats} "
        "runs: tokens/s, this engine's by it, ms to the first token"
    )
    print(f"{'':44}" + "".join(f"{f'batch {size}':>22}" for size in BATCHES))
    ours = next(iter(results.values()))
    for name, by_size in results.items():
        cells = []
        for size in BATCHES:
            if (measured := by_size.get(size)) is None:
                cells.append(f"{'-':>8}{'-':>7}{'-':>7}")
                continue
            ratio = ours[size].tokens_per_second / measured.tokens_per_second
            cells.append(f"{measured.tokens_per_second:8.1f}{f'{ratio:.2f}x':>7}{measured.first_token_ms:7.0f}")
        print(f"{name:44}" + "".join(cells))


if __name__ == "__main__":
    main()
