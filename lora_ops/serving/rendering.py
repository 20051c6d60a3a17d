"""Answers as OpenAI's clients read them: whole, or as server-sent events."""

import codecs
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lora_ops.engines.protocol import TokenLogprob
from lora_ops.serving.answering import Piece
from lora_ops.serving.ask import Ask
from lora_ops.serving.errors import ApiError
from lora_ops.serving.request_schemas import StreamOptions
from lora_ops.serving.response_schemas import (
    Alternative,
    AnswerMessage,
    ChatAnswer,
    ChatChoice,
    ChatLogprob,
    ChatLogprobs,
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)

DONE = b"data: [DONE]\n\n"


class Rendering(Protocol):
    """One endpoint's way of writing an answer."""

    def whole(self, pieces: Sequence[Piece]) -> ChatAnswer | CompletionAnswer:
        """All pieces of an answer as one response."""

    def opening(self, count: int) -> list[bytes]:
        """The events before the first piece of `count` answers."""

    def event(self, piece: Piece) -> bytes:
        """One piece as an event."""

    def closing(self) -> list[bytes]:
        """The events after the last piece."""


@dataclass
class _Head:
    """What every response and event of one answer says.

    Args:
        ask: what was asked for.
        options: what a stream says besides the text.
    """

    ask: Ask
    options: StreamOptions = field(default_factory=StreamOptions)
    prefix: str = ""
    object: str = ""

    def __post_init__(self) -> None:
        self.head: dict[str, Any] = {
            "id": f"{self.prefix}-{self.ask.request_id}",
            "created": int(time.time()),
            "model": self.ask.route.name,
            "system_fingerprint": fingerprint(self.ask),
        }
        self.written = 0
        self._cached: dict[int, int | None] = {}  # tokens of each prompt that the engine had kept

    @property
    def _wants_logprobs(self) -> bool:
        return self.ask.sampling.logprobs is not None

    def tokens(self) -> dict[str, Any]:
        """Tokens read, and written so far; of these read, those that the engine had kept, where it knows."""
        read = sum(map(len, self.ask.prompts))
        cached = [one for one in self._cached.values() if one is not None]
        return {
            "prompt_tokens": read,
            "completion_tokens": self.written,
            "total_tokens": read + self.written,
            "prompt_tokens_details": {"cached_tokens": sum(cached)} if cached else None,
        }

    def _count(self, piece: Piece) -> None:
        self.written += piece.chunk.tokens
        if piece.chunk.finish and piece.index % self.ask.n == 0:  # a prompt counts once, however many answers
            self._cached[piece.index] = piece.chunk.cached_tokens

    def closing(self) -> list[bytes]:
        """Return the event with the tokens, where the client wants it."""
        return [self._event([], self.tokens())] if self.options.include_usage else []

    def _event(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        # A client that asks for the usage finds the field in every event.
        told = self.options.include_usage or self.options.continuous_usage_stats
        more = {"usage": usage} if told else {}
        return sse({**self.head, "object": self.object, "choices": choices, **more})

    def _piece(self, piece: Piece, choice: dict[str, Any]) -> bytes:
        self._count(piece)
        usage = self.tokens() if self.options.continuous_usage_stats else None
        return self._event([{"index": piece.index, "finish_reason": piece.chunk.finish, **choice}], usage)


@dataclass
class ChatRendering(_Head):
    """/v1/chat/completions."""

    prefix: str = "chatcmpl"
    object: str = "chat.completion.chunk"

    def whole(self, pieces: Sequence[Piece]) -> ChatAnswer:
        """All pieces as one response."""
        for piece in pieces:
            self._count(piece)
        choices = []
        for index, chunks in _by_choice(pieces):
            logprobs = tuple(one for chunk in chunks for one in chunk.logprobs)
            choices.append(
                ChatChoice(
                    index=index,
                    message=AnswerMessage(content="".join(chunk.text for chunk in chunks)),
                    logprobs=_chat_logprobs(logprobs) if self._wants_logprobs else None,
                    finish_reason=chunks[-1].finish or "length",
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

    def event(self, piece: Piece) -> bytes:
        """One piece as an event."""
        chunk = piece.chunk
        delta = {"content": chunk.text} if chunk.text or not chunk.finish else {}
        logprobs = _chat_logprobs(chunk.logprobs) if self._wants_logprobs else None
        told = logprobs.model_dump() if logprobs else None
        return self._piece(piece, {"delta": delta, "logprobs": told})


@dataclass
class CompletionRendering(_Head):
    """/v1/completions."""

    prefix: str = "cmpl"
    object: str = "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._offsets: dict[int, _Offsets] = {}

    def whole(self, pieces: Sequence[Piece]) -> CompletionAnswer:
        """All pieces as one response."""
        for piece in pieces:
            self._count(piece)
        choices = []
        for index, chunks in _by_choice(pieces):
            logprobs = tuple(one for chunk in chunks for one in (*chunk.prompt, *chunk.logprobs))
            choices.append(
                CompletionChoice(
                    index=index,
                    text=self._echoed(index) + "".join(chunk.text for chunk in chunks),
                    logprobs=_completion_logprobs(logprobs, _Offsets()) if self._wants_logprobs else None,
                    finish_reason=chunks[-1].finish or "length",
                )
            )
        return CompletionAnswer(**self.head, choices=choices, usage=Usage(**self.tokens()))

    def opening(self, count: int) -> list[bytes]:
        """None: this endpoint's answers begin with their text."""
        return []

    def event(self, piece: Piece) -> bytes:
        """One piece as an event; offsets of its tokens count from the beginning of all text."""
        logprobs, before = None, ""
        if piece.index not in self._offsets:  # its first event
            self._offsets[piece.index] = _Offsets()
            before = self._echoed(piece.index)
        if self._wants_logprobs:
            named = (*piece.chunk.prompt, *piece.chunk.logprobs)
            logprobs = _completion_logprobs(named, self._offsets[piece.index]).model_dump()
        return self._piece(piece, {"text": before + piece.chunk.text, "logprobs": logprobs})

    def _echoed(self, index: int) -> str:
        """Return the prompt of an answer where the client wants to see it before the answer."""
        return self.ask.echoes[index // self.ask.n] if self.ask.echoes else ""


def fingerprint(ask: Ask) -> str:
    """Adapter version and digest, base model and digest, route decision, in one text."""
    base = ask.route.base_model
    mine = f"{ask.route.name}:{ask.route.digest[:12]}/" if ask.route.version else ""
    return f"{mine}{base.id}:{base.sha256[:12]}/{ask.route.decision}"


def provenance(ask: Ask) -> dict[str, str]:
    """The response headers that say who answered and why."""
    return {
        "x-lora-ops-adapter": ask.route.name,
        "x-lora-ops-digest": ask.route.digest,
        "x-lora-ops-base-model": ask.route.base_model.id,
        "x-lora-ops-route": ask.route.decision,
        "x-lora-ops-system-prompt": ask.system_prompt,
    }


def failure(error: ApiError) -> bytes:
    """An error after the stream has begun."""
    return sse(error.body())


def sse(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _by_choice(pieces: Sequence[Piece]) -> list[tuple[int, list[Any]]]:
    chunks: dict[int, list[Any]] = {}
    for piece in pieces:
        chunks.setdefault(piece.index, []).append(piece.chunk)
    return sorted(chunks.items())


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
