"""Read a CSV, JSONL or Parquet file strictly: a row that doesn't fit is an error with its line."""

import codecs
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.settings.data import DataSettings

LONGEST_SHOWN = 80
LARGEST_CELL = 16 * 2**20
MOST_COLUMNS = 1000
"""A table of texts has a few. Each one costs time in every step, whether or not the prompt uses it."""
_NESTED = re.compile(r"\('.*', '.*'\)", re.DOTALL)  # how pandas writes a name of a MultiIndex into Parquet
ZONED = "TIMESTAMP WITH TIME ZONE"  # DuckDB's name of the type, also inside of a list or a structure
# Tab, line feed, carriage return and NEL (U+0085) are spaces that texts have; the others no keyboard writes.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")


def read_file(path: Path, settings: DataSettings) -> pd.DataFrame:
    """Read a file's rows, each cell as the file gives it: text, or a JSON or Parquet value; missing is None.

    Raises:
        LoraOpsError: the file is not what its name says, or a row has other fields than the header.
    """
    readers: dict[str, Callable[[Path, DataSettings], pd.DataFrame]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    try:
        return readers[path.suffix](path, settings)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{path.name} cannot be read as {path.suffix[1:].upper()}: {reason}.") from error


def shorten(value: object, limit: int = LONGEST_SHOWN) -> str:
    """Return a value as Python writes it, cut to `limit` characters."""
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _decoded(path: Path, encoding: str) -> str:
    content = path.read_bytes()
    try:
        text = content.decode(encoding)
    except UnicodeError as error:
        raise ValueError(_undecodable(content, encoding, error)) from error
    if "\0" in text[:1000]:
        raise ValueError(f"it holds NUL characters, so it is not {encoding}: {_encoding_advice('utf-16')}")
    return text.removeprefix("\ufeff")  # the byte order mark that Excel and Windows write


def _undecodable(content: bytes, encoding: str, error: UnicodeError) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"it begins as UTF-16, not {encoding}: {_encoding_advice('utf-16')}"
    if not isinstance(error, UnicodeDecodeError):
        return f"it is not {encoding} ({error}): {_encoding_advice('latin-1')}"
    line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
    # In latin-1 these bytes are control characters; in what Windows writes they are quotes and dashes.
    likely = "cp1252" if 0x80 <= byte < 0xA0 else "latin-1"
    return f"line {line} is not {encoding} (byte 0x{byte:02x}): {_encoding_advice(likely)}"


def _encoding_advice(encoding: str) -> str:
    return f"name its encoding, such as {encoding}, in data.encoding (`lora-ops tenant add --encoding`)"


def _read_csv(path: Path, settings: DataSettings) -> pd.DataFrame:
    reader = csv_rows(_decoded(path, settings.encoding), settings.delimiter)
    first = next(reader, None)
    if first is None:
        raise ValueError("it has no header line")
    header = first[1]
    width = len(header)
    names = [name for name in header if name.strip()]
    # Before the rows: a name that stands twice, or another delimiter, explains best why their fields don't fit.
    _refuse_names(header if width > MOST_COLUMNS else names, settings)
    _refuse_delimiter(names, settings)
    rows = [first, *reader]
    surplus = {len(row) - width for _, row in rows[1:]}
    if surplus and min(surplus) > 0 and all(not any(row[width:]) for _, row in rows[1:]):
        # A delimiter at the end of each row: the fields after it are empty and have no name.
        rows = [rows[0], *((line, row[:width]) for line, row in rows[1:])]
    for line, row in rows[1:]:
        if len(row) != width:
            raise ValueError(
                f"line {line} has {len(row)} fields and the header {width} "
                f"({_shown_row(row)}): put quotes around a field that holds '{settings.delimiter}'"
            )
    empty = [place for place, name in enumerate(header) if not name.strip()]
    for place in empty:
        filled = next((line for line, row in rows[1:] if row[place]), None)
        if filled:
            raise ValueError(f"column {place + 1} has no name in the header, and line {filled} fills it")
    kept = [place for place in range(width) if place not in empty]
    return pd.DataFrame(
        [[row[place] or None for place in kept] for _, row in rows[1:]], columns=names, dtype=object
    )


def _refuse_delimiter(names: list[str], settings: DataSettings) -> None:
    """Raise if the header's only name holds another delimiter."""
    marks = (mark for mark in ";\t|," if mark != settings.delimiter)
    other = next((mark for mark in marks if names and mark in names[0]), None)
    if len(names) == 1 and other:
        raise ValueError(
            f"its header is one column, {shorten(names[0])}: its delimiter seems to be {other!r}, name it "
            "in data.delimiter (`lora-ops tenant add --delimiter`)"
        )


def csv_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    before = csv.field_size_limit(LARGEST_CELL)
    first = 1
    try:
        for row in reader:
            if row:
                yield first, row
            first = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {first}: {error} (is a quote missing or doubled there?)") from error
    finally:
        csv.field_size_limit(before)


def _read_jsonl(path: Path, settings: DataSettings) -> pd.DataFrame:
    text = _decoded(path, settings.encoding)
    if text.lstrip().startswith("["):
        raise ValueError(
            f"it is one JSON array, and JSONL has one object a line: convert it with `jq -c '.[]' {path.name}`"
        )
    rows = []
    # Not splitlines(): U+2028 and other line separators may stand inside JSON text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_missing, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"line {number}: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"line {number} must be an object, not {shorten(row)}")
        rows.append({name: None if _is_nan(value) else value for name, value in row.items()})
    names = list(dict.fromkeys(name for row in rows for name in row))
    _refuse_names(names, settings)
    return pd.DataFrame([[row.get(name) for name in names] for row in rows], columns=names, dtype=object)


def _missing(_: str) -> None:
    # NaN and Infinity are no JSON; pandas and Python write them for a number that is missing.
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twins([name for name, _ in pairs])
    return dict(pairs)


def _read_parquet(path: Path, settings: DataSettings) -> pd.DataFrame:
    import duckdb

    with duckdb.connect() as connection:
        try:
            # A name with * or ? would be read as a pattern.
            table = connection.read_parquet(_literal(path))
            names = table.columns
            _refuse_names(names, settings)
            # DuckDB makes Python values of times with a zone only where pytz is installed: they come as text.
            connection.execute("SET TimeZone = 'UTC'")
            columns = [duckdb.ColumnExpression(name) for name in names]
            for index, kind in enumerate(map(str, table.types)):
                if ZONED in kind:
                    columns[index] = columns[index].cast(kind.replace(ZONED, "VARCHAR")).alias(names[index])
            rows = table.select(*columns).fetchall()
        except duckdb.Error as error:
            raise ValueError(str(error).partition("\n")[0]) from error
    cells = [[None if _is_nan(value) else value for value in row] for row in rows]
    return pd.DataFrame(cells, columns=names, dtype=object)


def _literal(path: Path) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def columns_problem(names: Sequence[str], settings: DataSettings) -> str | None:
    """Return why columns of these names can't be read, or None."""
    if len(names) > MOST_COLUMNS:
        named = [f"template ({settings.template})", f"target ({settings.target})"]
        named += [f"group ({settings.group})"] if settings.group else []
        named += [f"bias_columns ({', '.join(settings.bias_columns)})"] if settings.bias_columns else []
        return (
            f"it has {len(names):,} columns, and at most {MOST_COLUMNS:,} are read: keep those that "
            f"data.{', data.'.join(named)} name"
        )
    twin = _twin(names)
    if twin is not None:
        return f"two columns are named {shorten(twin)}: rename one or remove it"
    for place, name in enumerate(names, start=1):
        if CONTROL.search(name):
            return f"the name of column {place} holds a control character ({shorten(name)}): rename it"
        if _NESTED.fullmatch(name):
            return (
                f"its columns have two names each, such as {shorten(name)} (a MultiIndex): give each one name"
            )
    return None


def _refuse_names(names: Sequence[str], settings: DataSettings) -> None:
    problem = columns_problem(names, settings)
    if problem:
        raise ValueError(problem)


def _refuse_twins(names: list[str]) -> None:
    twin = _twin(names)
    if twin is not None:
        raise ValueError(f"two columns are named {shorten(twin)}: rename one or remove it")


def _twin(names: Sequence[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


def _shown_row(row: list[str]) -> str:
    shown = ", ".join(shorten(field, 24) for field in row[:4])
    return f"{shown}, …" if len(row) > 4 else shown
