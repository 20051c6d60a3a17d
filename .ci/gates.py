#!/usr/bin/env python3
"""Run `lora-ops gate` on each tenant's new version, and write its table as Markdown to reports/gates.md.

Usage: .ci/gates.py [TENANT...]

Ends with 1 if a gate fails. Gates that are undecided or missing are named and fail nothing: a new version lacks
what only people can add, such as a review. Any other exit code of `lora-ops gate` is passed on.
"""

import sys
from pathlib import Path
from typing import Any

from tables import cell, lora_ops, publish, table

from lora_ops.exit_codes import ExitCode

MARK = "<!-- lora-ops gates -->"
COLUMNS = ("gate", "verdict", "found", "threshold")
TOLD = {
    ExitCode.OK: "every gate passes",
    ExitCode.CHECK_FAILED: "a gate **fails**",
    ExitCode.REFUSED: "no gate fails; some are undecided or missing",
}


def section(found: dict[str, Any]) -> list[str]:
    """Return one version's gates in Markdown, those that don't pass first."""
    rows = sorted(found["gates"], key=lambda row: row["verdict"] in ("pass", "not applicable"))
    notes = [row for row in rows if row["verdict"] != "pass" and row["note"]]
    passed = sum(row["verdict"] == "pass" for row in rows)
    return [
        f"### {cell(found['adapter'])}: {TOLD[found['exit_code']]} ({passed} of {len(rows)} pass)",
        "",
        *table(COLUMNS, [[row[name] for name in COLUMNS] for row in rows]),
        *(f"- {cell(row['gate'])}: {cell(row['note'])}" for row in notes),
        *(f"- Note: {cell(note)}" for note in found["notes"]),
        "",
    ]


def main() -> int:
    """Gate the new versions of the tenants that are named, else of all."""
    tenants = sys.argv[1:]
    new = [
        row["adapter"]
        for row in lora_ops("registry", "list", "--state", "candidate")
        if "candidate" in row["aliases"] and (not tenants or row["tenant"] in tenants)
    ]
    found = [lora_ops("gate", adapter) for adapter in new]
    for one in found:
        print(f"{one['adapter']}: {TOLD[one['exit_code']].replace('*', '')}.")
    sections = [line for one in found for line in section(one)]
    publish(Path("reports/gates.md"), [MARK, *(sections or ["No version is new."])])
    return int(any(one["exit_code"] == ExitCode.CHECK_FAILED for one in found))


if __name__ == "__main__":
    sys.exit(main())
