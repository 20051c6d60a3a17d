"""The event log: one JSON line for each answer, written and synced to disk off the request's path.

Files are `events-<UTC time>-<process>.jsonl` in one folder, each written by one process from beginning to end,
so a kill can only tear the last line of a file, and `read_events` leaves such a line out. What was appended is
on disk after `SYNC_SECONDS` and one fsync; an orderly shutdown writes all of it.
"""

import contextlib
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from io import BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from lora_ops.errors import LoraOpsError, Unavailable, disk_reason
from lora_ops.records.record import Record
from lora_ops.serving.risk import NOTHING, SCORED_CHARACTERS, Scores
from lora_ops.serving.risk_worker import RiskWorker
from lora_ops.settings.serving import EventSettings

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SYNC_SECONDS = 0.2
QUEUE_LIMIT = 100_000
BYTES_LIMIT = 128 * 2**20  # of texts that wait to be written
RETRY_SECONDS = 1.0
# Of the texts that ended together: more than this is a sample, so that the log keeps up with any traffic.
SCORED_TOGETHER = 250_000
DAY = 86400


class Event(Record):
    """One request and its answer; times are in seconds.

    `user` is a salted hash of the user or session that the client named, `route` why this adapter answered, and
    `epoch` the last entry of the audit log when that was decided.

    `prompt_text` and `answer_text` are kept, redacted, only where the tenant allows it. A text of more than
    `risk.SCORED_CHARACTERS` is scored and kept up to there. A prompt that was refused is neither, nor are
    texts beyond what is scored at once; such scores are None. Events of earlier releases have none of
    `answer_insults` either: their `answer_toxicity`, by a list of words, can't be compared with it.
    """

    id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    time: datetime
    request_id: str
    endpoint: Literal["chat", "completions"]
    key: str | None
    user: str | None = None
    tenant: str
    model: str
    adapter: str
    digest: str
    base_model: str
    route: str
    epoch: int
    status: int
    code: str | None
    streamed: bool
    system_prompt: Literal["request", "adapter", "none"]
    choices: int
    finish: list[str]
    prompt_tokens: int
    generated_tokens: int
    queue_seconds: float
    first_token_seconds: float | None
    seconds: float
    device_seconds: float
    prompt_identifiers: int | None = None
    answer_identifiers: int | None = None
    answer_insults: float | None = None
    insult_detector: str | None = None
    prompt_text: str | None = None
    answer_text: str | None = None

    @property
    def has_texts(self) -> bool:
        """Whether there is something to score or keep."""
        return bool(self.prompt_text or self.answer_text)

    def scored(self, scores: Scores | None, *, keep_text: bool) -> "Event":
        """Return it with its risk scores, and its texts redacted or gone; a text that nobody scored goes."""
        if not self.has_texts:
            scores = NOTHING
        return self.model_copy(
            update={
                "prompt_identifiers": scores.prompt_identifiers if scores else None,
                "answer_identifiers": scores.answer_identifiers if scores else None,
                "answer_insults": scores.answer_insults if scores else None,
                "insult_detector": scores.insult_detector if scores else None,
                "prompt_text": scores.prompt_text if scores and keep_text else None,
                "answer_text": scores.answer_text if scores and keep_text else None,
            }
        )


