"""The record of the base model."""

from pathlib import Path

from pydantic import Field

from lora_ops.paths import BASE_MODEL, read_record
from lora_ops.records.record import Record, Sha256


class BaseModelRecord(Record):
    """The base model that everything else was made from."""

    id: str
    revision: str
    sha256: Sha256 = Field(description="of model.safetensors")
    parameters: int
    source: str


def read_base_model(folder: Path) -> BaseModelRecord:
    """Read the record of the base model in `folder`.

    Raises:
        LoraOpsError: there is none yet.
    """
    return read_record(folder / BASE_MODEL, BaseModelRecord, "base_model")
