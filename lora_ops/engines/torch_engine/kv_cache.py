"""The KV cache in blocks: who holds which of them, and what is kept of sequences that have ended.

A sequence takes a block when its tokens need it (PagedAttention, Kwon et al., 2023, arXiv:2309.06180). Its
table names its blocks in the order of its tokens, so they may lie anywhere. Sequences that begin alike share
whole blocks. Nobody writes to these, because a sequence writes only behind the tokens that it shares.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_ops.engines.torch_engine.decoder import BLOCK, Adapter, blocks_for

# How many prefixes are kept at most: each is compared with every prompt that joins.
KEPT = 64
# How many tokens are compared at once. A waiting prompt is compared with every prefix in each step, and slices
# of a list are faster to compare than its items.
STRIDE = 256


@dataclass(frozen=True, eq=False)
class Owner:
    """Who may start from a prefix: requests of one tenant with the same cache salt and the same adapter."""

    reader: tuple[str | None, str | None]
    adapter: Adapter | None

    def matches(self, other: "Owner") -> bool:
        """Return whether both may share keys and values; another adapter computes others."""
        return self.adapter is other.adapter and self.reader == other.reader


@dataclass(eq=False)
class Prefix:
    """Tokens whose keys and values lie in these blocks.

    Attributes:
        blocks: fewer than the tokens need where the last ones were evicted.
    """

    tokens: Sequence[int]
    owner: Owner
    blocks: list[int]

    def common(self, tokens: Sequence[int]) -> int:
        """Return how many of the first `tokens` its blocks hold."""
        most = min(len(tokens), len(self.tokens), BLOCK * len(self.blocks))
        for first in range(0, most, STRIDE):
            end = min(first + STRIDE, most)
            if tokens[first:end] != self.tokens[first:end]:
                for place in range(first, end):
                    if tokens[place] != self.tokens[place]:
                        return place
        return most


class KVCache:
    """The blocks of one KV cache. A block is free, held by sequences, kept, or both of the last.

    Kept blocks that no sequence holds are evicted when a block is needed, so they count as available.

    Args:
        blocks: how many there are.

    Attributes:
        held: blocks that sequences hold; a shared one counts once.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks, self.held = blocks, 0
        # The last one is taken first. Memory that was never written stays untouched while others can be reused.
        self._free = list(reversed(range(blocks)))
        self._holders, self._keepers = [0] * blocks, [0] * blocks
        self._kept: list[Prefix] = []  # the one that was used longest ago first

    @property
    def available(self) -> int:
        """How many blocks a sequence could take now."""
        return self.blocks - self.held

    def fits(self, shared: Iterable[int], count: int) -> bool:
        """Return whether a sequence can share these blocks and take `count` more."""
        return count + sum(not self._holders[block] for block in shared) <= self.available

    def take(self, count: int) -> list[int]:
        """Return free blocks for a sequence; the prefixes that were used longest ago make room.

        Raises:
            ValueError: fewer are available.
        """
        if count > self.available:
            raise ValueError(f"{count} blocks are wanted, and {self.available} are available")
        while len(self._free) < count:
            self._evict()
        taken = [self._free.pop() for _ in range(count)]
        self.share(taken)
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Let one more sequence hold these blocks."""
        for block in blocks:
            self.held += not self._holders[block]
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """End a sequence's hold on these blocks.

        Raises:
            ValueError: no sequence holds one of them.
        """
        for block in blocks:
            if not self._holders[block]:
                raise ValueError(f"no sequence holds block {block}")
            self._holders[block] -= 1
            self.held -= not self._holders[block]
            self._free_unused(block)

    def holds(self, block: int) -> bool:
        """Return whether anybody needs what is in this block."""
        return bool(self._holders[block] or self._keepers[block])

    def keep(self, prefix: Prefix) -> None:
        """Keep a prefix for later sequences, until its blocks are needed."""
        for block in prefix.blocks:
            self._keepers[block] += 1
        self._kept.append(prefix)
        if len(self._kept) > KEPT:
            self._drop(self._kept[0])

    def longest(self, tokens: Sequence[int], owner: Owner, running: Iterable[Prefix]) -> tuple[list[int], int]:
        """Return the blocks that begin like these tokens, and how many of the tokens they hold.

        Args:
            running: what this owner's sequences have computed that run now.
        """
        best, found = 0, None
        for prefix in [*(kept for kept in self._kept if kept.owner.matches(owner)), *running]:
            if (common := prefix.common(tokens)) > best:
                best, found = common, prefix
        if found is None:
            return [], 0
        if found in self._kept:  # used again, so evicted last
            self._kept.remove(found)
            self._kept.append(found)
        return found.blocks[: blocks_for(best)], best

    def forget(self, adapter: Adapter) -> None:
        """Drop what is kept of an adapter."""
        for prefix in [prefix for prefix in self._kept if prefix.owner.adapter is adapter]:
            self._drop(prefix)

    def clear(self) -> None:
        """Drop all that is kept."""
        while self._kept:
            self._drop(self._kept[0])

    def _evict(self) -> None:
        """Drop the last block of the prefix that was used longest ago: its beginning is shared most."""
        oldest = self._kept[0]
        self._unkeep(oldest.blocks.pop())
        if not oldest.blocks:
            self._kept.remove(oldest)

    def _drop(self, prefix: Prefix) -> None:
        self._kept.remove(prefix)
        for block in prefix.blocks:
            self._unkeep(block)

    def _unkeep(self, block: int) -> None:
        self._keepers[block] -= 1
        self._free_unused(block)

    def _free_unused(self, block: int) -> None:
        if not self.holds(block):
            self._free.append(block)
