"""Read the JSON lines that a gateway keeps of its traffic, as a table; written by `serving.line_log`."""

import types
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from lora_ops.errors import LoraOpsError
from lora_ops.records.record import Record

if TYPE_CHECKING:
    import pandas as pd

DUCKDB_TYPES = {datetime: "TIMESTAMPTZ", bool: "BOOLEAN", int: "BIGINT", float: "DOUBLE"}

LINE_BYTES = 16 * 2**20  # of the longest line, for DuckDB, which keeps twice as much for each thread
MOST_LINE_BYTES = 2**30

REAL_TIME = "time BETWEEN TIMESTAMPTZ '1970-01-01 00:00Z' AND TIMESTAMPTZ '9999-01-01 00:00Z'"
"""DuckDB has 'infinity' and years that Python has not: one such line must not hide all others."""


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
    import duckdb

    columns = {field: _type(info.annotation) for field, info in record.model_fields.items()}
    try:
        try:
            found = _read(folder, name, columns, where, LINE_BYTES)
        except duckdb.InvalidInputException as error:
            if "maximum_object_size" not in str(error):
                raise
            # No gateway writes such a line. It must not hide all others: a rollout could not go back.
            longest = max(path.stat().st_size for path in folder.glob(f"{name}-*.jsonl") if path.is_file())
            found = _read(folder, name, columns, where, min(longest + 1, MOST_LINE_BYTES))
    except (duckdb.Error, OSError) as error:
        raise LoraOpsError(f"The {name} can't be read: {' '.join(str(error).split())}.") from error
    # DuckDB answers in the machine's time zone.
    return found.assign(time=found["time"].dt.tz_convert("UTC"))


def _read(folder: Path, name: str, columns: dict[str, str], where: str, line_bytes: int) -> "pd.DataFrame":
    import duckdb

    with duckdb.connect(config={"threads": 1} if line_bytes > LINE_BYTES else {}) as db:
        lines = db.read_json(
            str(folder / f"{name}-*.jsonl"),
            columns=columns,
            format="newline_delimited",
            ignore_errors=True,  # the torn last line of a process that was killed
            maximum_object_size=line_bytes,
        )
        whole = lines.filter(f"id IS NOT NULL AND {REAL_TIME}").aggregate(
            ", ".join(f"any_value({one}) AS {one}" if one != "id" else one for one in columns), "id"
        )
        order = "time, request_id" if "request_id" in columns else "time, id"
        return whole.filter(where).order(order).df()


def _type(annotation: Any) -> str:
    """Return DuckDB's type of a field: of a union with None the other one's, of anything else a text."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not type(None))
    if get_origin(annotation) is list:
        return f"{_type(get_args(annotation)[0])}[]"
    return DUCKDB_TYPES.get(annotation, "VARCHAR")
