"""The record of one training run."""

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
