"""One client's connection: uvicorn's, with the limits on slow clients that it lacks."""

import asyncio
import select
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from lora_ops.serving.connection_budget import ConnectionBudget, State, peer_name

HEAD_BYTES = 32 * 1024
HEADERS = 128
PIPELINED = 8  # requests that wait behind the one that is answered
HEAD_SECONDS = 10.0
UNREAD_SECONDS = 60.0
# In a request's ASGI extensions: a function that says whether its client has left.
CLIENT_LEFT = "lora_ops.client_left"
# The other side has closed its half, whatever it sent before that is not read yet; only Linux has it.
PEER_CLOSED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR


class Parser:
    """httptools' parser for a server that speaks HTTP/1.1 only, whatever protocol a client asks for.

    Java's HttpClient asks for HTTP/2 with its first request (`Upgrade: h2c`). httptools ends such a request
    behind its head, so a second parser reads its body and what follows.

    Args:
        to: takes what is parsed.
    """

    def __init__(self, to: HttpToolsProtocol) -> None:
        self._to = to
        self._parser = self._new()
        self._framing = b""  # the header that says where the request's body ends
        self._repeated = False

    def feed_data(self, data: bytes) -> None:
        """Parse what came.

        Raises:
            httptools.HttpParserError: it is not HTTP.
        """
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as head_ended:
                data = data[head_ended.args[0] :]
                self._parser = self._new()
                self._repeated = True
                self._parser.feed_data(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % self._framing)
                self._repeated = False

    def get_http_version(self) -> str:
        """Return the version of the request, such as `1.1`."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Return the method of the request."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Return whether another request may follow."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Return False: no other protocol is spoken."""
        return False

    def on_message_begin(self) -> None:
        """A request begins."""
        if not self._repeated:
            self._framing = b"content-length: 0"
            self._to.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the request's URL."""
        if not self._repeated:
            self._to.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer."""
        if not self._repeated:
            if name.lower() in (b"content-length", b"transfer-encoding"):
                self._framing = name + b": " + value
            self._to.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if not self._repeated:
            self._to.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._to.on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole, unless the parser ended it behind its head."""
        if not self._parser.should_upgrade():
            self._to.on_message_complete()

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        return parser


class Connection(HttpToolsProtocol):
    """Refuse a request whose head is larger than `HEAD_BYTES` or `HEADERS` headers, or takes `HEAD_SECONDS`.

    Without it anybody, with a key or without one, could send headers or requests for ever, which are kept. A
    client that reads nothing of an answer for `UNREAD_SECONDS` is given up, too.
    """

    def __init__(self, budget: ConnectionBudget, **options: Any) -> None:
        super().__init__(**options)
        self.parser = Parser(self)  # type: ignore[assignment]
        self._budget = budget
        self._in_head = True
        self._head = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self.peer = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected, and has as long for its first head as for any other."""
        super().connection_made(transport)
        self.peer = peer_name(self.client[0]) if self.client else ""
        self._start_head_timer()
        self._budget.open(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_head_timer()
        self._stop_unread_timer()
        self._budget.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and give up a head that has no end."""
        self._head += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head and self._head > HEAD_BYTES:
            self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")
        elif not self._answering and not self._head_timer:
            # uvicorn stopped its timer for kept-alive connections. Empty lines or the rest of a body that
            # nobody reads begin no request, and must not keep the connection open.
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """A request begins."""
        if len(self.pipeline) >= PIPELINED:
            raise ValueError(f"more than {PIPELINED} requests wait for their answers")  # ends in a 400
        super().on_message_begin()
        self.scope["extensions"] = {CLIENT_LEFT: self.client_left}  # type: ignore[dict-item]
        self._in_head, self._head = True, 0
        # While an earlier request is answered, a half head behind it costs nothing and must not cut the answer.
        if not self._answering:
            self._start_head_timer()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer after a body in chunks, which is of no use to the gateway."""
        if self._in_head:
            if len(self.headers) >= HEADERS:
                raise ValueError(f"more than {HEADERS} headers")  # ends in a 400
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: what follows is a body, which the gateway limits."""
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        self._note_state()

    def on_message_complete(self) -> None:
        """The request is whole."""
        super().on_message_complete()
        self._note_state()

    def on_response_complete(self) -> None:
        """The answer has gone, and the next request may come."""
        super().on_response_complete()
        if self.pipeline:
            self.flow.pause_reading()  # uvicorn reads on, though what was read already waits
        self._note_state()

    def send_400_response(self, msg: str) -> None:
        """Refuse what can't be parsed; behind an answer under way a text of ours would become a part of it."""
        if self._answering:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def pause_writing(self) -> None:
        """The client reads more slowly than the gateway answers."""
        super().pause_writing()
        self._stop_unread_timer()
        self._start_unread_timer()
        self._note_state()

    def resume_writing(self) -> None:
        """The client has read what was sent."""
        super().resume_writing()
        self._stop_unread_timer()
        self._note_state()

    def client_left(self) -> bool:
        """Return whether the client has closed the connection, and then close it, too.

        uvicorn reads no more of a body than the gateway takes. While the body waits, what was sent stands
        before the end of the connection, and nobody is told of that.
        """
        if self.transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket").fileno(), PEER_CLOSED)
        if not poll.poll(0):
            return False
        self.transport.abort()
        return True

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _note_state(self) -> None:
        state: State = "working"
        if self.transport.is_closing() or self.flow.write_paused:
            state = "slow"
        elif not self._answering:
            state = "idle"
        elif self.cycle.more_body and not self.pipeline:
            state = "slow"
        self._budget.move(self, state)

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_head_timer(self) -> None:
        if self._head_timer:
            self._head_timer.cancel()
        self._head_timer = None

    def _start_unread_timer(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self._check_unread, size)

    def _check_unread(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._start_unread_timer()
        else:
            self.transport.abort()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer:
            self._unread_timer.cancel()
        self._unread_timer = None
