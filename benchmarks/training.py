"""How fast one adapter is trained: this project, a plain peft loop, and TRL's SFTTrainer.

    pip install -e .[benchmarks]
    dvc repro prepare@finance
    python benchmarks/training.py                           # finance, as params.yaml has it
    python benchmarks/training.py --tenant media --rows 160

Same data, recipe, batch size and loss for all, each in a process of its own; the validation loss is computed in
the same way for all. `trl best` is what makes it fast on a CPU: float32, no gradient checkpointing, rows of
like length together, no logging (its padding-free batches and its packing without cross-talk need
FlashAttention, so a GPU). `trl float32` has TRL's defaults but for bfloat16. `trl defaults` runs only if
`--only` names it: in bfloat16, a CPU without instructions for it (AVX512-BF16 or AMX) needs an hour.

tokens/s counts every token of every trained row, prompt and completion; completion/s those with a loss. Share
of peak is 4 FLOP x parameters (embeddings included) x these tokens / seconds, over a float32 matrix product of
2048 x 2048 in the same process, before and after. Padding is not counted, and a prefix that rows share counts
in each of them though it may be computed once: so the share can pass 100 %. On a machine that others use too,
`--threads 1` and the column of CPU seconds are the fair ones.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lora_ops.loading import load_base_model, load_tokenizer
from lora_ops.records.data import read_data_record
from lora_ops.records.example import Example, read_split
from lora_ops.settings.params import load_settings
from lora_ops.settings.train import TrainSettings
from lora_ops.training.batches import Tokens, batch_loss, collate, tokenize
from lora_ops.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "models/base"
Result = tuple[float, float, float]  # seconds, CPU seconds of all threads, validation loss


class Clock:
    """Seconds, and CPU seconds of all threads, since it was made."""

    def __init__(self) -> None:
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        """(seconds, CPU seconds)."""
        return time.perf_counter() - self.start, time.process_time() - self.cpu_start


def adapted(recipe: TrainSettings) -> Any:
    """The base model with a new adapter, by plain peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    return get_peft_model(load_base_model(BASE)[0], lora_config(recipe, LoraConfig))


def lora_config(recipe: TrainSettings, config: Any) -> Any:
    """The adapter's shape, the same for all."""
    return config(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


@torch.no_grad()
def validation_loss(model: Any, rows: list[Tokens], pad_token_id: int) -> float:
    """Mean cross-entropy per completion token, padded, as a plain model computes it."""
    model.eval()
    total = 0.0
    for row in rows:
        total += batch_loss(model, collate([row], pad_token_id)).item() * len(row.completion)
    return total / sum(len(row.completion) for row in rows)


def with_lora_ops(recipe: TrainSettings, rows: list[Example], validation: list[Example]) -> Result:
    """`lora_ops.training.loop.train`; loading the model and validating are in its CPU seconds, against it."""
    from peft import PeftModel

    with tempfile.TemporaryDirectory() as temporary:
        folder, clock = Path(temporary), Clock()
        record = train(
            "benchmark",
            recipe,
            BASE,
            rows,
            validation,
            "0" * 64,
            target=folder / "adapter",
            report=folder / "report",
            checkpoint=folder / "checkpoint.safetensors",
        )
        cpu = clock.read()[1]
        model, tokenizer = load_base_model(BASE)
        model = PeftModel.from_pretrained(model, folder / "adapter")
        loss = validation_loss(model, tokenize(validation, tokenizer), tokenizer.pad_token_id)
        return record.seconds, cpu, loss


def with_peft(recipe: TrainSettings, rows: list[Example], validation: list[Example]) -> Result:
    """The loop that everybody writes first: padded batches, the model's own loss."""
    model, tokenizer = adapted(recipe), load_tokenizer(BASE)
    tokens = tokenize(rows, tokenizer)
    steps = recipe.epochs * -(-len(tokens) // recipe.batch_size)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, recipe.warmup * steps), (steps - step) / steps)
    )
    clock = Clock()
    model.train()
    for _ in range(recipe.epochs):
        order = torch.randperm(len(tokens)).tolist()
        for first in range(0, len(order), recipe.batch_size):
            chosen = [tokens[index] for index in order[first : first + recipe.batch_size]]
            batch = collate(chosen, tokenizer.pad_token_id)
            labels = torch.full_like(batch.input_ids, -100)
            labels[:, -batch.labels.shape[1] :] = batch.labels
            model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                labels=labels,
            ).loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable, recipe.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    spent = clock.read()
    return *spent, validation_loss(model, tokenize(validation, tokenizer), tokenizer.pad_token_id)


