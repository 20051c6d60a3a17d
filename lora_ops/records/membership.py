"""`membership.csv` of a package: which groups of the data are in which split, as digests."""

import csv
from pathlib import Path

from lora_ops.errors import LoraOpsError


def read_groups(path: Path) -> dict[str, set[str]]:
    """Return split -> digests of its groups.

    Raises:
        LoraOpsError: the file lists no splits and groups.
    """
    groups: dict[str, set[str]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                groups.setdefault(row["split"], set()).add(row["group_sha256"])
    except (KeyError, ValueError, csv.Error) as error:
        raise LoraOpsError(
            f"{path.name} doesn't list the groups of each split ({type(error).__name__}: {error}): package it "
            "again."
        ) from error
    return groups
