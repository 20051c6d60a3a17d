"""What the batch needs of a base model: adapters in its own form, and the next tokens' scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from lora_ops.engines.torch_engine.lora import LoraPair

BLOCK = 16  # tokens that a block of the KV cache holds


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold so many tokens."""
    return -(-tokens // BLOCK)


class Adapter(Protocol):
    """An adapter as one decoder applies it; `bytes` is the memory that it takes."""

    @property
    def bytes(self) -> int:
        """Of all matrices."""


@dataclass(frozen=True)
class ScheduledSequence:
    """The next tokens of one sequence in one step.

    Attributes:
        tokens: at least one.
        position: of the first of them in the sequence.
        blocks: of the KV cache, that hold the sequence's tokens in their order, these included. Two sequences
            share blocks only where the decoder `shares`.
        adapter: None for the base model itself.
        scored: after how many of the tokens, counted from the last one, the next token's logits are wanted.
    """

    tokens: Sequence[int]
    position: int
    blocks: Sequence[int]
    adapter: Adapter | None
    scored: int


class Decoder(Protocol):
    """A base model that takes steps; all but `adapter` is called from one thread.

    Attributes:
        context_length: how many tokens a sequence may have.
        kv_tokens: how many tokens of all sequences together it can remember, a multiple of BLOCK.
        vocabulary: how many tokens the model knows.
        shares: whether sequences can share blocks, and `copy` can be called.
        batches: whether the sequences of a step are computed together.
        reads_bfloat16: whether adapters in bfloat16 cost a step no more than those in a wider type of its own.
        attention_positions: how many earlier tokens cost a token as much as everything else.
        shapes: (outputs, inputs) of every linear layer that an adapter may change.
        dtype: of activations and sums; weights may be narrower.
    """

    context_length: int
    kv_tokens: int
    vocabulary: int
    shares: bool
    batches: bool
    attention_positions: float
    reads_bfloat16: bool
    shapes: Mapping[str, tuple[int, int]]
    dtype: torch.dtype

    def adapter(self, pairs: Mapping[str, LoraPair], dtype: torch.dtype) -> Adapter:
        """An adapter in this decoder's form, its numbers of type `dtype`; called from any thread."""

    def step(self, scheduled: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Return the logits after each scored token: (all of them, vocabulary), in the order of `scheduled`."""

    def step_with_states(self, scheduled: Sequence[ScheduledSequence]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `step` does, and what the head reads of the same tokens: (all of them, hidden).

        These are the last layer's normed states. They say how the model understands a text.
        """

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` of one block to another block."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Let go of what the blocks of one sequence hold, which are no longer this sequence's."""
