"""Tokens per second and time to first token, a different adapter in each row, beside every peer, in one run.

    python benchmarks/serving.py [--vllm .venv-vllm/bin/python]
    python benchmarks/serving.py --resident 256   # what many adapters in memory cost
    python benchmarks/serving.py --rounding       # what saving adapters in bfloat16 changes, after `dvc repro`

All answer the same random prompts with the same base model and the same adapters (rank 8 on every linear
layer, saved in bfloat16 as the pipeline saves them), greedily, to the full length. Tokens per second are new
tokens by the time until the last of them, prompts included; the time to the first token is the median of the
rows. Each number is the median of as many runs, after one that warms up. vLLM is measured when the Python
of a virtual environment is given (`make test-vllm` makes .venv-vllm/bin/python).
"""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import shutil
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
from lora_ops.evaluation.metrics import exact_match
from lora_ops.loading import load_base_model
from lora_ops.records.example import Example, read_split
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.training.loop import train

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


@dataclass
class Engine:
    """This project's engine, through the interface that the gateway uses."""

    setting: Setting
    engine: TorchEngine
    # Another first token in each run: what an earlier run left in the KV cache must not help.
    fresh: Iterator[int] = field(default_factory=lambda: iter(range(1000, 10**9)))

    @classmethod
    async def started(cls, setting: Setting, adapter_dtype: str = "auto") -> "Engine":
        """With all of the setting's adapters loaded."""
        engine = TorchEngine(setting.base, max_batch=max(BATCHES), adapter_dtype=adapter_dtype)
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


async def engine(setting: Setting) -> dict[str, Results]:
    """An adapter in each row and none, in turns, so that both see the machine alike; then in another type."""
    running = await Engine.started(setting)
    adapted, base, widened = Results(), Results(), Results()
    rows = {size: [str(row) for row in range(size)] for size in BATCHES}
    for size in BATCHES:
        base[size] = await running.median(lambda size=size: [None] * size)  # type: ignore[misc]
        adapted[size] = await running.median(lambda size=size: rows[size])  # type: ignore[misc]
    # Not beside the next one: OpenMP's threads wait otherwise where there are more of them than cores.
    await running.engine.close()
    running = await Engine.started(setting, "float32")
    for size in BATCHES:
        widened[size] = await running.median(lambda size=size: rows[size])  # type: ignore[misc]
    await running.engine.close()
    return {
        "this engine, an adapter in each row": adapted,
        "this engine, the same kept in float32": widened,
        "this engine, base only": base,
    }


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
    lines = {
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


async def rounding(root: Path, folder: Path) -> None:
    """Print what rounding the tenants' adapters changes: their answers to their test rows, and exact match."""
    settings = load_settings(root)
    _, tokenizer = load_base_model(root / "models/base")
    ends = {token.encode() for token in tokenizer.all_special_tokens}
    running = TorchEngine(root / "models/base")
    await running.start()

    async def answers(adapter: Path, rows: list[Example], new_tokens: int) -> list[list[bytes]]:
        name = str(adapter)
        await running.load(name, adapter)

        async def one(row: Example) -> list[bytes]:
            ids = tuple(tokenizer(row.prompt, add_special_tokens=False)["input_ids"])
            chunks = running.generate(Generation(name, ids, name, Sampling(new_tokens, logprobs=0)))
            return [told.token async for chunk in chunks for told in chunk.logprobs]

        return list(await asyncio.gather(*map(one, rows)))

    def matches(rows: list[Example], said: list[list[bytes]]) -> float:
        shown = [b"".join(token for token in tokens if token not in ends) for tokens in said]
        texts = [text.decode(errors="ignore").strip() for text in shown]
        return float(exact_match([row.target for row in rows], texts).mean())

    heads = f"{'tenant':14}{'rows':>6}{'same answers':>14}{'same tokens':>13}"
    print(f"{heads}{'exact match, float32':>22}{'bfloat16':>10}")
    for name, tenant in settings.tenants.items():
        data = root / "data/prepared" / name
        recipe = tenant.train.model_copy(update={"adapter_dtype": "float32"})
        whole = folder / name / "whole"
        with contextlib.redirect_stdout(sys.stderr):
            train(
                name,
                recipe,
                root / "models/base",
                read_split(data, "train"),
                read_split(data, "validation"),
                "0" * 64,
                target=whole,
                report=folder / name,
                checkpoint=folder / name / "checkpoint.safetensors",
            )
        rounded = Path(shutil.copytree(whole, folder / name / "rounded"))
        round_file(rounded)
        rows = read_split(data, "test")
        before, after = [await answers(one, rows, tenant.evaluate.max_new_tokens) for one in (whole, rounded)]
        pairs = list(zip(before, after, strict=True))
        same = sum(one == other for one, other in pairs) / len(pairs)
        tokens = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))
        total = sum(max(len(one), len(other)) for one, other in pairs)
        print(
            f"{name:14}{len(pairs):6}{same:14.2%}{tokens / total:13.2%}"
            f"{matches(rows, before):22.3f}{matches(rows, after):10.3f}",
            flush=True,
        )
    await running.close()


def peer(setting: Setting, script: str, python: str = sys.executable, **options: Any) -> Results:
    """A peer in a process of its own, whose threads wait for each other as they are wont to."""
    given = asdict(setting) | {
        "base": str(setting.base),
        "adapters": [str(folder) for folder in setting.adapters],
        "batches": BATCHES,
        "rank": RANK,
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
    parser.add_argument("--only-engine", action="store_true", help="leave the peers out")
    parser.add_argument(
        "--resident", type=int, metavar="N", help="measure what N adapters in memory cost instead"
    )
    parser.add_argument(
        "--rounding",
        action="store_true",
        help="train the tenants' adapters and compare their answers before and after rounding instead",
    )
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.rounding:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(rounding(find_root(), Path(folder)))
        return
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
        systems: dict[str, Callable[[], Results]] = {}
        if not options.only_engine:
            systems |= {
                "transformers generate, base only": lambda: peer(setting, "peft_peer.py", peer="transformers"),
                "PEFT adapter_names, an adapter in each row": lambda: peer(
                    setting, "peft_peer.py", peer="mixed"
                ),
                "PEFT set_adapter, one by one": lambda: peer(setting, "peft_peer.py", peer="one by one"),
            }
        if options.vllm:
            systems |= {
                "vLLM, an adapter in each row": lambda: peer(setting, "vllm_peer.py", options.vllm),
                "vLLM, base only": lambda: peer(setting, "vllm_peer.py", options.vllm, adapters=[]),
            }
        results = asyncio.run(engine(setting))
        for name, measure in systems.items():
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            results[name] = measure()
    show(results, options)


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
