"""POST /v1/chat/completions and /v1/completions, as OpenAI and vLLM have them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.background import BackgroundTask

from lora_ops.engines.protocol import ToolChat
from lora_ops.rollout.assignment import Requester
from lora_ops.rollout.gateways import PROBE
from lora_ops.serving.auth import allowed
from lora_ops.serving.chat_turns import SystemPrompt, chat_turns
from lora_ops.serving.errors import ApiError, too_long
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.middleware import until_disconnected
from lora_ops.serving.rendering import (
    FALLBACK_HEADER,
    ChatRendering,
    CompletionRendering,
    Rendering,
    provenance,
)
from lora_ops.serving.request_schemas import ChatRequest, CompletionRequest, StreamOptions
from lora_ops.serving.requests import (
    SHADOW_COPY,
    AnswerChunk,
    AnswerRequest,
    RequestStats,
    held_to_labels,
    named_user,
    payer,
    requester,
)
from lora_ops.serving.response_schemas import ChatAnswer, CompletionAnswer
from lora_ops.serving.router import BY_CLIENT, NotServed, Route
from lora_ops.serving.screening import CONTEXT, require_no_logprobs
from lora_ops.serving.sending import Stream, collected, events, first, rendered
from lora_ops.serving.tokenization import SHORT_TEXT, TURN
from lora_ops.serving.tool_chats import tool_chat, tools_text

# Probabilities of one answer, which take up to 1 KB each until it is sent.
MOST_NAMED = 500_000

T = TypeVar("T")
Tokens = tuple[tuple[int, ...], ...]


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

        def routed(route: Route, whose: Requester) -> _Unread:
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
            text = "\n".join(asked)
            request = _new_request(gateway, http, "chat", body, who, route, whose, system, text, tools)
            if system == "adapter":  # its own first line is nothing that the client said
                request = replace(request, given_from=len(asked[0]) + 1)

            def encode() -> Tokens:
                tokenization = gateway.tokenization
                return (tokenization.tool_chat(tools) if tools else tokenization.chat(turns),)

            messages = body.messages  # a copy keeps this function for minutes, and none of the rest of the body

            def read_again(other: Route) -> Tokens:
                return (gateway.tokenization.chat(chat_turns(messages, other, content_is)[0]),)

            request = request if tools else replace(request, read_again=read_again)
            return _Unread(request, texts, sum(map(len, texts)) + TURN * len(turns), encode)

        rendering = partial(ChatRendering, options=body.stream_options or StreamOptions())
        return await _answered(gateway, http, body, who, routed, rendering)

    @app.post("/v1/completions", response_model=CompletionAnswer)
    async def completions(
        http: Request, body: CompletionRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Continue one or more texts, or lists of token ids."""
        tokenization = gateway.tokenization

        def encode() -> Tokens:
            return tuple(
                tokenization.text(one) if isinstance(one, str) else tokenization.check(one)
                for one in body.prompts
            )

        def show() -> tuple[str, ...]:
            return tuple(one if isinstance(one, str) else tokenization.as_text(one) for one in body.prompts)

        def routed(route: Route, whose: Requester) -> _Unread:
            text = "\n".join(one for one in body.prompts if isinstance(one, str))
            request = _new_request(gateway, http, "completions", body, who, route, whose, "none", text)
            size, echo = sum(map(len, body.prompts)), show if body.echo else None
            return _Unread(request, body.prompts, size, encode, echo)

        rendering = partial(CompletionRendering, options=body.stream_options or StreamOptions())
        return await _answered(gateway, http, body, who, routed, rendering)


@dataclass(frozen=True)
class _Unread:
    """A request whose prompts are not read yet.

    Attributes:
        texts: of the prompts, or their tokens.
        size: characters that are tokenized, and tokens.
        encode: gives the prompts' tokens.
        show: gives the prompts' texts, where the answer begins with them.
    """

    request: AnswerRequest
    texts: Sequence[str | Sequence[int]]
    size: int
    encode: Callable[[], Tokens]
    show: Callable[[], tuple[str, ...]] | None = None


async def _answered(
    gateway: Gateway,
    http: Request,
    body: ChatRequest | CompletionRequest,
    who: Caller,
    routed: Callable[[Route, Requester], _Unread],
    rendering: Callable[[AnswerRequest], Rendering],
) -> Response:
    """Return the answer of whoever answers the request now, or of the version that takes its place meanwhile.

    Args:
        routed: gives the request as a version is asked.
        rendering: writes the answers of a request.
    """
    whose = requester(http.headers, who, body.safety_identifier, body.user)
    unread = routed(await _routed(gateway, http, body, who, whose), whose)
    with gateway.answering.reading(unread.request, unread.size) as place:
        # A short text is read before a client can go away.
        until = _wait if unread.size <= SHORT_TEXT else partial(until_disconnected, http)
        request = replace(await _read(gateway, body, unread, until), place=place)

    async def route_again(before: AnswerRequest) -> AnswerRequest:
        route = await _routed(gateway, http, body, who, whose)
        now = routed(route, whose)
        if before.reads_alike(route):
            sampling = replace(now.request.sampling, max_tokens=before.sampling.max_tokens)
            request = replace(
                now.request,
                prompts=before.prompts,
                echoes=before.echoes,
                contexts=before.contexts,
                sampling=sampling,
            )
        else:
            request = await _read(gateway, body, now, _wait)
        return replace(request, place=before.place, route_again=before.route_again)

    if request.route.decision not in BY_CLIENT:
        request = replace(request, route_again=route_again)
    return await _respond(gateway, http, body, request, rendering)


