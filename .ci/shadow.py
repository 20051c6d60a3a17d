#!/usr/bin/env python3
"""Replay held-out rows to each version in shadow, beside production; what they say is in reports/shadow.md.

Ends with 1 if a version is shown to be worse. One that is undecided fails nothing. Replayed rows were asked by
nobody: this is a look before traffic comes, and no evidence.
"""

import sys
from pathlib import Path
from typing import Any

from tables import cell, lora_ops, publish, table

COLUMNS = ("name", "production", "shadow", "difference", "margin", "units", "verdict")


def section(adapter: str, found: dict[str, Any]) -> list[str]:
    """Return what one version's pairs say in Markdown."""
    verdict = found["verdict"]
    return [
        f"### REPLAYED {cell(adapter)}: {cell(verdict['decision'])}, {cell(verdict['reason'])}",
        "",
        *table(COLUMNS, [[_short(metric[name]) for name in COLUMNS] for metric in found["metrics"]]),
    ]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(f"{one:+.3f}" for one in value)
    return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)


def main() -> int:
    """Replay and look at every version in shadow."""
    lines, worse = [], False
    for row in lora_ops("registry", "list", "--state", "shadow"):
        adapter = row["adapter"]
        done = lora_ops("rollout", "replay", adapter)
        found = lora_ops("rollout", "pairs", adapter, "--replayed")
        verdict = found["verdict"]
        print(f"REPLAYED {adapter}, {done['answered']} rows: {verdict['decision']}, {verdict['reason']}.")
        lines += section(adapter, found)
        worse |= verdict["decision"] == "roll back"
    publish(Path("reports/shadow.md"), lines or ["No version is in shadow."])
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
