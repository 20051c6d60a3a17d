"""Digests, and the canonical text that they are taken of."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    """SHA-256 of UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_bytes(content: bytes) -> str:
    """SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """Return the names under which two mappings hold other values, sorted; a name that one lacks is one.

    Ask this rather than compare the names that both have: what is left out would be compared with nothing.
    """
    absent = object()
    return sorted(n for n in {*left, *right} if left.get(n, absent) != right.get(n, absent))
