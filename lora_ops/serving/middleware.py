"""What every HTTP request meets first: an id, its key, limits of its body, a log line, errors as JSON."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_ops.escaping import shortened
from lora_ops.serving.body_pace import LARGE, BodyPace, weight
from lora_ops.serving.connection import CLIENT_LEFT
from lora_ops.serving.connection_budget import peer_name
from lora_ops.serving.errors import CLIENT_GONE, ApiError, as_api_error
from lora_ops.serving.keys import Caller
from lora_ops.serving.logs import request_id

logger = logging.getLogger(__name__)
access = logging.getLogger("lora_ops.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
T = TypeVar("T")

LOOK_SECONDS = 1.0  # how often somebody looks whether the client of a body that waits is still there
CROWDED_SPREAD = 10.0  # seconds over which those who find too many connections come back
LOGGED_PATH = 200  # characters of a path in a line of the log


class GatewayMiddleware:
    """The ASGI middleware that runs around every request.

    A body is read before the application sees the request, so that a slow or endless one costs no more than
    its connection; and only after `admit` has let its sender in, so that nobody fills the memory without a
    key. Large ones of a tenant, or else of a key or an address, are read in turn (`BodyPace`).

    The request id is the client's `X-Request-ID` where that is short and plain, else a new one; it stands in
    `scope["state"]`, in the log and in the response, and so does the caller in the first two. The response also
    has those in `state["headers"]`, and those that the function in `state["limits"]` returns, once an endpoint
    has put them there: an error has them, too.
    The line in the access log has the fields in `state["logged"]`.

    Args:
        admit: who sends a request, by its head; None where anybody may, and no body is read. It raises
            `ApiError`.
        prepare: awaited before the application sees the request of a sender who was let in.
        refused: called with the tenant of the key (None: none is known) and the status of an error that came
            before the request was routed (before there was a `route` in `state["logged"]`).
        crowded: whether there are too many connections to answer a request of this path.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_limit: int,
        body_timeout: float,
        admit: Callable[[Request], Caller | None],
        prepare: Callable[[], Awaitable[None]],
        refused: Callable[[str | None, int], None],
        crowded: Callable[[str], bool],
    ) -> None:
        self._app = app
        self._admit = admit
        self._prepare = prepare
        self._refused = refused
        self._crowded = crowded
        self._body_limit = body_limit
        self._body_timeout = body_timeout
        self._pace = BodyPace(patience=body_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sent = Headers(scope=scope)
        wanted = sent.get("x-request-id", "")
        mine = wanted if REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        token = request_id.set(mine)
        logged: dict[str, Any] = {}
        state = scope.setdefault("state", {})
        more: dict[str, str] = {}
        state.update(request_id=mine, started=started, logged=logged, headers=more)
        status, read = 0, scope["method"] == "GET"

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = mine
                headers.update(more)
                if limits := state.get("limits"):
                    headers.update(limits())
            await send(message)

        try:
            if self._crowded(scope["path"]):
                read = False  # the connection is closed, and so makes room
                raise ApiError(
                    503,
                    "The gateway has too many connections.",
                    "server_error",
                    "overloaded",
                    retry_after=1,
                    spread=CROWDED_SPREAD,
                )
            if who := self._admit(Request(scope)):
                state["caller"] = who
                logged |= {"key": who.key, "tenant": who.tenant}
                sender = who.tenant or who.key or peer_name((scope["client"] or ("",))[0])
                replay = await self._read(scope, sent, receive, sender)
                read = True
                await self._prepare()
            else:
                replay = receive
            read = True
            await self._app(scope, replay, answering)
        except ConnectionError:
            status = CLIENT_GONE
        except Exception as error:
            problem = as_api_error(error)
            report(f"{scope['method']} {scope['path']}", problem, error)
            if not status:
                close = {} if read else {"connection": "close"}
                response = JSONResponse(problem.body(), problem.status, {**problem.headers(), **close})
                await response(scope, receive, answering)
            elif problem.status == 500:
                raise  # the answer has begun: all that is left is to close the connection
        finally:
            if status >= 400 and "route" not in logged:
                self._refused(logged.get("tenant"), status)
            path = _logged(scope["path"])
            fields = {
                "method": scope["method"],
                "path": path,
                "status": status or CLIENT_GONE,
                "seconds": round(time.perf_counter() - started, 6),
                **logged,
            }
            access.info("%s %s %s", scope["method"], path, fields["status"], extra={"fields": fields})
            request_id.reset(token)

    async def _read(self, scope: Scope, headers: Headers, receive: Receive, sender: str) -> Receive:
        declared = headers.get("content-length", "")
        if declared.isdigit():
            if int(declared) > self._body_limit:
                raise self._too_large()
            await self._turn(scope, sender, int(declared))
        in_turn = declared.isdigit()
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(self._body_timeout) as limit:
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionResetError
                    body += message.get("body", b"")
                    if len(body) > self._body_limit:
                        raise self._too_large()
                    if len(body) > LARGE and not in_turn:  # sent in chunks: nobody knows how many come
                        in_turn = True
                        began, end = time.monotonic(), limit.when()
                        limit.reschedule(None)
                        await self._turn(scope, sender, self._body_limit)
                        limit.reschedule((end or 0.0) + time.monotonic() - began)
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise ApiError(408, f"The body did not arrive within {self._body_timeout:.0f} seconds.") from error
        if len(body) > LARGE:
            self._pace.add(sender, weight(body) - len(body))
        whole: Message | None = {"type": "http.request", "body": bytes(body), "more_body": False}

        async def replay() -> Message:
            nonlocal whole
            if whole is None:
                return await receive()
            message, whole = whole, None
            return message

        return replay

    async def _turn(self, scope: Scope, sender: str, size: int) -> None:
        """Wait until a body may be read, or its client leaves.

        Raises:
            ConnectionResetError: it has left; its place is free.
            TooMany: as `BodyPace.turn`.
        """
        if size <= LARGE:
            return
        left = scope.get("extensions", {}).get(CLIENT_LEFT, lambda: False)
        turn = asyncio.ensure_future(self._pace.turn(sender, size))
        try:
            while not turn.done():
                await asyncio.wait([turn], timeout=LOOK_SECONDS)
                if left():
                    raise ConnectionResetError
            turn.result()
        finally:
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"The body is larger than {self._body_limit:,} bytes (serving.body_limit).")


def _logged(path: str) -> str:
    return path if len(path) <= LOGGED_PATH else f"{path[:LOGGED_PATH]}…"


def report(what: str, problem: ApiError, error: BaseException) -> None:
    """Log a failure of ours: a line with what the client does not read, and a traceback where it is a bug."""
    if problem.status == 500:
        logger.error("%s failed", what, exc_info=error)
    elif problem.status > 500:
        detail = problem.message if isinstance(error, TimeoutError) else str(error)
        logger.warning("%s: %d, %s", what, problem.status, shortened(detail))


async def until_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away before.

    Raises:
        ConnectionResetError: it went away.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ConnectionResetError
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
