"""How long the pipeline takes from an empty workspace, and how long when there is nothing to do.

    python benchmarks/pipeline.py            # the tenants of params.yaml, as `make repro` runs them
    python benchmarks/pipeline.py --profile small

Runs in a clone beside this one, with this one's downloads, so that nothing here is touched. The peer in the
same run is the same training without the pipeline: transformers' Trainer, same data, same recipe (finance).
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PEER = """
import sys, time
from pathlib import Path
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments
from lora_ops.records.example import read_split
from lora_ops.loading import load_base_model
from lora_ops.settings.params import load_settings
from lora_ops.training.batches import tokenize

root = Path(sys.argv[1])
recipe = load_settings(root).tenants["finance"].train
model, tokenizer = load_base_model(root / "models/base")
rows = tokenize(read_split(root / "data/prepared/finance", "train"), tokenizer)
config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, lora_dropout=recipe.dropout,
                    target_modules="all-linear", task_type="CAUSAL_LM")
examples = [
    {"input_ids": row.prompt + row.completion, "labels": [-100] * len(row.prompt) + row.completion}
    for row in rows
]

def collate(batch):
    width = max(len(row["input_ids"]) for row in batch)
    pad = lambda ids, value: ids + [value] * (width - len(ids))
    return {
        "input_ids": torch.tensor([pad(r["input_ids"], tokenizer.pad_token_id) for r in batch]),
        "attention_mask": torch.tensor([pad([1] * len(r["input_ids"]), 0) for r in batch]),
        "labels": torch.tensor([pad(r["labels"], -100) for r in batch]),
    }

steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
arguments = TrainingArguments(
    output_dir=sys.argv[2], per_device_train_batch_size=recipe.batch_size, num_train_epochs=recipe.epochs,
    learning_rate=recipe.learning_rate, warmup_steps=round(recipe.warmup * steps), weight_decay=0.0,
    max_grad_norm=recipe.max_grad_norm, report_to=[], save_strategy="no", disable_tqdm=True, seed=recipe.seed,
    use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(get_peft_model(model, config), arguments, train_dataset=examples, data_collator=collate)
start = time.perf_counter()
trainer.train()
print("PEER", time.perf_counter() - start)
"""


def timed(command: list[str], root: Path) -> tuple[float, str]:
    """Seconds of a command in `root` and what it printed."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    environment |= {"LORA_OPS_ROOT": str(root), "COLUMNS": "112"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Run the pipeline twice and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", help="a file of profiles/ to lay over params.yaml")
    profile = parser.parse_args().profile
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "repository"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        if (ROOT / "data/raw").is_dir():
            shutil.copytree(ROOT / "data/raw", root / "data/raw")
        if profile:
            timed(["lora-ops", "profile", profile], root)
        first, output = timed(["dvc", "repro"], root)
        stages = len(re.findall("^Running stage", output, re.M))
        again, output = timed(["dvc", "repro"], root)
        assert "up to date" in output, output
        timed(["lora-ops", "register"], root)
        table = timed(["lora-ops", "report"], root)[1]
        training = json.loads((root / "reports/finance/training.json").read_text())
        peer = timed([sys.executable, "-c", PEER, str(root), temporary], root)[1]
        peer_seconds = float(re.search(r"PEER ([\d.]+)", peer)[1])  # type: ignore[index]
        print(table)
        print(f"dvc repro, {stages} stages from an empty workspace   {first / 60:6.1f} min")
        print(f"dvc repro again, nothing to do              {again:6.2f} s")
        print(f"training finance, lora_ops                  {training['seconds']:6.1f} s")
        print(f"training finance, transformers.Trainer      {peer_seconds:6.1f} s")
        print(f"ratio (Trainer / lora_ops)                  {peer_seconds / training['seconds']:6.2f}")


if __name__ == "__main__":
    main()
