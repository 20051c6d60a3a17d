"""The record of the base model."""

from pathlib import Path

from pydantic import Field

from lora_ops.paths import BASE_MODEL, read_record
from lora_ops.records.record import Record, Sha256


class BaseModelRecord(Record):
    """The base model that everything else was made from."""

    id: str
    revision: str
    sha256: Sha256 = Field(description="of the weights, by lora_ops.weights_digest.weights_sha256")
    parameters: int
    source: str
    origin: str | None = Field(None, description="the model that these weights were made from")
    quantization: str | None = Field(None, description="what the weights of `origin` went through")
    # Left out where it says nothing, so that a float32 model's record has the bytes that it always had.
    dtype: str | None = Field(
        None, description="of the weights; None: float32", exclude_if=lambda dtype: dtype is None
    )

    @property
    def made_from(self) -> str | None:
        """What the weights were made from, in words; None where they are those that `id` names."""
        if self.origin is None:
            return None
        return f"{self.origin} ({self.quantization})" if self.quantization else self.origin


def read_base_model(folder: Path) -> BaseModelRecord:
    """Read the record of the base model in `folder`.

    Raises:
        LoraOpsError: there is none yet.
    """
    return read_record(folder / BASE_MODEL, BaseModelRecord, "base_model")
