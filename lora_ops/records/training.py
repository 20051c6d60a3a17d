"""The record of one training run."""

from pathlib import Path
from typing import Any

from pydantic import Field

from lora_ops.paths import TRAINING, read_record
from lora_ops.records.git import GitRecord
from lora_ops.records.record import BaseFilesSha256, Record, Sha256


class TrainingRecord(Record):
    """How one training run went."""

    tenant: str
    base_model_sha256: Sha256
    base_files_sha256: BaseFilesSha256 = None
    train_sha256: Sha256
    examples: int
    steps: int
    resumed_from_step: int
    tokens: int
    seconds: float
    device: str
    dtype: str
    trainable_parameters: int
    final_loss: float
    validation_loss: float = Field(description="of the weights that are saved, rounded as they are saved")
    planned_steps: int | None = Field(None, description="`steps` are fewer where it stopped early")
    best_step: int | None = Field(None, description="whose weights are saved, where train.patience is set")
    packages: dict[str, str] = Field(default_factory=dict, description="versions where the training ran")
    git: GitRecord | None = Field(None, description="the commit that the training ran at")
    adapter_sha256: Sha256 | None = Field(
        None, description="of the weights that this training saved; older records lack it"
    )
    settings: dict[str, Any] | None = Field(
        None, description="`train` of params.yaml as the adapter was trained by it; older records lack it"
    )


def read_training_record(folder: Path) -> TrainingRecord:
    """Read the record of the training whose report is in `folder`.

    Raises:
        LoraOpsError: there was none yet.
    """
    return read_record(folder / TRAINING, TrainingRecord, "train")
