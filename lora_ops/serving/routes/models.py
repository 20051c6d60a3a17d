"""What answers: /v1/models; and what is in memory: /v1/load_lora_adapter, /v1/unload_lora_adapter."""

import logging
from datetime import datetime
from typing import Annotated

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from lora_ops.serving.auth import allowed
from lora_ops.serving.errors import ApiError
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.request_schemas import LoadRequest, UnloadRequest
from lora_ops.serving.response_schemas import TEXT, ModelCard, ModelList
from lora_ops.serving.router import Route
from lora_ops.serving.turns import in_turns

logger = logging.getLogger(__name__)


def add_models(app: FastAPI, gateway: Gateway) -> None:
    """Add these endpoints to the application."""

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
        logger.info("%s is loaded, as key %s asked", route.name, who.key)
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
        logger.info("%s is unloaded, as key %s asked", name, who.key)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


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
