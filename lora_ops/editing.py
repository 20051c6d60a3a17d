"""Replace one file of the repository in one step: alone, whole, and where it really is."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def edited(path: Path) -> Iterator[tuple[Path, Path]]:
    """Hold `path` alone while it is read, changed and replaced.

    Without the lock, two commands at once would each write what the other had not seen. A symlink stays one,
    and the mode of the file stays. If the block raises, the file is as it was. A killed process leaves its new
    file behind, and the next one takes it away: whoever has the lock is the only one who writes.

    Yields:
        The file itself, and a new file beside it that takes its place at the end.
    """
    real = path.resolve()
    folder = os.open(real.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        temporary = real.with_name(f".{real.name}.new")
        temporary.unlink(missing_ok=True)
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            yield real, temporary
            shutil.copymode(real, temporary)
            temporary.replace(real)
        finally:
            temporary.unlink(missing_ok=True)
    finally:
        os.close(folder)
