"""One LoRA adapter, read from PEFT's two files, with everything refused that the engine would not apply."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from lora_ops.adapter_files import KEY
from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine.lora import LoraPair
from lora_ops.engines.verified_files import read_files
from lora_ops.paths import ADAPTER_FILES
from lora_ops.small_files import parse_json

# What doesn't change an answer, or is applied here. Any other field of PEFT's config must have its default. A
# field that a later PEFT adds must be null or empty: nobody here knows whether false is its default.
APPLIED = """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r
    target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out use_rslora init_lora_weights
    layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config megatron_core
    eva_config qalora_group_size runtime_config ensure_weight_tying
"""
# The other initialisations change the base model's weights as well.
INITIALISATIONS = (True, False, "gaussian", "orthogonal", "eva")


def read_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]], digests: Mapping[str, str] | None = None
) -> dict[str, LoraPair]:
    """The pairs of each module that the adapter in `folder` changes, by the module's name in the base model.

    Args:
        folder: where PEFT's two files are.
        shapes: (outputs, inputs) of every module that may be adapted.
        digests: the SHA-256 that each file was verified with; None takes the files as they are.

    Raises:
        EngineError: a file is missing or broken, changed since it was verified, does not fit the base model, or
            holds what is not applied (DoRA, biases, embeddings, whole modules ...).
    """
    weights, config = ADAPTER_FILES
    # Each file is read once, so that the bytes which are compared are the bytes which answer.
    files = read_files(folder, digests)
    try:
        written = parse_json(files[config])
        _require_plain_lora(written)
        # As PEFT's `from_pretrained` does, which would read the file once more.
        written.pop("runtime_config", None)
        settings = LoraConfig.from_peft_type(**written)
        tensors = load(files[weights])  # twice as fast as `load_file`
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OSError) as error:
        raise EngineError(f"The adapter in {folder} can't be read: {error}") from error
    matrices: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in sorted(tensors.items()):  # so that of several faults the same one is named
        found = KEY.fullmatch(key)
        if found is None:
            raise EngineError(f"The adapter holds '{key}', which is not a LoRA matrix of a linear layer.")
        matrices.setdefault(found["module"], {})[found["matrix"]] = tensor
    if not matrices:
        raise EngineError(f"{weights} in {folder} holds no LoRA matrices.")
    return {name: _pair(name, pair, settings, shapes) for name, pair in matrices.items()}


def read_header(folder: Path) -> tuple[int, torch.dtype]:
    """Return how many numbers the adapter's matrices have, and of which type; only the file's header is read.

    Raises:
        EngineError: the weights can't be read.
    """
    try:
        with safe_open(folder / ADAPTER_FILES[0], framework="pt") as weights:
            slices = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118
            numbers = sum(math.prod(one.get_shape()) for one in slices)
            narrow = all(one.get_dtype() == "BF16" for one in slices)
            return numbers, torch.bfloat16 if narrow else torch.float32
    except (SafetensorError, OSError) as error:
        raise EngineError(f"The adapter in {folder} can't be read: {error}") from error


def common_dtype(of: Iterable[torch.dtype]) -> torch.dtype:
    """bfloat16 where all are, else float32, which holds any of them."""
    return torch.bfloat16 if set(of) == {torch.bfloat16} else torch.float32


def _require_plain_lora(written: Mapping[str, Any]) -> None:
    if written.get("peft_type") != "LORA":
        raise EngineError(
            f"The adapter is of PEFT's type {written.get('peft_type')}; this engine applies LoRA only."
        )
    default, applied = LoraConfig().to_dict(), APPLIED.split()
    for name, value in written.items():
        if name not in applied and _or_null(value) != _or_null(default.get(name)):
            raise EngineError(f"The adapter needs {name}={value!r}, which this engine doesn't apply.")
    if written.get("init_lora_weights", True) not in INITIALISATIONS:
        raise EngineError(
            f"The adapter was initialised by '{written['init_lora_weights']}', which changes the base model "
            "too: convert it to plain LoRA with PEFT's `path_initial_model_for_weight_conversion`."
        )


def _or_null(value: Any) -> Any:
    """Return null for an empty list, object or text, which name nothing either."""
    return None if value in ([], {}, "") else value


def _pair(
    name: str,
    pair: Mapping[str, torch.Tensor],
    settings: LoraConfig,
    shapes: Mapping[str, tuple[int, int]],
) -> LoraPair:
    if name not in shapes:
        raise EngineError(f"The adapter changes '{name}', which is no linear layer of this base model.")
    if len(pair) != 2:
        raise EngineError(f"The adapter has only one of the two LoRA matrices of '{name}'.")
    lora_A, lora_B = pair["A"], pair["B"]
    outputs, inputs = shapes[name]
    rank = _for_module(settings.rank_pattern, name, settings.r)
    alpha = _for_module(settings.alpha_pattern, name, settings.lora_alpha)
    if not (isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)):
        raise EngineError(f"The adapter's rank {rank!r} and alpha {alpha!r} of '{name}' are no scale.")
    if lora_A.shape != (rank, inputs) or lora_B.shape != (outputs, rank):
        raise EngineError(
            f"The adapter's matrices of '{name}' are {tuple(lora_A.shape)} and {tuple(lora_B.shape)}; "
            f"rank {rank} on this base model needs {(rank, inputs)} and {(outputs, rank)}."
        )
    if not (lora_A.isfinite().all() and lora_B.isfinite().all()):
        raise EngineError(f"The adapter's matrices of '{name}' hold NaN or infinity: it can answer nothing.")
    return LoraPair(lora_A, lora_B, alpha / (math.sqrt(rank) if settings.use_rslora else rank))


def _for_module(pattern: Mapping[str, int] | None, name: str, default: int) -> int:
    """Return the value of a PEFT pattern that fits a module's name, or the default."""
    pattern = pattern or {}
    return pattern.get(get_pattern_key(list(pattern), name), default)
