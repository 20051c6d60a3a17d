"""Processes that must not outlive their parent, and work that only one process may do at a time."""

import ctypes
import fcntl
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_ops.clock import now, utc
from lora_ops.errors import LoraOpsError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


@contextmanager
def only_one(lock_file: Path, what: str) -> Iterator[None]:
    """Hold `lock_file` while the block runs; the system releases it when this process dies, however it dies.

    Args:
        what: what is done, for the sentence that a second process gets ("training 'finance'").

    Raises:
        LoraOpsError: another process holds it; the text says which one.
    """
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 1000, 0).decode(errors="replace").strip() or "another process"
            raise LoraOpsError(
                f"{holder} is {what} already: wait until it ends, or stop it and run this again."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"Process {os.getpid()} on {socket.gethostname()} (since {utc(now())})\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def end_with_parent(how: signal.Signals = signal.SIGKILL) -> None:
    """Let the system send `how` to this process when its parent dies; on other systems than Linux do nothing.

    DVC, `lora-ops run` and the kernel are parent and child. Without this a killed DVC leaves a training behind.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(how))
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), how)


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython in each kernel that `run_notebook` starts."""
    end_with_parent()
