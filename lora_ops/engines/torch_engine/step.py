"""What one forward pass is about: its rows, the sequences they belong to, and their adapters."""

from collections.abc import Sequence
from dataclasses import dataclass

from lora_ops.engines.torch_engine.projections import AdapterTable


@dataclass(frozen=True)
class Span:
    """Rows of a step that belong to one sequence, and its part of the KV cache.

    Attributes:
        first: its first row.
        rows: how many; they are the sequence's last tokens.
        blocks: of the cache, that hold the sequence's tokens in their order.
        length: how many tokens it has, these rows included.
    """

    first: int
    rows: int
    blocks: Sequence[int]
    length: int


@dataclass(frozen=True)
class Segment:
    """Neighbouring rows with the same adapter, or without one."""

    first: int
    rows: int
    adapter: AdapterTable | None


@dataclass(frozen=True)
class Step:
    """One forward pass.

    Attributes:
        tokens, positions, slot_mapping: of each row: its token, its place in its sequence, its slot in the
            KV cache.
        spans: one for each sequence.
        segments: of all rows, or none where no row has an adapter.
        chosen: the rows whose next token's scores are wanted.
        head_segments: as `segments`, of the chosen rows.
    """

    tokens: Sequence[int]
    positions: Sequence[int]
    slot_mapping: Sequence[int]
    spans: Sequence[Span]
    segments: Sequence[Segment]
    chosen: Sequence[int]
    head_segments: Sequence[Segment]
