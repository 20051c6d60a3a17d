"""The exit codes of `lora-ops`: the only table of them, which docs/ci.md shows."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; its name in lower case is the `code` of an error in JSON."""

    OK = 0
    CHECK_FAILED = 1
    INVALID = 2
    REFUSED = 3
    NOT_FOUND = 4
    UNAVAILABLE = 5
    DAMAGED = 6
    INTERNAL = 70
    INTERRUPTED = 130


MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.CHECK_FAILED: "a check ran and found something wrong (`registry verify`)",
    ExitCode.INVALID: "wrong usage, or an input, setting or file that doesn't hold what it must",
    ExitCode.REFUSED: "a rule of the registry forbids it: role, evidence, approval, state, freshness",
    ExitCode.NOT_FOUND: "there is no such tenant, version, notebook, profile or key",
    ExitCode.UNAVAILABLE: "a network, service, port, disk or lock can't be used now; try again later",
    ExitCode.DAMAGED: "a digest, signature or the audit log doesn't match: something was changed",
    ExitCode.INTERNAL: "a fault of lora-ops itself; the traceback is on stderr",
    ExitCode.INTERRUPTED: "Ctrl-C",
}
