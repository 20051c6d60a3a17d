"""The base model and its tokenizer in memory, on the best device there is."""

import json
import warnings
from pathlib import Path
from typing import Any

from lora_ops.records.base_model import read_base_model
from lora_ops.weights_digest import check_files, check_weights

# AutoTokenizer takes the class that the folder of such a model names. For others it may know better.
TRUSTED_TO_NAME_ITS_TOKENIZER = ("llama",)
# peft asks transformers for this attribute; nobody who trains an adapter can do anything about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)


def pick_device(device: str = "auto", dtype: str = "auto") -> tuple[str, Any]:
    """Return where the base model computes and in which type of torch, as settings name both.

    Args:
        device: "auto" is the first GPU where there is one, else the CPU.
        dtype: "auto" is bfloat16 on a GPU that has it, else float32.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        on_gpu = device.startswith("cuda") and torch.cuda.is_available()
        dtype = "bfloat16" if on_gpu and torch.cuda.is_bf16_supported() else "float32"
    return device, getattr(torch, dtype)


def load_base_model(folder: Path, device: str = "cpu", dtype: Any = None) -> tuple[Any, Any]:
    """Model and tokenizer of `folder`, in evaluation mode; float32 unless `dtype` says otherwise.

    The model's generation config names tokens only. A penalty that its author recommends would otherwise act in
    `generate` and in no engine, so that evaluation and serving would speak of different answers.

    The tokenizer pads on the left, so that every row of a batch ends where its answer begins.

    Raises:
        LoraOpsError: there is no base model, or its weights or another file are not those of its record.
            Everything that is trained, evaluated and served names the digests of the record.
    """
    import torch
    from transformers import AutoModelForCausalLM

    record = read_base_model(folder)
    check_weights(folder, record)
    check_files(folder, record)  # before the model is read by its config
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or torch.float32)
    model.generation_config = tokens_only(model.generation_config)
    return model.to(device).eval(), load_tokenizer(folder)


def tokens_only(config: Any) -> Any:
    """Return a `GenerationConfig` with the special tokens of `config` and nothing that chooses tokens."""
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(config, name) for name in names})


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of the base model in `folder`, padding on the left.

    Raises:
        LoraOpsError: there is no base model, or a file besides its weights is not that of its record.
    """
    check_files(folder, read_base_model(folder))
    tokenizer = _tokenizer_class(folder).from_pretrained(folder)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:
    """Return the class that AutoTokenizer would choose for `folder`, or AutoTokenizer where only it knows.

    AutoTokenizer imports torch to read the model's config. Whoever only counts tokens needs no torch, and its
    import takes seconds.
    """
    named = _read_object(folder / "tokenizer_config.json")
    trusted = _read_object(folder / "config.json").get("model_type") in TRUSTED_TO_NAME_ITS_TOKENIZER
    if trusted and named.get("tokenizer_class") == "TokenizersBackend" and "auto_map" not in named:
        from transformers import TokenizersBackend

        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def context_tokens(folder: Path) -> int | None:
    """Return how many tokens the base model in `folder` reads at once, or None where its config doesn't say."""
    name = "max_position_embeddings"
    found = _read_object(folder / "config.json").get(name)
    if type(found) is int:  # what AutoConfig would say; it imports torch
        return found
    from transformers import AutoConfig

    # Some families have it by another name, such as GPT-2's n_positions.
    found = getattr(AutoConfig.from_pretrained(folder), name, None)
    return found if isinstance(found, int) else None


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; an empty one where there is none, which transformers then explains."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
