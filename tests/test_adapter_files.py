"""An adapter with NaN or infinity is named by its module, whatever its type is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lora_ops.adapter_files import non_finite_tensors, require_finite, require_lora, weights_digest
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


PLAIN = {NAME.format(0): torch.full((4, 8), 0.1), NAME.format(1): torch.zeros(4, 8)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_require_lora_takes_each_type_that_is_needed(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({name: tensor.to(dtype) for name, tensor in PLAIN.items()}, tmp_path / "adapter.safetensors")
    require_lora(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize(
    ("tensors", "told"),
    [
        (PLAIN | {"zzz": torch.zeros(0)}, "holds 'zzz', which is not a LoRA matrix"),
        (PLAIN | {NAME.format(2): torch.zeros(0, 8)}, "layers.2.self_attn.q_proj.lora_A.weight', which is not"),
        ({name: tensor.double() for name, tensor in PLAIN.items()}, "tensors of type F64: save all of them as"),
        (PLAIN | {NAME.format(2): torch.ones(2, 2).bfloat16()}, "tensors of type BF16, F32: save all"),
        ({name: tensor.bfloat16().float() for name, tensor in PLAIN.items()}, "save them as bfloat16, so that"),
        (
            {name: tensor.bfloat16().half() for name, tensor in PLAIN.items()},
            "values of bfloat16, saved as F16: save them",
        ),
        ({name: tensor.half().float() for name, tensor in PLAIN.items()}, "values of float16, saved as F32"),
    ],
)
def test_require_lora_refuses_the_same_answers_in_another_file(
    tmp_path: Path, tensors: dict[str, torch.Tensor], told: str
) -> None:
    save_file(tensors, tmp_path / "adapter.safetensors")
    with pytest.raises(LoraOpsError, match=told):
        require_lora(tmp_path / "adapter.safetensors")


@pytest.mark.parametrize("kept", [(0, 128), (128, 256)])
def test_require_lora_refuses_bytes_of_no_tensor(tmp_path: Path, kept: tuple[int, int]) -> None:
    """A name that stands there twice was read as its last one, and the other one's bytes as nothing."""
    path = tmp_path / "adapter.safetensors"
    tensor = {"dtype": "F32", "shape": [4, 8], "data_offsets": kept}
    twice = json.dumps({"again": tensor, NAME.format(0): tensor}).replace("again", NAME.format(0)).encode()
    content = b"".join(tensor.numpy().tobytes() for tensor in PLAIN.values())
    path.write_bytes(len(twice).to_bytes(8, "little") + twice + content)
    with pytest.raises(LoraOpsError, match="holds bytes that no tensor has"):
        require_lora(path)


def tensor_at(*offsets: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()


ELSEWHERE = [tensor_at(0, 99), tensor_at(0, 10**15), tensor_at(10**23, 10**23 + 4), tensor_at(-4, 0)]
SHARED = json.dumps({name: {"dtype": "I8", "shape": [4], "data_offsets": [0, 4]} for name in "ab"}).encode()


@pytest.mark.parametrize("header", [b"no json", b"[]", b'{"a":' + b"[" * 200_000, *ELSEWHERE])
@pytest.mark.parametrize("read", [require_finite, require_lora, weights_digest])
def test_adapter_files_refuse_a_broken_header(
    tmp_path: Path, header: bytes, read: Callable[[Path], object]
) -> None:
    with pytest.raises(LoraOpsError, match="is not a safetensors file"):
        read(with_header(tmp_path, header))


def test_weights_digest_refuses_tensors_that_overlap(tmp_path: Path) -> None:
    with pytest.raises(LoraOpsError, match="its tensors overlap"):
        weights_digest(with_header(tmp_path, SHARED))


def test_weights_digest_refuses_a_header_past_the_end(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes((10**15).to_bytes(8, "little") + b"{}")
    with pytest.raises(LoraOpsError, match="its header is longer than the file"):
        weights_digest(path)


def with_header(folder: Path, header: bytes) -> Path:
    path = folder / "adapter.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"data")
    return path
