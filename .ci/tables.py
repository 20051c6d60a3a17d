"""What the scripts of CI share: commands as JSON, and Markdown in which nothing that data says is markup."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lora_ops.escaping import markdown
from lora_ops.exit_codes import ExitCode


def lora_ops(*words: str) -> Any:
    """Return what a command prints as JSON; a refusal is said on stderr, and ends this with its code."""
    done = subprocess.run(["lora-ops", *words, "--json"], stdout=subprocess.PIPE, text=True)
    try:
        printed = json.loads(done.stdout)
    except ValueError:
        sys.exit(done.returncode or ExitCode.INTERNAL)
    if isinstance(printed, dict) and "error" in printed:
        print(f"lora-ops: {printed['error']['message']}", file=sys.stderr)
        sys.exit(done.returncode)
    return printed


def cell(text: object) -> str:
    """Return `text` for a cell: no markup, and nobody is called by it."""
    return "" if text is None else markdown(str(text)).replace("@", "&#64;")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows), ""]


def publish(path: Path, lines: Iterable[str]) -> None:
    """Write Markdown to a file and, at GitHub, to the job's summary."""
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"The table: {path}")
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(os.environ["GITHUB_STEP_SUMMARY"]).open("a", encoding="utf-8") as file:
            file.write(text)
