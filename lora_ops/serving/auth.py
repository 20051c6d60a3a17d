"""Who calls: the key of a request, and the roles that an endpoint takes."""

import base64
import re
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.requests import Request

from lora_ops.serving.errors import ApiError
from lora_ops.serving.keys import OPEN, Caller, KeyRole, KeyStore

LOCAL_NAMES = {"localhost", "127.0.0.1", "[::1]"}
HOST = re.compile(r"(?P<name>.*?)(:\d*)?")  # of a Host header, with or without a port
BEARER = HTTPBearer(auto_error=False, description="An API key; none is needed while none was ever created.")


def authenticate(request: Request, keys: KeyStore, *, require_keys: bool) -> Caller:
    """Who calls, by `Authorization: Bearer KEY`, or Basic with the key as password (browsers, Prometheus).

    Raises:
        ApiError: 401 without a valid key. While no key was ever created, callers need none, and must then
            name this machine as their host, so that a web page can't talk to it through a browser.
    """
    if not require_keys and not keys.any():
        named = HOST.fullmatch(request.headers.get("host", ""))
        host = named["name"] if named else ""
        if host.lower() not in LOCAL_NAMES:
            raise ApiError(
                403, f"This gateway has no API keys yet and answers to localhost only, not to '{host}'."
            )
        return OPEN
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    secret = _password(value) if kind.lower() == "basic" else value if kind.lower() == "bearer" else ""
    found = keys.caller(secret) if secret else None
    if found is None:
        # A browser asks its user for a password where it is challenged for Basic, and only there.
        challenge = "Basic" if "text/html" in request.headers.get("accept", "") else "Bearer"
        text = "The API key is missing, unknown or revoked."
        raise ApiError(401, text, code="invalid_api_key", challenge=challenge)
    return found


async def _admitted(request: Request, _: Annotated[Any, Security(BEARER)]) -> Caller:
    caller: Caller = request.scope["state"]["caller"]
    return caller


def allowed(*roles: KeyRole) -> Any:
    """Return FastAPI's dependency on who calls, authenticated by the middleware; another role gets a 403."""

    async def check(who: Annotated[Caller, Depends(_admitted)]) -> Caller:
        if who.role not in roles:
            raise ApiError(403, f"This needs an API key of the role {' or '.join(roles)}.", "permission_error")
        return who

    return Depends(check)


def _password(value: str) -> str:
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:  # no base64, or no text in it; letters beyond ASCII raise neither's own error
        return ""
