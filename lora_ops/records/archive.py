"""One file of weights in an archive, as the audit log states it."""

from pydantic import Field

from lora_ops.records.record import Record, Sha256


class ArchivedFile(Record):
    """What was archived, and where it is; sizes are in bytes."""

    sha256: Sha256 = Field(description="of the file as it was, and comes back")
    bytes: int
    store: str = Field(description="a folder or URL")
    path: str = Field(description="below `store`")
    codec: str = Field(description="of lora_ops/weight_compression.py, such as shuffle4-zstd")
    stored_bytes: int
