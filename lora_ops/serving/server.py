"""The gateway as a process: its log, its port, and an orderly end."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import math
import resource
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from lora_ops.engines.chosen import make_engine
from lora_ops.engines.protocol import Engine, EngineError
from lora_ops.errors import LoraOpsError, Unavailable
from lora_ops.rollout.gateways import announced
from lora_ops.serving.app import create_app
from lora_ops.serving.connection import Connection
from lora_ops.serving.connection_budget import CONNECTIONS, ConnectionBudget
from lora_ops.serving.gateway import Gateway
from lora_ops.serving.keys import KeyStore
from lora_ops.serving.logs import OncePerMinute, log_as_json
from lora_ops.settings.params import Settings
from lora_ops.settings.serving import ServingSettings

logger = logging.getLogger(__name__)

BACKLOG = 256  # connections that the event loop accepts at once, before the budget sees them
OTHER_FILES = 200  # besides connections: weights, SQLite, logs, connections to an engine
MOST_FILES = 65_536
LEAST_CONNECTIONS = 20


class Server(uvicorn.Server):
    """uvicorn's, which says at /ready that it stops, `serving.not_ready_seconds` before its port closes."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self.gateway = gateway
        self._leave_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop; the second one does not wait."""
        if self.gateway.stopping or not self.gateway.settings.not_ready_seconds:
            super().handle_exit(sig, frame)
        self.gateway.stopping = True
        self._leave_at = time.monotonic() + self.gateway.settings.not_ready_seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether to stop now."""
        self.should_exit = self.should_exit or time.monotonic() >= self._leave_at
        return await super().on_tick(counter)


@asynccontextmanager
async def running(root: Path, settings: Settings, engine: Engine) -> AsyncIterator[Gateway]:
    """A started gateway, stopped at the end.

    Raises:
        LoraOpsError: there is no base model yet, or the engine can't start.
    """
    gateway = Gateway(root, settings, engine)
    try:
        try:
            await gateway.start()
        except EngineError as error:
            raise LoraOpsError(str(error)) from error
        yield gateway
    finally:
        await gateway.stop()


async def serve(
    root: Path,
    settings: Settings,
    engine: Engine,
    port: socket.socket,
    *,
    started: Callable[[uvicorn.Server], None] = lambda server: None,
    connections: int = CONNECTIONS,
) -> None:
    """Answer on a bound port until SIGTERM, SIGHUP or Ctrl-C, then finish what runs.

    Args:
        connections: how many may be open at the same time; see `ConnectionBudget`.

    Raises:
        LoraOpsError: the gateway can't start.
    """
    serving = settings.serving
    async with running(root, settings, engine) as gateway:
        budget = ConnectionBudget(connections, gateway.telemetry.connections_closed.inc)
        config = uvicorn.Config(
            create_app(gateway, crowded=lambda: budget.crowded),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # a client on this machine would choose the address that it counts as
            lifespan="off",
            http=partial(Connection, budget),  # type: ignore[arg-type]
            ws="none",  # a WebSocket would leave the budget and the limits of `Connection`
            backlog=BACKLOG,
            timeout_graceful_shutdown=max(1, int(serving.drain_timeout_seconds)),
        )
        asyncio.get_running_loop().set_exception_handler(summarize_failed_accepts())
        server = Server(config, gateway)
        if threading.current_thread() is threading.main_thread():
            # uvicorn takes signals once it runs, and raises them once more when it is done, which must not cut
            # off what comes after it: the handler before and after it is its own too, so that none is lost.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, server.handle_exit)
            # A terminal that is closed says so by SIGHUP; under nohup it is ignored, and stays so.
            if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                signal.signal(signal.SIGHUP, server.handle_exit)
        # Whoever is told the address may connect at once: the system keeps who comes before uvicorn accepts.
        port.listen(BACKLOG)
        started(server)
        logger.info("Serving %s on http://%s:%d", gateway.base_model.id, *port.getsockname()[:2])
        with announced(root / serving.path, *port.getsockname()[:2]):
            await server.serve([port])


def run(root: Path, settings: Settings) -> None:
    """Serve in this process until it is told to stop.

    Raises:
        LoraOpsError: the port is taken, it would be open to other machines, or the gateway can't start.
    """
    log_as_json()
    # All that is quick to refuse comes before torch is loaded. The port comes first of all: the log has its own
    # thread, so a line before the refusal could stand behind it.
    with bind(settings.serving) as port, contextlib.suppress(KeyboardInterrupt):
        check_exposure(root, settings.serving)
        engine = make_engine(root, settings.serving)
        connections = most_connections()
        asyncio.run(serve(root, settings, engine, port, started=settle, connections=connections))


def settle(server: uvicorn.Server) -> None:
    """What a started server is made of stays: leave it out of every later collection of garbage.

    One that goes through all of torch and transformers takes 0.4 s, in which no answer gets a token.
    """
    return_freed()
    gc.freeze()


def return_freed() -> None:
    """Return to the system what nobody uses any more: of a loaded model, glibc keeps most for later."""
    gc.collect()  # transformers' models hold themselves by cycles of references
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # only glibc has it
        trim(0)


def most_connections() -> int:
    """Raise this process's limit of open files, and return how many connections fit it: at most `CONNECTIONS`.

    Raises:
        LoraOpsError: none would fit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    fits = soft - BACKLOG - OTHER_FILES
    if fits < LEAST_CONNECTIONS:
        raise LoraOpsError(
            f"This process may open {soft} files, and a gateway needs at least "
            f"{LEAST_CONNECTIONS + BACKLOG + OTHER_FILES}: raise the limit with `ulimit -n`."
        )
    if fits < CONNECTIONS:
        logger.warning("At most %d connections: this process may open %d files (`ulimit -n`)", fits, soft)
    return min(fits, CONNECTIONS)


def summarize_failed_accepts() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return a handler for the event loop's errors that sums up connections for which there was no file left.

    asyncio reports each attempt with a traceback, thousands in a second.
    """
    report = OncePerMinute(
        lambda count: logger.error(
            "A connection could not be accepted (%d times): the limit of open files is reached",
            count,
        )
    )

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if context.get("message") == "socket.accept() out of system resource":
            report()
        else:
            loop.default_exception_handler(context)

    return handle


def bind(settings: ServingSettings) -> socket.socket:
    """The port, taken; it refuses connections until somebody listens on it.

    Raises:
        LoraOpsError: it can't be taken.
    """
    address = (settings.host, settings.port)
    try:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends at once only on sockets that say they are TCP; else each answer waits 40 ms for an
        # acknowledgement (Nagle's algorithm meets the client's delayed one).
        port = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port.bind(address)
    except OSError as error:
        raise Unavailable(
            f"Port {settings.port} of {settings.host} can't be taken ({error.strerror}): is a gateway running "
            "already? Take another --port, or stop it."
        ) from error
    return port


def check_exposure(root: Path, settings: ServingSettings) -> None:
    """Refuse to be open to other machines while there are no API keys; say loudly that it is open to this one.

    Raises:
        LoraOpsError: it would be.
    """
    if settings.require_keys:
        return
    with closing(KeyStore(root / settings.path / "keys.sqlite")) as keys:
        if keys.any():
            return
    if not _is_loopback(settings.host):
        raise LoraOpsError(
            f"serving.host is {settings.host}, and there are no API keys, so anybody could use every model: "
            "create one first (`lora-ops keys create --admin`), or serve on 127.0.0.1."
        )
    logger.warning(
        "NO API KEYS: everybody on this machine may use every model and load adapters. "
        "`lora-ops keys create --admin` makes the first key, and from then on one is needed."
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, which may mean any address
        return False
