"""Which decoder a base model gets: ours if it gives the model's own logits, else that of transformers.

Whichever it is, it is held against transformers at start, reading a prompt in parts as the batch does. A base
model that neither can decode is refused.
"""

import logging
from pathlib import Path
from typing import Any

import torch

from lora_ops.engines.protocol import EngineError
from lora_ops.engines.torch_engine.decoder import BLOCK, Decoder
from lora_ops.engines.torch_engine.hf_decoder import HFDecoder
from lora_ops.engines.torch_engine.llama_decoder import LlamaDecoder, unsupported_reason
from lora_ops.engines.torch_engine.memory import Demand, GPUShare, gpu_memory, gpu_room, kv_tokens_that_fit
from lora_ops.engines.torch_engine.probe import far_difference, near_difference
from lora_ops.engines.torch_engine.weights import computes_in
from lora_ops.errors import LoraOpsError
from lora_ops.loading import load_base_model
from lora_ops.records.base_model import read_base_model

logger = logging.getLogger(__name__)

# Without a number of tokens, the KV cache may grow to this many bytes.
KV_BYTES = 1 << 30
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 5e-2}
FAR_TOLERANCE = 1e-2  # sums over 8,000 positions of SmolLM2 differ by 2e-4


ROUNDED = (
    "serving.torch.dtype bfloat16 rounds the base model, whose files are in %s: 03_evaluate answered without "
    "that. Set base_model.dtype to bfloat16 instead and run `dvc repro`: what is evaluated is served then."
)


def load_decoder(
    base_folder: Path,
    kv_tokens: int | None,
    device: str,
    dtype: torch.dtype | None,
    share: GPUShare | None = None,
) -> tuple[Decoder, Any, frozenset[int]]:
    """Decoder, tokenizer (of the tokenizers library) and end tokens of the base model in `base_folder`.

    Args:
        dtype: that its weights are kept in; None: bfloat16 where the base model's files are, else float32.
        kv_tokens: None: what `share` leaves on a GPU; without a share, and on a CPU, 1 GiB.

    Raises:
        EngineError: the base model can't be loaded, has no fast tokenizer, can't read a prompt in parts, or
            leaves no room for a KV cache.
    """
    try:
        stored = read_base_model(base_folder).dtype or "float32"
        if dtype is None:
            dtype = torch.bfloat16 if stored == "bfloat16" else torch.float32
        elif device == "cpu" and dtype is torch.bfloat16 and stored != "bfloat16":
            logger.warning(ROUNDED, stored)
        model, tokenizer = load_base_model(base_folder, device, dtype)
    except (LoraOpsError, OSError, ValueError) as error:
        raise EngineError(f"The base model in {base_folder} can't be loaded: {error}") from error
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise EngineError(
            f"The base model's {type(tokenizer).__name__} has no fast form, which this engine needs."
        )
    if kv_tokens is None and share and device != "cpu":
        kv_tokens = kv_tokens_on_gpu(model, share, *gpu_memory(device))
    return make_decoder(model, kv_tokens), tokenizer.backend_tokenizer, _end_tokens(model)


def make_decoder(model: Any, kv_tokens: int | None) -> Decoder:
    """Return the fastest decoder that gives the logits of `model`; that of transformers is warned of.

    Raises:
        EngineError: none does.
    """
    tokens = kv_tokens or max(1, KV_BYTES // _bytes_per_token(model, computes_in(model)))
    context = min(_positions(model), tokens)
    reason = unsupported_reason(model)
    if reason is None:
        ours = LlamaDecoder(model, context, tokens)
        near, far = near_difference(ours, model), far_difference(ours, model)
        if near <= TOLERANCE[ours.dtype] and far <= FAR_TOLERANCE:
            return ours
        reason = (
            f"the engine's own logits differ from the model's by {near:.2g}, far into a context by {far:.2g}"
        )
    # Its own forward pass rounds what it computes to the type of the weights, which matters on a CPU.
    theirs = HFDecoder(model.to(computes_in(model)), context, tokens)
    difference = near_difference(theirs, model)
    if not difference <= TOLERANCE[theirs.dtype]:  # NaN is refused, too
        raise EngineError(
            f"{type(model).__name__} can't be served by this engine: read in parts, a prompt gives other "
            f"logits (they differ by {difference:.2g}), as a state-space model's does. Use another base model, "
            "or serving.engine: openai."
        )
    logger.warning(
        "%s is decoded by transformers' own forward pass, one request after the other, so slowly: %s.",
        type(model).__name__,
        reason,
    )
    return theirs


def _end_tokens(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or [])


def _positions(model: Any) -> int:
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        # Beyond this length its factors change for all positions, also for those that were read already.
        return int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


def kv_tokens_on_gpu(model: Any, share: GPUShare, free: int, total: int) -> int:
    """Return how many tokens the KV cache gets on a GPU that holds `model` already.

    Raises:
        EngineError: less than one block of them fits.
    """
    room = gpu_room(free, total, share.utilization, share.reserved)
    tokens = kv_tokens_that_fit(room, demand(model, share.step_rows)) // BLOCK * BLOCK
    if tokens < BLOCK:
        raise EngineError(
            f"The GPU has {total / 1e9:.1f} GB, of which {free / 1e9:.1f} are free with the base model loaded: "
            f"serving.torch.gpu_memory_utilization {share.utilization} leaves no room for a KV cache. Raise "
            "it, lower serving.adapter_memory or serving.torch.prefill_chunk, or end the GPU's other processes."
        )
    return tokens


def demand(model: Any, rows: int) -> Demand:
    """Return what decoding `model` takes of a GPU's memory, with steps of at most `rows` tokens."""
    config, wide, narrow = model.config.get_text_config(), torch.float32.itemsize, model.dtype.itemsize
    hidden, heads = config.hidden_size, config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    # Logits of each token, with what sampling makes of them, and what an MLP holds at once.
    step = rows * (config.vocab_size * (narrow + 2 * wide) + inner * 4 * narrow + hidden * 4 * wide)
    # Scores of each row and head, which not every kernel avoids, and keys and values repeated for each head.
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    per_position = heads * (rows * (narrow + wide) + 2 * head_dim * narrow)
    return Demand(_bytes_per_token(model, model.dtype), step, per_position, _positions(model))


def _bytes_per_token(model: Any, dtype: torch.dtype) -> int:
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * dim * dtype.itemsize
