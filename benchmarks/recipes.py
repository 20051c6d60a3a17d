"""Which recipe trains the best adapter of a tenant that loses to TF-IDF: three of them beside the one it had.

    dvc repro base_model
    python benchmarks/recipes.py healthcare --seeds 0 1 2          # train all, choose on validation
    python benchmarks/recipes.py healthcare --seeds 0 1 2 --test   # then answer the test rows with all of them

The recipes were written down before any of them was trained. All have the same validation and test rows.
More training rows come from the groups that `SPLIT` leaves to training. The best recipe has the highest mean
over the seeds on rows of the validation groups; a tie goes to the lower validation loss. The engine that serves
gives the answers. TF-IDF learns from the training rows of the recipe in its line. "minus TF-IDF" averages the
seeds of each row before it resamples groups. Trained adapters stay in `.checkpoints/recipes`, and a second call
takes them from there.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch, as the server imports it: it sets how threads wait for each other.
from lora_ops.engines.torch_engine import TorchEngine

# isort: split
import numpy as np

from lora_ops.datasets.prepare import candidate_rows, choose_rows, with_prompts
from lora_ops.datasets.source import read_source
from lora_ops.evaluation.baselines import tfidf_baseline
from lora_ops.evaluation.generate import generate_with_engine
from lora_ops.evaluation.inference import difference, mean_sample
from lora_ops.evaluation.metrics import row_scores
from lora_ops.hashing import canonical, sha256_text
from lora_ops.loading import load_tokenizer
from lora_ops.records.base_model import read_base_model
from lora_ops.records.example import Example
from lora_ops.settings.data import SplitRows
from lora_ops.settings.files import find_root
from lora_ops.settings.params import load_settings
from lora_ops.settings.tenant import TenantSettings
from lora_ops.training.loop import train

# Rows of params.yaml when the recipes were written down. Their shares decide which groups are held out.
SPLIT = {
    "finance": {"train": 600, "validation": 60, "test": 300},
    "healthcare": {"train": 640, "validation": 60, "test": 300},
}
# The first recipe of each tenant is the one that it had. `rows` and `balance` belong to the data.
FINANCE = {"rows": 600, "balance": False, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3}
HEALTHCARE = {"rows": 640, "balance": True, "epochs": 1, "batch_size": 16, "learning_rate": 1e-3}
SMALL_STEPS = {"batch_size": 8, "learning_rate": 2e-3}
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "finance": {
        "600 rows twice": FINANCE,
        "all rows once": FINANCE | {"rows": 1194, "epochs": 1},
        "all rows once, small steps": FINANCE | {"rows": 1194, "epochs": 1, "batch_size": 8},
        "all rows twice": FINANCE | {"rows": 1194},
    },
    "healthcare": {
        "640 rows": HEALTHCARE,
        "small steps": HEALTHCARE | SMALL_STEPS,
        "small steps, 1280 rows": HEALTHCARE | SMALL_STEPS | {"rows": 1280},
        "small steps, 1280 rows in natural shares": HEALTHCARE | SMALL_STEPS | {"rows": 1280, "balance": False},
    },
}
# Sixty rows tell recipes apart only where they differ by 0.2: so many are drawn from the validation groups.
VALIDATION_ROWS = 300
PREFILL_CHUNK = 256  # prompt tokens of a step, as in 03_generate


@dataclass
class Trained:
    """One adapter and what it costs.

    Attributes:
        folder: of the adapter and of its answers.
        cpu: seconds of all threads.
        loss: mean cross-entropy per completion token on the tenant's own validation rows.
    """

    folder: Path
    cpu: float
    tokens: int
    loss: float


@dataclass
class Line:
    """One recipe: its rows, and its adapter of each seed."""

    name: str
    rows: dict[str, list[Example]]
    trained: list[Trained]


def read_rows(root: Path, tenant: str, tokenizer: Any) -> dict[str, dict[str, list[Example]]]:
    """Return the rows of each split for each recipe of a tenant."""
    data = load_settings(root).tenant(tenant).data
    split = SplitRows(**SPLIT[tenant])
    frame, _ = read_source(data, root, root / "data/raw")
    rows = candidate_rows(frame, data.model_copy(update={"rows": split}))
    found = {}
    for name, recipe in RECIPES[tenant].items():
        counts = split.model_copy(update={"train": recipe["rows"], "validation": VALIDATION_ROWS})
        chosen = choose_rows(rows, data.model_copy(update={"rows": counts, "balance": recipe["balance"]}))
        found[name] = {
            part: [
                Example.model_validate(row)
                for row in with_prompts(of, tokenizer, data)[list(Example.model_fields)].to_dict("records")
            ]
            for part, of in chosen.items()
        }
    return found


def train_one(
    root: Path, tenant: str, settings: TenantSettings, name: str, rows: dict[str, list[Example]], seed: int
) -> Trained:
    """Train one recipe with one seed, or find it trained."""
    recipe = {key: value for key, value in RECIPES[tenant][name].items() if key not in ("rows", "balance")}
    chosen = settings.train.model_copy(update=recipe | {"seed": seed})
    base = root / "models/base"
    parts = {part: [row.model_dump() for row in of] for part, of in rows.items()}
    whole = {"recipe": chosen.model_dump(mode="json"), "base": read_base_model(base).sha256, "rows": parts}
    digest = sha256_text(canonical(whole))
    folder = root / ".checkpoints/recipes" / f"{tenant}-{digest[:16]}"
    kept = folder / "trained.json"
    if not kept.is_file():
        start = time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            record = train(
                tenant,
                chosen,
                base,
                rows["train"],
                rows["validation"][: SPLIT[tenant]["validation"]],
                digest,
                target=folder / "adapter",
                report=folder,
                checkpoint=folder / "checkpoint.safetensors",
            )
        cpu = time.process_time() - start
        found = {"name": name, "cpu": cpu, "tokens": record.tokens, "loss": record.validation_loss}
        kept.write_text(json.dumps(found), encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    return Trained(folder, found["cpu"], found["tokens"], found["loss"])


async def answer(
    root: Path, settings: TenantSettings, tokenizer: Any, lines: Sequence[Line], part: str
) -> None:
    """Write the answers of each adapter that has none to the rows of one split."""
    engine = TorchEngine(
        root / "models/base", max_batch=settings.evaluate.batch_size, prefill_chunk=PREFILL_CHUNK
    )
    await engine.start()
    try:
        for line in lines:
            for one in line.trained:
                kept = one.folder / f"{part}.json"
                if kept.is_file():
                    continue
                await engine.load(one.folder.name, one.folder / "adapter")
                with contextlib.redirect_stdout(sys.stderr):
                    answers = await generate_with_engine(
                        engine,
                        tokenizer,
                        [row.prompt for row in line.rows[part]],
                        adapter=one.folder.name,
                        max_new_tokens=settings.evaluate.max_new_tokens,
                        what=part,
                    )
                kept.write_text(json.dumps(answers.texts), encoding="utf-8")
    finally:
        await engine.close()


def adapter_scores(line: Line, part: str, settings: TenantSettings) -> list[Any]:
    """Return what each answer is worth, shape (rows,), of the adapter of each seed."""
    targets = [row.target for row in line.rows[part]]
    metric, labels = settings.evaluate.metrics[0], settings.data.labels
    return [
        row_scores(metric, targets, json.loads((one.folder / f"{part}.json").read_text("utf-8")), labels)
        for one in line.trained
    ]


def tfidf_scores(line: Line, part: str, settings: TenantSettings) -> Any:
    """Return what each answer of TF-IDF is worth, trained on the rows of this recipe; shape (rows,)."""
    rows = line.rows["train"]
    asked = line.rows[part]
    guesses = tfidf_baseline(
        [row.text for row in rows], [row.target for row in rows], [row.text for row in asked]
    )
    return row_scores(
        settings.evaluate.metrics[0], [row.target for row in asked], guesses, settings.data.labels
    )


def show(lines: Sequence[Line], part: str, settings: TenantSettings) -> None:
    """Print one line for each recipe: mean and range over the seeds, TF-IDF, and what it costs."""
    width = max(len(line.name) for line in lines)
    rows = lines[0].rows[part]
    print(
        f"\n{settings.evaluate.metrics[0]} on {len(rows)} {part} rows of {len({r.group for r in rows})} groups"
    )
    print(f"{'':{width}}  adapter  lowest highest   TF-IDF  minus TF-IDF            loss  tokens   CPU")
    first = mean(one.cpu for one in lines[0].trained)
    for line in lines:
        found, peer = adapter_scores(line, part, settings), tfidf_scores(line, part, settings)
        each = [float(scores.mean()) for scores in found]
        groups = [row.group for row in line.rows[part]]
        evaluate = settings.evaluate
        averaged = mean_sample(np.mean(found, axis=0), groups)
        gap = difference(averaged, mean_sample(peer, groups), evaluate.bootstrap, evaluate.seed)
        shown = f"{peer.mean():9.3f}  {gap.value:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"
        cost = mean(one.cpu for one in line.trained) / first
        loss = mean(one.loss for one in line.trained)
        scores = f"{mean(each):9.3f}{min(each):8.3f}{max(each):8.3f}"
        costs = f"{loss:6.3f}{line.trained[0].tokens:8}{cost:5.2f}x"
        print(f"{line.name:{width}}{scores}{shown:34}{costs}", flush=True)


def best_of(lines: Sequence[Line], settings: TenantSettings) -> Line:
    """Return the recipe that answers the validation rows best; in a tie, the one with the lower loss."""
    return max(
        lines,
        key=lambda line: (
            round(mean(float(scores.mean()) for scores in adapter_scores(line, "validation", settings)), 6),
            -mean(one.loss for one in line.trained),
        ),
    )


def main() -> None:
    """Train, choose, and show what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tenant", choices=RECIPES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test", action="store_true", help="answer the test rows, too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    root = find_root()
    settings, tokenizer = load_settings(root).tenant(options.tenant), load_tokenizer(root / "models/base")
    lines = [Line(name, rows, []) for name, rows in read_rows(root, options.tenant, tokenizer).items()]
    for seed in options.seeds:
        for line in lines:
            line.trained.append(train_one(root, options.tenant, settings, line.name, line.rows, seed))
        print(f"seed {seed} is trained", file=sys.stderr, flush=True)
    for part in ("validation", "test") if options.test else ("validation",):
        asyncio.run(answer(root, settings, tokenizer, lines, part))
        show(lines, part, settings)
    print(f"\nBest on validation: {best_of(lines, settings).name}")


if __name__ == "__main__":
    main()
