"""POST /tokenize and /detokenize in vLLM's shapes: the tokens of a prompt, and the text of tokens."""

import asyncio
from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Request
from fastapi.responses import Response
from pydantic import BaseModel

from lora_ops.serving.auth import allowed
from lora_ops.serving.chat_turns import chat_turns
from lora_ops.serving.errors import ApiError, too_long
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.middleware import until_disconnected
from lora_ops.serving.request_schemas import DetokenizeRequest, TokenizeRequest
from lora_ops.serving.requests import payer, requester
from lora_ops.serving.response_schemas import DetokenizeAnswer, TokenizeAnswer
from lora_ops.serving.router import Route
from lora_ops.serving.tokenization import SHORT_TEXT, TURN
from lora_ops.serving.tool_chats import tool_chat, tools_text


def add_tokens(app: FastAPI, gateway: Gateway) -> None:
    """Add both endpoints to the application."""
    tokenization = gateway.tokenization

    @app.post("/tokenize", response_model=TokenizeAnswer)
    async def tokenize(
        request: Request, body: TokenizeRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Return the tokens of a prompt, or of a chat with its system prompt and template, as a model reads it.

        A tokenization counts as a request of its tenant, and its tokens count as tokens that were read.
        """
        route = await gateway.assigned(who, body.model, requester(request.headers, who))
        limit = gateway.engine.context_length
        encode, size, param = _tokenizer(gateway, route, body)
        least = tokenization.least_tokens(size)
        refusal = None
        if least > limit:
            refusal = too_long(param, f"a prompt of {size:,} characters, {least} tokens or more", limit)

        def make() -> tuple[int, BaseModel]:
            tokens = encode()
            names = tokenization.names(tokens) if body.return_token_strs else None
            return len(tokens), TokenizeAnswer(
                count=len(tokens), max_model_len=limit, tokens=list(tokens), token_strs=names
            )

        size += TURN * len(body.messages or ())
        return await _answer(gateway, request, payer(route, who), size, make, refusal)

    @app.post("/detokenize", response_model=DetokenizeAnswer)
    async def detokenize(
        request: Request, body: DetokenizeRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Return the text of tokens, which count as a tokenization's."""
        route = await gateway.assigned(who, body.model, requester(request.headers, who))
        size, limit = len(body.tokens), gateway.engine.context_length
        refusal = too_long("tokens", f"{size} tokens", limit) if size > limit else None

        def make() -> tuple[int, BaseModel]:
            return size, DetokenizeAnswer(prompt=tokenization.as_text(tokenization.check(body.tokens)))

        return await _answer(gateway, request, payer(route, who), size, make, refusal)


def _tokenizer(
    gateway: Gateway, route: Route, body: TokenizeRequest
) -> tuple[Callable[[], tuple[int, ...]], int, str]:
    """Return what makes the tokens, how many characters it reads, and which parameter they are in."""
    if body.messages is None:
        prompt, special = body.prompt or "", body.add_special_tokens is not False
        return lambda: gateway.tokenization.text(prompt, special=special), len(prompt), "prompt"
    content_is = body.content_is or gateway.settings.content_is(route.tenant)
    turns, _ = chat_turns(body.messages, route, content_is)
    size = sum(len(text) for _, text in turns)
    # Nothing is answered, so a template that shows the model no tools stops nothing.
    if tools := tool_chat(body.messages, turns, body.tools, gateway.engine, choice="none"):
        size += len(tools_text(tools))
        return lambda: gateway.tokenization.tool_chat(tools), size, "messages"
    return lambda: gateway.tokenization.chat(turns), size, "messages"


async def _answer(
    gateway: Gateway,
    request: Request,
    tenant: str,
    size: int,
    make: Callable[[], tuple[int, BaseModel]],
    refusal: ApiError | None,
) -> Response:
    """Return the answer that `make` makes with its number of tokens, once the tenant's limits allow it.

    Raises:
        TooMany: they don't allow it.
        ApiError: `refusal`, which counts as a request, too.
    """
    state = request.scope["state"]
    state["limits"] = lambda: gateway.answering.limits(tenant)
    state["logged"] |= {"tenant": tenant}

    def write() -> tuple[int, str]:
        tokens, answer = make()
        return tokens, answer.model_dump_json()

    with gateway.answering.counting(tenant, size) as count:
        if refusal:
            raise refusal
        writing = gateway.tokenizing.run(tenant, size, write)
        async with asyncio.timeout(gateway.settings.request_timeout_seconds):
            # A short text is read before a client can go away.
            tokens, text = await (writing if size <= SHORT_TEXT else until_disconnected(request, writing))
        count(tokens)
    return Response(text, media_type="application/json")
