"""One client's connection: uvicorn's, with the limits on a request's head that it lacks."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024
HEAD_SECONDS = 10.0


class Connection(HttpToolsProtocol):
    """Refuses a request whose request line and headers are larger than `HEAD_BYTES` or take `HEAD_SECONDS`.

    Without it anybody, with a key or without one, could send headers for ever, which the parser keeps.
    """

    _head = 0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected, and has as long for its first head as for any other."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, and give up a head that has no end."""
        self._head += len(data)
        super().data_received(data)
        if self._waiting and self._head > HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of a request may have {HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer after a body in chunks, which is of no use to the gateway."""
        if self._waiting:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: what follows is a body, which the gateway limits."""
        self._stop_waiting()
        super().on_headers_complete()

    def _wait(self) -> None:
        self._stop_waiting()
        self._head = 0
        self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._waiting.cancel()
        self._waiting = None
