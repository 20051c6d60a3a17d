"""POST /v1/chat/completions and /v1/completions, as OpenAI and vLLM have them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.background import BackgroundTask

from lora_ops.engines.protocol import ToolChat
from lora_ops.rollout.assignment import Requester
from lora_ops.serving.auth import allowed
from lora_ops.serving.chat_turns import SystemPrompt, chat_turns
from lora_ops.serving.errors import ApiError, too_long
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.middleware import until_disconnected
from lora_ops.serving.rendering import ChatRendering, CompletionRendering, Rendering, provenance
from lora_ops.serving.request_schemas import ChatRequest, CompletionRequest, StreamOptions
from lora_ops.serving.requests import (
    SHADOW_COPY,
    AnswerChunk,
    AnswerRequest,
    RequestStats,
    held_to_labels,
    named_user,
    requester,
)
from lora_ops.serving.response_schemas import ChatAnswer, CompletionAnswer
from lora_ops.serving.router import NotServed, Route
from lora_ops.serving.sending import Stream, collected, events, first, rendered
from lora_ops.serving.tokenization import SHORT_TEXT, TURN
from lora_ops.serving.tool_chats import tool_chat, tools_text

# Probabilities of one answer, which take up to 1 KB each until it is sent.
MOST_NAMED = 500_000


def add_answers(app: FastAPI, gateway: Gateway) -> None:
    """Add both endpoints to the application."""

    @app.post("/v1/chat/completions", response_model=ChatAnswer)
    async def chat(
        http: Request, body: ChatRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Answer a chat, with the system prompt and the template that the adapter was trained with.

        Its system prompt comes first where the chat has none. Its template makes the text of a user's message
        out of `columns`; where it is more than one bare column, a message with `content` instead needs
        `content_is`. Tools are for an engine that has them (`serving.openai.tools`).
        """
        route, whose = await _routed(gateway, http, body, who)
        content_is = body.content_is or gateway.settings.content_is(route.tenant)
        turns, system = chat_turns(body.messages, route, content_is)
        choice = body.tool_choice.as_json if body.tool_choice else "auto"
        parallel = body.parallel_tool_calls is not False
        tools = tool_chat(body.messages, turns, body.tools, gateway.engine, choice, parallel)
        # All messages are one prompt, so that together they must fit.
        texts, asked = ["".join(text for _, text in turns)], [f"{role}: {text}" for role, text in turns]
        if tools:
            texts.append(tools_text(tools))
            asked.append(texts[-1])
        request = _new_request(gateway, http, "chat", body, who, route, whose, system, "\n".join(asked), tools)

        def encode() -> tuple[tuple[int, ...], ...]:
            tokenization = gateway.tokenization
            return (tokenization.tool_chat(tools) if tools else tokenization.chat(turns),)

        def read_again(other: Route) -> tuple[tuple[int, ...], ...]:
            return (gateway.tokenization.chat(chat_turns(body.messages, other, content_is)[0]),)

        size = sum(map(len, texts)) + TURN * len(turns)
        request = await _read(gateway, http, request, body, texts, size, encode)
        request = request if tools else replace(request, read_again=read_again)
        rendering = ChatRendering(request, body.stream_options or StreamOptions())
        return await _respond(gateway, http, body, request, rendering)

    @app.post("/v1/completions", response_model=CompletionAnswer)
    async def completions(
        http: Request, body: CompletionRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Continue one or more texts, or lists of token ids."""
        route, whose = await _routed(gateway, http, body, who)
        tokenization = gateway.tokenization

        def encode() -> tuple[tuple[int, ...], ...]:
            return tuple(
                tokenization.text(one) if isinstance(one, str) else tokenization.check(one)
                for one in body.prompts
            )

        def show() -> tuple[str, ...]:
            return tuple(one if isinstance(one, str) else tokenization.as_text(one) for one in body.prompts)

        text = "\n".join(one for one in body.prompts if isinstance(one, str))
        request = _new_request(gateway, http, "completions", body, who, route, whose, "none", text)
        size, echo = sum(map(len, body.prompts)), show if body.echo else None
        request = await _read(gateway, http, request, body, body.prompts, size, encode, echo)
        rendering = CompletionRendering(request, body.stream_options or StreamOptions())
        return await _respond(gateway, http, body, request, rendering)


async def _routed(
    gateway: Gateway, http: Request, body: ChatRequest | CompletionRequest, who: Caller
) -> tuple[Route, Requester]:
    """Return who answers the request, decided once for all of its answers, and for whom it is."""
    whose = requester(http.headers, who, body.safety_identifier, body.user)
    headers = http.scope["state"]["headers"]
    try:
        route = await gateway.assigned(who, body.model, whose)
    except NotServed as refusal:
        if refusal.route:
            headers |= provenance(refusal.route)
        raise
    headers |= provenance(route)
    return route, whose


def _new_request(
    gateway: Gateway,
    http: Request,
    endpoint: Literal["chat", "completions"],
    body: ChatRequest | CompletionRequest,
    who: Caller,
    route: Route,
    whose: Requester,
    system: SystemPrompt,
    text: str,
    tools: ToolChat | None = None,
) -> AnswerRequest:
    """Return the client's call once it is routed, before its prompt is read."""
    state = http.scope["state"]
    sampling = body.sampling(
        gateway.settings.default_max_tokens if body.most_tokens is None else body.most_tokens, gateway.settings
    )
    if route.tenant and gateway.settings.tenant(route.tenant).labels_only:
        sampling = held_to_labels(sampling, route, tools=tools is not None)
    request = AnswerRequest(
        request_id=state["request_id"],
        endpoint=endpoint,
        caller=who,
        model=body.model,
        route=route,
        prompts=(),
        n=body.n or 1,
        sampling=sampling,
        streamed=bool(body.stream),
        system_prompt=system,
        text=text,
        started=state["started"],
        trace_parent=http.headers.get("traceparent"),
        cache_salt=body.cache_salt,
        user=named_user(http.headers, body.safety_identifier, body.user),
        unit=whose.unit,
        chat=tools,
        is_copy=SHADOW_COPY in http.headers,
    )
    state["headers"]["x-lora-ops-system-prompt"] = system
    state["limits"] = lambda: gateway.answering.limits(request.tenant)
    state["logged"] |= {"tenant": request.tenant, "adapter": route.name, "route": route.decision}
    return request


async def _read(
    gateway: Gateway,
    http: Request,
    request: AnswerRequest,
    body: ChatRequest | CompletionRequest,
    texts: Sequence[str | Sequence[int]],
    size: int,
    encode: Callable[[], tuple[tuple[int, ...], ...]],
    show: Callable[[], tuple[str, ...]] | None = None,
) -> AnswerRequest:
    """Return `request` with its prompts' tokens, which the tenant's allowance pays for, read or refused.

    Args:
        texts: of the prompts, or their tokens.
        size: characters that are tokenized, and tokens.
        show: gives the prompts' texts, where the answer begins with them.
    """
    limit = gateway.engine.context_length
    param = "messages" if request.endpoint == "chat" else "prompt"
    with gateway.answering.reading(request, size) as place:
        # A text that can't fit is refused unread; tokens that a client sends are counted below.
        longest = max((len(one) for one in texts if isinstance(one, str)), default=0)
        least = gateway.tokenization.least_tokens(longest)
        if least > limit:
            raise too_long(param, f"a prompt of {longest:,} characters, {least} tokens or more", limit)
        reading = gateway.tokenizing.run(request.tenant, size, encode)
        # A short text is read before a client can go away.
        async with asyncio.timeout_at(gateway.answering.deadline(request)):
            prompts = await (reading if size <= SHORT_TEXT else until_disconnected(http, reading))
        longest = max(map(len, prompts))
        gateway.tokenization.check(body.named_tokens)
        room = limit - longest
        wanted = (
            min(gateway.settings.default_max_tokens, room) if body.most_tokens is None else body.most_tokens
        )
        if wanted > room or (room < 1 and wanted != 0):
            asked = f" and {body.most_tokens} tokens of answer" if body.most_tokens else ""
            raise too_long(param, f"a prompt of {longest}{asked}", limit)
        sampling = replace(request.sampling, max_tokens=wanted)
        request = replace(request, prompts=prompts, sampling=sampling, place=place)
        if request.named > MOST_NAMED:
            raise ApiError(
                400,
                f"This answer may have {request.named:,} probabilities, and {MOST_NAMED:,} fit into one: ask "
                "for fewer alternatives, tokens or prompts at once.",
                code="request_too_large",
                param="logprobs",
            )
        if show:
            # Only tokens are turned into text again.
            size = sum(len(one) for one in texts if not isinstance(one, str))
            request = replace(request, echoes=await gateway.tokenizing.run(request.tenant, size, show))
    return request


async def _respond(
    gateway: Gateway,
    http: Request,
    body: ChatRequest | CompletionRequest,
    request: AnswerRequest,
    rendering: Rendering,
) -> Response:
    stats = RequestStats()
    chunks = gateway.answering.answer(request, stats)
    after = partial(gateway.after_answer.start, request, stats)
    try:
        return await _sent(gateway, http, body, request, rendering, chunks, after)
    except BaseException:
        if request.place:  # the answer ends its place itself, unless it never began
            request.place.end()
        raise


async def _sent(
    gateway: Gateway,
    http: Request,
    body: ChatRequest | CompletionRequest,
    request: AnswerRequest,
    rendering: Rendering,
    chunks: AsyncGenerator[AnswerChunk, None],
    after: Callable[[], Awaitable[None]],
) -> Response:
    """Return the answer, whole or as a stream; `after` is called once its last byte has left."""
    if not body.stream:
        whole = await until_disconnected(http, collected(chunks))
        text = await rendered(whole, lambda: rendering.whole(whole).model_dump_json())
        return Response(text, media_type="application/json", background=BackgroundTask(after))
    # The first chunk decides the status, which can't be changed once the stream has begun.
    opening = await until_disconnected(http, first(chunks))
    sent = events(opening, chunks, rendering, len(request.costs))
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    # Whoever reads slowly has as long for the end of an answer as for sending a body.
    deadline = gateway.answering.deadline(request) + gateway.settings.body_timeout_seconds
    return Stream(sent, deadline, headers, after)