class EventLog:
    """Appends events from a thread of its own.

    Args:
        folder: where the files go.
        settings: when a new file begins, and when an old one goes.
        keeps_text: whether a tenant's texts may be kept.
        written, lost: called with a number of events that are on disk, or that are lost.
        unscored: called with a number of events whose texts were neither scored nor kept.
    """

    def __init__(
        self,
        folder: Path,
        settings: EventSettings,
        keeps_text: Callable[[str], bool],
        written: Callable[[int], None] = lambda count: None,
        lost: Callable[[int], None] = lambda count: None,
        unscored: Callable[[int], None] = lambda count: None,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"The event log can't be kept in {folder} ({disk_reason(error)}).") from error
        self._folder = folder
        self._settings = settings
        self._keeps_text = keeps_text
        self._written = written
        self._lost = lost
        self._unscored = unscored
        self._risks = RiskWorker(missed=unscored)
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._bytes = 0
        self._counting = threading.Lock()
        self._file: BufferedWriter | None = None
        self._since = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="event-log", daemon=True)
        self._thread.start()

    def append(self, event: Event) -> None:
        """Hand an event over; it does not wait for the disk, and is lost where too many wait already."""
        size = _bytes(event)
        if self._queue.qsize() >= QUEUE_LIMIT or self._bytes + size > BYTES_LIMIT:
            self._lost(1)
            return
        self._count(size)
        self._queue.put(event)

    def close(self) -> None:
        """Write everything that was appended, then stop."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch = [self._queue.get()]
            deadline = time.monotonic() + SYNC_SECONDS
            while batch[-1] is not None and (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    batch.append(self._queue.get(timeout=left))
            running = batch[-1] is not None
            events = [event for event in batch if event]
            try:
                self._write(self._lines(events))
            except Exception:  # the thread must live: without it every later event is lost
                logger.exception("The event log lost %d events.", len(events))
                self._lost(len(events))
            self._count(-sum(map(_bytes, events)))
        self._close_file()
        self._risks.close()

    def _count(self, size: int) -> None:
        with self._counting:
            self._bytes += size

    def _lines(self, events: list[Event]) -> list[bytes]:
        lines = []
        sample = self._sample(events)
        for event in events:
            try:
                scores = None
                if event.id in sample:
                    scores = self._risks.score(event.prompt_text or "", event.answer_text or "")
                scored = event.scored(scores, keep_text=self._keeps_text(event.tenant))
                lines.append(scored.model_dump_json().encode() + b"\n")
            except Exception:  # one event that can't be written must not take the others with it
                logger.exception("The event of request %s can't be written.", event.request_id)
                self._lost(1)
        return lines

    def _sample(self, events: list[Event]) -> set[str]:
        """Return the ids of the events to score: all, or of too many a random part (their ids are random)."""
        chosen: set[str] = set()
        left = SCORED_TOGETHER
        texts = [event for event in events if event.has_texts]
        for event in sorted(texts, key=lambda event: event.id):
            left -= sum(
                min(len(text or ""), SCORED_CHARACTERS) for text in (event.prompt_text, event.answer_text)
            )
            if left < 0:
                break
            chosen.add(event.id)
        if len(chosen) < len(texts):
            self._unscored(len(texts) - len(chosen))
        return chosen

    def _write(self, lines: list[bytes]) -> None:
        # A disk that is full for a while loses nothing: the lines wait here, whole, for a new file.
        while lines:
            try:
                file = self._open()
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                logger.error("The event log can't be written: %s; %d events wait.", error, len(lines))
                self._abandon_file()
                if self._closing:
                    self._lost(len(lines))
                    return
                time.sleep(RETRY_SECONDS)
                continue
            self._written(len(lines))
            return

    def _open(self) -> BufferedWriter:
        full = self._file and self._file.tell() >= self._settings.rotate_bytes
        old = self._file and time.monotonic() - self._since >= self._settings.rotate_seconds
        if full or old:
            self._close_file()
        if self._file is None:
            self._sweep()
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            path = self._folder / f"events-{stamp}-{os.getpid()}.jsonl"
            # Only for this account, as keys.sqlite is: with `keep_text` it holds what people wrote.
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            self._since = time.monotonic()
        return self._file

    def _close_file(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _abandon_file(self) -> None:
        # What it holds of the batch that failed is written again elsewhere; readers take each event once.
        if self._file:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
        self._file = None

    def _sweep(self) -> None:
        oldest = time.time() - self._settings.keep_days * DAY
        for path in self._folder.glob("events-*.jsonl"):
            with contextlib.suppress(OSError):  # another process sweeps too
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _bytes(event: Event) -> int:
    return len(event.prompt_text or "") + len(event.answer_text or "")


def read_events(folder: Path, where: str = "true") -> "pd.DataFrame":
    """Every event in the files of `folder`, oldest first, each one once; read by DuckDB.

    Args:
        folder: `.serving/events` of a gateway.
        where: a condition in SQL, such as `tenant = 'finance' AND status <> 200`.

    Raises:
        LoraOpsError: there is no event yet, or the condition is no SQL.
    """
    import duckdb

    if not any(folder.glob("events-*.jsonl")):
        raise LoraOpsError(f"There are no events in {folder} yet: serve some requests first (`make serve`).")
    columns = {
        "time": "TIMESTAMPTZ",
        "streamed": "BOOLEAN",
        "finish": "VARCHAR[]",
        **dict.fromkeys(("epoch", "status", "choices", "prompt_tokens", "generated_tokens"), "BIGINT"),
        **dict.fromkeys(("prompt_identifiers", "answer_identifiers"), "BIGINT"),
        **dict.fromkeys(("queue_seconds", "first_token_seconds", "seconds", "device_seconds"), "DOUBLE"),
        "answer_insults": "DOUBLE",
    }
    types = {name: columns.get(name, "VARCHAR") for name in Event.model_fields}
    try:
        with duckdb.connect() as db:
            events = db.read_json(
                str(folder / "events-*.jsonl"),
                columns=types,
                format="newline_delimited",
                ignore_errors=True,  # the torn last line of a process that was killed
            )
            whole = events.filter("id IS NOT NULL").aggregate(
                ", ".join(f"any_value({name}) AS {name}" for name in types if name != "id"), "id"
            )
            found = whole.filter(where).order("time").df()
    except duckdb.Error as error:
        raise LoraOpsError(f"The events can't be read: {' '.join(str(error).split())}.") from error
    # DuckDB answers in the machine's time zone.
    return found.assign(time=found["time"].dt.tz_convert("UTC"))
