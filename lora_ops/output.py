"""What a command prints for programs: with `--json` one JSON document on stdout, whatever happens."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Annotated, Any

import typer

from lora_ops.escaping import one_line, shortened
from lora_ops.exit_codes import ExitCode

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of tables.")]


def print_json(value: Any) -> None:
    """Write `value` to stdout as one JSON document, which is readable in any encoding."""
    in_utf8 = sys.stdout.encoding.lower() in ("utf-8", "utf8")
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not in_utf8) + "\n")


def print_error(code: ExitCode, message: str) -> None:
    """Write a refusal to stdout as JSON: `{"error": {"code", "exit_code", "message"}}`."""
    print_json({"error": {"code": code.name.lower(), "exit_code": int(code), "message": message}})


def print_problem(message: str) -> None:
    """Write what went wrong to stderr, on behalf of `lora-ops`, for people."""
    print(f"lora-ops: {one_line(shortened(message))}", file=sys.stderr)


def wants_json(words: Sequence[str]) -> bool:
    """Return whether a command line asks for JSON; what follows `--` is no option."""
    options = words[: words.index("--")] if "--" in words else words
    return "--json" in options


@contextmanager
def prose_on_stderr(as_json: bool) -> Iterator[None]:
    """Send what is printed meanwhile to stderr, by other programs too, if stdout is to hold JSON only."""
    if not as_json:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
