"""What an engine does: answer prompts from one base model, each with an adapter of its own or with none.

Two engines do it: `lora_ops.engines.torch_engine` in this process, `lora_ops.engines.openai_engine` through any
OpenAI-compatible server. The gateway knows this file only.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Structure:
    """The form that an answer must have.

    Attributes:
        kind: choice, one of several texts; regex; json, a JSON schema; grammar, in Lark's notation.
        text: the regex, the schema, the grammar, or a list of the texts in JSON.
    """

    kind: Literal["choice", "regex", "json", "grammar"]
    text: str


def one_of(texts: Sequence[str]) -> Structure:
    """Return the form of an answer that is one of these texts."""
    return Structure("choice", json.dumps(list(texts)))


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_tokens: how many at most; 0 reads the prompt and answers nothing.
        temperature: 0 is greedy, the most likely token each time.
        top_p: keep the most likely tokens whose probabilities add up to this (0 < top_p <= 1).
        seed: the same seed and prompt give the same tokens on one engine; None draws one.
        stop: texts before which the answer ends; they are not part of it.
        logprobs: None for none, else how many alternatives to name beside each chosen token (0 to 20).
        top_k: keep this many of the most likely tokens; 0 keeps all.
        min_p: keep tokens that are at least this likely, as a part of the most likely one's probability.
        presence_penalty: is taken off the logit of each token that the answer has already.
        frequency_penalty: the same, once for each time.
        repetition_penalty: divides the positive logit of each token that prompt or answer has already, and
            multiplies a negative one; 1 changes nothing.
        logit_bias: what is added to the logits of single tokens.
        stop_token_ids: tokens that end the answer, besides the model's own.
        min_tokens: no token and no stop text ends the answer before it has so many tokens.
        ignore_eos: the model's own end tokens end nothing.
        structure: the form that the answer must have; None: any.
        prompt_logprobs: name each token of the prompt with its probability, too, and `logprobs` alternatives.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_eos: bool = False
    structure: Structure | None = None
    prompt_logprobs: bool = False

    @property
    def penalizes(self) -> bool:
        """Whether tokens that came already are made less or more likely."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


@dataclass(frozen=True)
class ToolChat:
    """A chat with tools, for an engine that puts chats into the model's form and finds the calls in an answer.

    Attributes:
        messages: as OpenAI has them; each content is one text, each call's arguments are a JSON text.
        tools: as OpenAI has them; may be empty where earlier turns called some.
        choice: none, auto, required, or OpenAI's object that names the function to call.
        parallel: an answer may make several calls.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    choice: str | dict[str, Any] = "auto"
    parallel: bool = True


@dataclass(frozen=True)
class Generation:
    """One answer that is asked for.

    Attributes:
        id: for logs.
        prompt: token ids of the base model's tokenizer, special tokens included.
        adapter: the name that `Engine.load` was given; None is the base model itself.
        tenant: whose prompt it is; what an engine keeps of it helps no other tenant, as a quicker answer
            would tell what was asked.
        cache_salt: what is kept helps only prompts of the tenant that have the same one.
        chat: the same prompt as messages and tools; only for an engine that `takes_tools`.
    """

    id: str
    prompt: tuple[int, ...]
    adapter: str | None
    sampling: Sampling
    tenant: str | None = None
    cache_salt: str | None = None
    chat: ToolChat | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and the most likely ones in its place.

    Attributes:
        token: its text in UTF-8. A token may be a part of a character, so these are bytes.
        logprob: None for the first token of a prompt, which follows nothing, and where the engine names none.
    """

    token: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class ToolCallPart:
    """What is new of one of an answer's calls.

    Attributes:
        index: which call it is, from 0.
        arguments: the next piece of their JSON text.
        id, name: of the call and its function, in its first part and only there.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Chunk:
    """The next piece of an answer; the last one, and only that, has a `finish`.

    Attributes:
        text: what is new, never half a character; may be empty.
        tokens: how many generated tokens it accounts for (an end token that is not shown counts).
        device_seconds: this request's share of the time that the device worked since its last chunk.
        prompt_tokens: as the engine counted them; 0 in all chunks but the last.
        cached_tokens: how many of `prompt_tokens` were kept from an earlier prompt, in the last chunk; None
            where the engine can't tell.
        prompt: of each token of the prompt, in the first chunk, where `Sampling.prompt_logprobs` asks for it.
        tool_calls: what is new of the answer's calls.
    """

    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    device_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int | None = None
    prompt: tuple[TokenLogprob, ...] = ()
    tool_calls: tuple[ToolCallPart, ...] = ()

    @property
    def written(self) -> str:
        """All that the model wrote, calls included, as a person reads it."""
        calls = (f"\n{one.name} {one.arguments}" if one.name else one.arguments for one in self.tool_calls)
        return self.text + "".join(calls)


@dataclass(frozen=True)
class EngineStatus:
    """What an engine is doing now.

    Attributes:
        running: requests in the batch.
        waiting: requests that are not in it yet.
        kv_tokens, kv_capacity: tokens of the KV cache that running requests hold, in whole blocks, and how many
            there are; 0 where the engine can't tell.
        preempted: how often a request gave way because the KV cache was full, since the engine was started.
        adapters: names that are loaded, with the bytes of each.
        busy_seconds: in which it answered or loaded anything since it was made, each second once.
        device: what it computes on.
        devices: how many of them work together on its answers.
    """

    running: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    kv_capacity: int = 0
    preempted: int = 0
    adapters: dict[str, int] = field(default_factory=dict)
    busy_seconds: float = 0.0
    device: Device = "cpu"
    devices: float = 1.0


class EngineError(Exception):
    """The engine can't do what was asked; the text is one sentence for whoever asked."""


class Unsupported(EngineError):
    """This engine doesn't do what the request asks for; the client can leave it out."""


class TooLarge(Unsupported):
    """The request has more bytes than this engine takes."""


class EngineBusy(EngineError):
    """The engine takes no more requests now, and may take the same one later.

    Attributes:
        retry_after: seconds until it is worth trying again at the earliest.
        limited: the engine limits its requests; False: it says that it is overloaded.
    """

    def __init__(self, text: str, retry_after: float, *, limited: bool) -> None:
        super().__init__(text)
        self.retry_after, self.limited = retry_after, limited


class Engine(Protocol):
    """One base model with many adapters; every method is called from one event loop."""

    context_length: int
    """How many tokens prompt and answer may have together."""

    takes_tools: bool
    """Whether it answers a `Generation.chat`."""

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

    async def load(self, name: str, folder: Path, digests: Mapping[str, str] | None = None) -> int:
        """Make the adapter in `folder` (PEFT's two files) answer to `name`, while others generate.

        Args:
            name: of the adapter in this engine.
            folder: where its files are.
            digests: the SHA-256 that each file was verified with; None takes the files as they are.

        Returns:
            How many bytes of memory it takes, 0 where the engine can't tell.

        Raises:
            EngineError: the files don't fit this base model, changed since they were verified, or the name is
                taken by another adapter.
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