async def _wait(work: Awaitable[T]) -> T:
    return await work


async def _routed(
    gateway: Gateway, http: Request, body: ChatRequest | CompletionRequest, who: Caller, whose: Requester
) -> Route:
    """Return who answers the request now, decided once for all of its answers."""
    headers = http.scope["state"]["headers"]
    headers.pop(FALLBACK_HEADER, None)
    try:
        route = await gateway.assigned(who, body.model, whose)
    except NotServed as refusal:
        if refusal.route:
            headers |= provenance(refusal.route)
        raise
    headers |= provenance(route)
    return route


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
    require_no_logprobs(sampling, payer(route, who), gateway.settings)
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
        is_probe=PROBE in http.headers,
    )
    state["headers"]["x-lora-ops-system-prompt"] = system
    state["limits"] = lambda: gateway.answering.limits(request.tenant)
    state["logged"] |= {"tenant": request.tenant, "adapter": route.name, "route": route.decision}
    return request


async def _read(
    gateway: Gateway,
    body: ChatRequest | CompletionRequest,
    unread: _Unread,
    until: Callable[[Awaitable[Tokens]], Awaitable[Tokens]],
) -> AnswerRequest:
    """Return the request with its prompts' tokens, read or refused.

    Args:
        until: waits for them.
    """
    request, limit = unread.request, gateway.engine.context_length
    param = "messages" if request.endpoint == "chat" else "prompt"
    # A text that can't fit is refused unread; tokens that a client sends are counted below.
    longest = max((len(one) for one in unread.texts if isinstance(one, str)), default=0)
    least = gateway.tokenization.least_tokens(longest)
    if least > limit:
        raise too_long(param, f"a prompt of {longest:,} characters, {least} tokens or more", limit)
    reading = gateway.tokenizing.run(request.tenant, unread.size, unread.encode)
    async with asyncio.timeout_at(gateway.answering.deadline(request)):
        prompts = await until(reading)
    longest = max(map(len, prompts))
    gateway.tokenization.check(body.named_tokens)
    room = limit - longest
    wanted = min(gateway.settings.default_max_tokens, room) if body.most_tokens is None else body.most_tokens
    if wanted > room or (room < 1 and wanted != 0):
        asked = f" and {body.most_tokens} tokens of answer" if body.most_tokens else ""
        raise too_long(param, f"a prompt of {longest}{asked}", limit)
    request = replace(request, prompts=prompts, sampling=replace(request.sampling, max_tokens=wanted))
    if request.endpoint == "completions" and gateway.settings.tenant(request.tenant).on_breach != "flag":
        as_text = gateway.tokenization.as_text
        ends = [one[-CONTEXT:] for one in unread.texts]
        contexts = (one if isinstance(one, str) else as_text(one)[-CONTEXT:] for one in ends)
        request = replace(request, contexts=tuple(contexts))
    if request.named > MOST_NAMED:
        raise ApiError(
            400,
            f"This answer may have {request.named:,} probabilities, and {MOST_NAMED:,} fit into one: ask "
            "for fewer alternatives, tokens or prompts at once.",
            code="request_too_large",
            param="logprobs",
        )
    if unread.show:
        # Only tokens are turned into text again.
        size = sum(len(one) for one in unread.texts if not isinstance(one, str))
        request = replace(request, echoes=await gateway.tokenizing.run(request.tenant, size, unread.show))
    return request


async def _respond(
    gateway: Gateway,
    http: Request,
    body: ChatRequest | CompletionRequest,
    request: AnswerRequest,
    rendering: Callable[[AnswerRequest], Rendering],
) -> Response:
    stats = RequestStats()
    chunks = gateway.answering.answer(request, stats)
    try:
        return await _sent(gateway, http, body, request, stats, rendering, chunks)
    except BaseException:
        if request.place:  # the answer ends its place itself, unless it never began
            request.place.end()
        raise


async def _sent(
    gateway: Gateway,
    http: Request,
    body: ChatRequest | CompletionRequest,
    request: AnswerRequest,
    stats: RequestStats,
    rendering: Callable[[AnswerRequest], Rendering],
    chunks: AsyncGenerator[AnswerChunk, None],
) -> Response:
    """Return the answer, whole or as a stream; what follows it begins once its last byte has left."""

    async def after() -> None:
        # What follows may wait for long, and needs neither the connection nor the body.
        await gateway.after_answer.start(replace(stats.moved or request, route_again=None), stats)

    if not body.stream:
        whole = await until_disconnected(http, collected(chunks))
        written = rendering(stats.moved or request)
        text = await rendered(whole, lambda: written.whole(whole).model_dump_json())
        return Response(text, media_type="application/json", background=BackgroundTask(after))
    # The first chunk decides the status and who answers, which can't be changed once the stream has begun.
    opening = await until_disconnected(http, first(chunks))
    sent = events(opening, chunks, rendering(stats.moved or request), len(request.costs))
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    # Whoever reads slowly has as long for the end of an answer as for sending a body.
    deadline = gateway.answering.deadline(request) + gateway.settings.body_timeout_seconds
    return Stream(sent, deadline, headers, after)
