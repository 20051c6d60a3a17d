#!/usr/bin/env python3
"""Run `lora-ops gate` on each tenant's new version, and write its table as Markdown to reports/gates.md.

Usage: .ci/gates.py [TENANT...]

Ends with 1 if a gate fails. Gates that are undecided or missing are named and fail nothing: a new version lacks
what only people can add, such as a review. Any other exit code of `lora-ops gate` is passed on.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_ops.escaping import markdown
from lora_ops.exit_codes import ExitCode

MARK = "<!-- lora-ops gates -->"
COLUMNS = ("gate", "verdict", "found", "threshold")
TOLD = {
    ExitCode.OK: "every gate passes",
    ExitCode.CHECK_FAILED: "a gate **fails**",
    ExitCode.REFUSED: "no gate fails; some are undecided or missing",
}


def lora_ops(*words: str) -> Any:
    """Return what a command prints as JSON; a refusal is said on stderr."""
    done = subprocess.run(["lora-ops", *words, "--json"], stdout=subprocess.PIPE, text=True)
    try:
        printed = json.loads(done.stdout)
    except ValueError:
        sys.exit(done.returncode or ExitCode.INTERNAL)
    if isinstance(printed, dict) and "error" in printed:
        print(f"lora-ops: {printed['error']['message']}", file=sys.stderr)
        sys.exit(done.returncode)
    return printed


def cell(text: str) -> str:
    """Return `text` for a cell: no markup, and nobody is called by it."""
    return markdown(text).replace("@", "&#64;")


def section(found: dict[str, Any]) -> list[str]:
    """Return one version's gates in Markdown, those that don't pass first."""
    rows = sorted(found["gates"], key=lambda row: row["verdict"] in ("pass", "not applicable"))
    notes = [row for row in rows if row["verdict"] != "pass" and row["note"]]
    passed = sum(row["verdict"] == "pass" for row in rows)
    return [
        f"### {cell(found['adapter'])}: {TOLD[found['exit_code']]} ({passed} of {len(rows)} pass)",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
        *(f"| {' | '.join(cell(row[name] or '') for name in COLUMNS)} |" for row in rows),
        "",
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
    lines = [MARK, *(line for one in found for line in section(one))]
    if not found:
        lines.append("No version is new.")
    path = Path("reports/gates.md")
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for one in found:
        print(f"{one['adapter']}: {TOLD[one['exit_code']].replace('*', '')}.")
    print(f"The table: {path}")
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(path.read_text(encoding="utf-8"))
    return int(any(one["exit_code"] == ExitCode.CHECK_FAILED for one in found))


if __name__ == "__main__":
    sys.exit(main())
