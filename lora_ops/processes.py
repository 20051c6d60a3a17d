"""Processes that must not outlive their parent, and work that only one process may do at a time."""

import ctypes
import fcntl
import os
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_ops.clock import now, utc
from lora_ops.errors import Unavailable, disk_reason
from lora_ops.folders import make_folder, set_aside

if TYPE_CHECKING:
    import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
DVC_STAGE = "DVC_STAGE"  # dvc/env.py: DVC sets it for the command of a stage


class InUse(Unavailable):
    """Another process does at this moment what only one may do."""


@contextmanager
def only_one(lock_file: Path, what: str) -> Iterator[None]:
    """Hold `lock_file` while the block runs; the system releases it when this process dies, however it dies.

    Args:
        what: what is done, for the sentence that a second process gets ("training 'finance'").

    Raises:
        InUse: another process holds it, and the text says which one.
        Unavailable: the disk refuses it.
    """
    try:
        make_folder(lock_file.parent)
        lock = _open_lock(lock_file)
    except OSError as error:
        raise Unavailable(f"The lock {lock_file} can't be used ({disk_reason(error)}): remove it.") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 1000, 0).decode(errors="replace").strip() or "another process"
            raise InUse(
                f"{holder} is {what} already: wait until it ends, or stop it and run this again."
            ) from None
        with suppress(OSError):  # a full disk: the lock is held all the same
            os.ftruncate(lock, 0)
            holder = f"Process {os.getpid()} on {socket.gethostname()} (since {utc(now())})\n"
            os.pwrite(lock, holder.encode(), 0)
        yield
    finally:
        os.close(lock)


@contextmanager
def locked(path: Path, *, seconds: float) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the system lets go of it when this process dies.

    Args:
        path: the file; it is made if it is missing.
        seconds: how long to wait until another process lets go of it. A process that was stopped never does,
            and whoever can read the file can hold it.

    Raises:
        BlockingIOError: another process holds it all that time.
        OSError: the disk is read-only, or the file can't be read.
    """
    try:
        lock = _open_lock(path)
    except PermissionError:
        lock = os.open(path, os.O_RDONLY)  # another user's, which is enough to wait for it
    try:
        _wait_for(lock, path, time.monotonic() + seconds)
        yield
    finally:
        os.close(lock)


@contextmanager
def keeping_free(path: Path, *, seconds: float) -> Iterator[None]:
    """Let no other process take the lock file `path` while the block runs, so that the block may read.

    Other readers may do the same. Where there is no such file, or another process holds it for longer than
    `seconds`, the block runs all the same.
    """
    try:
        lock = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        yield
        return
    try:
        with suppress(OSError):
            _wait_for(lock, path, time.monotonic() + seconds, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, path: Path, deadline: float, how: int = fcntl.LOCK_EX) -> None:
    while True:
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise BlockingIOError(error.errno, "another process holds it", str(path)) from error
        time.sleep(0.01)


def _open_lock(path: Path) -> int:
    """Open a lock file to read and write; what else stands in its place is set aside.

    Opening a pipe to write alone would wait for a reader for ever. Whoever can read the file can hold it, so
    other users than its owner's group can't.
    """
    if os.path.lexists(path) and not path.is_file():
        set_aside(path)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
    found = os.fstat(lock)
    if found.st_mode & stat.S_IRWXO and found.st_uid == os.geteuid():  # made by an earlier release
        os.fchmod(lock, stat.S_IMODE(found.st_mode) & ~stat.S_IRWXO)
    return lock


def end_with_dvc() -> None:
    """Let this process die with the DVC that runs it as a stage; outside a stage do nothing.

    A killed `dvc repro` must leave no second writer. The parent is not always DVC: bash gives way to its last
    command, but dash waits for it and outlives DVC. Only what a stage started has DVC_STAGE.
    """
    if DVC_STAGE not in os.environ:
        return
    import psutil  # not for every command that is none of a stage

    dvc = next((process for process in psutil.Process().parents() if not _in_a_stage(process)), None)
    # An orphan is handed to init, which is of another session: DVC died before this call.
    if dvc is None or os.getsid(dvc.pid) != os.getsid(0):
        os.kill(os.getpid(), signal.SIGKILL)
        return
    threading.Thread(target=_die_after, args=(dvc,), name="end-with-dvc", daemon=True).start()


def _in_a_stage(process: "psutil.Process") -> bool:
    import psutil

    try:
        return DVC_STAGE in process.environ()
    except psutil.Error:  # another user's, or gone
        return False


def _die_after(process: "psutil.Process") -> None:
    process.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_parent() -> None:
    """Let the system kill this process when its parent dies; on other systems than Linux do nothing.

    The system does it even while this process keeps the GIL in a training step.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)


def leave_out_url_grammars() -> None:
    """Spare this process a second: jsonschema compiles 39 grammars of URLs at its import where it finds them.

    nbformat and altair import it, and check no URL. jsonschema does without them where their package is missing
    (python-jsonschema/jsonschema, _format.py); JupyterLab requires that package, so it is never missing here.
    """
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython in each kernel that `run_notebook` starts."""
    leave_out_url_grammars()
    end_with_parent()
