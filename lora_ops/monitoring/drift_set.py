"""A tenant's drift set: rows that every measurement asks, so that two weeks can be compared.

The rows are held out by the pipeline's split, so that no adapter learned their answers. Each comes from another
group: rows of one group are alike, and the tests of `drift_tests` take rows as independent.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from lora_ops.errors import LoraOpsError, NotFound, Refused, Unavailable, disk_reason
from lora_ops.hashing import sha256_bytes
from lora_ops.records.drift import DriftRow
from lora_ops.records.example import Example
from lora_ops.registry.files import write_atomically
from lora_ops.settings.files import first_problem
from lora_ops.small_files import parse_json, read_small

LEAST_ROWS = 20
"""Fewer rows can't show a small p-value: half of them to the power of the rows is the smallest."""


class DriftSet(NamedTuple):
    """The rows of a drift set, and the SHA-256 of its file."""

    rows: tuple[DriftRow, ...]
    sha256: str


def drift_set_path(root: Path, tenant: str) -> Path:
    """Return where a tenant's drift set is."""
    return root / "suites" / f"{tenant}.drift.jsonl"


def read_drift_set(root: Path, tenant: str) -> DriftSet:
    """Return a tenant's drift set.

    Raises:
        NotFound: there is none.
        LoraOpsError: it can't be read, a line is no row, a row is there twice, or there are too few.
    """
    path = drift_set_path(root, tenant)
    where = f"suites/{path.name}"
    try:
        content = read_small(path)
    except FileNotFoundError as error:
        raise NotFound(
            f"There is no {where}: `lora-ops monitor drift-set {tenant}` draws one from the held-out rows."
        ) from error
    except OSError as error:
        raise LoraOpsError(f"{where} can't be read: {error.strerror}.") from error
    rows: list[DriftRow] = []
    seen = dict[str, int]()
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = DriftRow.model_validate_json(line)
            parse_json(line, unique=True)
        except ValueError as error:
            what = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise LoraOpsError(
                f"{where}, line {number}: {what}; a row has id, group and text, as those of finance have."
            ) from error
        if row.id in seen:
            raise LoraOpsError(f"{where}, line {number}: the row '{row.id}' is in line {seen[row.id]} already.")
        seen[row.id] = number
        rows.append(row)
    if len(rows) < LEAST_ROWS:
        raise LoraOpsError(f"{where} has {len(rows)} rows, and at least {LEAST_ROWS} are needed.")
    return DriftSet(tuple(rows), sha256_bytes(content))


def draw_drift_set(held_out: Sequence[Example], rows: int, seed: int = 0) -> list[DriftRow]:
    """Return one row of each of at most `rows` groups; the same rows and seed draw the same ones.

    Raises:
        LoraOpsError: there are too few groups.
    """
    by_group: dict[str, list[Example]] = {}
    for one in held_out:
        by_group.setdefault(one.group, []).append(one)
    if len(by_group) < LEAST_ROWS:
        raise LoraOpsError(
            f"The held-out rows have {len(by_group)} groups, and a drift set needs {LEAST_ROWS}: raise "
            "data.rows.test in params.yaml."
        )
    generator = random.Random(seed)
    groups = generator.sample(sorted(by_group), min(rows, len(by_group)))
    chosen = [generator.choice(by_group[group]) for group in groups]
    return [DriftRow(id=one.id, group=one.group, text=one.text) for one in chosen]


def write_drift_set(root: Path, tenant: str, rows: Sequence[DriftRow], *, replace: bool = False) -> Path:
    """Write a tenant's drift set, and return its path.

    Raises:
        Refused: there is one already, whose references would be lost.
        Unavailable: the disk takes nothing.
    """
    path = drift_set_path(root, tenant)
    if path.exists() and not replace:
        raise Refused(
            f"suites/{path.name} exists: what was measured with it can't be compared with other rows. "
            "`--replace` takes its place; each version then needs a new reference."
        )
    text = "".join(one.model_dump_json() + "\n" for one in rows)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise Unavailable(f"{path} can't be written ({disk_reason(error)}).") from error
    return path
