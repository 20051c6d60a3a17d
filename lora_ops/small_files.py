"""Read or make a file that is small by nature: settings, a record, a key, the head of the log.

Somebody may have put a pipe, a device or a disk image in its place. Reading that never ends, or fills the
memory.
"""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

LARGEST = 256 * 2**20
"""Bytes. The largest is an exported audit log, of about 1 KB an entry."""


def read_small(path: Path) -> bytes:
    """Return the content of a small file.

    Raises:
        OSError: it can't be read, is no regular file, or has more than 256 MiB.
    """
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "this is a pipe or a device, and no file", str(path))
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"this has more than {LARGEST >> 20} MiB", str(path))
    return content


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else opening a pipe waits for somebody who writes into it


def read_text(path: Path) -> str:
    """Return the text of a small file in UTF-8.

    Raises:
        OSError: as `read_small`.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_small(path).decode("utf-8")


def write_new(path: Path, text: str, encoding: str = "utf-8") -> None:
    """Write a text into a new file, with its line ends as they are; a file that can't be finished is removed.

    Raises:
        FileExistsError: there is one already.
        OSError: it can't be written.
    """
    with path.open("x", encoding=encoding, newline="") as file:
        try:
            file.write(text)
            file.flush()
        except BaseException:
            path.unlink(missing_ok=True)  # half of it would look like a finished one, and stop the next try
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that whoever looks, or kills, finds the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> Any:
    """Return the value that a small file of JSON holds.

    Raises:
        OSError: as `read_small`.
        ValueError: it is no JSON, or is nested deeper than Python reads.
    """
    return parse_json(read_text(path))


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        text: in UTF-8, where it is bytes.
        unique: refuse an object that has a name twice. Readers take the last one, and people see the first.

    Raises:
        ValueError: it is no JSON, is nested deeper than Python reads, or has a name twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has '{next(name for name in names if names.count(name) > 1)}' twice")
    return found
