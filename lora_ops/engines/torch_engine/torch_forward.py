"""One forward pass of a Llama-like decoder in torch: on any device and in any type."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lora_ops.engines.torch_engine.decoder import BLOCK, blocks_for
from lora_ops.engines.torch_engine.lora import add_lora
from lora_ops.engines.torch_engine.step import Segment, Span, Step
from lora_ops.engines.torch_engine.weights import Linear, Weights


class TorchForward:
    """The pass in torch's own operators; kernels/forward.c computes the same.

    Args:
        cache: as `Weights.make_cache` makes it; a pass reads and writes its spans' parts of it.
    """

    def __init__(self, weights: Weights, cache: torch.Tensor) -> None:
        self._cache, self._shape, self._embedding = cache, weights.shape, weights.embedding
        self._cosine, self._sine, self._last_norm = weights.cosine, weights.sine, weights.norm
        # Without the layers themselves: where their weights were laid out anew, nobody needs them any more.
        self._norms = [(layer.before_attention, layer.norms, layer.before_mlp) for layer in weights.layers]
        self._products = [
            tuple(map(_Product, (layer.qkv, layer.out, layer.gate_up, layer.down))) for layer in weights.layers
        ]
        self._head = _Product(weights.head)

    def __call__(self, step: Step) -> torch.Tensor:
        """Scores of the token after each chosen row: (chosen, vocabulary)."""
        return self.with_states(step)[0]

    def with_states(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """The same scores, and what the head reads of each chosen row: (chosen, hidden)."""
        device = self._cache.device
        tokens, positions, slot_mapping, chosen = (
            torch.tensor(values, dtype=torch.int64, device=device)
            for values in (step.tokens, step.positions, step.slot_mapping, step.chosen)
        )
        views = [_View.from_span(span, device) for span in step.spans]
        x = self._embedding[tokens]
        for number, (before_attention, norms, before_mlp) in enumerate(self._norms):
            to_qkv, to_out, to_gate_up, to_down = self._products[number]
            which, cache = 4 * number, self._cache[number]
            normed = self._norm(x, before_attention)
            qkv = adapted(normed, to_qkv(normed), which, step.segments)
            self._rope_store(qkv, positions, slot_mapping, cache, norms)
            attended = self._attend(qkv, cache, views)
            x += adapted(attended, to_out(attended), which + 1, step.segments)
            normed = self._norm(x, before_mlp)
            gate, up = adapted(normed, to_gate_up(normed), which + 2, step.segments).chunk(2, dim=-1)
            gated = F.silu(gate) * up
            x += adapted(gated, to_down(gated), which + 3, step.segments)
        normed = self._norm(x[chosen], self._last_norm)
        return adapted(normed, self._head(normed), 4 * len(self._norms), step.head_segments), normed

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMS norm (Zhang and Sennrich, 2019, arXiv:1910.07467)."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self._shape.eps)
        return weight * scaled.to(x.dtype)

    def _rope_store(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        cache: torch.Tensor,
        norms: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        """Turn queries and keys to their positions (Su et al., 2021, arXiv:2104.09864); store keys and values.

        Args:
            qkv: (rows, width), changed in place.
            cache: (2, kv_heads, capacity, dim) of this layer.
        """
        s = self._shape
        heads = qkv.view(len(qkv), -1, s.dim)
        turned = heads[:, : s.heads + s.kv_heads]
        if norms is not None:
            for part, weight in ((turned[:, : s.heads], norms[0]), (turned[:, s.heads :], norms[1])):
                part.copy_(self._norm(part, weight))
        cos, sin = (table[positions].unsqueeze(1) for table in (self._cosine, self._sine))
        first, second = turned.chunk(2, dim=-1)
        turned.copy_(turned * cos + torch.cat((-second, first), dim=-1) * sin)
        keys, values = heads[:, s.heads : s.heads + s.kv_heads], heads[:, s.heads + s.kv_heads :]
        cache[0].index_copy_(1, slot_mapping, keys.transpose(0, 1))
        cache[1].index_copy_(1, slot_mapping, values.transpose(0, 1))

    def _attend(self, qkv: torch.Tensor, cache: torch.Tensor, views: Sequence["_View"]) -> torch.Tensor:
        """Causal attention of each row over its own sequence: (rows, heads * dim)."""
        s = self._shape
        out = qkv.new_empty(len(qkv), s.heads * s.dim)
        blocks = cache.unflatten(2, (-1, BLOCK))  # (2, kv_heads, blocks, BLOCK, dim)
        for view in views:
            rows = slice(view.span.first, view.span.first + view.span.rows)
            queries = qkv[rows, : s.heads * s.dim].view(view.span.rows, s.heads, s.dim).transpose(0, 1)
            # (2, kv_heads, tokens of whole blocks, dim)
            own = blocks.index_select(2, view.blocks).flatten(2, 3)
            keys, values = own[:, :, : view.span.length]
            result = F.scaled_dot_product_attention(
                queries[None], keys[None], values[None], attn_mask=view.mask, enable_gqa=True
            )
            out[rows] = result[0].transpose(0, 1).reshape(view.span.rows, -1)
        return out


@dataclass(frozen=True)
class _View:
    """What the rows of one sequence attend to, the same in each layer.

    Attributes:
        blocks: of the cache, those that hold the sequence's tokens.
        mask: which tokens each row may see: (rows, length), bool; None where there is one row, which sees all.
    """

    span: Span
    blocks: torch.Tensor
    mask: torch.Tensor | None

    @staticmethod
    def from_span(span: Span, device: torch.device) -> "_View":
        """Return the view of one sequence."""
        blocks = torch.tensor(span.blocks[: blocks_for(span.length)], dtype=torch.int64, device=device)
        mask = None
        if span.rows > 1:
            every = torch.ones(span.rows, span.length, dtype=torch.bool, device=device)
            mask = every.tril(span.length - span.rows)
        return _View(span, blocks, mask)


def adapted(x: torch.Tensor, out: torch.Tensor, which: int, segments: Sequence[Segment]) -> torch.Tensor:
    """`out`, to which each segment's adapter has added what it does to projection number `which` of `x`."""
    for segment in segments:
        projection = segment.adapter and segment.adapter.projections[which]
        if projection:
            rows = slice(segment.first, segment.first + segment.rows)
            add_lora(x[rows], out[rows], projection)
    return out


class _Product:
    """x w' + bias; on a CPU with weights that oneDNN has laid out beforehand: that is faster for a few rows."""

    def __init__(self, linear: Linear) -> None:
        weight, self._bias = linear.weight, linear.bias
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
