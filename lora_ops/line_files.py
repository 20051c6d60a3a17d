"""Read the JSON lines that a gateway keeps of its traffic, as a table; written by `serving.line_log`."""

import glob
import types
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin

from lora_ops.errors import LoraOpsError
from lora_ops.records.record import Record

if TYPE_CHECKING:
    import duckdb
    import pandas as pd

T = TypeVar("T")

DUCKDB_TYPES = {datetime: "TIMESTAMPTZ", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}

LINE_BYTES = 16 * 2**20  # of the longest line, for DuckDB, which keeps twice as much for each thread
MOST_LINE_BYTES = 2**30

REAL_TIME = "time BETWEEN TIMESTAMPTZ '1970-01-01 00:00Z' AND TIMESTAMPTZ '9999-01-01 00:00Z'"
"""DuckDB has 'infinity' and years that Python has not: one such line must not hide all others."""


def line_files(folder: Path, name: str) -> list[Path]:
    """Return the files `<name>-*.jsonl` of a folder, the oldest first.

    A pipe or a device of such a name is none: no gateway made it, and to read it may never end. A folder is
    kept, which whoever reads it says.
    """
    return sorted(path for path in folder.glob(f"{name}-*.jsonl") if path.is_file() or path.is_dir())


def read_line_files(folder: Path, name: str, record: type[Record], where: str = "true") -> "pd.DataFrame":
    """Return every line in the files `<name>-*.jsonl`, oldest first, each one once; read by DuckDB.

    The last line of a file that a kill has torn is left out. A field that an earlier release didn't write is
    empty.

    Args:
        folder: where the files are.
        name: of the files, before their time.
        record: what a line is, with an `id` and a `time`; of the same time, those of a request stay together.
        where: a condition in SQL, such as `tenant = 'finance' AND status <> 200`.

    Raises:
        LoraOpsError: the condition is no SQL, or a file can't be read.
    """
    columns = column_types(record)

    def read(line_bytes: int) -> "pd.DataFrame":
        with connect(line_bytes) as db:
            lines = read_lines(db, line_files(folder, name), columns, line_bytes)
            wanted = each_once(lines, where).project(", ".join(columns))
            return wanted.order("time, request_id" if "request_id" in columns else "time, id").df()

    found = with_room(folder, name, read)
    # DuckDB answers in the machine's time zone.
    return found.assign(time=found["time"].dt.tz_convert("UTC"))


def with_room(folder: Path, name: str, read: Callable[[int], T]) -> T:
    """Return what `read` returns, which is given the bytes of the longest line that it must take.

    Raises:
        LoraOpsError: `read` finds that a file can't be read, or that its condition is no SQL.
    """
    import duckdb

    try:
        try:
            return read(LINE_BYTES)
        except duckdb.InvalidInputException as error:
            if "maximum_object_size" not in str(error):
                raise
            # No gateway writes such a line. It must not hide all others: a rollout could not go back.
            longest = max(path.stat().st_size for path in line_files(folder, name))
            return read(min(longest + 1, MOST_LINE_BYTES))
    except (duckdb.Error, OSError) as error:
        raise LoraOpsError(f"The {name} can't be read: {' '.join(str(error).split())}.") from error


def connect(line_bytes: int) -> "duckdb.DuckDBPyConnection":
    """Return a database in memory for `read_lines`; each of its threads keeps two of the longest lines."""
    import duckdb

    return duckdb.connect(config={"threads": 1} if line_bytes > LINE_BYTES else {})


def read_lines(
    db: "duckdb.DuckDBPyConnection", files: Iterable[Path], columns: dict[str, str], line_bytes: int
) -> "duckdb.DuckDBPyRelation":
    """Return the lines of files as a relation: its columns, and `filename`."""
    paths = [glob.escape(str(path)) for path in files]  # they are patterns to DuckDB
    if not paths:
        empty = {**columns, "filename": "VARCHAR"}
        typed = ", ".join(f"CAST(NULL AS {kind}) AS {name}" for name, kind in empty.items())
        return db.sql(f"SELECT {typed} WHERE false")
    return db.read_json(
        paths,  # type: ignore[arg-type]  # a list, too, which its stubs don't know
        columns=columns,
        format="newline_delimited",
        ignore_errors=True,  # the torn last line of a process that was killed
        maximum_object_size=line_bytes,
        filename=True,
    )


def each_once(lines: "duckdb.DuckDBPyRelation", where: str) -> "duckdb.DuckDBPyRelation":
    """Return the wanted lines. One that is in two files, since a disk refused it at first, is there once."""
    columns = (f"any_value({one}) AS {one}" if one != "id" else one for one in lines.columns)
    return lines.filter(f"id IS NOT NULL AND {REAL_TIME} AND ({where})").aggregate(", ".join(columns), "id")


def column_types(record: type[Record]) -> dict[str, str]:
    """Return the type in DuckDB of each field that is written."""
    return {field: _type(info.annotation) for field, info in record.model_fields.items() if not info.exclude}


def _type(annotation: Any) -> str:
    """Return DuckDB's type of a field: of a union with None the other one's, of anything else a text."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is list:
        return f"{_type(get_args(annotation)[0])}[]"
    return DUCKDB_TYPES.get(annotation, "VARCHAR")
