"""One answer on its way through the batch."""

from dataclasses import dataclass, field

import torch

from lora_ops.engines.protocol import Generation, TokenLogprob
from lora_ops.engines.torch_engine.decoder import Adapter
from lora_ops.engines.torch_engine.extents import Extent
from lora_ops.engines.torch_engine.structure import Matcher
from lora_ops.engines.torch_engine.text_stream import TextStream


@dataclass(eq=False)
class Sequence:
    """One generation on its way.

    Attributes:
        tokens: of the prompt and of the answer so far.
        limit: how many tokens it may have in the end.
        computed: how many of them the KV cache holds.
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
    extent: Extent | None = None
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
        """Whether the prompt is still being read, and its tokens' probabilities are asked for."""
        unread = self.computed < len(self.generation.prompt)
        return unread and self.generation.sampling.prompt_logprobs

    @property
    def reader(self) -> tuple[str | None, str | None]:
        """Who may start from its KV cache: requests of the same tenant with the same cache salt."""
        return self.generation.tenant, self.generation.cache_salt
