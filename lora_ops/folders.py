"""Replace a folder in one step: whoever looks, or kills, finds the old folder or the new one, whole.

What somebody else put in the place of a file or folder of ours is moved, and never removed.
"""

import ctypes
import errno
import fcntl
import grp
import os
import pwd
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
# What a system or a file system answers that can't exchange two names.
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


def set_aside(path: Path) -> None:
    """Move what stands at `path` out of the way: it is not ours to remove, and must stop nothing.

    Raises:
        OSError: its folder can't be written.
    """
    path.rename(path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.odd"))


def make_folder(path: Path) -> None:
    """Make a folder where there is none; what else stands in its place is set aside.

    Raises:
        OSError: it can't be made.
    """
    if os.path.lexists(path) and not path.is_dir():
        set_aside(path)
    path.mkdir(parents=True, exist_ok=True)


def writable_by_others(paths: Iterable[Path]) -> Path | None:
    """Return the first of some files and folders that another account than its owner's may write, or None.

    A group that has its owner's name is theirs alone, as most systems make one for each account.
    """
    for path in paths:
        try:
            found = path.stat()
            own = grp.getgrgid(found.st_gid).gr_name == pwd.getpwuid(found.st_uid).pw_name
        except KeyError:  # a container whose user or group has no name
            own = found.st_gid == found.st_uid
        except OSError:
            continue
        if found.st_mode & (stat.S_IWOTH | (0 if own else stat.S_IWGRP)):
            return path
    return None


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a new, empty folder that takes the place of `target` when the block ends without an error.

    The folder is made beside `target`, on the same file system. What a killed process left there is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(target.parent, f".{target.name}-") as temporary:
        folder = temporary / target.name
        folder.mkdir()
        yield folder
        replace_folder(folder, target)


@contextmanager
def working_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Give a new, empty folder in `parent` that is removed at the end, and remove what killed processes left.

    Args:
        parent: where.
        prefix: how its name begins, and the names of those that were left.
    """
    _sweep(parent, prefix)
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix) as temporary:
        # Held while this process lives, so that nobody takes the folder for a left one.
        lock = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            yield Path(temporary)
        finally:
            os.close(lock)


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in the place of `target`, which may not exist, and remove the old one.

    Every file is on the disk before its name is, so a power failure leaves no empty file under a good name.
    Where the system can't exchange two names, `target` is missing for the moment between two renames.
    """
    _sync(new)
    if not target.exists():
        new.rename(target)
    elif _exchange(new, target):
        shutil.rmtree(new)
    else:
        old = new.with_name(f"{new.name}.old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    _sync_entry(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system can't."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _sweep(parent: Path, prefix: str) -> None:
    for left in parent.glob(f"{prefix}*"):
        try:
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue  # no folder, or one of somebody else
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # another process is at work in it
        else:
            shutil.rmtree(left, ignore_errors=True)
        finally:
            os.close(lock)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync_entry(path)
    _sync_entry(folder)


def _sync_entry(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
