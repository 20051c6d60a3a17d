"""A tenant's rows, read from its CSV, JSONL or Python source, before any split."""

import importlib.util
import json
import string
from pathlib import Path
from typing import Any

import pandas as pd

from lora_ops.errors import LoraOpsError
from lora_ops.fetch import fetch_package
from lora_ops.hashing import sha256_file
from lora_ops.records.data import SourceRecord
from lora_ops.settings.data import DataSettings


def read_source(settings: DataSettings, root: Path, raw: Path) -> tuple[pd.DataFrame, SourceRecord]:
    """The rows of `settings.source` and where they come from.

    A `.py` source defines `load`, which returns a DataFrame: `load(archive)` when the settings name a
    package, `load()` when they don't. Every column of a file comes back as text, numbers of JSONL as JSON
    writes them.

    Returns:
        A frame with the source's own columns and one row for each example, and its record.

    Raises:
        LoraOpsError: the source is missing, unreadable, empty or lacks a column that the settings use.
    """
    path = root / settings.source
    if not path.is_file():
        raise LoraOpsError(f"data.source: there is no file {path}: correct the path in params.yaml.")
    if path.suffix == ".py":
        frame, record = _from_python(path, settings, raw)
    else:
        frame = _from_file(path)
        digest = sha256_file(path)
        record = SourceRecord(name=settings.source, version=digest[:12], sha256=digest, date=settings.published)
    _require_columns(frame, settings)
    return frame, record


def template_fields(template: str) -> list[str]:
    """The column names that a prompt template such as `{question} ({product})` uses.

    Raises:
        LoraOpsError: the template is not a valid format string, names no column or formats one.
    """
    try:
        parsed = [part for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise LoraOpsError(f"data.template: {error} in '{template}': write columns as {{name}}.") from error
    fields = [str(name) for _, name, _, _ in parsed]
    for name, (_, _, spec, conversion) in zip(fields, parsed, strict=True):
        if spec or conversion:
            raise LoraOpsError(
                f"data.template: '{template}' formats a column, and columns are text: write it as {{{name}}}."
            )
    if not fields or "" in fields:
        raise LoraOpsError(f"data.template: '{template}' names no column: write at least one as {{name}}.")
    return fields


def _from_python(path: Path, settings: DataSettings, raw: Path) -> tuple[pd.DataFrame, SourceRecord]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "load", None)):
        raise LoraOpsError(f"{settings.source} defines no function `load`: add one that returns a DataFrame.")
    if settings.requirement and settings.archive_sha256:
        sdist = settings.archive == "sdist"
        archive = fetch_package(settings.requirement, settings.archive_sha256, raw, sdist=sdist)
        frame = module.load(archive)
        name, _, version = settings.requirement.partition("==")
        record = SourceRecord(
            name=name, version=version, sha256=settings.archive_sha256, date=settings.published
        )
    else:
        frame = module.load()
        digest = sha256_file(path)
        record = SourceRecord(name=settings.source, version=digest[:12], sha256=digest, date=settings.published)
    if not isinstance(frame, pd.DataFrame):
        raise LoraOpsError(f"`load` in {settings.source} returned {type(frame).__name__}, not a DataFrame.")
    return frame, record


def _from_file(path: Path) -> pd.DataFrame:
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
        # Not splitlines(): JSON text may hold other line separators.
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [_text_of(json.loads(line)) for line in lines if line.strip()]
        return pd.DataFrame(rows, dtype=object)
    except (ValueError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise LoraOpsError(f"{path.name} cannot be read as {path.suffix[1:].upper()}: {reason}.") from error


def _text_of(row: Any) -> dict[str, str | None]:
    # pandas' reader would take codes for numbers, and columns that are called "date" for times.
    if not isinstance(row, dict):
        raise ValueError(f"a line must be an object, not {json.dumps(row)}")
    return {
        name: value if isinstance(value, str | None) else json.dumps(value, ensure_ascii=False)
        for name, value in row.items()
    }


def _require_columns(frame: pd.DataFrame, settings: DataSettings) -> None:
    wanted = {
        **dict.fromkeys(template_fields(settings.template), "template"),
        settings.target: "target",
        **({settings.group: "group"} if settings.group else {}),
    }
    for column, setting in wanted.items():
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns))
            raise LoraOpsError(f"{settings.source} has no column '{column}' (data.{setting}); it has: {there}.")
    if frame.empty:
        raise LoraOpsError(f"{settings.source} has no rows.")
