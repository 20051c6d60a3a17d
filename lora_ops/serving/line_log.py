"""Lines that are written and synced to disk off the request's path, in files that rotate.

Files are `<name>-<UTC time>-<process>.jsonl` in one folder, each written by one process from beginning to end,
so a kill can only tear the last line of a file. What was appended is on disk after `SYNC_SECONDS` and one
fsync; an orderly shutdown writes all of it.
"""

import contextlib
import logging
import os
import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from io import BufferedWriter
from pathlib import Path
from typing import Generic, TypeVar

from lora_ops.errors import Unavailable, disk_reason
from lora_ops.settings.serving import EventSettings

logger = logging.getLogger(__name__)

SYNC_SECONDS = 0.2
QUEUE_LIMIT = 100_000
BYTES_LIMIT = 128 * 2**20  # of texts that wait to be written
RETRY_SECONDS = 1.0
DAY = 86400

T = TypeVar("T")


class LineLog(Generic[T]):
    """Appends items as lines from a thread of its own; a subclass says what an item's line is.

    Args:
        folder: where the files go.
        name: of the files, before their time; for people: `The {name} log`.
        settings: when a new file begins, and when an old one goes.
        written, lost: called with a number of items that are on disk, or that are lost.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        settings: EventSettings,
        written: Callable[[int], None] = lambda count: None,
        lost: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._name = name
        self._title = f"The {name.removesuffix('s')} log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._title} can't be kept in {folder} ({disk_reason(error)}).") from error
        self._folder = folder
        self._settings = settings
        self._written = written
        self._lost = lost
        self._queue: queue.SimpleQueue[T | None] = queue.SimpleQueue()
        self._bytes = 0
        self._counting = threading.Lock()
        self._file: BufferedWriter | None = None
        self._path = folder
        self._kept = 0
        """Lines in the file that is open."""
        self._since = 0.0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-log", daemon=True)
        self._thread.start()

    @abstractmethod
    def _size(self, item: T) -> int:
        """Return the characters of an item's texts."""

    @abstractmethod
    def _prepared(self, items: Sequence[T]) -> Callable[[T], str]:
        """Return what makes the JSON of each of these items, which came together; runs in the log's thread."""

    @abstractmethod
    def _end(self) -> None:
        """Let go of what makes lines; runs in the log's thread once the last one is written."""

    def append(self, item: T) -> None:
        """Hand an item over; it does not wait for the disk, and is lost where too many wait already."""
        size = self._size(item)
        if self._queue.qsize() >= QUEUE_LIMIT or self._bytes + size > BYTES_LIMIT:
            self._lost(1)
            return
        self._count(size)
        self._queue.put(item)

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
            items = [item for item in batch if item is not None]
            try:
                self._write(self._lines(items))
            except Exception:  # the thread must live: without it every later item is lost
                logger.exception("%s lost %d %s.", self._title, len(items), self._name)
                self._lost(len(items))
            self._count(-sum(map(self._size, items)))
        self._leave_removed_file()
        self._close_file()
        self._end()

    def _count(self, size: int) -> None:
        with self._counting:
            self._bytes += size

    def _lines(self, items: list[T]) -> list[bytes]:
        lines = []
        as_json = self._prepared(items)
        for item in items:
            try:
                lines.append(as_json(item).encode() + b"\n")
            except Exception:  # one item that can't be written must not take the others with it
                request = getattr(item, "request_id", "?")
                logger.exception("%s can't write what it has of request %s.", self._title, request)
                self._lost(1)
        return lines

    def _write(self, lines: list[bytes]) -> None:
        # A disk that is full for a while loses nothing: the lines wait here, whole, for a new file.
        while lines:
            try:
                file = self._open()
                file.write(b"".join(lines))
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                logger.error("%s can't be written: %s; %d %s wait.", self._title, error, len(lines), self._name)
                self._abandon_file()
                if self._closing:
                    self._lost(len(lines))
                    return
                time.sleep(RETRY_SECONDS)
                continue
            self._kept += len(lines)
            self._written(len(lines))
            return

    def _open(self) -> BufferedWriter:
        self._leave_removed_file()
        full = self._file and self._file.tell() >= self._settings.rotate_bytes
        old = self._file and time.monotonic() - self._since >= self._settings.rotate_seconds
        if full or old:
            self._close_file()
        if self._file is None:
            with contextlib.suppress(FileExistsError):
                self._folder.mkdir()
            self._sweep()
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
            path = self._folder / f"{self._name}-{stamp}-{os.getpid()}.jsonl"
            # Only for this account, as keys.sqlite is: with `keep_text` it holds what people wrote.
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
            self._since, self._path, self._kept = time.monotonic(), path, 0
        return self._file

    def _leave_removed_file(self) -> None:
        """Close a file that is not at its place any more: nobody would read what is written to it."""
        if self._file is None:
            return
        mine = os.fstat(self._file.fileno())
        try:
            if os.path.samestat(mine, self._path.stat()):
                return
        except OSError as error:
            logger.debug("%s is looked for in vain: %s", self._path, error)
        gone = 0 if mine.st_nlink else self._kept  # one that was moved still has its lines
        logger.error("%s was removed while it was written, and %d %s with it.", self._path, gone, self._name)
        if gone:
            self._lost(gone)
        self._abandon_file()

    def _close_file(self) -> None:
        if self._file:
            self._file.close()
        self._file = None

    def _abandon_file(self) -> None:
        # What it holds of the batch that failed is written again elsewhere; readers take each item once.
        if self._file:
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
        self._file = None

    def _sweep(self) -> None:
        oldest = time.time() - self._settings.keep_days * DAY
        for path in self._folder.glob(f"{self._name}-*.jsonl"):
            with contextlib.suppress(OSError):  # another process sweeps too
                if path.stat().st_mtime < oldest:
                    path.unlink()
