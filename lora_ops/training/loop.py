"""Train one LoRA adapter: a plain loop that a kill does not hurt and that a seed makes repeatable."""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lora_ops.errors import LoraOpsError
from lora_ops.folders import replacing
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.loading import load_base_model, pick_device
from lora_ops.paths import LOSSES, TRAINING
from lora_ops.processes import only_one
from lora_ops.records.base_model import read_base_model
from lora_ops.records.example import Example
from lora_ops.records.training import TrainingRecord
from lora_ops.settings.train import TrainSettings
from lora_ops.training.batches import Tokens, tokenize
from lora_ops.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from lora_ops.training.lora_linear import FusedLinear
from lora_ops.training.packing import Loss, choose_loss


def train(
    tenant: str,
    settings: TrainSettings,
    base_folder: Path,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    data_sha256: str,
    target: Path,
    report: Path,
    checkpoint: Path,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> TrainingRecord:
    """Train one adapter and write its files to `target`, `training.json` and `loss.csv` to `report`.

    LoRA (Hu et al., 2021, arXiv:2106.09685) on every linear layer but the output layer; AdamW without
    weight decay; learning rate with linear warmup and linear decay to zero; loss on completion tokens only.
    A run that was killed goes on from `checkpoint` and ends with the same bytes as one that was not, on
    the same kind of CPU with the same number of threads; the checkpoint is deleted at the end.

    Args:
        data_sha256: of the train split; a checkpoint of other data or code is not resumed.
        target: folder for `adapter_model.safetensors` and `adapter_config.json`, replaced in one step at the
            end. The two files depend on nothing but code, data, recipe and machine: no clock is in them.
        report: folder for what was observed on the way.
        on_step: called after each step with step, loss and learning_rate, and at the end with validation_loss.

    Raises:
        LoraOpsError: the loss is not finite (the recipe diverged).
    """
    with only_one(checkpoint.with_suffix(".lock"), f"training '{tenant}'"):
        return _train(
            tenant,
            settings,
            base_folder,
            train_rows,
            validation_rows,
            data_sha256,
            target,
            report,
            checkpoint,
            on_step,
        )


def _train(
    tenant: str,
    settings: TrainSettings,
    base_folder: Path,
    train_rows: Sequence[Example],
    validation_rows: Sequence[Example],
    data_sha256: str,
    target: Path,
    report: Path,
    checkpoint: Path,
    on_step: Callable[[dict[str, float]], None],
) -> TrainingRecord:
    device, dtype = pick_device()
    torch.manual_seed(settings.seed)
    torch.use_deterministic_algorithms(device == "cpu")
    model, tokenizer = _adapted(base_folder, settings, device)
    base = read_base_model(base_folder)
    rows = tokenize(train_rows, tokenizer)
    validation = tokenize(validation_rows, tokenizer)
    per_epoch = -(-len(rows) // settings.batch_size)
    steps = per_epoch * settings.epochs
    loss_of = choose_loss(model, rows, tokenizer.pad_token_id)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=settings.learning_rate, weight_decay=0.0)
    fingerprint = sha256_text(
        canonical(
            [settings.model_dump(exclude={"adapter_dtype"}), data_sha256, base.sha256, device, _code_sha256()]
        )
    )
    done = load_checkpoint(checkpoint, trainable, optimizer, fingerprint)
    begun = done or Progress(fingerprint, 0, 0, 0.0, [])
    losses = [(int(step), float(loss)) for step, loss in begun.losses]
    tokens, start = begun.tokens, time.perf_counter() - begun.seconds

    model.train()
    progress = {"initial": begun.step, "total": steps, "unit": "step", "mininterval": 5}
    # On stdout: a page shows stderr in red, and progress is no fault.
    for step in tqdm(range(begun.step, steps), file=sys.stdout, **progress):
        chosen = _rows_of_step(rows, step, per_epoch, settings)
        rate = settings.learning_rate * _schedule(step, steps, settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = loss_of(model, chosen)
        if not torch.isfinite(loss):
            raise LoraOpsError(
                f"Training '{tenant}' diverged at step {step + 1} of {steps} (loss {loss.item()}): "
                "lower train.learning_rate."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable.values(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(len(row.prompt) + len(row.completion) for row in chosen)
        losses.append((step + 1, loss.item()))
        on_step({"step": step + 1, "loss": loss.item(), "learning_rate": rate})
        if (step + 1) % settings.checkpoint_every == 0:
            seconds = time.perf_counter() - start
            save_checkpoint(
                checkpoint, trainable, optimizer, Progress(fingerprint, step + 1, tokens, seconds, losses)
            )
    seconds = time.perf_counter() - start
    # Before it is validated, so that nothing is measured that is not saved.
    saved_in = getattr(torch, settings.adapter_dtype)
    saved = {name: parameter.detach().to(saved_in) for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        parameter.data = saved[name].to(parameter.dtype)
    validation_loss = _mean_loss(loss_of, model, validation, settings.batch_size, device, dtype)
    on_step({"step": steps, "validation_loss": validation_loss})

    record = TrainingRecord(
        tenant=tenant,
        base_model_sha256=base.sha256,
        train_sha256=data_sha256,
        examples=len(rows),
        steps=steps,
        resumed_from_step=begun.step,
        tokens=tokens,
        seconds=round(seconds, 2),
        device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
        dtype=str(dtype).removeprefix("torch."),
        trainable_parameters=sum(p.numel() for p in trainable.values()),
        final_loss=losses[-1][1],
        validation_loss=validation_loss,
    )
    _write_report(record, losses, report)
    _write_adapter(model, base.id, saved, target)
    checkpoint.unlink(missing_ok=True)
    return record


def _code_sha256() -> str:
    """One digest of the training code: half a run by the old code and half by the new is a run of neither."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256_text(canonical([[path.name, sha256_file(path)] for path in files]))


def _adapted(base_folder: Path, settings: TrainSettings, device: str) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base_model(base_folder, device)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    if device == "cpu":
        config._register_custom_module({torch.nn.Linear: FusedLinear})
    return get_peft_model(model, config), tokenizer


def _rows_of_step(rows: list[Tokens], step: int, per_epoch: int, settings: TrainSettings) -> list[Tokens]:
    # The order depends on seed and epoch alone, so a resumed run needs no state to find its place.
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order[index * settings.batch_size : (index + 1) * settings.batch_size]]


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(1.0, rising, (steps - step) / steps)


@torch.no_grad()
def _mean_loss(
    loss_of: Loss, model: Any, rows: list[Tokens], batch_size: int, device: str, dtype: torch.dtype
) -> float:
    model.eval()
    total, count = 0.0, 0
    for index in range(0, len(rows), batch_size):
        chosen = rows[index : index + batch_size]
        weight = sum(len(row.completion) for row in chosen)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            total += loss_of(model, chosen).item() * weight
        count += weight
    return total / count


def _write_report(record: TrainingRecord, losses: list[tuple[int, float]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINING).write_text(record.to_json(), encoding="utf-8")
    with (folder / LOSSES).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss"))
        writer.writerows((step, f"{loss:.6f}") for step, loss in losses)


def _write_adapter(model: Any, base_model_id: str, weights: dict[str, torch.Tensor], target: Path) -> None:
    with replacing(target) as folder:
        # The folder that the base model lies in on this machine means nothing elsewhere.
        config = model.peft_config["default"]
        config.base_model_name_or_path = base_model_id
        config.target_modules = sorted(config.target_modules)  # a set's order differs from process to process
        # No layer of the vocabulary is adapted, so there is nothing of it to look for or to save.
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
