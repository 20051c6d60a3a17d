"""Attention among packed rows: each sees the prefix that all share and itself, none sees another."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "lora_ops_packed"


@dataclass(frozen=True)
class Layout:
    """Where the rows lie in a packed sequence of `prefix` + sum(`lengths`) tokens.

    Attributes:
        prefix: tokens that every row begins with; they lie there once, in front.
        lengths: of each row without the prefix, in the order in which they follow.
        slots: int64, (sum(lengths),), the place of each of their tokens in a rectangle of len(lengths) x
            max(lengths), row by row.
    """

    prefix: int
    lengths: tuple[int, ...]
    slots: torch.Tensor


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """What causal attention gives for each row alone, up to rounding, gradients included.

    In a causal model the keys and values of a prefix depend on nothing after it, so rows that begin alike can
    share them; Hydragen (Juravsky et al., 2024, arXiv:2402.05099) does so for decoding.

    Args:
        query: (1, heads, tokens, features), packed as `layout` says.
        key, value: (1, key heads, tokens, features); heads is a multiple of key heads.
        attention_mask: not looked at, `layout` says it all.

    Returns:
        (1, tokens, heads, features), and None in place of attention weights.

    Raises:
        NotImplementedError: the model asks for more than causal attention (a window, capped scores, sinks).
    """
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise NotImplementedError(f"packed attention knows no {name}")
    prefix, rows, longest = layout.prefix, len(layout.lengths), max(layout.lengths)
    groups = query.shape[1] // key.shape[1]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # Rows are padded at their end, which causality already hides from every token that counts.
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        k, v = (states.transpose(1, 2).repeat_interleave(groups, 1) for states in (k, v))
        return scaled_dot_product_attention(
            q.transpose(1, 2),
            k,
            v,
            attn_mask=mask.tril(k.shape[2] - q.shape[1]),
            dropout_p=dropout,
            scale=scaling,
        ).transpose(1, 2)

    def rectangle(states: torch.Tensor) -> torch.Tensor:
        empty = states.new_zeros(rows * longest, *states.shape[1:])
        return empty.index_copy(0, layout.slots, states[prefix:]).unflatten(0, (rows, longest))

    def behind_prefix(states: torch.Tensor) -> torch.Tensor:
        return torch.cat([states[None, :prefix].expand(rows, -1, -1, -1), rectangle(states)], 1)

    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    own = attend(rectangle(q), behind_prefix(k), behind_prefix(v)).flatten(0, 1).index_select(0, layout.slots)
    if not prefix:
        return own[None], None
    shared = attend(q[None, :prefix], k[None, :prefix], v[None, :prefix])
    return torch.cat([shared, own[None]], 1), None


AttentionInterface.register(PACKED, packed_attention)
