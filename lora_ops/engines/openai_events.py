"""What an OpenAI-compatible server sends, as typed values: its models, its answers, its refusals.

The server is another process, maybe of somebody else. What it sends is checked here once, before anything else
reads it: a wrong type, a missing field or a number that can't be is a `ValueError`.
"""

from dataclasses import replace
from typing import Annotated, Any, Generic, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lora_ops.engines.protocol import Chunk, FinishReason, Generation, TokenLogprob, ToolCallPart
from lora_ops.escaping import shortened
from lora_ops.small_files import parse_json

# How an answer ends that the server could not finish (vLLM's words).
BROKEN_OFF = ("abort", "error")
MOST_ALTERNATIVES = 32  # to a token; 20 can be asked for
MOST_CALLS = 128  # of one answer
LONGEST_TOKEN = 4096  # bytes

Byte = Annotated[int, Field(ge=0, le=255)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Logprob = Annotated[float, Field(allow_inf_nan=False)]
Alternatives = Annotated[dict[str, Logprob | None], Field(max_length=MOST_ALTERNATIVES)]


class _Sent(BaseModel):
    """What a server sends; fields that nobody reads here may have any value."""

    model_config = ConfigDict(extra="ignore", strict=True)


class ModelCard(_Sent):
    """A model that the server has; an adapter has a `parent`."""

    id: str
    parent: str | None = None
    max_model_len: Count | None = None


class ModelList(_Sent):
    """The response of /v1/models."""

    data: list[ModelCard]


class _PromptTokens(_Sent):
    cached_tokens: Count | None = None


class Usage(_Sent):
    """Tokens read, and written so far."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _PromptTokens | None = None


class _CompletionLogprobs(_Sent):
    tokens: Annotated[list[str], Field(fail_fast=True)]
    token_logprobs: Annotated[list[Logprob | None], Field(fail_fast=True)]
    top_logprobs: Annotated[list[Alternatives | None], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _as_many_of_each(self) -> "_CompletionLogprobs":
        lengths = {len(self.tokens), len(self.token_logprobs), len(self.top_logprobs or self.tokens)}
        if len(lengths) > 1:
            raise ValueError("the lists of logprobs differ in length")
        return self

    @property
    def of_tokens(self) -> tuple[TokenLogprob, ...]:
        """One for each token."""
        tops = self.top_logprobs or [None] * len(self.tokens)
        return tuple(
            TokenLogprob(
                token.encode(),
                logprob,
                tuple((one.encode(), p) for one, p in (top or {}).items() if p is not None),
            )
            for token, logprob, top in zip(self.tokens, self.token_logprobs, tops, strict=True)
        )


class _CompletionChoice(_Sent):
    text: str | None
    logprobs: _CompletionLogprobs | None = None
    finish_reason: str | None = None

    @property
    def chunk(self) -> Chunk:
        """What it says, without what an event says of tokens and time."""
        named = self.logprobs.of_tokens if self.logprobs else ()
        return Chunk(self.text or "", 0, named, _finish(self.finish_reason))


class _Alternative(_Sent):
    token: str
    logprob: Logprob
    bytes_: Annotated[list[Byte], Field(fail_fast=True, max_length=LONGEST_TOKEN)] | None = Field(
        None, alias="bytes"
    )

    @property
    def raw(self) -> bytes:
        """Its text; a part of a character only its bytes tell."""
        return self.token.encode() if self.bytes_ is None else bytes(self.bytes_)


class _NamedToken(_Alternative):
    top_logprobs: Annotated[list[_Alternative], Field(max_length=MOST_ALTERNATIVES, fail_fast=True)] = []


class _ChatLogprobs(_Sent):
    content: Annotated[list[_NamedToken], Field(fail_fast=True)] | None = None

    @property
    def of_tokens(self) -> tuple[TokenLogprob, ...]:
        """One for each token."""
        return tuple(
            TokenLogprob(one.raw, one.logprob, tuple((top.raw, top.logprob) for top in one.top_logprobs))
            for one in self.content or ()
        )


class _CalledFunction(_Sent):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(_Sent):
    index: Annotated[int, Field(ge=0, lt=MOST_CALLS)]
    id: str | None = None
    function: _CalledFunction = _CalledFunction()


class _Delta(_Sent):
    content: str | None = None
    tool_calls: Annotated[list[_ToolCall], Field(max_length=MOST_CALLS, fail_fast=True)] | None = None


class _ChatChoice(_Sent):
    delta: _Delta
    logprobs: _ChatLogprobs | None = None
    finish_reason: str | None = None

    @property
    def chunk(self) -> Chunk:
        """What it says, without what an event says of tokens and time."""
        named = self.logprobs.of_tokens if self.logprobs else ()
        calls = tuple(
            ToolCallPart(one.index, one.function.arguments or "", one.id, one.function.name)
            for one in self.delta.tool_calls or ()
        )
        text, finish = self.delta.content or "", _finish(self.finish_reason)
        return Chunk(text, 0, named, finish, tool_calls=calls)


Choice = TypeVar("Choice", _CompletionChoice, _ChatChoice)


class _Event(_Sent, Generic[Choice]):
    """One event of a streamed answer, or the error that ends it."""

    choices: Annotated[list[Choice], Field(max_length=1)] | None = None
    usage: Usage | None = None
    error: Any = None

    @model_validator(mode="after")
    def _says_something(self) -> "_Event[Choice]":
        if self.choices is None and self.error is None:
            raise ValueError("an event without choices")
        return self

    @property
    def failure(self) -> str | None:
        """What the server says of its failure, or None."""
        return None if self.error is None else _message(self.error)


class CompletionEvent(_Event[_CompletionChoice]):
    """An event of /v1/completions."""


class ChatEvent(_Event[_ChatChoice]):
    """An event of /v1/chat/completions."""


class Received:
    """Make an answer's chunks of its events, and hold the server to what was asked for.

    A server that counts no tokens is taken by its pieces: a piece of text is one token at least.
    """

    def __init__(self, generation: Generation) -> None:
        self._asked = generation
        self._written = self._read = self._pieces = self._named = 0
        self._cached: int | None = None
        self._counted = False
        self._last: Chunk | None = None
        self._calls: set[int] = set()

    def add(self, event: CompletionEvent | ChatEvent, device_seconds: float) -> Chunk | None:
        """Return the chunk that an event is; None: it is none, or the last one, which `end` returns.

        Raises:
            ValueError: the server counts backwards, writes more than was asked for, or calls what has no name.
        """
        if not (self._last or event.choices):
            return None  # what a filter says of the prompt
        tokens = self._count(event.usage or Usage())
        if self._last:
            self._last = replace(self._last, tokens=self._last.tokens + tokens)
            return None
        said = event.choices[0].chunk if event.choices else Chunk("", 0)
        self._pieces += bool(said.text or said.tool_calls)
        self._named += len(said.logprobs)
        if max(self._written, self._pieces, self._named) > self._asked.sampling.max_tokens:
            raise ValueError(f"more than the {self._asked.sampling.max_tokens} tokens that were asked for")
        calls = tuple(self._call(one) for one in said.tool_calls)
        chunk = replace(said, tokens=tokens, device_seconds=device_seconds, tool_calls=calls)
        if chunk.finish:
            self._last = chunk
            return None
        return chunk if said.text or calls or said.logprobs or tokens else None

    def _call(self, part: ToolCallPart) -> ToolCallPart:
        """Return a part of a call with its id and name only where it is the first one: clients add them up."""
        if part.index in self._calls:
            return replace(part, id=None, name=None)
        if not (part.id and part.name):
            raise ValueError("a tool call without its id or name")
        self._calls.add(part.index)
        return part

    def _count(self, usage: Usage) -> int:
        """Note an event's counts; return the tokens that are new in it."""
        self._read = self._read if usage.prompt_tokens is None else usage.prompt_tokens
        if usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None:
            self._cached = usage.prompt_tokens_details.cached_tokens
        if usage.completion_tokens is None:
            return 0
        self._counted = True
        new = usage.completion_tokens - self._written
        if new < 0:
            raise ValueError(f"{usage.completion_tokens} tokens after {self._written}")
        self._written = usage.completion_tokens
        return new

    def end(self) -> Chunk:
        """Return the last chunk.

        Raises:
            ValueError: the answer has no end.
        """
        if self._last is None:
            raise ValueError("an answer without its end")
        if not self._counted:
            return replace(self._last, tokens=self._pieces, prompt_tokens=len(self._asked.prompt))
        cached = None if self._cached is None else min(self._cached, len(self._asked.prompt))
        return replace(self._last, prompt_tokens=self._read, cached_tokens=cached)


def refusal(body: bytes) -> str:
    """Return what a server says of a request that it refuses."""
    try:
        return _message(parse_json(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def reason(error: ValueError) -> str:
    """Return what is wrong with an event, without its content."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))
    return str(error)


def _message(error: Any) -> str:
    # It may quote all of a prompt.
    return shortened(str(error["message"] if isinstance(error, dict) and "message" in error else error))


def _finish(reason: str | None) -> FinishReason | None:
    if reason is None:
        return None
    if reason in BROKEN_OFF:
        raise ValueError(f"an answer whose end is '{reason}'")
    return cast(FinishReason, reason) if reason in get_args(FinishReason) else "length"
