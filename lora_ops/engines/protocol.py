"""What an engine does: answer prompts from one base model, each with an adapter of its own or with none.

Two engines do it: `lora_ops.engines.torch_engine` in this process, `lora_ops.engines.openai_engine` through any
OpenAI-compatible server. The gateway knows this file only.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_tokens: how many at most, at least 1.
        temperature: 0 is greedy, the most likely token each time.
        top_p: keep the most likely tokens whose probabilities add up to this (0 < top_p <= 1).
        seed: the same seed and prompt give the same tokens on one engine; None draws one.
        stop: texts before which the answer ends; they are not part of it.
        logprobs: None for none, else how many alternatives to name beside each chosen token (0 to 20).
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class Generation:
    """One answer that is asked for.

    Attributes:
        id: for logs.
        prompt: token ids of the base model's tokenizer, special tokens included.
        adapter: the name that `Engine.load` was given; None is the base model itself.
        tenant: whose prompt it is; what an engine keeps of it helps no other tenant, as a quicker answer
            would tell what was asked.
    """

    id: str
    prompt: tuple[int, ...]
    adapter: str | None
    sampling: Sampling
    tenant: str | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A chosen token, the natural logarithm of its probability, and the most likely ones in its place."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Chunk:
    """The next piece of an answer; the last one, and only that, has a `finish`.

    Attributes:
        text: what is new, never half a character; may be empty.
        tokens: how many generated tokens it accounts for (an end token that is not shown counts).
        device_seconds: this request's share of the time that the device worked since its last chunk.
        prompt_tokens: as the engine counted them; 0 in all chunks but the last.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    device_seconds: float = 0.0
    prompt_tokens: int = 0


@dataclass(frozen=True)
class EngineStatus:
    """What an engine is doing now.

    Attributes:
        running: requests in the batch.
        waiting: requests that are not in it yet.
        kv_tokens, kv_capacity: tokens of the KV cache that running requests have reserved, answers yet to come
            included, and how many there are; 0 where the engine can't tell.
        adapters: names that are loaded, with the bytes of each.
    """

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0
    adapters: dict[str, int] = field(default_factory=dict)


class EngineError(Exception):
    """The engine can't do what was asked; the text is one sentence for whoever asked."""


class Engine(Protocol):
    """One base model with many adapters; every method is called from one event loop."""

    context_length: int
    """How many tokens prompt and answer may have together."""

    async def start(self) -> None:
        """Be ready to answer.

        Raises:
            EngineError: the base model can't be loaded, or the server behind can't be reached.
        """

    async def close(self) -> None:
        """Stop; a generation that still runs ends with `EngineError`."""

    async def size(self, folder: Path) -> int:
        """How many bytes of memory the adapter in `folder` would take; 0 where the engine can't tell.

        Raises:
            EngineError: its files can't be read.
        """

    async def load(self, name: str, folder: Path) -> int:
        """Make the adapter in `folder` (PEFT's two files) answer to `name`, while others generate.

        Returns:
            How many bytes of memory it takes, 0 where the engine can't tell.

        Raises:
            EngineError: the files don't fit this base model, or the name is taken by another adapter.
        """

    async def unload(self, name: str) -> None:
        """Forget an adapter; nothing happens when it is not loaded.

        Raises:
            EngineError: a generation still uses it (whoever unloads drains first).
        """

    def generate(self, generation: Generation) -> AsyncIterator[Chunk]:
        """The answer, piece by piece; closing the iterator early cancels the generation and frees its place.

        Raises:
            EngineError: from the first step on: unknown adapter, a prompt that is too long, a broken engine.
        """

    async def healthy(self) -> bool:
        """Whether it can answer now: cheap, never an error, and decided within a few seconds."""

    def status(self) -> EngineStatus:
        """What it is doing now; cheap enough to be asked with every scrape."""
