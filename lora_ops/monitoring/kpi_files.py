"""Read a file of KPIs, CSV or Parquet, as text: what a cell means is decided for both alike."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lora_ops.datasets.files import csv_rows, shorten
from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.hashing import sha256_bytes
from lora_ops.named_paths import why_no_file
from lora_ops.small_files import read_small

NEEDED = ("time", "kind", "value")
NAMES = ("request_id", "tenant")
"""Of these a file has one or both: they say which version a row is about."""
OPTIONAL = ("until", "count")
COLUMNS = (*NEEDED, *NAMES, *OPTIONAL)
SCHEMA = "docs/monitoring.md says what they hold"
ROW = "row"
FIELDS = "fields"
"""A column of our own: how many fields a row has where its header has others; else missing."""


class KpiFile(NamedTuple):
    """What a file holds.

    Attributes:
        name: of the file.
        sha256: of its bytes.
        bytes: how many.
        table: the columns of `COLUMNS` as text, missing where a cell is empty; `row` is the line of a CSV file
            or the row of a Parquet file, from 1, and `fields` see above.
        left_out: other columns.
    """

    name: str
    sha256: str
    bytes: int
    table: pd.DataFrame
    left_out: tuple[str, ...]


def read_kpi_file(path: Path) -> KpiFile:
    """Read a file.

    Raises:
        LoraOpsError: it is no CSV or Parquet file, is damaged, has other columns, or no rows.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise LoraOpsError(f"{path.name} is neither .csv nor .parquet: export the KPIs as one of both.")
    if not path.is_file():
        raise LoraOpsError(f"There are no KPIs to import: {why_no_file(path)}.")
    try:
        content = read_small(path)
        read = _read_csv(content) if path.suffix == ".csv" else _read_parquet(path)
        digest = sha256_bytes(content)
        if path.suffix == ".parquet" and sha256_bytes(read_small(path)) != digest:
            raise ValueError("it changed while it was being read: import it again")
    except OSError as error:
        raise LoraOpsError(f"{path.name} can't be read ({disk_reason(error)}).") from error
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{path.name} can't be imported: {reason}. Nothing was taken from it.") from error
    table, left_out = read
    if table.empty:
        raise LoraOpsError(f"{path.name} has no rows: nothing was imported.")
    return KpiFile(path.name, digest, len(content), table, left_out)


def _read_csv(content: bytes) -> tuple[pd.DataFrame, tuple[str, ...]]:
    try:
        text = content.decode("utf-8-sig")  # Excel and Windows begin with a mark
    except UnicodeDecodeError as error:
        line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
        raise ValueError(f"line {line} is not UTF-8 (byte 0x{byte:02x}): save it as UTF-8") from error
    if "\0" in text[:1000]:
        raise ValueError("it holds NUL characters, so it is no UTF-8: save it as UTF-8")
    rows = csv_rows(text, ",")
    _, header = next(rows, (0, []))
    if not header:
        raise ValueError("it is empty: its first line must name the columns")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise ValueError(
            f"its header is one column, {shorten(header[0])}: export it with ',' between the columns and '.' "
            "before decimals"
        )
    places = _places(header)
    lines, cells, fields = [], [], []
    for line, row in rows:
        fits = len(row) == len(header)
        lines.append(line)
        fields.append(None if fits else len(row))
        cells.append([row[place] or None for place in places.values()] if fits else [None] * len(places))
    table = pd.DataFrame(cells, columns=list(places), dtype="str")
    return _whole(table, lines, fields), _others(header)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    import duckdb

    with duckdb.connect() as connection:
        try:
            # A name with * or ? would be read as a pattern.
            literal = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
            found = connection.read_parquet(literal)
            header = list(found.columns)
            places = _places(header)
            connection.execute("SET TimeZone = 'UTC'")
            texts = [duckdb.ColumnExpression(name).cast("VARCHAR").alias(name) for name in places]
            table = found.select(*texts).df()
        except duckdb.Error as error:
            raise ValueError(f"it is no whole Parquet file ({str(error).partition(chr(10))[0]})") from error
    return _whole(table.astype("str"), range(1, len(table) + 1), None), _others(header)


def _whole(table: pd.DataFrame, rows: "list[int] | range", fields: "list[int | None] | None") -> pd.DataFrame:
    whole = table.copy()
    for name in COLUMNS:
        if name not in whole:
            whole[name] = pd.Series(None, index=table.index, dtype="str")
    whole[ROW] = list(rows)
    whole[FIELDS] = pd.Series(fields, index=table.index, dtype="Int64")
    return whole


def _places(header: list[str]) -> dict[str, int]:
    """Return where each of our columns is.

    Raises:
        ValueError: one is missing, or stands twice.
    """
    twice = next((name for name in COLUMNS if header.count(name) > 1), None)
    if twice:
        raise ValueError(f"two columns are named '{twice}': rename one or remove it")
    missing = [name for name in NEEDED if name not in header]
    missing += [] if any(name in header for name in NAMES) else [" or ".join(NAMES)]
    if missing:
        shown = ", ".join(shorten(name, 24) for name in header[:8])
        raise ValueError(f"it has no column {', '.join(missing)} (it has: {shown}); {SCHEMA}")
    return {name: header.index(name) for name in COLUMNS if name in header}


def _others(header: list[str]) -> tuple[str, ...]:
    return tuple(name for name in header if name not in COLUMNS)
