"""Llama-like base models, written out by hand: every sequence of the batch in one pass, whatever its adapter.

The rows of a step are tokens of any sequence, one while it answers and more while it reads its prompt; only
attention looks at which sequence a row belongs to. Projections that read the same input are one matrix product.
"""

import logging
import re
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lora_ops.engines.torch_engine.decoder import BLOCK, Adapter, ScheduledSequence, blocks_for
from lora_ops.engines.torch_engine.lora import LoraPair
from lora_ops.engines.torch_engine.native_forward import NativeForward, build
from lora_ops.engines.torch_engine.projections import AdapterTable, Module
from lora_ops.engines.torch_engine.step import Segment, Span, Step
from lora_ops.engines.torch_engine.torch_forward import TorchForward
from lora_ops.engines.torch_engine.weights import Weights

logger = logging.getLogger(__name__)

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
# The parameters that the forward passes read. A bias of another layer may be too small for the check at start.
PARAMETERS = re.compile(
    r"model\.layers\.\d+\.(self_attn\.([qkvo]_proj\.(weight|bias)|[qk]_norm\.weight)"
    r"|mlp\.(gate|up|down)_proj\.(weight|bias)|(input|post_attention)_layernorm\.weight)"
    r"|model\.(embed_tokens|norm)\.weight|lm_head\.(weight|bias)"
)
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with a sequence's length


