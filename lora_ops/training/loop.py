"""Train one LoRA adapter: a plain loop that a kill does not hurt and that a seed makes repeatable."""

import csv
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lora_ops.errors import LoraOpsError
from lora_ops.folders import replacing
from lora_ops.git import git_state
from lora_ops.hashing import canonical, sha256_file, sha256_text
from lora_ops.loading import load_base_model, pick_device
from lora_ops.paths import ADAPTER_FILES, LOSSES, TRAIN_METRICS, TRAINING, VALIDATION_LOSSES
from lora_ops.processes import only_one
from lora_ops.records.base_model import read_base_model
from lora_ops.records.example import Example
from lora_ops.records.training import TrainingRecord, read_training_record
from lora_ops.settings.train import TrainSettings
from lora_ops.training.batches import Tokens, tokenize
from lora_ops.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from lora_ops.training.devices import Group, OnStep, count_devices, train_together
from lora_ops.training.lora_linear import CpuLoraLinear
from lora_ops.training.packing import choose_loss
from lora_ops.versions import TRAINING_PACKAGES, installed_versions


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
    on_step: OnStep = lambda metrics: None,
    root: Path | None = None,
) -> TrainingRecord:
    """Train one adapter: its files go to `target`, its record and its curves to `report`.

    LoRA (Hu et al., 2021, arXiv:2106.09685) on every linear layer but the output layer; AdamW without
    weight decay; learning rate with linear warmup and linear decay to zero; loss on completion tokens only.
    A run that was killed goes on from `checkpoint` and ends with the same bytes as one that was not, on
    the same kind of CPU with the same number of threads; the checkpoint is deleted at the end.
    Several devices share the rows of each step and sum their gradients.

    Args:
        data_sha256: of the train split; a checkpoint of other data, code or packages is not resumed.
        target: folder for `adapter_model.safetensors` and `adapter_config.json`, replaced in one step at the
            end. The two files depend on nothing but code, data, recipe and machine: no clock is in them.
        report: folder for `training.json`, `loss.csv`, `validation.csv` and `train_metrics.json`.
        on_step: called after each step with step, loss and learning_rate, and after each validation with step
            and validation_loss.
        root: the repository whose commit the record names.

    Raises:
        LoraOpsError: the loss is not finite (the recipe diverged), another process trains this tenant, or there
            are fewer GPUs than the recipe asks for.
    """
    job = _Job(
        tenant,
        settings,
        base_folder,
        train_rows,
        validation_rows,
        data_sha256,
        target,
        report,
        checkpoint,
        root,
    )
    device, _ = pick_device(dtype=settings.base_dtype)
    with only_one(checkpoint.with_suffix(".lock"), f"training '{tenant}'"):
        size = count_devices(settings.devices, device)
        if size == 1:
            _train(job, Group(), on_step)
        else:
            train_together(size, device, partial(_train, job), on_step)
    return read_training_record(report)


@dataclass(frozen=True)
class _Job:
    """The arguments of `train`, as each process of a group gets them."""

    tenant: str
    settings: TrainSettings
    base_folder: Path
    train_rows: Sequence[Example]
    validation_rows: Sequence[Example]
    data_sha256: str
    target: Path
    report: Path
    checkpoint: Path
    root: Path | None


