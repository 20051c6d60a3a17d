"""How large the KV cache of a GPU is: arithmetic, so it is tested without one."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine.architectures import demand, kv_tokens_on_gpu
from lora_ops.engines.torch_engine.memory import Demand, GPUShare, gpu_room, kv_tokens_that_fit
from lora_ops.engines.torch_engine.weights import Weights
from tests.engines.torch_engine.models import make_model

GB = 10**9
SHARE = GPUShare(utilization=0.9, step_rows=544, reserved=GB)


def qwen_7b() -> SimpleNamespace:
    """What sizing reads of Qwen2.5-7B-Instruct in bfloat16, without its weights."""
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=3584,
        intermediate_size=18944,
        num_attention_heads=28,
        num_hidden_layers=28,
        num_key_value_heads=4,
        max_position_embeddings=32768,
        vocab_size=152064,
    )
    return SimpleNamespace(config=config, dtype=torch.bfloat16)


def test_room_counts_what_others_use() -> None:
    assert gpu_room(free=60, total=80, share=0.9, reserved=10) == 42  # 72 - 20 in use - 10
    assert gpu_room(free=5, total=80, share=0.9, reserved=0) == -3


@pytest.mark.parametrize(
    ("room", "tokens"),
    [
        (1000 + 12 * 50, 50),  # shorter than the longest sequence: each token costs 10, and a step 2 more
        (1000 + 12 * 100, 100),
        (1000 + 12 * 100 + 10 * 7, 107),  # longer ones: the step grows no more
        (1000 + 12 * 100 + 10 * 7 + 9, 107),
        (1011, 0),
        (0, -84),
    ],
)
def test_cache_and_largest_step_fit_the_room(room: int, tokens: int) -> None:
    assert kv_tokens_that_fit(room, Demand(10, 1000, 2, 100)) == tokens


def test_cache_of_a_7b_base_fits_beside_the_largest_step() -> None:
    model, weights = qwen_7b(), 15.3 * GB
    needs = demand(model, SHARE.step_rows)
    assert needs.per_token == 2 * 28 * 4 * 128 * 2  # keys and values, layers, heads, features, bytes
    assert needs.positions == 32768
    for card, least in ((80 * GB, 500_000), (24 * GB, 15_000)):
        tokens = kv_tokens_on_gpu(model, SHARE, int(card - weights), card)
        step = needs.step + needs.per_position * min(tokens, needs.positions)
        assert tokens > least
        assert weights + SHARE.reserved + step + tokens * needs.per_token <= 0.9 * card


def test_gpu_without_room_for_a_cache_is_refused() -> None:
    with pytest.raises(EngineError, match=r"has 16.0 GB, of which 0.7 are free.*no room for a KV cache"):
        kv_tokens_on_gpu(qwen_7b(), SHARE, int(0.7 * GB), 16 * GB)


@pytest.mark.parametrize("name", ["llama", "qwen2", "llama, tied, with biases, llama3 rope"])
def test_joined_weights_are_no_second_copy(name: str) -> None:
    model = make_model(name)
    tokens = torch.arange(8)[None]
    before = model(tokens).logits
    layers = Weights.from_hf(model, 16).layers
    for layer, joined in zip(model.model.layers, layers, strict=True):
        for own, one in (
            (layer.self_attn.v_proj, joined.qkv),
            (layer.mlp.up_proj, joined.gate_up),
            (layer.mlp.down_proj, joined.down),
        ):
            assert own.weight.untyped_storage().data_ptr() == one.weight.untyped_storage().data_ptr()
    assert torch.equal(model(tokens).logits, before)
