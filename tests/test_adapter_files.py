"""An adapter with NaN or infinity is named by its module, whatever its type is."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_ops.adapter_files import non_finite_tensors, require_finite
from lora_ops.errors import LoraOpsError

NAME = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_tensors_finds_one_value(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensors = {NAME.format(layer): torch.randn(4, 8).to(dtype) for layer in range(3)}
    tensors[NAME.format(1)][2, 5] = value
    save_file(tensors, tmp_path / "adapter.safetensors", metadata={"format": "pt"})
    assert non_finite_tensors(tmp_path / "adapter.safetensors") == [NAME.format(1)]


def test_non_finite_tensors_takes_the_largest_values_as_they_are(tmp_path: Path) -> None:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    tensors = {str(dtype): torch.full((3,), torch.finfo(dtype).max, dtype=dtype) for dtype in kinds}
    save_file(tensors | {"none": torch.empty(0, 4)}, tmp_path / "adapter.safetensors")
    assert non_finite_tensors(tmp_path / "adapter.safetensors") == []


def test_require_finite_names_the_modules(tmp_path: Path) -> None:
    tensors = {NAME.format(layer): torch.full((2, 2), float("nan")) for layer in range(5)}
    save_file(tensors, tmp_path / "adapter.safetensors")
    said = r"infinite values in model.layers.0.self_attn.q_proj, .* and 2 more modules: its training diverged"
    with pytest.raises(LoraOpsError, match=said):
        require_finite(tmp_path / "adapter.safetensors")


OUTSIDE = json.dumps({"a": {"dtype": "F32", "data_offsets": [0, 99]}}).encode()


@pytest.mark.parametrize("header", [b"no json", OUTSIDE])
def test_require_finite_refuses_a_broken_file(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(LoraOpsError, match="is not a safetensors file"):
        require_finite(path)
