"""Llama-like base models, written out by hand: every sequence of the batch in one pass, whatever its adapter.

The rows of a step are tokens of any sequence, one while it answers and more while it reads its prompt; only
attention looks at which sequence a row belongs to. Projections that read the same input are one matrix product,
with weights that oneDNN has laid out beforehand (up to 3 times faster than `F.linear` for a few rows).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from lora_ops.serving.torch_engine.adapter_files import LoraPair
from lora_ops.serving.torch_engine.decoder import Adapter, Work
from lora_ops.serving.torch_engine.extents import Extent
from lora_ops.serving.torch_engine.kernels import Segment, Shape, Span, Step, make_kernels
from lora_ops.serving.torch_engine.projections import AdapterTable, Module

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")  # the others change with a sequence's length
QKV, OUT, GATE_UP, DOWN, PROJECTIONS = 0, 1, 2, 3, 4


def why_not(model: Any) -> str | None:
    """Why `model` can't be decoded by `FusedDecoder`, or None when it can."""
    config, name = model.config, type(model).__name__
    if name not in CLASSES:
        return f"{name} is not one of {', '.join(CLASSES)}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None) or ["full_attention"]
    windowed = window is not None and (name == "MistralForCausalLM" or "sliding_attention" in layers)
    checks = {
        f"hidden_act is {config.hidden_act}": config.hidden_act != "silu",
        f"its rotary embedding is of type {rope}": rope not in ROPE_TYPES,
        f"it attends in a window of {window} tokens": windowed and window < config.max_position_embeddings,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


class FusedDecoder:
    """A `Decoder` of a Llama, Mistral, Qwen2 or Qwen3 model; `model` itself is not needed afterwards.

    Args:
        context_length: at most the model's own.
        kv_tokens: how many tokens the KV cache holds; memory is taken as it is first written.
    """

    copies = True

    def __init__(self, model: Any, context_length: int, kv_tokens: int) -> None:
        config, inner = model.config, model.model
        self.context_length, self.kv_tokens = context_length, kv_tokens
        self.vocabulary = config.vocab_size
        self._embedding = inner.embed_tokens.weight.detach()
        self.dtype, device = self._embedding.dtype, self._embedding.device
        self._device = str(device)
        attention = inner.layers[0].self_attn
        shape = Shape(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, config.rms_norm_eps
        )
        self._kernels = make_kernels(shape, device.type, self.dtype)
        self._layers = [_Layer.of(layer) for layer in inner.layers]
        self._norm, self._head = inner.norm.weight.detach(), _Linear([model.lm_head])
        self._fused = [
            modules
            for number, layer in enumerate(inner.layers)
            for modules in _modules(f"model.layers.{number}", layer)
        ]
        self._fused.append([Module("lm_head", 0, *model.lm_head.weight.shape)])
        self.shapes: Mapping[str, tuple[int, int]] = {
            module.name: (module.outputs, module.inputs) for part in self._fused for module in part
        }
        positions = torch.arange(context_length, device=device)[None]
        cosine, sine = inner.rotary_emb(self._embedding[:1], positions)
        self._cosine, self._sine = cosine[0].contiguous(), sine[0].contiguous()
        self._cache = torch.empty(
            (len(self._layers), 2, shape.kv_heads, kv_tokens, shape.dim), dtype=self.dtype, device=device
        )

    def adapter(self, pairs: Mapping[str, LoraPair]) -> Adapter:
        """An adapter's matrices, those of a fused projection together."""
        return AdapterTable(pairs, self._fused, self._device)

    @torch.inference_mode()
    def step(self, works: Sequence[Work]) -> torch.Tensor:
        """Scores of the next token of each sequence that wants them: (those, vocabulary), in their order."""
        # Rows with the same adapter are neighbours, so that its matrices are read once for all of them.
        order = sorted(range(len(works)), key=lambda i: (len(works[i].tokens) > 1, id(works[i].adapter)))
        spans, segments, last = [], [], {}
        tokens: list[int] = []
        positions: list[int] = []
        places: list[int] = []
        for index in order:
            work = works[index]
            first, rows = len(tokens), len(work.tokens)
            spans.append(Span(first, rows, work.extent.start, work.position + rows))
            segments.append((first, rows, work.adapter))
            tokens += work.tokens
            positions += range(work.position, work.position + rows)
            places += range(work.extent.start + work.position, work.extent.start + work.position + rows)
            last[index] = len(tokens) - 1
        step = Step(self._int64(positions), self._int64(places), spans, _join(segments))
        scored = [index for index in order if works[index].scored]
        chosen = self._int64([last[index] for index in scored])
        hidden = self._run(self._int64(tokens), step, chosen)
        if not scored:
            return hidden.new_empty(0, self.vocabulary)
        scores = self._head(hidden)
        head = _join([(row, 1, works[index].adapter) for row, index in enumerate(scored)])
        if any(segment.adapter.projections[-1] for segment in head):
            nothing = self._int64([])
            self._kernels.add_lora(hidden, scores, len(self._fused) - 1, Step(nothing, nothing, [], head))
        back = sorted(range(len(scored)), key=lambda row: scored[row])
        return scores[self._int64(back)]

    def copy(self, source: Extent, target: Extent, tokens: int) -> None:
        """Remember for `target` the first `tokens` of `source` too."""
        self._cache[..., target.start : target.start + tokens, :] = self._cache[
            ..., source.start : source.start + tokens, :
        ]

    def forget(self, extent: Extent) -> None:
        """Nothing to do: the next owner writes before it reads."""

    def _run(self, tokens: torch.Tensor, step: Step, rows: torch.Tensor) -> torch.Tensor:
        kernels = self._kernels
        x, delta = self._embedding[tokens], None
        for number, layer in enumerate(self._layers):
            which = PROJECTIONS * number
            normed = kernels.add_rms_norm(x, delta, layer.before_attention)
            qkv = layer.qkv(normed)
            kernels.add_lora(normed, qkv, which + QKV, step)
            kernels.rope_store(qkv, self._cosine, self._sine, self._cache[number], layer.norms, step)
            attended = kernels.attend(qkv, self._cache[number], step)
            delta = layer.out(attended)
            kernels.add_lora(attended, delta, which + OUT, step)
            normed = kernels.add_rms_norm(x, delta, layer.before_mlp)
            gate_up = layer.gate_up(normed)
            kernels.add_lora(normed, gate_up, which + GATE_UP, step)
            gated = kernels.silu_mul(gate_up)
            delta = layer.down(gated)
            kernels.add_lora(gated, delta, which + DOWN, step)
        assert delta is not None
        return kernels.add_rms_norm(x[rows], delta[rows], self._norm)

    def _int64(self, values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


class _Linear:
    """Linear layers that read the same input, as one."""

    def __init__(self, layers: Sequence[Any]) -> None:
        weight = (
            torch.cat([layer.weight.detach() for layer in layers])
            if len(layers) > 1
            else layers[0].weight.detach()
        )
        self._bias = None
        if any(layer.bias is not None for layer in layers):
            self._bias = torch.cat(
                [weight.new_zeros(len(x.weight)) if x.bias is None else x.bias.detach() for x in layers]
            )
        self._packed = (
            weight.device.type == "cpu"
            and weight.dtype is torch.float32
            and torch.backends.mkldnn.is_available()
        )
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if self._packed else weight

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed:
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return F.linear(x, self._weight, self._bias)


@dataclass(frozen=True)
class _Layer:
    before_attention: torch.Tensor
    qkv: _Linear
    norms: tuple[torch.Tensor, torch.Tensor] | None
    out: _Linear
    before_mlp: torch.Tensor
    gate_up: _Linear
    down: _Linear

    @staticmethod
    def of(layer: Any) -> "_Layer":
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        return _Layer(
            layer.input_layernorm.weight.detach(),
            _Linear([attention.q_proj, attention.k_proj, attention.v_proj]),
            (attention.q_norm.weight.detach(), attention.k_norm.weight.detach()) if has_norms else None,
            _Linear([attention.o_proj]),
            layer.post_attention_layernorm.weight.detach(),
            _Linear([mlp.gate_proj, mlp.up_proj]),
            _Linear([mlp.down_proj]),
        )


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
    """Neighbours with the same adapter as one segment; rows without an adapter in none."""
    segments: list[Segment] = []
    for first, count, adapter in rows:
        if adapter is None:
            continue
        assert isinstance(adapter, AdapterTable)
        before = segments[-1] if segments else None
        if before and before.adapter is adapter and before.first + before.rows == first:
            segments[-1] = Segment(before.first, before.rows + count, adapter)
        else:
            segments.append(Segment(first, count, adapter))
    return segments
