"""Answers as OpenAI's clients read them: whole, or as server-sent events."""

import codecs
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_ops.engines.protocol import Chunk, TokenLogprob, ToolCallPart
from lora_ops.serving.errors import ApiError
from lora_ops.serving.request_schemas import StreamOptions
from lora_ops.serving.requests import AnswerChunk, AnswerRequest
from lora_ops.serving.response_schemas import (
    Alternative,
    AnswerMessage,
    CalledFunction,
    CallingMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprob,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    ToolCall,
    Usage,
)
from lora_ops.serving.router import Route

DONE = b"data: [DONE]\n\n"
FALLBACK_HEADER = "x-lora-ops-fallback"


class Rendering(Protocol):
    """One endpoint's way of writing an answer."""

    def whole(self, chunks: Sequence[AnswerChunk]) -> ChatAnswer | CompletionAnswer:
        """All chunks of an answer as one response."""

    def opening(self, count: int) -> list[bytes]:
        """The events before the first chunk of `count` answers."""

    def event(self, chunk: AnswerChunk) -> bytes:
        """One chunk as an event."""

    def closing(self) -> list[bytes]:
        """The events after the last chunk."""


@dataclass
class _Head:
    """What every response and event of one answer says.

    Args:
        request: what the client asks for.
        options: what a stream says besides the text.
    """

    request: AnswerRequest
    options: StreamOptions = field(default_factory=StreamOptions)
    prefix: str = ""
    object: str = ""

    def __post_init__(self) -> None:
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{self.request.request_id}",
            "created": int(time.time()),
            "model": self.request.route.name,
            "system_fingerprint": fingerprint(self.request),
        }
        self.written = 0
        self._cached: dict[int, int | None] = {}  # tokens of each prompt that the engine had kept

    @property
    def _wants_logprobs(self) -> bool:
        return self.request.sampling.logprobs is not None

    def tokens(self) -> dict[str, Any]:
        """Tokens read, and written so far; of these read, those that the engine had kept, where it knows."""
        read = sum(map(len, self.request.prompts))
        cached = [one for one in self._cached.values() if one is not None]
        return {
            "prompt_tokens": read,
            "completion_tokens": self.written,
            "total_tokens": read + self.written,
            "prompt_tokens_details": {"cached_tokens": sum(cached)} if cached else None,
        }

    def _count(self, chunk: AnswerChunk) -> None:
        self.written += chunk.content.tokens
        # A prompt counts once, however many answers it has.
        if chunk.content.finish and chunk.index % self.request.n == 0:
            self._cached[chunk.index] = chunk.content.cached_tokens

    def closing(self) -> list[bytes]:
        """Return the event with the tokens, where the client wants it."""
        return [self._event([], self.tokens())] if self.options.include_usage else []

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        # A client that asks for the usage finds the field in every event.
        told = self.options.include_usage or self.options.continuous_usage_stats
        more = {"usage": usage} if told else {}
        return sse({**self.head, "object": self.object, "choices": choices, **more})

    def _chunk_event(self, chunk: AnswerChunk, choice: dict[str, Any]) -> bytes:
        self._count(chunk)
        usage = self.tokens() if self.options.continuous_usage_stats else None
        return self._event([{"index": chunk.index, "finish_reason": chunk.content.finish, **choice}], usage)


