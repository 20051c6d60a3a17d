"""Tiny random base models of several architectures, adapters of several kinds, and what PEFT answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY, END, POSITIONS = 300, 1, 128
LONGEST = 40  # answer of the reference
# Larger weights than usual: the answers of a model that is nearly linear all look alike.
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.3,
    "eos_token_id": END,
    "bos_token_id": 0,
    "pad_token_id": END,
}
LLAMA_LIKE = SHARED | {"num_hidden_layers": 2, "intermediate_size": 40}

LLAMA_LIKE_MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA_LIKE, hidden_size=36, num_attention_heads=3, num_key_value_heads=1)
    ),
    "llama, tied, with biases, llama3 rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **LLAMA_LIKE,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=2,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        )
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(
            **LLAMA_LIKE,
            hidden_size=64,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            sliding_window=None,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**LLAMA_LIKE, hidden_size=32, num_attention_heads=4, num_key_value_heads=2)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(**LLAMA_LIKE, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=40)
    ),
}
OTHER_MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SHARED, n_layer=2, n_head=2, n_embd=32)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **SHARED, num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64
        )
    ),
    "mistral with a short window": lambda: MistralForCausalLM(
        MistralConfig(
            **LLAMA_LIKE,
            hidden_size=32,
            num_attention_heads=2,
            num_key_value_heads=1,
            sliding_window=16,
        )
    ),
}


def make_model(name: str) -> Any:
    """A random model, the same each time."""
    torch.manual_seed(0)
    model: Any = (LLAMA_LIKE_MODELS | OTHER_MODELS)[name]().eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def save_adapter(model: Any, folder: Path, *, seed: int = 0, scale: float = 0.3, **config: Any) -> Path:
    """A random adapter that changes answers, as PEFT saves it; `model` is as it was afterwards."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    adapted = get_peft_model(model, LoraConfig(**(settings | config)))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=scale)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    adapted.unload()
    return folder


def rounded(folder: Path) -> Path:
    """The same folder, its weights in bfloat16 as the pipeline saves them."""
    weights = folder / "adapter_model.safetensors"
    save_file({key: tensor.bfloat16() for key, tensor in load_file(weights).items()}, weights)
    return folder


def adapter_configs(model: Any) -> dict[str, dict[str, Any]]:
    """Adapters that differ in rank, target modules, scaling and layers."""
    if type(model).__name__ == "GPT2LMHeadModel":
        attention, mlp, fan = ["c_attn"], ["mlp.c_proj"], {"fan_in_fan_out": True}
    elif type(model).__name__ == "GPTNeoXForCausalLM":
        attention, mlp, fan = ["query_key_value"], ["dense_4h_to_h"], {}
    else:
        attention, mlp, fan = ["q_proj", "v_proj"], ["up_proj", "down_proj"], {}
    return {
        "all": {"r": 4} | fan,
        "attention": {"r": 9, "lora_alpha": 18, "target_modules": attention} | fan,
        "mlp": {"r": 1, "lora_alpha": 2, "target_modules": mlp, "layers_to_transform": [1]} | fan,
        "rslora": {"r": 16, "use_rslora": True, "rank_pattern": {mlp[0]: 3}, "alpha_pattern": {attention[0]: 5}}
        | fan,
    }


class Reference:
    """What `PeftModel.generate` answers, remembered."""

    def __init__(self, model: Any, folders: dict[str, Path]) -> None:
        names = list(folders)
        self._model: Any = PeftModel.from_pretrained(model, folders[names[0]], adapter_name=names[0])
        for name in names[1:]:
            self._model.load_adapter(folders[name], adapter_name=name)
        self._model.eval()
        self._known: dict[tuple[str | None, tuple[int, ...]], list[int]] = {}

    def __call__(self, adapter: str | None, prompt: Sequence[int], count: int) -> list[int]:
        """The first `count` tokens, the end token included; at most LONGEST."""
        key = adapter, tuple(prompt)
        if key not in self._known:
            if adapter is None:
                with self._model.disable_adapter():
                    self._known[key] = self._generate(prompt)
            else:
                self._model.set_adapter(adapter)
                self._known[key] = self._generate(prompt)
        return self._known[key][:count]

    def _generate(self, prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([list(prompt)])
        made = self._model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=LONGEST, do_sample=False
        )
        return made[0, len(prompt) :].tolist()
