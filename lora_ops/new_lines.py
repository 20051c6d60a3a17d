"""Read what gateways appended to their files of JSON lines since the last time, oldest first.

`line_files` reads every line at each call. A controller that looks every ten seconds would read the same lines
thousands of times. `NewLines` keeps how far it read each file, and reads on from there. All that it gave is at
any time what a reader of all lines finds then. It begins again with all lines where that needs it: a file that
had wanted lines is gone or was rewritten, a line has an earlier time than those that were given, or the clock
was set back. A gateway appends only: nobody sees a byte that is changed in the middle of a file that grows.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lora_ops.errors import LoraOpsError
from lora_ops.line_files import column_types, connect, each_once, line_files, read_lines, with_room
from lora_ops.records.record import Record

Row = Sequence[Any]
ID, TIME, FIRST, FILE = 0, 1, 2, -1  # places in a row

ENDS = 4096  # bytes of a file's beginning and end, by which it is known again
BLOCK = 2**16
APPENDED_BYTES = 64 * 2**20  # that are read into memory; a file that grew by more is read as a new one
ROWS = 10_000  # that are fetched at a time
REMEMBERED_SECONDS = 600.0
"""For how long ids are kept. A gateway writes a line again if a disk refused it: that is seconds later."""


class Reading(NamedTuple):
    """Rows up to a moment that weren't given before.

    Attributes:
        is_anew: whether all lines were read, so that what was given before counts no more.
        rows: id, time in microseconds since 1970, the fields that are asked for, and the file of each line.
    """

    is_anew: bool
    rows: Iterator[Row]


class _Part(NamedTuple):
    path: str
    lines: list[str] | None
    """What was appended; None: all of the file."""


class NewLines:
    """The lines of the files `<name>-*.jsonl` in one folder, each given once."""

    def __init__(
        self, folder: Path, name: str, record: type[Record], where: str, fields: Sequence[str]
    ) -> None:
        """Start before the first line.

        Args:
            folder: where the files are; it need not exist.
            name: of the files, before their time.
            record: what a line is; it has an `id` and a `time`.
            where: a condition in SQL for the lines that are wanted; it says the same at any time.
            fields: of a row, besides `id` and `time`. Lines of the same time are sorted by the first one, which
                all that are wanted have.
        """
        self._folder = folder
        self._name = name
        self._columns = column_types(record)
        self._where = where
        self._fields = fields
        self._forget()

    def _forget(self) -> None:
        self._files: dict[str, _File] = {}
        self._until: float | None = None
        self._waiting: list[Row] = []
        self._ids: dict[str, float] = {}

    def read(self, until: float) -> Reading:
        """Return the rows up to a time, in seconds, that weren't given before; take all of them.

        After an error, or if rows were left, this object must not be asked again.

        Raises:
            LoraOpsError: a file can't be read.
        """
        try:
            rows = self._appended(until)
            if rows is not None:
                return Reading(False, iter(rows))
            self._forget()
            self._until = until
            return Reading(True, self._all(self._parts() or [], until))
        except OSError as error:
            raise LoraOpsError(f"The {self._name} can't be read: {error}.") from error

    def _appended(self, until: float) -> list[Row] | None:
        """Return the next rows, or None where all lines must be read."""
        before = self._until
        if before is None or until < before:
            return None
        parts = self._parts()
        if parts is None:
            return None
        new = [row for row in self._rows(parts) if row[ID] not in self._ids]
        if any(_seconds(row) <= before for row in new):
            return None  # it came late: what was given with the rows of its time lacks it
        self._ids.update((row[ID], _seconds(row)) for row in new)
        rows = sorted([*self._waiting, *new], key=_place)
        due = sum(_seconds(row) <= until for row in rows)
        self._waiting = rows[due:]
        self._until = until
        # Whatever waits is younger than `until`. A line whose id is forgotten comes late, if it comes again.
        if next(iter(self._ids.values()), until) < until - 2 * REMEMBERED_SECONDS:
            self._ids = {one: at for one, at in self._ids.items() if at >= until - REMEMBERED_SECONDS}
        return rows[:due]

    def _all(self, parts: Sequence[_Part], until: float) -> Iterator[Row]:
        for row in self._rows(parts):
            at = _seconds(row)
            if at >= until - REMEMBERED_SECONDS:
                self._ids[row[ID]] = at
            if at <= until:
                yield row
            else:
                self._waiting.append(row)

    def _parts(self) -> list[_Part] | None:
        """Return what the files have now that wasn't read; None where some of what was read is gone."""
        found = {str(path): path for path in line_files(self._folder, self._name)}
        if any(self._files.pop(gone).rows for gone in self._files.keys() - found.keys()):
            return None
        parts = []
        for name, path in found.items():
            known = self._files.get(name)
            if known is not None and known.stamp == _stamp(path.stat()):
                continue
            with path.open("rb") as file:
                stamp = _stamp(os.fstat(file.fileno()))
                if known is not None and not _goes_on(file, known, stamp):
                    if known.rows:
                        return None
                    known = None
                if known is None:
                    part, read = _Part(name, None), _whole_lines(file, stamp.size)
                else:
                    file.seek(known.read)
                    appended = file.read(stamp.size - known.read)
                    part, read = _Part(name, _texts(appended)), known.read + appended.rfind(b"\n") + 1
                rows = known.rows if known else 0
                self._files[name] = _File(stamp, read, _ends(file, stamp.size), rows)
                parts.append(part)
        return parts

    def _rows(self, parts: Sequence[_Part]) -> Iterator[Row]:
        """Yield the wanted rows of some parts in their order."""

        def begun(line_bytes: int) -> Iterator[Row]:
            # They are sorted, so that all is read before the first one comes.
            rows = self._read(parts, line_bytes)
            first = next(rows, None)
            return rows if first is None else chain([first], rows)

        for row in with_room(self._folder, self._name, begun) if parts else ():
            self._files[row[FILE]].rows += 1
            yield row

    def _read(self, parts: Sequence[_Part], line_bytes: int) -> Iterator[Row]:
        import pandas as pd

        whole = [Path(part.path) for part in parts if part.lines is None]
        appended = [(line, part.path) for part in parts for line in part.lines or ()]
        with connect(line_bytes) as db:
            found = []
            if whole:
                found.append(read_lines(db, whole, self._columns, line_bytes))
            if appended:
                lines = db.from_df(pd.DataFrame(appended, columns=["line", "filename"]))
                found.append(lines.project(f"unnest({_as_columns(self._columns)}), filename"))
            if not found:
                return
            lines = found[0].union(found[1]) if len(found) == 2 else found[0]
            columns = ", ".join(("id", "epoch_us(time) AS time", *self._fields, "filename"))
            rows = each_once(lines, self._where).project(columns).order(f"time, {self._fields[0]}, id")
            yield from rows.iter_rows(ROWS)


