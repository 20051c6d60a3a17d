"""One answer on its way through the batch."""

from dataclasses import dataclass, field
from typing import Any

import torch

from lora_ops.engines.protocol import EngineError, Generation, Sampling, TokenLogprob
from lora_ops.engines.torch_engine.decoder import Adapter
from lora_ops.engines.torch_engine.kv_cache import Owner
from lora_ops.engines.torch_engine.structure import Matcher
from lora_ops.engines.torch_engine.text_stream import TextStream


@dataclass(eq=False)
class Sequence:
    """One generation on its way.

    Attributes:
        tokens: of the prompt and of the answer so far.
        limit: how many tokens it may have in the end.
        computed: how many of them the KV cache holds.
        cached: how many of the prompt's tokens the KV cache had when it first joined; None until then.
        blocks: of the KV cache, that hold its tokens in their order; none while it waits.
        number: which one came before it.
        passed: how many sequences have joined that came later, while there was no room for it.
        seconds: device time since the last chunk.
        cancelled: set from any thread; the next step leaves it out.
        prompt: what is known of the prompt's tokens, where that is asked for, until a chunk takes it along.
        matcher: of the form that the answer must have.
        logits: (vocabulary,), of its next token, while the form is still looking for the tokens that may come.
    """

    generation: Generation
    adapter: Adapter | None
    stream: TextStream
    generator: torch.Generator | None
    limit: int
    tokens: list[int]
    computed: int = 0
    cached: int | None = None
    blocks: list[int] = field(default_factory=list)
    number: int = 0
    passed: int = 0
    seconds: float = 0.0
    cancelled: bool = False
    prompt: list[TokenLogprob] = field(default_factory=list)
    matcher: Matcher | None = None
    logits: torch.Tensor | None = None

    @property
    def pending(self) -> int:
        """How many tokens the model has not seen yet."""
        return len(self.tokens) - self.computed

    @property
    def wants_token(self) -> bool:
        """Whether it may have another token."""
        return len(self.tokens) < self.limit

    @property
    def names_prompt(self) -> bool:
        """Whether the prompt is still being read, and its tokens' probabilities are asked for.

        The first token of the answer took them along. From then on the prompt is only read again.
        """
        unread = self.computed < len(self.generation.prompt) == len(self.tokens)
        return unread and self.generation.sampling.prompt_logprobs

    @property
    def tenant(self) -> str | None:
        """Whose it is."""
        return self.generation.tenant

    @property
    def owner(self) -> Owner:
        """Who may start from its KV cache."""
        return Owner((self.generation.tenant, self.generation.cache_salt), self.adapter)

    def start_again(self) -> None:
        """Let it compute all of its tokens once more: its blocks were taken from it.

        Its text, random numbers and form are kept, so that the answer goes on as if nothing had happened.
        """
        self.blocks, self.computed, self.logits = [], 0, None
        self.prompt = []


def started(
    generation: Generation, adapter: Adapter | None, tokenizer: Any, *, vocabulary: int, context_length: int
) -> Sequence:
    """Return the sequence of a generation that a model can answer: its prompt, and no token computed yet.

    Raises:
        EngineError: the prompt is empty or too long, or the request names a token that the model doesn't have.
    """
    prompt, sampling = generation.prompt, generation.sampling
    if not prompt:
        raise EngineError("The prompt is empty.")
    if len(prompt) + min(sampling.max_tokens, 1) > context_length:
        raise EngineError(
            f"The prompt has {len(prompt)} tokens; with an answer there is room for {context_length}."
        )
    named = [*prompt, *sampling.stop_token_ids, *(token for token, _ in sampling.logit_bias)]
    if min(named) < 0 or max(named) >= vocabulary:
        raise EngineError(f"The request names a token that is not one of the model's {vocabulary}.")
    if sampling.max_tokens < 0:
        raise EngineError("max_tokens must be at least 0.")
    limit = min(len(prompt) + sampling.max_tokens, context_length)
    stream = TextStream(tokenizer, prompt, sampling.stop)
    return Sequence(generation, adapter, stream, _generator(sampling), limit, list(prompt))


def _generator(sampling: Sampling) -> torch.Generator | None:
    if sampling.temperature <= 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator
