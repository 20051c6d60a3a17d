"""What rounding to bfloat16 changes in the tenants' answers to their test rows, after `dvc repro`.

    python benchmarks/rounding.py adapters   # trained in float32 here, then rounded as the pipeline saves them
    python benchmarks/rounding.py base       # the base model, under the adapters of models/adapters

Answers are greedy. A token is the same where it stands at the same place of both answers.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch, as the server imports it: it sets how threads wait for each other.
from lora_ops.engines.torch_engine import TorchEngine

# isort: split
from serving import round_file

from lora_ops.engines.protocol import Generation, Sampling
from lora_ops.evaluation.metrics import exact_match
from lora_ops.loading import load_tokenizer
from lora_ops.records.example import Example, read_split
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.settings.tenant import TenantSettings
from lora_ops.training.loop import train

Said = list[list[bytes]]  # the tokens of each answer


@asynccontextmanager
async def running(root: Path, dtype: str) -> AsyncIterator[TorchEngine]:
    """An engine whose base model is kept in `dtype`."""
    engine = TorchEngine(root / "models/base", dtype=dtype)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def answers(
    engine: TorchEngine, tokenizer: Any, adapter: Path | None, rows: list[Example], new_tokens: int
) -> Said:
    """What the engine answers to each row, with the adapter of a folder or none."""
    name = str(adapter) if adapter else None
    if adapter:
        await engine.load(str(adapter), adapter)

    async def one(row: Example) -> list[bytes]:
        ids = tuple(tokenizer(row.prompt, add_special_tokens=False)["input_ids"])
        chunks = engine.generate(Generation("rounding", ids, name, Sampling(new_tokens, logprobs=0)))
        return [told.token async for chunk in chunks for told in chunk.logprobs]

    return list(await asyncio.gather(*map(one, rows)))


def compare(name: str, tokenizer: Any, rows: list[Example], before: Said, after: Said) -> None:
    """Print one line of the table."""
    ends = {token.encode() for token in tokenizer.all_special_tokens}

    def matches(said: Said) -> float:
        shown = [b"".join(token for token in tokens if token not in ends) for tokens in said]
        texts = [text.decode(errors="ignore").strip() for text in shown]
        return float(exact_match([row.target for row in rows], texts).mean())

    pairs = list(zip(before, after, strict=True))
    same = sum(one == other for one, other in pairs) / len(pairs)
    tokens = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=False))
    total = sum(max(len(one), len(other)) for one, other in pairs)
    line = f"{name:26}{len(pairs):6}{same:14.2%}{tokens / total:13.2%}"
    print(f"{line}{matches(before):22.3f}{matches(after):10.3f}", flush=True)


async def base_model(root: Path) -> None:
    """Round the base model, not the adapters; both answers of a tenant are compared."""
    settings, tokenizer = load_settings(root), load_tokenizer(root / "models/base")
    kinds: dict[str, Callable[[str], Path | None]] = {
        "base": lambda _: None,
        "adapter": lambda tenant: root / "models/adapters" / tenant,
    }
    said: dict[str, dict[tuple[str, str], Said]] = {"float32": {}, "bfloat16": {}}
    rows = {name: read_split(root / "data/prepared" / name, "test") for name in settings.tenants}
    for dtype, by_row in said.items():
        async with running(root, dtype) as engine:
            for name, tenant in settings.tenants.items():
                for kind, folder in kinds.items():
                    count = tenant.evaluate.max_new_tokens
                    by_row[name, kind] = await answers(engine, tokenizer, folder(name), rows[name], count)
    for name, kind in said["float32"]:
        before, after = (by_row[name, kind] for by_row in said.values())
        compare(f"{name}, {kind}", tokenizer, rows[name], before, after)


async def adapters(root: Path) -> None:
    """Train each tenant's adapter in float32, and round it."""
    settings, tokenizer = load_settings(root), load_tokenizer(root / "models/base")
    with tempfile.TemporaryDirectory() as folder:
        async with running(root, "auto") as engine:
            for name, tenant in settings.tenants.items():
                whole = train_whole(root, name, tenant, Path(folder) / name)
                rounded = Path(shutil.copytree(whole, Path(folder) / name / "rounded"))
                round_file(rounded)
                rows = read_split(root / "data/prepared" / name, "test")
                count = tenant.evaluate.max_new_tokens
                said = [await answers(engine, tokenizer, one, rows, count) for one in (whole, rounded)]
                compare(name, tokenizer, rows, *said)


def train_whole(root: Path, name: str, tenant: TenantSettings, folder: Path) -> Path:
    """Train a tenant's adapter, save it in float32 and return where it is."""
    data = root / "data/prepared" / name
    recipe = tenant.train.model_copy(update={"adapter_dtype": "float32"})
    with contextlib.redirect_stdout(sys.stderr):
        train(
            name,
            recipe,
            root / "models/base",
            read_split(data, "train"),
            read_split(data, "validation"),
            "0" * 64,
            target=folder / "whole",
            report=folder,
            checkpoint=folder / "checkpoint.safetensors",
        )
    return folder / "whole"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rounded", choices=["adapters", "base"])
    rounded = parser.parse_args().rounded
    logging.disable(logging.WARNING)
    heads = f"{'tenant':26}{'rows':>6}{'same answers':>14}{'same tokens':>13}"
    print(f"{heads}{'exact match, float32':>22}{'bfloat16':>10}")
    asyncio.run(base_model(find_root()) if rounded == "base" else adapters(find_root()))


if __name__ == "__main__":
    main()
