"""What an error is to a client: an HTTP status and OpenAI's error object."""

import asyncio
import math
import random
import re
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from lora_ops.engines.protocol import EngineBusy, EngineError, TooLarge, Unsupported
from lora_ops.errors import Damaged, LoraOpsError
from lora_ops.escaping import shortened
from lora_ops.serving.background_answers import Preempted
from lora_ops.serving.cached_adapter import AdapterUnavailable
from lora_ops.serving.fair_queue import Overloaded
from lora_ops.serving.rate_limits import NeverFits, TooMany
from lora_ops.serving.router import NotServed, OutOfService, UnknownModel
from lora_ops.serving.screening_process import NotScreened
from lora_ops.serving.tokenization import BadPrompt
from lora_ops.templates import NotThePrompt


@dataclass
class ApiError(Exception):
    """A request that is refused, with everything that its answer says."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None
    spread: float = 0.0
    challenge: str | None = None

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object, without the length of what it quotes of a request or a file."""
        message, param = shortened(self.message), self.param and shortened(self.param)
        return {"error": {"message": message, "type": self.type, "param": param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds where it is worth trying again, and how to send a key."""
        headers = {}
        if self.retry_after is not None:
            seconds = max(1, math.ceil(self.retry_after))
            if self.status == 503 or self.spread:
                # Those who were refused together must not come back together.
                seconds += random.randint(0, max(LEAST_SPREAD, math.ceil(self.spread)))
            headers["retry-after"] = str(seconds)
        if self.challenge is not None:
            headers["www-authenticate"] = f'{self.challenge} realm="lora-ops"'
        return headers


def too_long(param: str, what: str, limit: int) -> ApiError:
    """Return the refusal of a prompt that doesn't fit the model."""
    text = f"Prompt and answer have {limit} tokens together, and this is {what}."
    return ApiError(400, text, code="context_length_exceeded", param=param)


LEAST_SPREAD = 2  # seconds
CLIENT_GONE = 499  # nginx's number for a client that closed the connection; it is logged, nobody receives it
NOT_FAILED = (200, CLIENT_GONE)
Outcome = Literal["answered", "refused", "failed", "gone"]


# What pydantic puts between the names of a body: its types.
TYPE = re.compile(r"(constrained-)?(str|int|float|bool)|.*\[.*")
INSIDE = re.compile(r"(?:\w+:/)?/[\w.:%@+~/-]{2,}")  # URLs and absolute paths


def outcome(status: int) -> Outcome:
    """Return how a request with this status ended: refused is what the gateway chose not to answer."""
    if status == 200:
        return "answered"
    if status == CLIENT_GONE:
        return "gone"
    return "refused" if status < 500 or status == 503 else "failed"


def as_api_error(error: BaseException) -> ApiError:
    """How `error` is told to a client, without what only the log should tell: URLs and paths of the inside.

    What an upstream engine said, and what nobody foresaw, is not told at all.
    """
    match error:
        case ApiError():
            return error
        case UnknownModel():
            return ApiError(404, str(error), code="model_not_found", param="model")
        case OutOfService():
            return ApiError(503, str(error), "server_error", "model_not_served", "model")
        case NotServed():
            return ApiError(403, str(error), "permission_error", "model_not_served", "model")
        case BadPrompt():
            return ApiError(400, str(error), code="invalid_prompt")
        case NotThePrompt():
            return ApiError(400, str(error), code="invalid_prompt", param="messages")
        case NeverFits():
            return ApiError(400, str(error), code="request_too_large")
        case TooMany():
            code = "rate_limit_exceeded"
            return ApiError(429, str(error), "rate_limit_error", code, retry_after=error.retry_after)
        case Preempted():
            return ApiError(503, str(error), "server_error", "overloaded", retry_after=1)
        case Overloaded():
            return ApiError(
                503,
                str(error),
                "server_error",
                "overloaded",
                retry_after=error.retry_after,
                spread=error.spread,
            )
        case AdapterUnavailable():
            code = "adapter_damaged" if error.damaged else "adapter_unavailable"
            return ApiError(503, _outside(error), "server_error", code, retry_after=error.retry_after)
        case NotScreened():
            return ApiError(503, str(error), "server_error", "answer_not_screened", retry_after=1)
        case TimeoutError():
            return ApiError(
                504, "The answer was not finished in time: ask for fewer tokens.", "server_error", "timeout"
            )
        case TooLarge():
            return ApiError(413, str(error), code="request_too_large")
        case Unsupported():
            return ApiError(400, str(error), code="unsupported")
        case EngineBusy():
            # The limit is the engine's and not the tenant's, so that all tenants are refused together.
            status, kind = (429, "rate_limit_error") if error.limited else (503, "server_error")
            seconds = error.retry_after
            return ApiError(status, str(error), kind, "overloaded", retry_after=seconds, spread=seconds)
        case EngineError():
            return ApiError(
                502, "The engine failed; the gateway's log says why.", "server_error", "engine_error"
            )
        case Damaged():  # no Retry-After: trying again mends nothing
            return ApiError(503, _outside(error), "server_error", "registry_damaged")
        case LoraOpsError():
            return ApiError(503, _outside(error), "server_error", "unavailable", retry_after=1)
        case MemoryError():
            return ApiError(
                503,
                "The gateway has no memory left for this request.",
                "server_error",
                "overloaded",
                retry_after=1,
            )
        case asyncio.CancelledError() | GeneratorExit():
            return ApiError(CLIENT_GONE, "The client went away.", "server_error", "client_gone")
        case _:
            return ApiError(500, "The gateway failed; its log says why.", "server_error", "internal_error")


def _outside(error: LoraOpsError) -> str:
    return INSIDE.sub("…", str(error))


async def invalid_request(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that is not as the endpoint wants it: name the place and what is wrong there."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    first = errors[0]
    if first["type"] == "json_invalid":
        problem = ApiError(400, f"The body is not JSON: {first['ctx']['error']}.", code="invalid_json")
    elif first["loc"] == ("body",) and first["type"] == "model_attributes_type":
        problem = _no_object(request.headers.get("content-type"), first["input"])
    else:
        # A value that may be of several types has an error for each. One that says more than its type says why.
        where = _place(first)
        same = [one for one in errors if _place(one)[: len(where)] == where]
        told = next((one for one in same if not one["type"].endswith("_type")), first)
        where = _place(told)
        what = told["msg"].removeprefix("Value error, ")
        if told["type"] == "extra_forbidden":
            what = "this parameter is not known here: check its spelling, or leave it out"
        name = where[0] if where else None
        problem = ApiError(400, f"{'.'.join(where) or 'body'}: {what}.", param=name, code="invalid_value")
    return JSONResponse(problem.body(), problem.status)


def _no_object(content_type: str | None, body: object) -> ApiError:
    """Return the refusal of a body that is no JSON object, or that was not read since its type is another.

    Any web page may let a browser send plain text or a form to this machine, but not JSON.
    """
    if isinstance(body, bytes):
        sent = "none" if content_type is None else f"'{content_type}'"
        text = f"Send the body with the header content-type: application/json; this request has {sent}."
        return ApiError(400, text, code="invalid_content_type")
    return ApiError(400, "The body is JSON, but no object: send {...}.", code="invalid_json")


def _place(error: dict[str, Any]) -> list[str]:
    """Return where an error is, by the body's own names: pydantic puts those of its types between them."""
    place = [str(part) for part in error["loc"][1:]]
    unknown = [place.pop()] if error["type"] == "extra_forbidden" else []  # the client's own word
    return [part for part in place if not TYPE.fullmatch(part)] + unknown


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a path or method that is not there."""
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path}: {error.detail}."
    problem = ApiError(error.status_code, text, code="not_found" if error.status_code == 404 else None)
    return JSONResponse(problem.body(), problem.status, dict(error.headers or {}))