def unsupported_reason(model: Any) -> str | None:
    """Return why `LlamaDecoder` can't decode `model`, or None if it can."""
    config, name = model.config, type(model).__name__
    if name not in CLASSES:
        return f"{name} is not one of {', '.join(CLASSES)}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = window is not None and (name == "MistralForCausalLM" or "sliding_attention" in layers)
    unread = next((name for name, _ in model.named_parameters() if not PARAMETERS.fullmatch(name)), None)
    checks = {
        f"this engine does not read its {unread}": unread is not None,
        f"hidden_act is {config.hidden_act}": config.hidden_act != "silu",
        f"its rotary embedding is of type {rope}": rope not in ROPE_TYPES,
        f"it attends in a window of {window} tokens": windowed and window < config.max_position_embeddings,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


class LlamaDecoder:
    """A `Decoder` of a Llama, Mistral, Qwen2 or Qwen3 model; `model` itself is not needed afterwards.

    Args:
        context_length: at most the model's own.
        kv_tokens: how many tokens the KV cache holds, rounded up to whole blocks. Memory is taken as it is
            first written.

    Attributes:
        forward: the pass that each step takes.
    """

    shares = True
    batches = True

    def __init__(self, model: Any, context_length: int, kv_tokens: int) -> None:
        self.context_length, self.kv_tokens = context_length, blocks_for(kv_tokens) * BLOCK
        self.vocabulary = model.config.vocab_size
        self.attention_positions = _attention_positions(model)
        weights = Weights.from_hf(model, context_length)
        self.dtype, self._device = weights.dtype, str(model.device)
        self._cache = weights.make_cache(self.kv_tokens)
        self.forward = make_forward(weights, self._cache)
        self.reads_bfloat16 = isinstance(self.forward, NativeForward)
        self._fused = [
            modules
            for number, layer in enumerate(model.model.layers)
            for modules in _modules(f"model.layers.{number}", layer)
        ]
        self._fused.append([Module("lm_head", 0, *model.lm_head.weight.shape)])
        self.shapes: Mapping[str, tuple[int, int]] = {
            module.name: (module.outputs, module.inputs) for part in self._fused for module in part
        }

    def adapter(self, pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> Adapter:
        """An adapter's matrices, those of a fused projection together."""
        return AdapterTable(pairs, self._fused, self._device, dtype)

    @torch.inference_mode()
    def step(self, scheduled: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Return the logits after each scored token: (all of them, vocabulary), in the order of `scheduled`."""
        return self.forward(self._pass(scheduled))

    @torch.inference_mode()
    def step_with_states(self, scheduled: Sequence[ScheduledSequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `step` does, and what the head reads of the same tokens: (all of them, hidden)."""
        return self.forward.with_states(self._pass(scheduled))

    def _pass(self, scheduled: Sequence[ScheduledSequence]) -> Step:
        """Return the rows of all sequences as one pass takes them."""
        # Rows with the same adapter are neighbours, so that its matrices are read once for all of them.
        order = sorted(range(len(scheduled)), key=lambda i: id(scheduled[i].adapter))
        spans, segments, ends = [], [], {}
        tokens: list[int] = []
        positions: list[int] = []
        slot_mapping: list[int] = []
        for index in order:
            one = scheduled[index]
            first, rows = len(tokens), len(one.tokens)
            spans.append(Span(first, rows, one.blocks, one.position + rows))
            segments.append((first, rows, one.adapter))
            tokens += one.tokens
            where = range(one.position, one.position + rows)
            positions += where
            slot_mapping += [one.blocks[position // BLOCK] * BLOCK + position % BLOCK for position in where]
            ends[index] = len(tokens)
        chosen: list[int] = []
        heads = []
        for index, one in enumerate(scheduled):
            if one.scored:
                heads.append((len(chosen), one.scored, one.adapter))
                chosen += range(ends[index] - one.scored, ends[index])
        return Step(tokens, positions, slot_mapping, spans, _join(segments), chosen, _join(heads))

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one block to another block."""
        blocks = self._cache.unflatten(3, (-1, BLOCK))  # (layers, 2, kv_heads, blocks, BLOCK, dim)
        blocks[:, :, :, target, :tokens] = blocks[:, :, :, source, :tokens]

    def write_block(self, block: int, values: torch.Tensor) -> None:
        """Write keys and values of a whole block: (layers, 2, kv_heads, BLOCK, dim)."""
        self._cache.unflatten(3, (-1, BLOCK))[:, :, :, block] = values

    def forget(self, blocks: Sequence[int]) -> None:
        """Nothing to do: the next owner writes before it reads."""


def _attention_positions(model: Any) -> float:
    """Return how many earlier tokens cost a token as much as its matrix products.

    These take 2 FLOP a parameter, and attention 4 for each value of a key. Attention reads its operands from
    memory for a few rows at a time, so that a FLOP of it takes about twice as long.
    """
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.model.layers.parameters())
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return float(parameters / (2 * config.num_hidden_layers * config.num_attention_heads * dim) / 2)


def make_forward(weights: Weights, cache: torch.Tensor) -> TorchForward | NativeForward:
    """The fastest pass that runs here; says so in the log where it could be faster."""
    if cache.device.type != "cpu":
        return TorchForward(weights, cache)
    try:
        return NativeForward(weights, cache, build())
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("The engine runs without its C code, several times slower: %s", error)
        # torch's operators round what they compute to the type of the matrices.
        return TorchForward(weights.widened(), cache)


def _modules(prefix: str, layer: Any) -> list[list[Module]]:
    fused = (
        ("self_attn", ("q_proj", "k_proj", "v_proj")),
        ("self_attn", ("o_proj",)),
        ("mlp", ("gate_proj", "up_proj")),
        ("mlp", ("down_proj",)),
    )
    found = []
    for owner, names in fused:
        modules: list[Module] = []
        for name in names:
            outputs, inputs = getattr(getattr(layer, owner), name).weight.shape
            offset = sum(module.outputs for module in modules)
            modules.append(Module(f"{prefix}.{owner}.{name}", offset, outputs, inputs))
        found.append(modules)
    return found


def _join(rows: Sequence[tuple[int, int, Adapter | None]]) -> list[Segment]:
    """Neighbours with the same adapter as one segment; none where nobody has an adapter."""
    segments: list[Segment] = []
    for first, count, adapter in rows:
        assert adapter is None or isinstance(adapter, AdapterTable)
        if segments and segments[-1].adapter is adapter:
            before = segments[-1]
            segments[-1] = Segment(before.first, before.rows + count, adapter)
        else:
            segments.append(Segment(first, count, adapter))
    return segments if any(segment.adapter for segment in segments) else []
