"""An adapter is applied whole or refused in one sentence."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, get_peft_model
from safetensors.torch import load_file, save_file

from lora_ops.adapter_files import adapter_digests
from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine.adapter_files import read_adapter, read_header
from lora_ops.engines.torch_engine.architectures import make_decoder
from tests.engines.torch_engine.models import make_model, save_adapter

SHAPES = make_decoder(make_model("llama"), kv_tokens=64).shapes
Q = "model.layers.0.self_attn.q_proj"


def read(folder: Path) -> dict[str, Any]:
    return read_adapter(folder, SHAPES)


def test_every_matrix_is_read_with_its_scale(tmp_path: Path) -> None:
    pairs = read(save_adapter(make_model("llama"), tmp_path, r=4, lora_alpha=10))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert 2 * len(pairs) == len(tensors)
    key = f"base_model.model.{Q}.lora_B.weight"
    assert torch.equal(pairs[Q].lora_B, tensors[key])
    assert pairs[Q].scaling == 10 / 4


def test_rslora_scales_by_the_root_of_the_rank(tmp_path: Path) -> None:
    pairs = read(save_adapter(make_model("llama"), tmp_path, r=9, lora_alpha=6, use_rslora=True))
    assert pairs[Q].scaling == 6 / math.sqrt(9)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_modules": ["embed_tokens"]}, "lora_embedding"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_what_is_not_applied_is_refused_by_name(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    save_adapter(make_model("llama"), tmp_path, **config)
    with pytest.raises(EngineError, match=named):
        read(tmp_path)


def test_read_adapter_refuses_files_that_were_not_verified(tmp_path: Path) -> None:
    save_adapter(make_model("llama"), tmp_path)
    digests = adapter_digests(tmp_path)
    assert read_adapter(tmp_path, SHAPES, digests)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(EngineError, match=r"adapter_config.json was changed after it was verified"):
        read_adapter(tmp_path, SHAPES, digests)


def test_another_method_than_lora_is_refused(tmp_path: Path) -> None:
    config = IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM")
    get_peft_model(make_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="IA3"):
        read(tmp_path)


def test_an_adapter_of_another_base_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    save_adapter(make_model("qwen2"), tmp_path)
    with pytest.raises(EngineError, match=r"\(32, 4\).*\(36, 4\)"):
        read(tmp_path)


def test_an_adapter_of_another_architecture_is_refused(tmp_path: Path) -> None:
    save_adapter(make_model("gpt_neox"), tmp_path)
    with pytest.raises(EngineError, match="gpt_neox.*no linear layer of this base model"):
        read(tmp_path)


def test_half_a_pair_is_refused(tmp_path: Path) -> None:
    weights = save_adapter(make_model("llama"), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(weights)
    del tensors[f"base_model.model.{Q}.lora_A.weight"]
    save_file(tensors, weights)
    with pytest.raises(EngineError, match="only one of the two"):
        read(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_matrices_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    """They answered 200 with an empty text, or the same token again and again."""
    weights = save_adapter(make_model("llama"), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[f"base_model.model.{Q}.lora_B.weight"][0, 0] = value
    save_file(tensors, weights)
    with pytest.raises(EngineError, match=f"matrices of '{Q}' hold NaN or infinity"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (save_adapter(make_model("llama"), tmp_path) / name).unlink()
    with pytest.raises(EngineError, match=name):
        read(tmp_path)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
@pytest.mark.parametrize("contents", [b"", b"not what it says", b"\x80\x04\x95pickle", b"[]", b"[" * 200_000])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, contents: bytes) -> None:
    (save_adapter(make_model("llama"), tmp_path) / name).write_bytes(contents)
    with pytest.raises(EngineError, match="can't be read"):
        read(tmp_path)


def test_a_pickle_beside_the_config_is_not_looked_at(tmp_path: Path) -> None:
    save_adapter(make_model("llama"), tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(EngineError, match="no adapter_model.safetensors"):
        read(tmp_path)


@pytest.mark.parametrize("value", [True, False, 0, "no"])
def test_a_setting_of_a_later_peft_is_refused_not_ignored(tmp_path: Path, value: object) -> None:
    """False passed, which would be the unusual value of a setting whose default is true."""
    path = save_adapter(make_model("llama"), tmp_path) / "adapter_config.json"
    config = json.loads(path.read_text()) | {"use_something_new": value}
    path.write_text(json.dumps(config))
    with pytest.raises(EngineError, match=f"use_something_new={value!r}"):
        read(tmp_path)


@pytest.mark.parametrize("value", [None, [], {}])
def test_a_setting_of_a_later_peft_that_names_nothing_is_read(tmp_path: Path, value: object) -> None:
    path = save_adapter(make_model("llama"), tmp_path) / "adapter_config.json"
    plain = read(tmp_path)
    config = json.loads(path.read_text()) | {"something_new": value, "modules_to_save": value}
    path.write_text(json.dumps(config))
    assert read(tmp_path).keys() == plain.keys()


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ((torch.bfloat16, torch.bfloat16), torch.bfloat16),
        ((torch.bfloat16, torch.float32), torch.float32),
        ((torch.float16, torch.float16), torch.float32),
    ],
)
def test_the_type_that_holds_all_of_a_file_is_told_from_its_header(
    tmp_path: Path, kinds: tuple[torch.dtype, torch.dtype], common: torch.dtype
) -> None:
    weights = save_adapter(make_model("llama"), tmp_path) / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: t.to(kinds["lora_B" in key]) for key, t in tensors.items()}, weights)
    assert read_header(tmp_path) == (sum(t.numel() for t in tensors.values()), common)


@pytest.mark.parametrize("wrong", [{"r": 0}, {"lora_alpha": "16"}, {"rank_pattern": {"q_proj": -1}}])
def test_a_rank_or_alpha_that_is_no_scale_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    config = save_adapter(make_model("llama"), tmp_path) / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | wrong))
    with pytest.raises(EngineError, match="rank|read"):
        read(tmp_path)
