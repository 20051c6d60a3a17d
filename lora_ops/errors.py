"""Errors that a person can mend: the text of each is one sentence that says what to do."""

import errno
from typing import ClassVar

from lora_ops.exit_codes import ExitCode


class LoraOpsError(Exception):
    """Bad input or a broken outside fact. The command line prints its text and exits with its code."""

    exit_code: ClassVar[ExitCode] = ExitCode.INVALID


class Refused(LoraOpsError):
    """A rule forbids it: a role, missing evidence or approvals, a state, a date."""

    exit_code = ExitCode.REFUSED


class NotFound(LoraOpsError):
    """What was named does not exist."""

    exit_code = ExitCode.NOT_FOUND


class Unavailable(LoraOpsError):
    """A network, service, port, disk or lock can't be used now."""

    exit_code = ExitCode.UNAVAILABLE


class Damaged(LoraOpsError):
    """What is kept is not what was kept; trying again changes nothing, restoring a backup does."""

    exit_code = ExitCode.DAMAGED


def with_text(error: LoraOpsError, text: str) -> LoraOpsError:
    """Return an error of the same kind with another text, so that its exit code stays."""
    kind = next(one for one in type(error).__mro__ if one.__module__ == __name__)
    return kind(text)  # type: ignore[no-any-return]


def disk_reason(error: OSError) -> str:
    """Return what the system refused to do with which file, and what to do where a disk is full."""
    where = f": {error.filename}" if error.filename else ""
    advice = "; free some space and run this again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.strerror or error}{where}{advice}"
