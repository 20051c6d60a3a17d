"""The record of a commit."""

from lora_ops.records.record import Record


class GitRecord(Record):
    """The commit that a working copy was at, and whether its files differed."""

    commit: str | None
    dirty: bool
