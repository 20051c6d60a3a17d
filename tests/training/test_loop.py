"""Training: repeatable by its seed, unhurt by a kill, readable by plain peft."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.loading import load_base_model
from lora_ops.records.base_model import read_base_model
from lora_ops.records.example import Example
from lora_ops.records.training import TrainingRecord, read_training_record
from lora_ops.settings.train import TrainSettings
from lora_ops.training.loop import train
from tests.conftest import ROOT, record_base
from tests.training.test_packing import random_model

RECIPE = TrainSettings(
    rank=2, alpha=4, dropout=0.1, learning_rate=0.01, epochs=2, batch_size=4, seed=3, checkpoint_every=1
)
ROWS = [
    Example(
        id=str(n), group=str(n), text=f"shop {n}", target="Lodging", prompt=f"shop {n}\n", completion="Lodging"
    )
    for n in range(16)
]


def run(
    base: Path,
    folder: Path,
    recipe: TrainSettings = RECIPE,
    rows: Sequence[Example] = ROWS,
    **more: object,
) -> TrainingRecord:
    return train(
        "finance",
        recipe,
        base,
        rows,
        ROWS[:4],
        "0" * 64,
        target=folder / "adapter",
        report=folder / "report",
        checkpoint=folder / "checkpoint.safetensors",
        **more,  # type: ignore[arg-type]
    )


def stop(metrics: dict[str, float]) -> None:
    if metrics["step"] == 4:  # the checkpoint is that of step 3
        raise KeyboardInterrupt


def digest(folder: Path) -> str:
    return sha256_file(folder / "adapter" / "adapter_model.safetensors")


def test_train_names_what_it_began_with(tiny_base: Path, tmp_path: Path) -> None:
    """After a `git switch` during a training its record named the commit and the base of the other branch."""
    root, base = tmp_path / "root", tmp_path / "base"
    root.mkdir()
    shutil.copytree(tiny_base, base)

    def git(*words: str) -> str:
        identity = ("-c", "user.name=ana", "-c", "user.email=ana@example.com")
        done = subprocess.run(["git", *identity, *words], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def switch(metrics: dict[str, float]) -> None:
        if metrics["step"] == 4:
            git("commit", "-q", "--allow-empty", "-m", "other")
            (base / "base_model.json").write_text(other.to_json())

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "own")
    commit, own = git("rev-parse", "HEAD"), read_base_model(base)
    other = own.model_copy(update={"sha256": "f" * 64})
    record = run(base, tmp_path, on_step=switch, root=root)
    assert record.git and (record.git.commit, record.base_model_sha256) == (commit, own.sha256)


def test_the_loss_falls_and_every_linear_layer_is_adapted(tiny_base: Path, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    record = run(tiny_base, tmp_path, on_step=seen.append)
    assert record == read_training_record(tmp_path / "report")
    assert record.settings == RECIPE.model_dump(mode="json")
    assert record.steps == 8 and len([m for m in seen if "loss" in m]) == 8
    assert record.final_loss < seen[0]["loss"]
    config = (tmp_path / "adapter" / "adapter_config.json").read_text()
    for layer in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        assert layer in config
    assert "lm_head" not in config


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        run(tiny_base, tmp_path / name)
    run(tiny_base, tmp_path / "other", RECIPE.model_copy(update={"seed": 4}))
    assert digest(tmp_path / "first") == digest(tmp_path / "second") != digest(tmp_path / "other")
    configs = [(tmp_path / n / "adapter" / "adapter_config.json").read_bytes() for n in ("first", "second")]
    assert configs[0] == configs[1]
    modules = json.loads(configs[0])["target_modules"]
    assert modules == sorted(modules)  # a set's order would change from process to process


def test_plain_peft_loads_it_over_the_base_model(tiny_base: Path, tmp_path: Path) -> None:
    run(tiny_base, tmp_path)
    base, tokenizer = load_base_model(tiny_base)
    ids = tokenizer("shop 1\n", return_tensors="pt")["input_ids"]
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, tmp_path / "adapter")(ids).logits
    assert not torch.equal(before, after)


def test_it_is_rounded_once_before_it_is_validated_and_saved(tiny_base: Path, tmp_path: Path) -> None:
    whole = run(tiny_base, tmp_path / "whole", RECIPE.model_copy(update={"adapter_dtype": "float32"}))
    rounded = run(tiny_base, tmp_path / "rounded")
    before, after = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("whole", "rounded")
    )
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert after[key].dtype is torch.bfloat16
        assert torch.equal(tensor.bfloat16(), after[key])
    assert whole.final_loss == rounded.final_loss
    assert whole.validation_loss != rounded.validation_loss == pytest.approx(whole.validation_loss, rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_files_are_what_peft_would_write(tiny_base: Path, tmp_path: Path, dtype: str) -> None:
    run(tiny_base, tmp_path, RECIPE.model_copy(update={"adapter_dtype": dtype}))
    config = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(load_base_model(tiny_base)[0], config)
    peft.to(getattr(torch, dtype)).save_pretrained(tmp_path / "peft")
    ours, theirs = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("adapter", "peft")
    )
    for written in (ours, theirs):
        written["target_modules"].sort()
        del written["base_model_name_or_path"]
    assert ours == theirs
    shapes = []
    for name in ("adapter", "peft"):
        weights = load_file(tmp_path / name / "adapter_model.safetensors")
        shapes.append({key: (value.shape, value.dtype) for key, value in weights.items()})
    assert shapes[0] == shapes[1]


def test_a_model_that_cannot_be_packed_is_trained_on_padded_rows(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    random_model("gemma2", vocab_size=vocabulary, sliding_window=4).save_pretrained(base)
    record_base(base)
    seen: list[dict[str, float]] = []
    record = run(base, tmp_path, on_step=seen.append)
    assert "padded, not packed" in caplog.text
    assert record.final_loss < seen[0]["loss"]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    run(tiny_base, tmp_path / "whole")
    script = (
        "import sys, time; from pathlib import Path; from tests.training.test_loop import run;"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), on_step=lambda m: time.sleep(0.3))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_base), str(tmp_path / "killed")],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "killed" / "checkpoint.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "adapter").exists()
    record = run(tiny_base, tmp_path / "killed")
    assert 0 < record.resumed_from_step < record.steps
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    assert not checkpoint.exists()


@pytest.mark.parametrize(("edit", "resumed_from"), [("", 3), ("# edited\n", 0)])
def test_a_run_goes_on_by_the_code_that_began_it_and_by_no_other(
    tiny_base: Path, tmp_path: Path, edit: str, resumed_from: int
) -> None:
    code = tmp_path / "lora_ops"
    shutil.copytree(ROOT / "lora_ops", code, ignore=shutil.ignore_patterns("__pycache__"))
    for step in ("stop", "lambda metrics: None"):
        script = (
            "from pathlib import Path; from tests.training.test_loop import run, stop;"
            f"run(Path({str(tiny_base)!r}), Path({str(tmp_path)!r}), on_step={step})"
        )
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
        subprocess.run([sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True)
        with (code / "training/batches.py").open("a") as file:
            file.write(edit)
    assert read_training_record(tmp_path / "report").resumed_from_step == resumed_from


def test_a_checkpoint_of_another_recipe_or_a_broken_one_is_not_resumed(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tmp_path, on_step=stop)
    assert run(tiny_base, tmp_path, RECIPE.model_copy(update={"learning_rate": 0.02})).resumed_from_step == 0
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half a file")
    assert run(tiny_base, tmp_path).resumed_from_step == 0


def test_a_recipe_that_diverges_says_so_and_leaves_no_adapter(tiny_base: Path, tmp_path: Path) -> None:
    broken = tmp_path / "base"
    shutil.copytree(tiny_base, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][:] = float("inf")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    record_base(broken)
    with pytest.raises(LoraOpsError, match="diverged at step 1 of 8"):
        run(broken, tmp_path)
    assert not (tmp_path / "adapter").exists()


def test_a_second_training_of_a_tenant_names_the_first(tiny_base: Path, tmp_path: Path) -> None:
    """C5: two trainings wrote one checkpoint and one adapter."""
    script = (
        "import sys, time; from pathlib import Path; from tests.training.test_loop import run\n"
        "def wait(metrics):\n    print('training', flush=True); time.sleep(600)\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), on_step=wait)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_base), str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        while "training" not in first.stdout.readline():
            assert first.poll() is None
        with pytest.raises(LoraOpsError, match=f"Process {first.pid} on .* is training 'finance' already"):
            run(tiny_base, tmp_path)
    finally:
        first.kill()
        first.wait()
    assert run(tiny_base, tmp_path).steps == 8


def curve(folder: Path) -> list[int]:
    lines = (folder / "report/validation.csv").read_text().splitlines()
    return [int(line.split(",")[0]) for line in lines[1:]]


def test_validating_more_often_changes_no_weight(tiny_base: Path, tmp_path: Path) -> None:
    for name, every in (("rare", 100), ("often", 2)):
        run(tiny_base, tmp_path / name, RECIPE.model_copy(update={"validate_every": every}))
    assert digest(tmp_path / "rare") == digest(tmp_path / "often")
    assert curve(tmp_path / "rare") == [8] and curve(tmp_path / "often") == [2, 4, 6, 8]


def test_patience_stops_and_saves_the_best_weights(tiny_base: Path, tmp_path: Path) -> None:
    # At this rate the random model gets worse after its first steps.
    wild = {"learning_rate": 0.5, "epochs": 8, "validate_every": 1, "patience": 3, "adapter_dtype": "float32"}
    record = run(tiny_base, tmp_path, RECIPE.model_copy(update=wild))
    lines = (tmp_path / "report/validation.csv").read_text().splitlines()[1:]
    losses = [float(line.split(",")[1]) for line in lines]
    assert record.steps < record.planned_steps == 32
    assert record.best_step == 1 + losses.index(min(losses)) == record.steps - 3
    assert record.validation_loss == pytest.approx(min(losses), abs=1e-5)


def test_a_killed_run_with_patience_ends_with_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"validate_every": 1, "patience": 8})
    whole = run(tiny_base, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tmp_path / "killed", recipe, on_step=stop)
    resumed = run(tiny_base, tmp_path / "killed", recipe)
    assert resumed.resumed_from_step == 3
    assert (resumed.best_step, digest(tmp_path / "killed")) == (whole.best_step, digest(tmp_path / "whole"))
    assert curve(tmp_path / "killed") == curve(tmp_path / "whole")


def test_record_names_versions_and_commit_of_the_training(tiny_base: Path, tmp_path: Path) -> None:
    """C3: the manifest named those of the packaging."""
    record = run(tiny_base, tmp_path, root=ROOT)
    assert record.packages["torch"] == importlib.metadata.version("torch")
    assert {"peft", "transformers", "tokenizers"} <= record.packages.keys()
    assert record.git is not None and len(record.git.commit or "") == 40


def test_metrics_are_the_few_numbers_that_sweeps_compare(tiny_base: Path, tmp_path: Path) -> None:
    """C9: training.json filled `dvc metrics show` with digests."""
    record = run(tiny_base, tmp_path)
    metrics = json.loads((tmp_path / "report/train_metrics.json").read_text())
    assert metrics == {
        "steps": 8,
        "final_loss": record.final_loss,
        "validation_loss": record.validation_loss,
    }


def with_settings(**more: object) -> TrainSettings:
    return TrainSettings.model_validate(RECIPE.model_dump() | more)


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter/adapter_model.safetensors")


def losses(folder: Path) -> list[float]:
    lines = (folder / "report/loss.csv").read_text().splitlines()[1:]
    return [float(line.split(",")[1]) for line in lines]


@pytest.mark.parametrize("size", [1, 3])
def test_micro_batches_learn_what_a_large_batch_does(tiny_base: Path, tmp_path: Path, size: int) -> None:
    """Completions of 1 to 16 tokens: a mean of the micro-batches' means would be another loss."""
    rows = [row.model_copy(update={"completion": "Lodging " * (1 + 5 * (n % 3))}) for n, row in enumerate(ROWS)]
    exact = {"dropout": 0.0, "batch_size": 8, "adapter_dtype": "float32", "learning_rate": 1e-3}
    run(tiny_base, tmp_path / "large", with_settings(**exact), rows=rows)
    run(tiny_base, tmp_path / "micro", with_settings(**exact, micro_batch_size=size), rows=rows)
    assert losses(tmp_path / "micro") == pytest.approx(losses(tmp_path / "large"), abs=1e-5)
    large, micro = adapter(tmp_path / "large"), adapter(tmp_path / "micro")
    for name, tensor in large.items():
        torch.testing.assert_close(micro[name], tensor, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_byte(
    tiny_base: Path, tmp_path: Path, dropout: float, base_dtype: str
) -> None:
    for name in ("kept", "computed"):
        recipe = with_settings(
            dropout=dropout, base_dtype=base_dtype, gradient_checkpointing=name == "computed"
        )
        run(tiny_base, tmp_path / name, recipe)
    assert digest(tmp_path / "kept") == digest(tmp_path / "computed")


def test_bfloat16_base_trains_matrices_in_float32(tiny_base: Path, tmp_path: Path) -> None:
    recipe = with_settings(base_dtype="bfloat16", micro_batch_size=2, gradient_checkpointing=True)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tmp_path / "killed", recipe, on_step=stop)
    state = load_file(tmp_path / "killed/checkpoint.safetensors")
    dtypes = {tensor.dtype for name, tensor in state.items() if name.startswith(("weight/", "optimizer/"))}
    assert dtypes == {torch.float32}
    record = run(tiny_base, tmp_path / "killed", recipe)
    assert (record.dtype, record.resumed_from_step) == ("bfloat16", 3)
    whole = run(tiny_base, tmp_path / "whole", recipe)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")
    float32 = run(tiny_base, tmp_path / "float32", with_settings(base_dtype="float32"))
    assert whole.validation_loss == pytest.approx(float32.validation_loss, rel=0.02)
    assert losses(tmp_path / "whole")[-1] < losses(tmp_path / "whole")[0]


def test_model_without_checkpointing_is_refused(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.LlamaForCausalLM.supports_gradient_checkpointing", False)
    with pytest.raises(LoraOpsError, match="gradient_checkpointing must be false for this model: Llama"):
        run(tiny_base, tmp_path, with_settings(gradient_checkpointing=True))
