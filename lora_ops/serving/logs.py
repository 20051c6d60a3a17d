"""The gateway's log: JSON lines on stderr."""

import contextvars
import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from transformers.utils import logging as transformers_logging

REPORT_SECONDS = 60.0
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
        return json.dumps(line, ensure_ascii=False)


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


def log_as_json() -> None:
    """Everything that is logged goes to stderr, one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    transformers_logging.disable_progress_bar()
