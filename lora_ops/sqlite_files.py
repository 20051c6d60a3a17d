"""Which files a SQLite connection has open: somebody may put others in their place while a process runs."""

import errno
import stat
import time
from pathlib import Path

ENDS = ("", "-wal", "-shm", "-journal")
"""What SQLite opens: a database, its WAL, the WAL's index, and the journal that a WAL replaces."""

Stamp = tuple[int, int, int]
"""When a file was written and changed last (nanoseconds), and its size."""
SETTLED_NANOSECONDS = 10**9
"""File systems count time in steps of some milliseconds: within one a second write leaves no trace."""

Places = tuple[tuple[int, int] | None, ...]
"""Device and inode of a database, its WAL and its WAL's index; None for a file that is not there."""


def places(path: Path) -> Places:
    """Return which files lie under the names of a database now.

    SQLite keeps the files that it opened. If one was deleted or replaced, other processes commit to the new
    one, and this connection sees none of that: whoever waits for a revocation opens the database again.
    """
    return tuple(_place(path.with_name(f"{path.name}{end}")) for end in ("", "-wal", "-shm"))


def _place(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def require_files(path: Path) -> None:
    """Refuse a database where something else stands in the place of one of its files.

    SQLite opens each of them as it finds it: a pipe makes it wait for ever, so that nothing could be revoked.

    Raises:
        OSError: one is a pipe, a folder or a device.
    """
    for end in ENDS:
        part = path.with_name(path.name + end)
        try:
            is_file = stat.S_ISREG(part.stat().st_mode)
        except OSError:
            continue  # missing, or a link to nothing
        if not is_file:
            raise OSError(errno.EINVAL, f"{part} is a pipe, a folder or a device, and no file: remove it")


def stamp(path: Path) -> Stamp | None:
    """Return what differs after each write into a file; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size


def is_settled(written: Stamp | None) -> bool:
    """Return whether one more write since then would have left another stamp."""
    return written is None or not 0 <= time.time_ns() - written[0] < SETTLED_NANOSECONDS
