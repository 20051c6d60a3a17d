"""The gateway's log: JSON lines on stderr."""

import contextvars
import json
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from transformers.utils import logging as transformers_logging

from lora_ops.escaping import json_visible

logger = logging.getLogger(__name__)

REPORT_SECONDS = 60.0
MOST_BYTES = 8 * 1024 * 1024
FLUSH_SECONDS = 2.0
LINES_AT_ONCE = 100
request_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("request_id", default=None)


class JsonLines(logging.Formatter):
    """One JSON object for each log record, with the id of the request that it belongs to."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if found := request_id.get():
            line["request_id"] = found
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # A path or a name in it is a client's: it may not turn, hide or break what a terminal shows.
        return json_visible(json.dumps(line, ensure_ascii=False))


class OncePerMinute:
    """Report a frequent event at once, then at most once in `REPORT_SECONDS` with the number of times."""

    def __init__(self, report: Callable[[int], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._count = 0
        self._next = clock()

    def __call__(self) -> None:
        """Count the event, and report the count if it is time to."""
        self._count += 1
        now = self._clock()
        if now >= self._next:
            self._report(self._count)
            self._count, self._next = 0, now + REPORT_SECONDS


class BoundedLog(logging.Handler):
    """Write log lines from a thread of its own, and drop them while `MOST_BYTES` wait to be written.

    A pipe whose reader stops takes no more than some kilobytes. Whoever then wrote to it would wait for ever:
    the event loop, and so every client.

    Args:
        descriptor: the file descriptor to write to. A Python file would be locked while a line waits, and the
            interpreter could not end.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.lost = 0
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._unreported = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._write_forever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line, or count it as lost. The line is made here, in the context of the request."""
        try:
            line = f"{self.format(record)}\n".encode(errors="backslashreplace")
        except Exception:  # noqa: BLE001 - a record that can't be shown must not fail the request
            self.handleError(record)
            return
        with self._changed:
            if self._bytes + len(line) > MOST_BYTES:
                self.lost += 1
                self._unreported += 1
            else:
                self._lines.append(line)
                self._bytes += len(line)
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until every line is written, but for no longer than `FLUSH_SECONDS`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._lines, FLUSH_SECONDS)

    def _write_forever(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                lines = list(islice(self._lines, LINES_AT_ONCE))
            written = self._write(b"".join(lines))
            with self._changed:
                for line in lines:
                    self._lines.popleft()
                    self._bytes -= len(line)
                self.lost += 0 if written else len(lines)
                lost = 0
                # With room for many lines, so that a slow reader does not get this message again and again.
                if self._bytes <= MOST_BYTES // 2:
                    lost, self._unreported = self._unreported, 0
                if not self._lines:
                    self._changed.notify_all()
            if lost:
                logger.warning("%d lines of this log were lost: nobody read it, or too slowly", lost)

    def _write(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process made the shared pipe non-blocking
                select.select((), (self._descriptor,), ())
            except OSError:  # the reader is gone
                return False
        return True


def log_as_json() -> None:
    """Write what is logged to stderr, one JSON object a line, without ever waiting for its reader."""
    handler = BoundedLog(sys.stderr.fileno())
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in logging.root.manager.loggerDict:
        logger = logging.getLogger(name)
        for own in [one for one in logger.handlers if type(one) is logging.StreamHandler]:
            # transformers and huggingface_hub write to stderr themselves.
            logger.removeHandler(own)
            logger.propagate = True
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()


def lost_lines() -> int:
    """Return how many lines of this process's log were lost."""
    return sum(one.lost for one in logging.getLogger().handlers if isinstance(one, BoundedLog))