@dataclass
class ChatRendering(_Head):
    """/v1/chat/completions."""

    prefix: str = "chatcmpl"
    object: str = "chat.completion.chunk"

    def whole(self, chunks: Sequence[AnswerChunk]) -> ChatAnswer:
        """All chunks as one response."""
        for chunk in chunks:
            self._count(chunk)
        choices = []
        for index, contents in _by_choice(chunks):
            logprobs = tuple(one for content in contents for one in content.logprobs)
            choices.append(
                ChatChoice(
                    index=index,
                    message=_message(contents),
                    logprobs=_chat_logprobs(logprobs) if self._wants_logprobs else None,
                    finish_reason=contents[-1].finish or "length",
                )
            )
        return ChatAnswer(**self.head, choices=choices, usage=Usage(**self.tokens()))

    def opening(self, count: int) -> list[bytes]:
        """One event for each answer that says whose turn of the chat it is."""
        delta = {"role": "assistant", "content": ""}
        return [
            self._event([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
            for index in range(count)
        ]

    def event(self, chunk: AnswerChunk) -> bytes:
        """One chunk as an event."""
        content = chunk.content
        delta: dict[str, Any] = {}
        if content.text or not (content.finish or content.tool_calls):
            delta["content"] = content.text
        if content.tool_calls:
            delta["tool_calls"] = [_call_delta(one) for one in content.tool_calls]
        logprobs = _chat_logprobs(content.logprobs) if self._wants_logprobs else None
        told = logprobs.model_dump() if logprobs else None
        return self._chunk_event(chunk, {"delta": delta, "logprobs": told})


@dataclass
class CompletionRendering(_Head):
    """/v1/completions."""

    prefix: str = "cmpl"
    object: str = "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._offsets: dict[int, _Offsets] = {}

    def whole(self, chunks: Sequence[AnswerChunk]) -> CompletionAnswer:
        """All chunks as one response."""
        for chunk in chunks:
            self._count(chunk)
        choices = []
        for index, contents in _by_choice(chunks):
            logprobs = tuple(one for content in contents for one in (*content.prompt, *content.logprobs))
            choices.append(
                CompletionChoice(
                    index=index,
                    text=self._echoed(index) + "".join(content.text for content in contents),
                    logprobs=_completion_logprobs(logprobs, _Offsets()) if self._wants_logprobs else None,
                    finish_reason=contents[-1].finish or "length",
                )
            )
        return CompletionAnswer(**self.head, choices=choices, usage=Usage(**self.tokens()))

    def opening(self, count: int) -> list[bytes]:
        """None: this endpoint's answers begin with their text."""
        return []

    def event(self, chunk: AnswerChunk) -> bytes:
        """One chunk as an event; offsets of its tokens count from the beginning of all text."""
        logprobs, before = None, ""
        if chunk.index not in self._offsets:  # its first event
            self._offsets[chunk.index] = _Offsets()
            before = self._echoed(chunk.index)
        if self._wants_logprobs:
            named = (*chunk.content.prompt, *chunk.content.logprobs)
            logprobs = _completion_logprobs(named, self._offsets[chunk.index]).model_dump()
        return self._chunk_event(chunk, {"text": before + chunk.content.text, "logprobs": logprobs})

    def _echoed(self, index: int) -> str:
        """Return the prompt of an answer where the client wants to see it before the answer."""
        return self.request.echoes[index // self.request.n] if self.request.echoes else ""


def fingerprint(request: AnswerRequest) -> str:
    """Adapter version and digest, base model and digest, route decision, in one text."""
    base = request.route.base_model
    mine = f"{request.route.name}:{request.route.digest[:12]}/" if request.route.version else ""
    return f"{mine}{base.id}:{base.sha256[:12]}/{request.route.decision}"


def provenance(route: Route) -> dict[str, str]:
    """The response headers that say who answers and why, or who would have."""
    headers = {
        "x-lora-ops-adapter": route.name,
        "x-lora-ops-digest": route.digest,
        "x-lora-ops-base-model": route.base_model.id,
        "x-lora-ops-route": route.decision,
        "x-lora-ops-epoch": str(route.epoch),
    }
    return headers | ({FALLBACK_HEADER: route.fallback} if route.fallback else {})


def failure(error: ApiError) -> bytes:
    """An error after the stream has begun."""
    return sse(error.body())


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _by_choice(chunks: Sequence[AnswerChunk]) -> list[tuple[int, list[Chunk]]]:
    contents: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        contents.setdefault(chunk.index, []).append(chunk.content)
    return sorted(contents.items())


def _message(contents: Sequence[Chunk]) -> AnswerMessage | CallingMessage:
    """Return an answer's text and, where it has some, its calls."""
    text = "".join(content.text for content in contents)
    calls: dict[int, list[ToolCallPart]] = {}
    for one in (part for content in contents for part in content.tool_calls):
        calls.setdefault(one.index, []).append(one)
    if not calls:
        return AnswerMessage(content=text)
    return CallingMessage(
        content=text or None, tool_calls=[_whole_call(parts) for _, parts in sorted(calls.items())]
    )


def _whole_call(parts: Sequence[ToolCallPart]) -> ToolCall:
    arguments = "".join(one.arguments for one in parts)
    return ToolCall(
        id=parts[0].id or "", function=CalledFunction(name=parts[0].name or "", arguments=arguments)
    )


def _call_delta(part: ToolCallPart) -> dict[str, Any]:
    """Return a part of a call as OpenAI streams it: id, type and name once, then arguments."""
    if part.id is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def _chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs | None:
    """Return log probabilities as chat completions have them, or None where the engine left one out.

    OpenAI's schema has no null for a single token of a chat. A sum over the other tokens would look like that
    of the whole answer, so all of them are left out.
    """
    known = [(one, one.logprob) for one in tokens if one.logprob is not None]
    if len(known) < len(tokens):
        return None
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=_shown(one.token),
                logprob=logprob,
                bytes=list(one.token),
                top_logprobs=[Alternative(token=_shown(t), logprob=p, bytes=list(t)) for t, p in one.top],
            )
            for one, logprob in known
        ]
    )


class _Offsets:
    """Where tokens begin in the text, in characters; a part of a character begins where that does."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def next(self, token: bytes) -> int:
        """Return where this token begins, which follows those before."""
        begins = self._characters
        self._characters += len(self._decoder.decode(token))
        return begins


def _completion_logprobs(tokens: Sequence[TokenLogprob], offsets: _Offsets) -> CompletionLogprobs:
    """Log probabilities as completions have them."""
    return CompletionLogprobs(
        tokens=[_shown(one.token) for one in tokens],
        token_logprobs=[one.logprob for one in tokens],
        top_logprobs=[_by_token(one) for one in tokens],
        text_offset=[offsets.next(one.token) for one in tokens],
    )


def _by_token(one: TokenLogprob) -> dict[str, float] | None:
    """Return the alternatives and the token itself, which may be none of them, as OpenAI does."""
    alternatives = {_shown(token): logprob for token, logprob in one.top}
    if one.logprob is None:
        return alternatives or None
    return alternatives | {_shown(one.token): one.logprob}


def _shown(token: bytes) -> str:
    """Return a token as text; a part of a character is written as its bytes, so that no two look alike."""
    return token.decode(errors="backslashreplace")
