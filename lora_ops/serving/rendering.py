"""Answers as OpenAI's clients read them: whole, or as server-sent events."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_ops.engines.protocol import TokenLogprob
from lora_ops.serving.answering import Ask, Piece
from lora_ops.serving.errors import ApiError
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

    def usage(self) -> bytes:
        """The event with the tokens, after the last piece."""


@dataclass
class _Head:
    """What every response and event of one answer says.

    Args:
        ask: what was asked for.
        every_usage: whether each event says how many tokens there were so far.
    """

    ask: Ask
    every_usage: bool = False
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

    def tokens(self) -> dict[str, int]:
        """Tokens read, and written so far."""
        read = sum(map(len, self.ask.prompts))
        return {
            "prompt_tokens": read,
            "completion_tokens": self.written,
            "total_tokens": read + self.written,
        }

    def usage(self) -> bytes:
        """The event with the tokens, after the last piece."""
        return self._event([], {"usage": self.tokens()})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> bytes:
        return sse({**self.head, "object": self.object, "choices": choices, **(more or {})})

    def _piece(self, piece: Piece, choice: dict[str, Any]) -> bytes:
        self.written += piece.chunk.tokens
        more = {"usage": self.tokens()} if self.every_usage else None
        return self._event([{"index": piece.index, "finish_reason": piece.chunk.finish, **choice}], more)


@dataclass
class ChatRendering(_Head):
    """/v1/chat/completions."""

    prefix: str = "chatcmpl"
    object: str = "chat.completion.chunk"

    def whole(self, pieces: Sequence[Piece]) -> ChatAnswer:
        """All pieces as one response."""
        self.written = sum(piece.chunk.tokens for piece in pieces)
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
        logprobs = _chat_logprobs(chunk.logprobs).model_dump() if self._wants_logprobs else None
        return self._piece(piece, {"delta": delta, "logprobs": logprobs})

    @property
    def _wants_logprobs(self) -> bool:
        return self.ask.sampling.logprobs is not None


@dataclass
class CompletionRendering(_Head):
    """/v1/completions."""

    prefix: str = "cmpl"
    object: str = "text_completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._lengths: dict[int, int] = {}

    def whole(self, pieces: Sequence[Piece]) -> CompletionAnswer:
        """All pieces as one response."""
        self.written = sum(piece.chunk.tokens for piece in pieces)
        choices = []
        for index, chunks in _by_choice(pieces):
            logprobs = tuple(one for chunk in chunks for one in chunk.logprobs)
            choices.append(
                CompletionChoice(
                    index=index,
                    text="".join(chunk.text for chunk in chunks),
                    logprobs=_completion_logprobs(logprobs, 0) if self._wants_logprobs else None,
                    finish_reason=chunks[-1].finish or "length",
                )
            )
        return CompletionAnswer(**self.head, choices=choices, usage=Usage(**self.tokens()))

    def opening(self, count: int) -> list[bytes]:
        """None: this endpoint's answers begin with their text."""
        return []

    def event(self, piece: Piece) -> bytes:
        """One piece as an event; offsets of its tokens count from the answer's beginning."""
        logprobs = None
        if self._wants_logprobs:
            offset = self._lengths.get(piece.index, 0)
            logprobs = _completion_logprobs(piece.chunk.logprobs, offset).model_dump()
            self._lengths[piece.index] = offset + sum(len(one.token) for one in piece.chunk.logprobs)
        return self._piece(piece, {"text": piece.chunk.text, "logprobs": logprobs})

    @property
    def _wants_logprobs(self) -> bool:
        return self.ask.sampling.logprobs is not None


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


def _chat_logprobs(tokens: tuple[TokenLogprob, ...]) -> ChatLogprobs:
    """Log probabilities as chat completions have them."""
    return ChatLogprobs(
        content=[
            ChatLogprob(
                token=one.token,
                logprob=one.logprob,
                bytes=list(one.token.encode()),
                top_logprobs=[Alternative(token=t, logprob=p, bytes=list(t.encode())) for t, p in one.top],
            )
            for one in tokens
        ]
    )


def _completion_logprobs(tokens: tuple[TokenLogprob, ...], offset: int) -> CompletionLogprobs:
    """Log probabilities as completions have them; the first token begins at character `offset`."""
    offsets = []
    for one in tokens:
        offsets.append(offset)
        offset += len(one.token)
    return CompletionLogprobs(
        tokens=[one.token for one in tokens],
        token_logprobs=[one.logprob for one in tokens],
        top_logprobs=[_by_token(one.top) for one in tokens],
        text_offset=offsets,
    )


def _by_token(top: tuple[tuple[str, float], ...]) -> dict[str, float]:
    # Tokens that are parts of a character can look the same: the likeliest one stands for them.
    best: dict[str, float] = {}
    for token, logprob in top:
        best.setdefault(token, logprob)
    return best
