"""The gateway as an application of HTTP, with the names and shapes that users of OpenAI and vLLM know."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from lora_ops.serving.auth import authenticate
from lora_ops.serving.errors import http_error, invalid_request
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import Caller
from lora_ops.serving.middleware import GatewayMiddleware
from lora_ops.serving.response_schemas import ErrorAnswer
from lora_ops.serving.routes.answers import add_answers
from lora_ops.serving.routes.models import add_models
from lora_ops.serving.routes.operations import add_operations
from lora_ops.serving.routes.tokens import add_tokens

ALIVE = {"/health", "/ping"}
PUBLIC = {*ALIVE, "/ready", "/openapi.json"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is wrong, or larger than will ever fit; the text names what",
        401: "No valid API key",
        403: "The model may not answer, or the key may not do this",
        404: "No model of this name, or none that this key reaches",
        408: "The body did not arrive in time",
        413: "The body is too large",
        429: "Over a limit of the tenant or of the engine; see Retry-After",
        502: "The engine failed",
        503: "Too busy, or the adapter can't be loaded now; see Retry-After",
        504: "The answer was not finished in time",
    }.items()
}


def create_app(gateway: Gateway, crowded: Callable[[], bool] = lambda: False) -> FastAPI:
    """The application over a gateway that has been started; `crowded` is as `GatewayMiddleware` takes it."""
    app = FastAPI(
        title="lora-ops gateway",
        docs_url=None,
        redoc_url=None,
        responses=REFUSALS,
        separate_input_output_schemas=False,
    )
    settings = gateway.settings

    def admit(request: Request) -> Caller | None:
        if request.scope["path"] in PUBLIC:
            return None
        return authenticate(request, gateway.keys, require_keys=settings.require_keys)

    app.add_middleware(
        GatewayMiddleware,
        body_limit=settings.body_limit,
        body_timeout=settings.body_timeout_seconds,
        admit=admit,
        prepare=gateway.router.catch_up,
        refused=gateway.telemetry.was_refused,
        crowded=lambda path: path not in ALIVE and crowded(),
    )
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    add_answers(app, gateway)
    add_tokens(app, gateway)
    add_models(app, gateway)
    add_operations(app, gateway)
    for operations in app.openapi()["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's; here a wrong body is a 400
    return app
