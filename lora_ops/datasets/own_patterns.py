"""The regular expressions of a tenant's own data suite, tried on its rows in a process that can be stopped.

great-expectations searches with `re`, which no time limit stops. A repeat inside a repeat searches 30 letters
for minutes, and the preparation of the data would stand still.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pandas as pd

from lora_ops.errors import LoraOpsError

SECONDS = 10.0
"""What all patterns of a suite may take together over the rows of the source."""


def require_fast(own: dict[str, Any], source: pd.DataFrame, where: str) -> None:
    """Refuse a suite whose regular expressions take too long on the rows of the source.

    Raises:
        LoraOpsError: they do; the text names the pattern.
    """
    wanted = [(column, one) for column, one in _patterns(own) if column in source]
    if not wanted:
        return
    cells = {column: list(source[column].dropna().astype(str).unique()) for column, _ in wanted}
    asked = json.dumps({"wanted": wanted, "cells": cells})
    try:
        done = subprocess.run(
            [sys.executable, "-c", _SEARCH], input=asked, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        begun = (error.stdout or b"").decode().split()  # bytes, whatever `text` says
        pattern = wanted[len(begun) - 1][1] if begun else wanted[0][1]
        raise LoraOpsError(
            f"{where}: the regular expressions take more than {SECONDS:g} s on the rows of the source, at last "
            f"'{pattern[:80]}': write it without a repeat inside a repeat."
        ) from error
    if done.returncode:  # it ended by a signal, such as for want of memory
        raise LoraOpsError(f"{where}: the regular expressions can't be tried on the rows of the source.")


def _patterns(own: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield column and pattern of each expectation that searches; what does not compile is refused later."""
    for each in own["expectations"]:
        given = each.get("kwargs") or {}
        listed = given.get("regex_list")
        for one in (given.get("regex"), *(listed if isinstance(listed, list) else ())):
            if isinstance(one, str) and isinstance(given.get("column"), str) and _compiles(one):
                yield given["column"], one


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


# Each pattern is counted on stdout before it is tried, so that the one that takes too long can be named.
_SEARCH = """
import json, re, sys
asked = json.load(sys.stdin)
for number, (column, pattern) in enumerate(asked["wanted"]):
    print(number, flush=True)
    search = re.compile(pattern).search
    for cell in asked["cells"][column]:
        search(cell)
"""
