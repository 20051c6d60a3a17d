"""The record of one training run."""

from pathlib import Path

from lora_ops.paths import TRAINING, read_record
from lora_ops.records.record import Record, Sha256


class TrainingRecord(Record):
    """How one training run went."""

    tenant: str
    base_model_sha256: Sha256
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
    validation_loss: float


def read_training_record(folder: Path) -> TrainingRecord:
    """Read the record of the training whose report is in `folder`.

    Raises:
        LoraOpsError: there was none yet.
    """
    return read_record(folder / TRAINING, TrainingRecord, "train")
