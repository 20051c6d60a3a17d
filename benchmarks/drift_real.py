"""What the drift check costs on the real base model, and what it says of three changes.

    python benchmarks/drift_real.py finance    # needs `dvc repro base_model prepare@finance`

Two adapters of the tenant's recipe, one epoch each, differ by their seed alone. The functions of `lora-ops
monitor drift` measure the first one, then it again, then with weights corrupted, and then the second one. The
divergence is computed from the tokens that a measurement names, and from the whole vocabulary.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from drift import corrupted
from rich.console import Console
from rich.table import Table

from lora_ops.engines.torch_engine import TorchEngine
from lora_ops.hashing import sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.monitoring.drift_measurement import ADAPTER, Probe, Side, running
from lora_ops.monitoring.drift_set import read_drift_set
from lora_ops.monitoring.drift_tests import cosine_distances, divergences
from lora_ops.prompts import render_prompt
from lora_ops.records.example import read_split
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.training.loop import train

BASE = "models/base"


def adapters(root: Path, tenant: str, folder: Path) -> Iterator[Path]:
    """Train two adapters whose seeds differ, and yield the folder of each."""
    recipe = load_settings(root).tenant(tenant).train
    rows, held_out = (read_split(root / "data/prepared" / tenant, split) for split in ("train", "validation"))
    digest = sha256_text("".join(row.model_dump_json() for row in rows))
    for seed in (0, 1):
        place = folder / str(seed)
        settings = recipe.model_copy(update={"seed": seed, "epochs": 1})
        train(
            tenant,
            settings,
            root / BASE,
            rows,
            held_out,
            digest,
            place / "adapter",
            place / "report",
            place / "kept",
        )
        yield place / "adapter"


def prompts(root: Path, tenant: str) -> list[list[int]]:
    """Return the token ids of the tenant's drift set, as the check asks them."""
    tokenizer, system = load_tokenizer(root / BASE), load_settings(root).tenant(tenant).data.system
    texts = [render_prompt(tokenizer, row.text, system) for row in read_drift_set(root, tenant).rows]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return found


def size(side: Side) -> int:
    """Return the bytes of what is kept of one system."""
    return sum(part.nbytes for part in vars(side).values())


def compared(
    probe: Probe, root: Path, tenant: str, folder: Path, few: int, every: int
) -> Iterator[tuple[str, ...]]:
    """Yield a row of the table for each change."""
    asked = prompts(root, tenant)
    first, second = adapters(root, tenant, folder)
    started = os.times()
    before = probe.measure(first, None, asked, few)
    ended = os.times()
    seconds = ended.user + ended.system - started.user - started.system
    kept = sum(map(size, before.values()))
    print(
        f"{len(asked)} rows, {sum(map(len, asked)):,} tokens: {seconds:.0f} CPU s, {kept / 1000:,.0f} KB kept"
    )
    whole = probe.measure(first, None, asked, every)[ADAPTER]
    changes = {
        "the same again": first,
        "5 % of the weights corrupted": corrupted(first, folder / "corrupted", 0),
        "another seed of training": second,
    }
    for name, adapter in changes.items():
        now = probe.measure(adapter, None, asked, few, before)[ADAPTER]
        old = before[ADAPTER]
        nats = divergences(old, now)
        likeliest = np.mean(_likeliest(old) != _likeliest(now))
        true = divergences(whole, probe.measure(adapter, None, asked, every)[ADAPTER])
        share = nats / np.where(true > 0, true, 1)
        yield (
            name,
            f"{nats.mean():.3g}",
            f"{cosine_distances(old, now).mean():.2g}",
            f"{likeliest:.0%}",
            f"{nats.sum() / true.sum():.0%}" if true.sum() else "",
            f"{share.min():.0%}" if true.sum() else "",
        )


def _likeliest(side: Side) -> np.ndarray:
    return np.take_along_axis(side.tokens, side.logprobs.argmax(1)[:, None], 1)[:, 0]


def main() -> None:
    """Print what a measurement costs and the table of shifts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tenant")
    given = parser.parse_args()
    root = find_root()
    few, every = load_settings(root).drift.tokens, len(load_tokenizer(root / BASE))
    table = Table("what changed", "nats", "cosine", "likeliest changed", f"{few} tokens have", "worst row")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        engine = TorchEngine(root / BASE, kv_tokens=4096, threads=1)
        with running(engine, root / BASE) as probe:
            for row in compared(probe, root, given.tenant, Path(name), few, every):
                table.add_row(*row)
    Console().print(table)
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
