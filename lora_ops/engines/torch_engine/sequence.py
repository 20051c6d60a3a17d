"""One answer on its way through the batch."""

from dataclasses import dataclass, field

import torch

from lora_ops.engines.protocol import Generation, TokenLogprob
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
