"""Errors that a person can mend: the text of each is one sentence that says what to do."""

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
