"""The record of the base model."""

from pydantic import Field

from lora_ops.records.record import Record, Sha256


class BaseModelRecord(Record):
    """The base model that everything else was made from."""

    id: str
    revision: str
    sha256: Sha256 = Field(description="of model.safetensors")
    parameters: int
    source: str
