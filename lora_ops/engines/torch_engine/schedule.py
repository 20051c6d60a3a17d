"""Which sequences run, which wait, and who gives way where the KV cache is full.

A sequence joins where the tokens fit that it has by now, and takes further blocks as it grows. Every sequence
ends, by three rules:

- A sequence that does not fit holds back its own tenant's later ones. `PASSED` sequences of others may pass it.
- Where a running sequence finds no block, the youngest of the tenant that holds most gives way. It waits, and
  computes its tokens once more (recompute, Kwon et al., 2023, section 4.5). It keeps the tokens of its answer.
  Each block is asked for by a sequence that has got a token since it joined, so the answers always grow.
- The oldest sequence that runs never gives way. So it ends, and every other one becomes the oldest.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from lora_ops.engines.torch_engine.decoder import BLOCK, Decoder, blocks_for
from lora_ops.engines.torch_engine.kv_cache import KVCache, Owner, Prefix
from lora_ops.engines.torch_engine.sequence import Sequence

# How many later sequences may join before one that does not fit.
PASSED = 100


@dataclass
class Schedule:
    """The sequences of one decoder.

    Attributes:
        max_batch: how many run together.
        waiting, running: the former in the order in which they were added.
        preempted: how often a sequence had to give way.
    """

    decoder: Decoder
    max_batch: int
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    preempted: int = 0

    def __post_init__(self) -> None:
        self.kv = KVCache(self.decoder.kv_tokens // BLOCK)
        self._numbers = count()

    def add(self, sequence: Sequence) -> None:
        """Let a sequence join at the next step where there is room."""
        sequence.number = next(self._numbers)
        self.waiting.append(sequence)

    def update(self) -> None:
        """Let go of who was cancelled, give the others the blocks that they need, and let more join."""
        self._leave()
        self._grow()
        self.join()

    def end(self, sequence: Sequence, *, keep: bool) -> None:
        """Take a sequence out of those that run; `keep` what it has computed for those that begin alike."""
        self._release(sequence, keep=keep)
        if sequence.matcher:
            sequence.matcher.close()

    def end_alone(self, sequence: Sequence) -> None:
        """Take a sequence out of those that run, and let the others compute again what its step left undone."""
        self.end(sequence, keep=False)
        for other in list(self.running):
            self._give_way(other)

    def clear(self) -> list[Sequence]:
        """Forget all sequences and all that was kept, and return which sequences there were."""
        lost = [*self.running, *self.waiting]
        for sequence in list(self.running):
            self.end(sequence, keep=False)
        self.waiting = []
        self.kv.clear()
        return lost

    def join(self) -> None:
        """Let those that wait join, the oldest first, while there is room."""
        held_back: dict[str | None, Sequence] = {}
        for sequence in list(self.waiting):
            if len(self.running) >= self.max_batch or not self.kv.available:
                return
            if any(passed.passed >= PASSED for passed in held_back.values()):
                return  # what runs will end, and then that one fits
            if sequence.tenant in held_back:
                continue
            if not self._begin(sequence):
                held_back[sequence.tenant] = sequence
                continue
            for passed in held_back.values():
                passed.passed += 1

    def _leave(self) -> None:
        for sequence in [sequence for sequence in self.running if sequence.cancelled]:
            # Nothing is kept of it: its adapter may be unloaded by now.
            self.end(sequence, keep=False)
        for sequence in [sequence for sequence in self.waiting if sequence.cancelled]:
            self.waiting.remove(sequence)
            if sequence.matcher:
                sequence.matcher.close()

    def _grow(self) -> None:
        """Give each sequence that runs a block for its next token, the oldest first."""
        for sequence in sorted(self.running, key=lambda one: one.number):
            while sequence in self.running and len(sequence.blocks) < blocks_for(len(sequence.tokens)):
                if self.kv.available:
                    sequence.blocks += self.kv.take(1)
                else:
                    self._preempt()

    def _preempt(self) -> None:
        """Let one sequence give way: it waits again, where its age puts it."""
        oldest = min(self.running, key=lambda one: one.number)
        blocks: Counter[str | None] = Counter()
        for sequence in self.running:
            blocks[sequence.tenant] += len(sequence.blocks)
        younger = [sequence for sequence in self.running if sequence is not oldest]
        victim = max(younger, key=lambda one: (blocks[one.tenant], one.number))
        self._give_way(victim)
        self.preempted += 1

    def _give_way(self, sequence: Sequence) -> None:
        # What is not evicted of it by then is shared when it joins again.
        self._release(sequence, keep=True)
        sequence.start_again()
        insort(self.waiting, sequence, key=lambda one: one.number)

    def _begin(self, sequence: Sequence) -> bool:
        """Let a sequence run if its tokens fit; return whether they do."""
        # Who runs gets a block more first, if it may need one: else a sequence would soon have to give way.
        growing = sum(_grows(one) for one in (*self.running, sequence)) if self.running else 0
        # One block at least is its own. Without room for that, what it could share is not looked for.
        if not self.kv.fits((), 1 + growing):
            return False
        shared, common = self._shared(sequence)
        whole, rest = divmod(common, BLOCK)
        missing = blocks_for(len(sequence.tokens)) - whole
        if not self.kv.fits(shared[:whole], missing + growing):
            return False
        self.kv.share(shared[:whole])  # first, so that they are not evicted
        sequence.blocks = shared[:whole] + self.kv.take(missing)
        sequence.computed = BLOCK * whole
        self.waiting.remove(sequence)
        self.running.append(sequence)
        # Of the block in which the sequences part only the beginning is common, so it is copied. The block may
        # have been evicted just now.
        if rest and self.kv.holds(shared[whole]) and shared[whole] not in sequence.blocks:
            self.decoder.copy(shared[whole], sequence.blocks[whole], rest)
            sequence.computed = common
        if sequence.cached is None:  # one that gave way finds its own tokens when it joins again
            sequence.cached = sequence.computed
        return True

    def _shared(self, sequence: Sequence) -> tuple[list[int], int]:
        """Return the blocks of the longest known beginning, and how many of the sequence's tokens they hold."""
        if not self.decoder.shares or sequence.names_prompt:  # what is shared has no logits
            return [], 0
        # The last token's logits are still to be computed.
        return self.kv.longest(sequence.tokens[:-1], sequence.owner, self._computed(sequence.owner))

    def _computed(self, owner: Owner) -> Iterable[Prefix]:
        for sequence in self.running:
            if sequence.owner.matches(owner):
                yield Prefix(sequence.tokens[: sequence.computed], owner, sequence.blocks)

    def _release(self, sequence: Sequence, *, keep: bool) -> None:
        blocks, used = sequence.blocks, blocks_for(sequence.computed)
        self.running.remove(sequence)
        sequence.blocks = []
        if keep and used and self.decoder.shares:
            self.kv.keep(Prefix(sequence.tokens[: sequence.computed], sequence.owner, blocks[:used]))
        self.decoder.forget(blocks)
        self.kv.release(blocks)


def _grows(sequence: Sequence) -> bool:
    """Return whether it may need another block than those of the tokens that it has."""
    return blocks_for(sequence.limit) > blocks_for(len(sequence.tokens))