def with_trl(recipe: TrainSettings, rows: list[Example], validation: list[Example], **options: Any) -> Result:
    """SFTTrainer on the same token ids; `options` are laid over its defaults."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(recipe.seed)
    model, tokenizer = load_base_model(BASE)
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    examples = [
        {
            "input_ids": row.prompt + row.completion,
            "completion_mask": [0] * len(row.prompt) + [1] * len(row.completion),
        }
        for row in tokenize(rows, tokenizer)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        arguments = SFTConfig(
            output_dir=temporary,
            per_device_train_batch_size=recipe.batch_size,
            num_train_epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            warmup_steps=round(recipe.warmup * steps),
            seed=recipe.seed,
            use_cpu=not torch.cuda.is_available(),
            completion_only_loss=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            **options,
        )
        trainer = SFTTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(examples),
            processing_class=tokenizer,
            peft_config=lora_config(recipe, LoraConfig),
        )
        clock = Clock()
        trainer.train()
        spent = clock.read()
    return *spent, validation_loss(trainer.model, tokenize(validation, tokenizer), tokenizer.pad_token_id)


FAST: dict[str, Any] = {
    "gradient_checkpointing": False,
    "train_sampling_strategy": "group_by_length",
    "logging_strategy": "no",
}
CONTENDERS: dict[str, Callable[[TrainSettings, list[Example], list[Example]], Result]] = {
    "lora_ops": with_lora_ops,
    "peft loop": with_peft,
    "trl best": partial(with_trl, bf16=False, **FAST),
    "trl float32": partial(with_trl, bf16=False),
    "trl defaults": with_trl,
}


def matrix_peak() -> float:
    """Float32 FLOP/s of a large matrix product, the best of five."""
    a, b = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(seconds[1:])


def contend(name: str, tenant: str, limit: int | None) -> dict[str, float]:
    """One contender's run in this process."""
    settings, data = load_settings(ROOT).tenant(tenant), ROOT / "data/prepared" / tenant
    read_data_record(data)
    rows, validation = read_split(data, "train")[:limit], read_split(data, "validation")
    tokens = tokenize(rows, load_tokenizer(BASE))
    parameters = sum(p.numel() for p in load_base_model(BASE)[0].parameters())
    before = matrix_peak()
    seconds, cpu, loss = CONTENDERS[name](settings.train, rows, validation)
    peak = (before + matrix_peak()) / 2
    trained = settings.train.epochs * sum(len(row.prompt) + len(row.completion) for row in tokens)
    completion = settings.train.epochs * sum(len(row.completion) for row in tokens)
    return {
        "seconds": seconds,
        "cpu": cpu,
        "tokens": trained / seconds,
        "completion": completion / seconds,
        "peak": peak,
        "share": 4 * parameters * trained / seconds / peak,
        "loss": loss,
    }


def main() -> None:
    """Each contender in turn, a line of the table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tenant", default="finance")
    parser.add_argument("--rows", type=int, help="only the first so many of the train split")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=CONTENDERS, nargs="+", default=list(CONTENDERS)[:-1])
    parser.add_argument("--contend", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        torch.set_num_threads(options.threads)
        print("RESULT", json.dumps(contend(options.contend, options.tenant, options.rows)))
        return
    print(
        f"{'':14s}seconds  CPU s tokens/s completion/s  peak GFLOP/s  share  validation loss  ratio  CPU ratio"
    )
    first: dict[str, float] = {}
    for name in options.only:
        command = [sys.executable, __file__, "--contend", name, "--tenant", options.tenant]
        command += ["--threads", str(options.threads)]
        done = subprocess.run(
            command + (["--rows", str(options.rows)] if options.rows else []), capture_output=True, text=True
        )
        found = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
        if not found:
            sys.exit(f"'{name}' failed:\n{done.stderr[-3000:]}")
        r = json.loads(found[-1].removeprefix("RESULT "))
        first = first or r
        ratios = f"{r['seconds'] / first['seconds']:6.2f} {r['cpu'] / first['cpu']:10.2f}"
        speed = f"{r['seconds']:8.1f} {r['cpu']:6.0f} {r['tokens']:8.0f} {r['completion']:12.1f}"
        print(
            f"{name:13s}{speed} {r['peak'] / 1e9:13.0f} {r['share']:6.0%} {r['loss']:16.3f} {ratios}",
            flush=True,
        )


if __name__ == "__main__":
    main()
