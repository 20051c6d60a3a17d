"""Which sequences take the next step, and what came of it: continuous batching (Orca, Yu et al., 2022).

A sequence joins and leaves between two steps. In one step every sequence that answers takes one token, and
those that still read their prompts take `prefill_chunk` tokens together, or fewer of a long one, which their
tenants share: a long prompt holds nobody up for long, neither those that answer nor another tenant's first
token.
"""

import logging
import time
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import InitVar, dataclass, replace

import torch

from lora_ops.engines.protocol import Chunk, EngineError, FinishReason, Sampling, TokenLogprob
from lora_ops.engines.torch_engine.decoder import BLOCK, Adapter, Decoder, ScheduledSequence, blocks_for
from lora_ops.engines.torch_engine.prefill import Reading, share_prefill
from lora_ops.engines.torch_engine.sampling import Choice, Row, choose, with_logprobs
from lora_ops.engines.torch_engine.schedule import Schedule
from lora_ops.engines.torch_engine.sequence import Sequence
from lora_ops.engines.torch_engine.structure import Matcher

logger = logging.getLogger(__name__)

# How long a step waits for the forms of its answers, all together. An answer whose form takes longer keeps its
# logits and joins a later step, so that no form holds up others.
FORM_SECONDS = 0.005


@dataclass
class Batch:
    """The sequences of one decoder; every method is called from the thread that takes the steps.

    Attributes:
        names: the bytes of each token.
        ends: tokens that end an answer.
        max_batch: how many sequences run together.
        prefill_chunk: how many prompt tokens one step reads.
    """

    decoder: Decoder
    names: Mapping[int, bytes]
    ends: frozenset[int]
    max_batch: InitVar[int]
    prefill_chunk: int

    def __post_init__(self, max_batch: int) -> None:
        self.schedule = Schedule(self.decoder, max_batch)
        self._moving: list[tuple[Sequence, int]] = []

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a part of the KV cache."""
        return self.schedule.running

    @property
    def waiting(self) -> list[Sequence]:
        """The sequences that have none."""
        return self.schedule.waiting

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return not self.running and not self.waiting

    @property
    def kv_tokens(self) -> int:
        """How many tokens the blocks hold that are taken by sequences that run."""
        return self.schedule.kv.held * BLOCK

    def add(self, sequence: Sequence) -> None:
        """Let a sequence join at the next step where there is room."""
        self.schedule.add(sequence)

    def forget(self, adapter: Adapter) -> None:
        """The adapter is unloaded: drop what was kept of it."""
        self.schedule.kv.forget(adapter)

    def clear(self) -> list[Sequence]:
        """Forget all sequences, and say which there were."""
        return self.schedule.clear()

    def shed(self) -> Sequence | None:
        """Forget the sequence that took most memory of a step which found none, and return it; None: none runs.

        The others go on. A request that needs more than there is must not end those of other tenants.
        """
        if not self.running:
            return None
        rows = dict(self._moving)

        def size(one: Sequence) -> tuple[int, ...]:
            read = rows.get(one, 0)
            # Each row whose logits are wanted is as long as the vocabulary.
            return read if one.names_prompt else min(read, 1), read, len(one.tokens), one.number

        most = max(self.running, key=size)
        self.schedule.end_alone(most)
        return most

    def probe(self) -> None:
        """Take a step of the base model for nobody; it may raise whatever a step may."""
        if not self.schedule.kv.available:
            return  # what fills the cache is being computed, which says as much
        blocks = self.schedule.kv.take(1)
        try:
            self.decoder.step([ScheduledSequence([0], 0, blocks, None, scored=True)])
        finally:
            self.decoder.forget(blocks)
            self.schedule.kv.release(blocks)

    def inspect(self, prompt: Items[int], adapter: Adapter | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return how likely each token is right after a prompt, and how the model understands the prompt.

        Returns:
            Natural logarithms of the probabilities (vocabulary), and the mean of the last layer's normed states
            over the prompt's tokens (hidden); both in float32 on the CPU.

        Raises:
            EngineError: the prompt is empty, too long, or finds no room in the KV cache now.
        """
        if not 0 < len(prompt) <= self.decoder.context_length:
            raise EngineError(f"A prompt of {len(prompt)} tokens can't be inspected.")
        if blocks_for(len(prompt)) > self.schedule.kv.available:
            raise EngineError("The KV cache has no room for a prompt that is to be inspected.")
        blocks, parts = self.schedule.kv.take(blocks_for(len(prompt))), []
        try:
            for first in range(0, len(prompt), self.prefill_chunk):
                tokens = prompt[first : first + self.prefill_chunk]
                one = ScheduledSequence(tokens, first, blocks, adapter, scored=len(tokens))
                logits, states = self.decoder.step_with_states([one])
                parts.append(states.float().sum(0))
        finally:
            self.decoder.forget(blocks)
            self.schedule.kv.release(blocks)
        mean = torch.stack(parts).sum(0) / len(prompt)
        return logits[-1].float().log_softmax(-1).cpu(), mean.cpu()

    def step(self) -> list[tuple[Sequence, Chunk | EngineError]]:
        """Take one step; the new chunks of the sequences that have one, or why one of them ended."""
        self._moving = []
        self.schedule.update()
        moving = self._moving = self._compose()
        held = [sequence for sequence in self.running if sequence.logits is not None]
        if not (moving or held):
            return []
        started = time.perf_counter()
        logits, ready = self._forward(moving) if moving else (None, [])
        if held:
            kept = torch.stack([sequence.logits for sequence in held if sequence.logits is not None])
            ready += [(sequence, place - len(held)) for place, sequence in enumerate(held)]
            logits = kept if logits is None else torch.cat([logits, kept])
        assert logits is not None
        self._wait_for_forms([sequence for sequence, _ in ready if sequence.logits is None], held)
        ready = [(sequence, place) for sequence, place in ready if self._formed(sequence, logits[place])]
        choices = self._choose(logits, ready)
        seconds = time.perf_counter() - started
        rows = sum(count for _, count in moving)
        for sequence, count in moving:
            sequence.computed += count
            # Time goes with the rows: in one pass a prompt's token costs what an answer's token costs.
            sequence.seconds += seconds * count / rows
        return [(sequence, self._emit(sequence, choices.get(sequence))) for sequence, _ in ready]

    def _forward(self, moving: Items[tuple[Sequence, int]]) -> tuple[torch.Tensor, list[tuple[Sequence, int]]]:
        """Return the logits, and those that are read to their end, each with its row."""
        scheduled = [
            ScheduledSequence(
                sequence.tokens[sequence.computed : sequence.computed + count],
                sequence.computed,
                sequence.blocks,
                sequence.adapter,
                scored=count if sequence.names_prompt else count == sequence.pending,
            )
            for sequence, count in moving
        ]
        logits = self.decoder.step(scheduled)
        ready: list[tuple[Sequence, int]] = []
        row = 0
        for (sequence, count), one in zip(moving, scheduled, strict=True):
            if sequence.names_prompt:
                self._name_prompt(sequence, logits[row : row + count])
            row += one.scored
            if count == sequence.pending:
                ready.append((sequence, row - 1))
        return logits, ready

    def _wait_for_forms(self, moved: Items[Sequence], held: Items[Sequence]) -> None:
        """Wait a moment for the forms of the answers that moved, or for any form where nobody moves."""
        late = [one.matcher for one in moved if one.matcher and not one.matcher.ready]
        if late:
            Matcher.wait(late, FORM_SECONDS)
        elif len(held) == len(self.running):
            Matcher.wait([one.matcher for one in held if one.matcher], FORM_SECONDS, first=True)

    def _formed(self, sequence: Sequence, logits: torch.Tensor) -> bool:
        """Return whether its next token can be chosen; keep the logits where it can't."""
        waits = sequence.matcher is not None and not sequence.matcher.ready and sequence.wants_token
        sequence.logits = logits.clone() if waits else None
        return not waits

    def _compose(self) -> list[tuple[Sequence, int]]:
        """Return who moves in this step, and by how many tokens: one each of those that answer."""
        reading = [sequence for sequence in self.running if sequence.pending > 1]
        # A token far into a long prompt attends to so much that it costs as much as several at the beginning.
        needs = [
            Reading(one.generation.tenant, one.pending, 1 + one.computed / self.decoder.attention_positions)
            for one in reading
        ]
        counts = dict(zip(reading, share_prefill(needs, self.prefill_chunk), strict=True))
        moving = [(sequence, counts.get(sequence, 1)) for sequence in self.running if sequence.logits is None]
        return [(sequence, count) for sequence, count in moving if count]

    def _choose(
        self, logits: torch.Tensor, ready: Items[tuple[Sequence, int]]
    ) -> dict[Sequence, Choice | EngineError]:
        """Return the next token of each sequence that wants one, or why it can't have one.

        Args:
            logits: (rows, vocabulary).
            ready: sequences that have been read to their end, each with its row.
        """
        found: dict[Sequence, Choice | EngineError] = {}
        places, rows, answering = [], [], []
        for sequence, place in ready:
            if sequence.wants_token:
                try:
                    rows.append(self._row(sequence))
                except EngineError as error:  # its form can't be followed, which is no fault of the others
                    found[sequence] = error
                    continue
                places.append(place)
                answering.append(sequence)
        if answering:
            wanted = logits if len(places) == len(logits) else logits[places]
            found.update(zip(answering, choose(wanted, rows), strict=True))
        return found

    def _emit(self, sequence: Sequence, choice: Choice | EngineError | None) -> Chunk | EngineError:
        """Return the chunk that a step adds to an answer, or the error that ends it."""
        try:
            if isinstance(choice, EngineError):
                raise choice
            chunk = self._chunk(sequence, choice) if choice else self._unanswered(sequence)
            chunk = replace(chunk, prompt=tuple(sequence.prompt))
            sequence.prompt = []
            return chunk
        except Exception as error:  # whatever a tokenizer makes of its tokens is this answer's fault alone
            self.schedule.end(sequence, keep=False)
            if isinstance(error, EngineError):
                return error
            logger.exception("The text of an answer could not be made.")
            return EngineError(f"The answer's tokens can't be read as text: {error}")

    def _chunk(self, sequence: Sequence, choice: Choice) -> Chunk:
        sampling = sequence.generation.sampling
        sequence.tokens.append(choice.token)
        if sequence.matcher:
            sequence.matcher.take(choice.token)
        answered = len(sequence.tokens) - len(sequence.generation.prompt)
        ended = choice.token in self._ends(sampling)
        text = "" if ended else sequence.stream.add(choice.token, may_stop=answered >= sampling.min_tokens)
        finish: FinishReason | None = None
        if ended or sequence.stream.stopped or (sequence.matcher and sequence.matcher.complete):
            finish = "stop"
        elif len(sequence.tokens) >= sequence.limit:
            finish = "length"
        if finish:
            text += sequence.stream.finish()
        logprobs: tuple[TokenLogprob, ...] = ()
        if sampling.logprobs is not None:
            logprobs = (self._named(choice),)
        chunk = Chunk(text, 1, logprobs, finish, sequence.seconds)
        sequence.seconds = 0.0
        if finish is None:
            return chunk
        self.schedule.end(sequence, keep=True)
        return _with_prompt(chunk, sequence)

    def _row(self, sequence: Sequence) -> Row:
        sampling = sequence.generation.sampling
        prompt = len(sequence.generation.prompt)
        forbidden = sequence.matcher.forbidden() if sequence.matcher else None
        ends = self._ends(sampling)
        return Row(sampling, sequence.generator, sequence.tokens, prompt, ends, forbidden)

    def _ends(self, sampling: Sampling) -> frozenset[int]:
        """Return the tokens that end an answer."""
        return sampling.stop_token_ids if sampling.ignore_eos else self.ends | sampling.stop_token_ids

    def _unanswered(self, sequence: Sequence) -> Chunk:
        """Return the end of a request that wants its prompt read and no token of an answer."""
        chunk = Chunk("", 0, (), "length", sequence.seconds)
        self.schedule.end(sequence, keep=True)
        return _with_prompt(chunk, sequence)

    def _name_prompt(self, sequence: Sequence, logits: torch.Tensor) -> None:
        """Note how likely the prompt's tokens were that follow the ones of this step.

        Args:
            logits: (tokens of this step, vocabulary).
        """
        tokens, first = sequence.tokens, sequence.computed
        if first == 0:
            sequence.prompt.append(TokenLogprob(self.names[tokens[0]], None))
        following = tokens[first + 1 : first + 1 + len(logits)]
        choices = with_logprobs(logits[: len(following)], following, sequence.generation.sampling)
        sequence.prompt += map(self._named, choices)

    def _named(self, choice: Choice) -> TokenLogprob:
        top = tuple((self.names[token], value) for token, value in choice.top)
        return TokenLogprob(self.names[choice.token], choice.logprob, top)


def _with_prompt(chunk: Chunk, sequence: Sequence) -> Chunk:
    """Return the last chunk of an answer with the tokens of its prompt."""
    return replace(chunk, prompt_tokens=len(sequence.generation.prompt), cached_tokens=sequence.cached)
