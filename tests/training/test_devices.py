"""Several processes that train one adapter: on a CPU by gloo, as several GPUs do by NCCL."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import sha256_file
from lora_ops.training.devices import Group, OnStep, count_devices, train_together
from tests.training.test_loop import run, stop, with_settings

ADAPTER = "adapter/adapter_model.safetensors"


def losses(path: Path) -> list[float]:
    return [float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]]


def test_two_processes_learn_what_one_does(tiny_base: Path, tmp_path: Path) -> None:
    """16 rows in batches of 3: in the last step of an epoch the second process has no row."""
    exact = {"dropout": 0.0, "batch_size": 3, "adapter_dtype": "float32", "learning_rate": 1e-3}
    exact |= {"validate_every": 2, "patience": 6}
    seen: list[dict[str, float]] = []
    one = run(tiny_base, tmp_path / "one", with_settings(**exact))
    two = run(tiny_base, tmp_path / "two", with_settings(**exact, devices=2), on_step=seen.append)
    assert (one.device, two.device) == ("cpu", "2 x cpu")
    assert (two.steps, two.tokens) == (one.steps, one.tokens) == (12, one.tokens)
    assert [m["step"] for m in seen if "loss" in m] == list(range(1, 13))
    for name in ("loss.csv", "validation.csv"):
        paths = [tmp_path / folder / "report" / name for folder in ("one", "two")]
        assert losses(paths[1]) == pytest.approx(losses(paths[0]), abs=1e-5)
    weights = load_file(tmp_path / "one" / ADAPTER)
    for name, tensor in load_file(tmp_path / "two" / ADAPTER).items():
        torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5)


@pytest.mark.nightly
def test_stopped_group_goes_on_to_the_same_bytes(tiny_base: Path, tmp_path: Path) -> None:
    recipe = with_settings(dropout=0.1, devices=2, micro_batch_size=1)
    run(tiny_base, tmp_path / "whole", recipe)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tmp_path / "stopped", recipe, on_step=stop)
    assert run(tiny_base, tmp_path / "stopped", recipe).resumed_from_step == 3
    assert sha256_file(tmp_path / "stopped" / ADAPTER) == sha256_file(tmp_path / "whole" / ADAPTER)


def refuse(group: Group, on_step: OnStep) -> None:
    raise LoraOpsError(f"process {group.size - 2} of {group.size} refuses")


def die(group: Group, on_step: OnStep) -> None:
    if group.rank == 1:
        os._exit(9)
    group.sum(torch.ones(1))


def test_error_of_a_process_is_the_callers() -> None:
    with pytest.raises(LoraOpsError, match="process 0 of 2 refuses"):
        train_together(2, "cpu", refuse, print)


def test_process_that_dies_ends_the_training() -> None:
    with pytest.raises(LoraOpsError, match="ended with .*: its error is above"):
        train_together(2, "cpu", die, print)


def test_devices_that_are_not_there_are_refused() -> None:
    assert count_devices(None, "cpu") == 1
    if not torch.cuda.is_available():
        with pytest.raises(LoraOpsError, match="train.devices is 2, and torch sees 0 GPUs"):
            count_devices(2, "cuda")
