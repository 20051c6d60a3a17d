"""Standard output and standard error that no reader, and no text, can break.

A command that revoked a version has done so, even if `head` read one line of what it says and went away, or if
the disk under its output is full. So the exit code is always that of the command. The exception is a command
that only prints: on a full disk it has not done what was asked for.
"""

import io
import os
import sys
from typing import Any, TextIO

STDERR = 2


class _Patient(io.FileIO):
    """A stream whose reader may go away: what nobody reads goes nowhere."""

    work_is_done = False
    """Whether the command has done its work, so that a full disk under stdout loses only words about it."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            is_lost = not isinstance(error, BrokenPipeError) and self.fileno() != STDERR
            if is_lost and not _Patient.work_is_done:
                raise  # what is lost is what was asked for
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if is_lost:
                print(f"lora-ops: It is done, and can't be printed: {error.strerror}.", file=sys.stderr)
            return len(data)


def work_is_done() -> None:
    """Let a full disk under stdout warn on stderr from now on, since the command did what it changes."""
    _Patient.work_is_done = True


def settle_streams() -> None:
    """Give this process a stdout that takes everything but a full disk, and a stderr that takes that as well.

    A stream that the caller closed (`>&-`) leads nowhere: the next file that is opened would take its number,
    and the output of a command would be written into it. Characters that the terminal's encoding lacks, such as
    the bytes of a file's name that is not UTF-8, are written as their escapes.
    """
    for number in (0, 1, STDERR):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            os.set_inheritable(null, True)  # a notebook's kernel gets it, too
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - for the whole run
    sys.stdout = _settled(sys.stdout, 1)
    sys.stderr = _settled(sys.stderr, STDERR)


def _settled(stream: TextIO | None, number: int) -> io.TextIOWrapper:
    if stream is not None:
        stream.flush()
    raw = _Patient(number, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding if stream else "utf-8",
        errors="backslashreplace",
        line_buffering=number == STDERR or raw.isatty(),
    )