def _seconds(row: Row) -> float:
    return float(row[TIME] / 1e6)


def _place(row: Row) -> tuple[int, str, str]:
    return row[TIME], row[FIRST], row[ID]


class _Stamp(NamedTuple):
    """Which file it is, and whether it was written: device and inode, bytes, and the time in nanoseconds."""

    device: int
    inode: int
    size: int
    changed: int


@dataclass
class _File:
    """How far a file was read.

    Attributes:
        stamp: of the last reading.
        read: bytes up to the end of its last whole line. A torn line behind that is read again once it grows.
        ends: a digest of its beginning and its end at the last reading.
        rows: how many of its lines were wanted.
    """

    stamp: _Stamp
    read: int
    ends: bytes
    rows: int


def _stamp(state: os.stat_result) -> _Stamp:
    return _Stamp(state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


def _goes_on(file: BinaryIO, known: _File, now: _Stamp) -> bool:
    """Whether a file is the known one with some more lines, and not another one or the same rewritten."""
    before = known.stamp
    is_same = (before.device, before.inode) == (now.device, now.inode)
    has_grown = before.size < now.size <= known.read + APPENDED_BYTES
    return is_same and has_grown and _ends(file, before.size) == known.ends


def _ends(file: BinaryIO, size: int) -> bytes:
    """Return a digest of the first and the last `ENDS` of so many bytes of a file."""
    digest = hashlib.sha256()
    for start in (0, max(0, size - ENDS)):
        file.seek(start)
        digest.update(file.read(min(ENDS, size)))
    return digest.digest()


def _whole_lines(file: BinaryIO, size: int) -> int:
    """Return the bytes up to the end of the last whole line, of so many."""
    while size:
        start = max(0, size - BLOCK)
        file.seek(start)
        ended = file.read(size - start).rfind(b"\n") + 1
        if ended:
            return start + ended
        size = start
    return 0


def _texts(appended: bytes) -> list[str]:
    """Return the lines that are UTF-8; DuckDB takes no others out of a file, either."""
    texts = []
    for line in appended.split(b"\n"):
        with suppress(UnicodeDecodeError):
            texts.append(line.decode())
    return [text for text in texts if text.strip()]


def _as_columns(columns: Mapping[str, str]) -> str:
    """Return the SQL that makes of `line` what DuckDB's reader of files makes of it."""
    return f"json_transform(CASE WHEN json_valid(line) THEN line END, '{json.dumps(columns)}')"