def _train(job: _Job, group: Group, on_step: OnStep) -> None:
    """Train as one process of `group`; the first one writes the adapter, the record and the curves."""
    with _deterministic():
        # What the run began with: somebody may switch to another branch, or check out other data, meanwhile.
        base, packages = read_base_model(job.base_folder), installed_versions(TRAINING_PACKAGES)
        git = git_state(job.root) if job.root and not group.rank else None
        run = _Run(job, group, on_step)
        seconds = run.train()
        saved, validation_loss = run.finish()
        if group.rank:
            return
        # The record comes last and names these weights, so after a kill it does not pass as that of others.
        _write_adapter(run.model, base.id, saved, job.target)
        devices = f"{group.size} x " if group.size > 1 else ""
        record = TrainingRecord(
            tenant=job.tenant,
            base_model_sha256=base.sha256,
            base_files_sha256=base.files_sha256,
            train_sha256=job.data_sha256,
            examples=len(run.rows),
            steps=len(run.losses),
            resumed_from_step=run.resumed_from,
            tokens=run.tokens,
            seconds=round(seconds, 2),
            device=devices + (torch.cuda.get_device_name() if run.device == "cuda" else "cpu"),
            dtype=str(run.dtype).removeprefix("torch."),
            trainable_parameters=sum(p.numel() for p in run.trainable.values()),
            final_loss=run.losses[-1][1],
            validation_loss=validation_loss,
            planned_steps=run.steps,
            best_step=run.best_step,
            packages=packages,
            git=git,
            adapter_sha256=sha256_file(job.target / ADAPTER_FILES[0]),
            settings=job.settings.model_dump(mode="json"),
        )
        _write_report(record, run.losses, run.validations, job.report)
        job.checkpoint.unlink(missing_ok=True)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Let torch use deterministic algorithms on a CPU, and put its setting back."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(pick_device()[0] == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class _Run:
    """One training with all that changes from step to step."""

    def __init__(self, job: _Job, group: Group, on_step: OnStep) -> None:
        settings = job.settings
        self.tenant, self.settings, self.checkpoint = job.tenant, settings, job.checkpoint
        self.group, self.on_step = group, on_step
        self.device, self.dtype = pick_device(dtype=settings.base_dtype)
        self.at_once = settings.micro_batch_size or settings.batch_size
        # peft draws LoRA's first matrices on the CPU, so they are the same in all processes of the group.
        torch.manual_seed(settings.seed)
        self.model, tokenizer = _adapted(job.base_folder, settings, self.device, self.dtype)
        self.rows = tokenize(job.train_rows, tokenizer)
        self.validation = tokenize(job.validation_rows, tokenizer)
        self.per_epoch = -(-len(self.rows) // settings.batch_size)
        self.steps = self.per_epoch * settings.epochs
        self.loss_of = choose_loss(self.model, self.rows, tokenizer.pad_token_id)
        self.trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(self.trainable.values(), lr=settings.learning_rate, weight_decay=0.0)
        base = read_base_model(job.base_folder).digest
        devices = f"{self.device} {group.size}"
        self.fingerprint = _fingerprint(settings, job.data_sha256, base, devices)
        found = load_checkpoint(job.checkpoint, self.trainable, self.optimizer, self.fingerprint)
        begun, self.best = found or (Progress(self.fingerprint, 0, 0, 0.0, []), None)
        self.resumed_from, self.tokens, self.seconds_before = begun.step, begun.tokens, begun.seconds
        self.losses = [(int(step), float(loss)) for step, loss in begun.losses]
        self.validations = [(int(step), float(loss)) for step, loss in begun.validations]

    @property
    def best_step(self) -> int | None:
        """The step with the lowest validation loss, where the best weights are kept."""
        if self.settings.patience is None:
            return None
        return min(self.validations, key=lambda point: point[1])[0]

    def train(self) -> float:
        """Take every step that is left, or stop early; return the seconds of all steps.

        Raises:
            LoraOpsError: the loss is not finite.
        """
        settings, start = self.settings, time.perf_counter() - self.seconds_before
        self.model.train()
        progress = {"initial": self.resumed_from, "total": self.steps, "unit": "step", "mininterval": 5}
        # On stdout: a page shows stderr in red, and progress is no fault.
        quiet = self.group.rank > 0
        for step in tqdm(range(self.resumed_from, self.steps), file=sys.stdout, disable=quiet, **progress):
            self._step(step)
            done = step + 1
            if done % settings.validate_every == 0 or (settings.patience and done == self.steps):
                self._validate(done)
            if done % settings.checkpoint_every == 0 and self.group.rank == 0:
                seconds = time.perf_counter() - start
                so_far = Progress(self.fingerprint, done, self.tokens, seconds, self.losses, self.validations)
                save_checkpoint(self.checkpoint, self.trainable, self.optimizer, so_far, self.best)
            if self._has_stalled():
                break
        return time.perf_counter() - start

    def finish(self) -> tuple[dict[str, torch.Tensor], float]:
        """Return the weights to save, as they are saved, and their validation loss."""
        if self.best is not None:
            with torch.no_grad():
                for name, parameter in self.trainable.items():
                    parameter.copy_(self.best[name])
        # Rounded before they are validated, so that nothing is measured that is not saved.
        saved_in = getattr(torch, self.settings.adapter_dtype)
        saved = {name: parameter.detach().to(saved_in) for name, parameter in self.trainable.items()}
        for name, parameter in self.trainable.items():
            parameter.data = saved[name].to(parameter.dtype)
        loss = self._validation_loss()
        step = len(self.losses)
        if not self.validations or self.validations[-1][0] != step:
            self.validations.append((step, loss))
        self.on_step({"step": step, "validation_loss": loss})
        return saved, loss

    def _step(self, step: int) -> None:
        settings = self.settings
        chosen = _rows_of_step(self.rows, step, self.per_epoch, settings)
        rate = settings.learning_rate * _schedule(step, self.steps, settings.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.group.size > 1:
            # Each process draws its own dropout, and a run that goes on draws what the whole one did.
            torch.manual_seed((settings.seed * 1_000_003 + step) * self.group.size + self.group.rank)
        loss = self._backward(chosen)
        if not torch.isfinite(loss):
            raise LoraOpsError(
                f"Training '{self.tenant}' diverged at step {step + 1} of {self.steps} (loss {loss.item()}): "
                "lower train.learning_rate."
            )
        torch.nn.utils.clip_grad_norm_(self.trainable.values(), settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.tokens += sum(len(row.prompt) + len(row.completion) for row in chosen)
        self.losses.append((step + 1, loss.item()))
        self.on_step({"step": step + 1, "loss": loss.item(), "learning_rate": rate})

    def _backward(self, rows: Sequence[Tokens]) -> torch.Tensor:
        """Add the gradients of the mean loss per completion token of `rows`; return that loss, a scalar.

        The loss of a micro-batch is a mean over its own tokens. Its share of the step's tokens is its weight,
        so the sum is the mean that one large batch has. Equal weights would favour short completions.
        """
        loss = torch.zeros((), device=self.device)
        mine = rows[self.group.rank :: self.group.size]
        for first in range(0, len(mine), self.at_once):
            part = mine[first : first + self.at_once]
            weighted = self._loss(part) * (_completion_tokens(part) / _completion_tokens(rows))
            weighted.backward()
            loss += weighted.detach()
        self.group.sum_gradients(self.trainable)
        return self.group.sum(loss)

    def _loss(self, rows: Sequence[Tokens]) -> torch.Tensor:
        # LoRA's matrices are float32: where the base model is bfloat16, autocast rounds them for each product.
        with torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.loss_of(self.model, rows)

    def _validate(self, done: int) -> None:
        loss = self._validation_loss()
        # Evaluation draws no random numbers, so how often it is done changes no weight.
        self.model.train()
        best_before = min((before for _, before in self.validations), default=float("inf"))
        self.validations.append((done, loss))
        self.on_step({"step": done, "validation_loss": loss})
        if self.settings.patience is not None and loss < best_before:
            self.best = {name: p.detach().cpu().clone() for name, p in self.trainable.items()}

    def _has_stalled(self) -> bool:
        """Whether the last `patience` validations were no better than one before them."""
        patience = self.settings.patience
        if patience is None or len(self.validations) <= patience:
            return False
        losses = [loss for _, loss in self.validations]
        return min(losses[-patience:]) >= min(losses[:-patience])

    @torch.no_grad()
    def _validation_loss(self) -> float:
        """Mean cross-entropy per completion token of the validation split."""
        self.model.eval()
        total = 0.0
        mine = self.validation[self.group.rank :: self.group.size]
        for index in range(0, len(mine), self.at_once):
            chosen = mine[index : index + self.at_once]
            total += self._loss(chosen).item() * _completion_tokens(chosen)
        summed = self.group.sum(torch.tensor(total, dtype=torch.float64, device=self.device))
        return summed.item() / _completion_tokens(self.validation)


def _fingerprint(settings: TrainSettings, data_sha256: str, base_digest: str, devices: str) -> str:
    """One digest of what a run is: a run resumed on other data, code or packages would be a run of neither."""
    recipe = settings.model_dump(exclude={"adapter_dtype"})
    packages = installed_versions(TRAINING_PACKAGES)
    return sha256_text(canonical([recipe, data_sha256, base_digest, devices, packages, _code_sha256()]))


def _code_sha256() -> str:
    """One digest of the training code: half a run by the old code and half by the new is a run of neither."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return sha256_text(canonical([[path.name, sha256_file(path)] for path in files]))


def _adapted(base_folder: Path, settings: TrainSettings, device: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base_model(base_folder, device, dtype)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    if device == "cpu" and dtype is torch.float32:
        config._register_custom_module({torch.nn.Linear: CpuLoraLinear})
    # peft keeps LoRA's matrices in float32, whatever the type of the base model is.
    adapted = get_peft_model(model, config)
    if settings.gradient_checkpointing:
        try:
            base: Any = adapted.get_base_model()
            base.activation_checkpointing_enable()
        except ValueError as error:
            raise LoraOpsError(f"train.gradient_checkpointing must be false for this model: {error}") from error
    return adapted, tokenizer


def _completion_tokens(rows: Sequence[Tokens]) -> int:
    return sum(len(row.completion) for row in rows)


def _rows_of_step(rows: list[Tokens], step: int, per_epoch: int, settings: TrainSettings) -> list[Tokens]:
    # The order depends on seed and epoch alone, so a resumed run needs no state to find its place.
    epoch, index = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order[index * settings.batch_size : (index + 1) * settings.batch_size]]


def _schedule(step: int, steps: int, warmup: float) -> float:
    rising = (step + 1) / max(1.0, warmup * steps)
    return min(1.0, rising, (steps - step) / steps)


def _write_report(
    record: TrainingRecord,
    losses: list[tuple[int, float]],
    validations: list[tuple[int, float]],
    folder: Path,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TRAINING).write_text(record.to_json(), encoding="utf-8")
    # What `dvc metrics show` compares: a sweep is judged on validation, never on the held-out rows.
    metrics = record.model_dump(include={"validation_loss", "final_loss", "steps"})
    (folder / TRAIN_METRICS).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    for name, points in ((LOSSES, losses), (VALIDATION_LOSSES, validations)):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("step", "loss"))
            writer.writerows((step, f"{loss:.6f}") for step, loss in points)


def _write_adapter(model: Any, base_model_id: str, weights: dict[str, torch.Tensor], target: Path) -> None:
    with replacing(target) as folder:
        # The folder that the base model lies in on this machine means nothing elsewhere.
        config = model.peft_config["default"]
        config.base_model_name_or_path = base_model_id
        config.target_modules = sorted(config.target_modules)  # a set's order differs from process to process
        # No layer of the vocabulary is adapted, so there is nothing of it to look for or to save.
        model.save_pretrained(folder, state_dict=weights, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
