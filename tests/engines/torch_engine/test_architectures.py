"""Which base models are served: each is held against transformers first, reading a prompt in parts."""

from pathlib import Path

import pytest
import torch
from transformers import (
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine import architectures
from lora_ops.engines.torch_engine.architectures import load_decoder, make_decoder
from lora_ops.engines.torch_engine.decoder import Decoder, ScheduledSequence, blocks_for
from lora_ops.engines.torch_engine.llama_decoder import LlamaDecoder
from lora_ops.engines.torch_engine.native_forward import NativeForward
from lora_ops.engines.torch_engine.probe import PROBE
from tests.engines.torch_engine.models import LLAMA_LIKE_MODELS, POSITIONS, VOCABULARY, make_model

SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
STATE_SPACE = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SMALL, initializer_range=0.3)),
    "mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(**SMALL, num_heads=4, head_dim=16, n_groups=1, state_size=16)
    ),
}


@pytest.mark.parametrize("name", STATE_SPACE)
def test_a_model_without_a_kv_cache_is_refused(name: str) -> None:
    """Every one of its answers differed from `generate`'s, without a word."""
    torch.manual_seed(0)
    with pytest.raises(EngineError, match="read in parts, a prompt gives other logits"):
        make_decoder(STATE_SPACE[name]().eval(), kv_tokens=64)


@pytest.mark.parametrize("name", [*LLAMA_LIKE_MODELS, "gpt2"])
@torch.inference_mode()
def test_a_model_in_bf16_is_computed_in_float32(name: str) -> None:
    model = make_model(name).bfloat16()
    decoder = make_decoder(model, kv_tokens=64)
    assert decoder.dtype is torch.float32 and decoder.batches == (name in LLAMA_LIKE_MODELS)
    tokens = [5, 7, 11]
    got = decoder.step([ScheduledSequence(tokens, 0, [0], None, scored=3)])
    torch.testing.assert_close(got, model.float()(torch.tensor([tokens])).logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [*LLAMA_LIKE_MODELS, "gpt2"])
@torch.inference_mode()
def test_states_are_those_that_the_models_head_reads(name: str) -> None:
    model = make_model(name)
    tokens = [5, 7, 11, 13]
    wanted = model(torch.tensor([tokens]), output_hidden_states=True)
    decoder = make_decoder(model, kv_tokens=64)
    scheduled = [ScheduledSequence(tokens, 0, [0], None, scored=3)]
    logits, states = decoder.step_with_states(scheduled)
    torch.testing.assert_close(logits, wanted.logits[0, 1:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(states, wanted.hidden_states[-1][0, 1:], rtol=1e-4, atol=1e-4)
    assert torch.equal(logits, decoder.step(scheduled))


def weights_of(decoder: Decoder) -> int:
    assert isinstance(decoder, LlamaDecoder) and isinstance(decoder.forward, NativeForward)
    return decoder.forward.weight_bytes


def test_load_decoder_keeps_bf16_files_in_bf16(
    tiny_base: Path, tiny_bf16_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide, narrow = (load_decoder(base, 64, "cpu", None)[0] for base in (tiny_base, tiny_bf16_base))
    assert weights_of(wide) == 2 * weights_of(narrow)
    assert not caplog.records
    rounded = load_decoder(tiny_base, 64, "cpu", torch.bfloat16)[0]
    assert weights_of(rounded) == weights_of(narrow)
    assert "Set base_model.dtype to bfloat16 instead" in caplog.text
    steps = [one.step([ScheduledSequence([5, 7, 11], 0, [0], None, scored=3)]) for one in (narrow, rounded)]
    assert torch.equal(*steps)


def test_a_model_whose_logits_are_nan_is_refused() -> None:
    model = make_model("gpt2")
    torch.nn.init.constant_(model.transformer.ln_f.weight, float("nan"))
    with pytest.raises(EngineError, match="differ by nan"):
        make_decoder(model, kv_tokens=64)


@pytest.mark.parametrize("kv_tokens", [1, 9, 10, sum(PROBE) - 1])
def test_a_small_cache_is_probed_as_far_as_it_goes(kv_tokens: int) -> None:
    assert make_decoder(make_model("gpt2"), kv_tokens).context_length == kv_tokens


def test_a_window_that_begins_far_out_is_seen(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The prompt that is tried has 24 tokens, and no window of 64 showed in it."""
    monkeypatch.setattr(architectures, "unsupported_reason", lambda model: None)
    model = make_model("mistral with a short window")
    model.config.sliding_window = POSITIONS
    assert make_decoder(model, kv_tokens=POSITIONS).batches
    model.config.sliding_window = 64
    assert not make_decoder(model, kv_tokens=POSITIONS).batches
    assert "far into a context by" in caplog.text


class NormWithBias(torch.nn.Module):
    """A norm that adds something very small."""

    def __init__(self, norm: torch.nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, torch.nn.Parameter(torch.full((36,), 1e-5))
        self._norm = [norm]  # in a list, so that it is no module of this one

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm[0](hidden) + self.bias


def test_a_small_bias_that_is_not_read_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    """It changes less than the check at start allows, and later answers all the same."""
    model = make_model("llama")
    model.model.layers[1].post_attention_layernorm = NormWithBias(
        model.model.layers[1].post_attention_layernorm
    )
    assert not make_decoder(model, kv_tokens=64).batches
    assert "does not read its model.layers.1.post_attention_layernorm.bias" in caplog.text


def longrope() -> Phi3ForCausalLM:
    torch.manual_seed(0)
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    return Phi3ForCausalLM(
        Phi3Config(
            **SMALL,
            intermediate_size=40,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            original_max_position_embeddings=64,
            pad_token_id=1,
            eos_token_id=1,
            initializer_range=0.3,
            rope_parameters={**rope, "original_max_position_embeddings": 64},
        )
    ).eval()


@torch.inference_mode()
def test_longrope_is_served_as_far_as_its_factors_stay() -> None:
    """Parts of a longer prompt were read with factors that the whole of it does not have."""
    model = longrope()
    decoder = make_decoder(model, kv_tokens=256)
    assert decoder.context_length == 64
    tokens = torch.randint(VOCABULARY, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    blocks, got = list(range(blocks_for(64))), torch.empty(0)
    for at in range(0, 64, 16):
        got = decoder.step([ScheduledSequence(tokens[at : at + 16], at, blocks, None, scored=1)])
    torch.testing.assert_close(got[0], model(torch.tensor([tokens])).logits[0, -1], rtol=1e-3, atol=1e-4)
