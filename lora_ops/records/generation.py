"""The record of the answers that an evaluation rests on."""

from pathlib import Path
from typing import Any

from pydantic import Field

from lora_ops.paths import GENERATION, read_record
from lora_ops.records.evaluation import Agreement
from lora_ops.records.record import BaseFilesSha256, Record, Sha256


class GenerationRecord(Record):
    """Which adapter answered which rows, and how long base model and adapter took."""

    tenant: str
    rows: int
    base_files_sha256: BaseFilesSha256 = None
    test_sha256: Sha256
    adapter_sha256: Sha256
    adapter_config_sha256: Sha256 | None = Field(
        None, description="of adapter_config.json, whose lora_alpha changes every answer; older records lack it"
    )
    seconds: dict[str, float]
    truncated: dict[str, int] = Field(
        default_factory=dict, description="system -> answers cut at evaluate.max_new_tokens"
    )
    answered_by: str = Field("transformers", description="engine: the one that serves; transformers: with PEFT")
    agreement: dict[str, Agreement] = Field(
        default_factory=dict, description="system -> the sample that the engine and transformers both answered"
    )
    settings: dict[str, Any] | None = Field(
        None,
        description="of `evaluate` in params.yaml those that decide on the answers; older records lack it",
    )


def read_generation(folder: Path) -> GenerationRecord:
    """Read the record of the answers in `folder`.

    Raises:
        LoraOpsError: nobody has answered yet.
    """
    return read_record(folder / GENERATION, GenerationRecord, "generate")
