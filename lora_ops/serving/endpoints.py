"""The gateway's HTTP endpoints, with the names and shapes that users of OpenAI and vLLM know."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from lora_ops.serving import console
from lora_ops.serving.answering import Piece
from lora_ops.serving.ask import Ask, held_to_labels
from lora_ops.serving.chat_turns import SystemPrompt, chat_turns
from lora_ops.serving.edge import Edge, until_disconnected
from lora_ops.serving.errors import ApiError, http_error, invalid_request, too_long
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller, Role
from lora_ops.serving.rendering import (
    ChatRendering,
    CompletionRendering,
    Rendering,
    provenance,
)
from lora_ops.serving.request_schemas import (
    ChatRequest,
    CompletionRequest,
    LoadRequest,
    StreamOptions,
    UnloadRequest,
)
from lora_ops.serving.response_schemas import ChatAnswer, CompletionAnswer, ErrorAnswer, ModelCard, ModelList
from lora_ops.serving.router import Route
from lora_ops.serving.sending import Stream, collected, events, first, rendered
from lora_ops.serving.token_endpoints import add_token_endpoints
from lora_ops.serving.tokenization import SHORT_TEXT
from lora_ops.serving.turns import Kept, in_turns

log = logging.getLogger(__name__)

# Probabilities of one answer, which take up to 1 KB each until it is sent.
MOST_NAMED = 500_000

PUBLIC = {"/health", "/ready", "/openapi.json"}
BEARER = HTTPBearer(auto_error=False, description="An API key; none is needed while none was ever created.")
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is wrong, or larger than will ever fit; the text names what",
        401: "No valid API key",
        403: "The model may not answer, or the key may not do this",
        404: "No model of this name, or none that this key reaches",
        408: "The body did not arrive in time",
        413: "The body is too large",
        429: "Over one of the tenant's limits; see Retry-After",
        502: "The engine failed",
        503: "Too busy, or the adapter can't be loaded now; see Retry-After",
        504: "The answer was not finished in time",
    }.items()
}
TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {}}}}
HTML: dict[int | str, dict[str, Any]] = {200: {"content": {"text/html": {}}}}


def create_app(gateway: Gateway, crowded: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application over a gateway that has been started; `crowded` is as `Edge` takes it."""
    app = FastAPI(
        title="lora-ops gateway",
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
        separate_input_output_schemas=False,
    )
    settings = gateway.settings
    console_data = Kept(partial(console.snapshot, gateway), console.FRESH_SECONDS)
    scrape = Kept(gateway.telemetry.scrape)
    app.add_middleware(
        Edge,
        body_limit=settings.body_limit,
        body_timeout=settings.body_timeout_seconds,
        admit=lambda request: None if request.scope["path"] in PUBLIC else gateway.caller(request),
        refused=gateway.telemetry.was_refused,
        crowded=lambda path: path != "/health" and crowded(),
    )
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)

    async def caller(request: Request, _: Annotated[Any, Security(BEARER)]) -> Caller:
        admitted: Caller = request.scope["state"]["caller"]
        return admitted

    def allowed(*roles: Role) -> Any:
        async def check(who: Annotated[Caller, Depends(caller)]) -> Caller:
            if who.role not in roles:
                raise ApiError(
                    403, f"This needs an API key of the role {' or '.join(roles)}.", "permission_error"
                )
            return who

        return Depends(check)

    @app.post("/v1/chat/completions", response_model=ChatAnswer)
    async def chat(
        request: Request, body: ChatRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Answer a chat, with the system prompt and the template that the adapter was trained with.

        Its system prompt comes first where the chat has none. Its template makes the text of a user's message
        out of `columns`; where it is more than one bare column, a message with `content` instead needs
        `content_is`.
        """
        route = gateway.route(who, body.model)
        turns, system = chat_turns(body.messages, route, body.content_is or settings.content_is(route.tenant))
        asked = "\n".join(f"{role}: {text}" for role, text in turns)
        ask = _ask(request, "chat", body, who, route, system, asked)
        # All messages are one prompt, so that together they must fit.
        whole = "".join(text for _, text in turns)
        ask = await _read(request, ask, body, [whole], lambda: (gateway.tokenization.chat(turns),))
        return await respond(request, body, ask, ChatRendering(ask, body.stream_options or StreamOptions()))

    @app.post("/v1/completions", response_model=CompletionAnswer)
    async def completions(
        request: Request, body: CompletionRequest, who: Annotated[Caller, allowed("tenant", "admin")]
    ) -> Response:
        """Continue one or more texts, or lists of token ids."""
        route = gateway.route(who, body.model)
        tokenization = gateway.tokenization

        def encode() -> tuple[tuple[int, ...], ...]:
            return tuple(
                tokenization.text(one) if isinstance(one, str) else tokenization.check(one)
                for one in body.prompts
            )

        def show() -> tuple[str, ...]:
            return tuple(one if isinstance(one, str) else tokenization.as_text(one) for one in body.prompts)

        text = "\n".join(one for one in body.prompts if isinstance(one, str))
        ask = _ask(request, "completions", body, who, route, "none", text)
        ask = await _read(request, ask, body, body.prompts, encode, show if body.echo else None)
        rendering = CompletionRendering(ask, body.stream_options or StreamOptions())
        return await respond(request, body, ask, rendering)

    def _ask(
        request: Request,
        endpoint: Literal["chat", "completions"],
        body: ChatRequest | CompletionRequest,
        who: Caller,
        route: Route,
        system: SystemPrompt,
        text: str,
    ) -> Ask:
        """Return what is asked for, before its prompt is read."""
        state = request.scope["state"]
        sampling = body.sampling(
            settings.default_max_tokens if body.most_tokens is None else body.most_tokens, settings
        )
        if route.tenant and settings.tenant(route.tenant).labels_only:
            sampling = held_to_labels(sampling, route)
        ask = Ask(
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
            trace_parent=request.headers.get("traceparent"),
            cache_salt=body.cache_salt,
        )
        state["limits"] = lambda: gateway.answering.limits(ask.tenant)
        state["told"] |= {"tenant": ask.tenant, "adapter": route.name, "route": route.decision}
        return ask

    async def _read(
        request: Request,
        ask: Ask,
        body: ChatRequest | CompletionRequest,
        texts: Sequence[str | Sequence[int]],
        encode: Callable[[], tuple[tuple[int, ...], ...]],
        show: Callable[[], tuple[str, ...]] | None = None,
    ) -> Ask:
        """Return `ask` with its prompts' tokens, which the tenant's allowance pays for, read or refused.

        Args:
            texts: of the prompts, or their tokens.
            show: gives the prompts' texts, where the answer begins with them.
        """
        size = sum(map(len, texts))
        limit = gateway.engine.context_length
        param = "messages" if ask.endpoint == "chat" else "prompt"
        with gateway.answering.reading(ask, size) as place:
            # A text that can't fit is refused unread; tokens that a client sends are counted below.
            longest = max((len(one) for one in texts if isinstance(one, str)), default=0)
            least = gateway.tokenization.least_tokens(longest)
            if least > limit:
                raise too_long(param, f"a prompt of {longest:,} characters, {least} tokens or more", limit)
            reading = gateway.tokenizing.run(ask.tenant, size, encode)
            # A short text is read before a client can go away.
            async with asyncio.timeout_at(gateway.answering.deadline(ask)):
                prompts = await (reading if size <= SHORT_TEXT else until_disconnected(request, reading))
            longest = max(map(len, prompts))
            gateway.tokenization.check(body.named_tokens)
            room = limit - longest
            wanted = min(settings.default_max_tokens, room) if body.most_tokens is None else body.most_tokens
            if wanted > room or (room < 1 and wanted != 0):
                asked = f" and {body.most_tokens} tokens of answer" if body.most_tokens else ""
                raise too_long(param, f"a prompt of {longest}{asked}", limit)
            sampling = replace(ask.sampling, max_tokens=wanted)
            ask = replace(ask, prompts=prompts, sampling=sampling, place=place)
            if ask.named > MOST_NAMED:
                raise ApiError(
                    400,
                    f"This answer may have {ask.named:,} probabilities, and {MOST_NAMED:,} fit into one: ask "
                    "for fewer alternatives, tokens or prompts at once.",
                    code="request_too_large",
                    param="logprobs",
                )
            if show:
                # Only tokens are turned into text again.
                size = sum(len(one) for one in texts if not isinstance(one, str))
                ask = replace(ask, echoes=await gateway.tokenizing.run(ask.tenant, size, show))
        return ask

    async def respond(
        request: Request, body: ChatRequest | CompletionRequest, ask: Ask, rendering: Rendering
    ) -> Response:
        pieces = gateway.answering.answer(ask)
        try:
            return await _sent(request, body, ask, rendering, pieces)
        except BaseException:
            if ask.place:  # the answer ends its place itself, unless it never began
                ask.place.end()
            raise

    async def _sent(
        request: Request,
        body: ChatRequest | CompletionRequest,
        ask: Ask,
        rendering: Rendering,
        pieces: AsyncGenerator[Piece, None],
    ) -> Response:
        if not body.stream:
            whole = await until_disconnected(request, collected(pieces))
            text = await rendered(whole, lambda: rendering.whole(whole).model_dump_json())
            return Response(text, media_type="application/json", headers=provenance(ask))
        # The first piece decides the status, which can't be changed once the stream has begun.
        opening = await until_disconnected(request, first(pieces))
        sent = events(opening, pieces, rendering, len(ask.costs))
        headers = {**provenance(ask), "cache-control": "no-cache", "x-accel-buffering": "no"}
        # Whoever reads slowly has as long for the end of an answer as for sending a body.
        deadline = gateway.answering.deadline(ask) + settings.body_timeout_seconds
        return Stream(sent, deadline, headers)

    add_token_endpoints(app, gateway, allowed("tenant", "admin"))

    @app.get("/v1/models", response_model=ModelList)
    async def models(who: Annotated[Caller, allowed("tenant", "admin", "monitor")]) -> Response:
        """Every name that answers and that the key reaches."""
        limit = gateway.engine.context_length
        cards = [
            _card(name, route, limit)
            async for name, route in in_turns(await gateway.router.served())
            if who.role == "monitor" or who.reaches(route.tenant)
        ]
        # FastAPI would take 40 microseconds for each of them.
        return Response(ModelList(data=cards).model_dump_json(), media_type="application/json")

    @app.get("/v1/models/{name:path}", response_model=ModelCard)
    async def model(name: str, who: Annotated[Caller, allowed("tenant", "admin", "monitor")]) -> ModelCard:
        """One name that answers and that the key reaches: a tenant, an exact version, or the base model."""
        route = gateway.router.route(name) if who.role == "monitor" else gateway.route(who, name)
        return _card(name, route, gateway.engine.context_length)

    @app.post("/v1/load_lora_adapter", response_model=None, responses=TEXT)
    async def load(body: LoadRequest, who: Annotated[Caller, allowed("admin")]) -> Response:
        """Load a registered version now, before anybody asks for it."""
        route = gateway.route(who, body.lora_name)
        if route.version is None:
            raise ApiError(400, f"'{body.lora_name}' is the base model, not an adapter.", param="lora_name")
        await gateway.cache.load(route.version)
        log.info("%s is loaded, as key %s asked", route.name, who.key)
        return PlainTextResponse(f"Success: LoRA adapter '{route.name}' added successfully.")

    @app.post("/v1/unload_lora_adapter", response_model=None, responses=TEXT)
    async def unload(body: UnloadRequest, who: Annotated[Caller, allowed("admin")]) -> Response:
        """Take a version out of memory once nobody uses it; the next request loads it again."""
        # A version by its own name first: one that was revoked has no route any more.
        loaded = any(entry.name == body.lora_name for entry in gateway.cache.entries())
        name = body.lora_name if loaded else gateway.route(who, body.lora_name).name
        if not await gateway.cache.unload(name):
            raise ApiError(
                404, f"No adapter '{body.lora_name}' is loaded.", code="model_not_found", param="lora_name"
            )
        log.info("%s is unloaded, as key %s asked", name, who.key)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    @app.get("/health")
    async def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @app.get("/ready")
    async def ready() -> Response:
        """It may be sent requests: the engine runs, and the registry is what its signed log says."""
        damage = gateway.router.damage()
        if damage:
            text = f"The registry can't be trusted: {damage}. What was verified before goes on answering."
            raise ApiError(503, text, "server_error", "registry_damaged")
        if not gateway.ready:
            text = "The gateway is starting or stopping, or its engine does not answer."
            raise ApiError(503, text, "server_error", "not_ready", retry_after=1)
        gateway.router.route(gateway.base_model.id)
        # Answers don't depend on it, so it is a warning: only an older copy of the registry would not show.
        behind = gateway.router.unremembered()
        return JSONResponse({"status": "ready", **({"warning": f"{behind}."} if behind else {})})

    @app.get("/metrics", response_model=None, responses=TEXT)
    async def metrics(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """What Prometheus scrapes."""
        return Response(await scrape.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/console", response_model=None, responses=HTML)
    async def page(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """The read-only page for whoever is on call; a browser asks for a key as password."""
        return HTMLResponse(console.PAGE, headers={"content-security-policy": console.security_policy()})

    @app.get("/console/data", response_model=dict[str, Any])
    async def page_data(_: Annotated[Caller, allowed("admin", "monitor")]) -> Response:
        """What the page shows."""
        return Response(await console_data.page(), media_type="application/json")

    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's; here a wrong body is a 400
    return app


def _card(name: str, route: Route, context_length: int) -> ModelCard:
    version = route.version
    return ModelCard(
        id=name,
        created=int(datetime.fromisoformat(version.registered_at).timestamp()) if version else 0,
        owned_by=route.tenant or "base",
        root=route.name,
        parent=route.base_model.id if version else None,
        max_model_len=context_length,
        digest=route.digest,
        state=version.state if version else None,
        template=route.template,
    )
