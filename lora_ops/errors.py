"""The one kind of error that a person can mend: its text is one sentence that says what to do."""


class LoraOpsError(Exception):
    """Bad input or a broken outside fact. The command line prints its text and exits with 2."""


class Damaged(LoraOpsError):
    """What is kept is not what was kept; trying again changes nothing, restoring a backup does."""
