"""Standard output and standard error that no reader, and no text, can break.

A command that revoked a version has done so, even if `head` read one line of what it says and went away. So the
exit code is always that of the command.
"""

import io
import os
import sys
from typing import Any, TextIO

STDERR = 2


class _Patient(io.FileIO):
    """A stream whose reader may go away: what nobody reads goes nowhere."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            # A full disk under stdout loses what was asked for; under stderr it must not hide the exit code.
            if not isinstance(error, BrokenPipeError) and self.fileno() != STDERR:
                raise
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


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
