"""`tenants.NAME.train` of params.yaml."""

from typing import Literal

from pydantic import Field

from lora_ops.settings.section import Section


class TrainSettings(Section):
    """The recipe of one adapter (names as in peft.LoraConfig where it has them)."""

    rank: int = Field(ge=1, le=512)
    alpha: int = Field(ge=1)
    dropout: float = Field(ge=0, lt=1)
    learning_rate: float = Field(gt=0, lt=1)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1, description="rows of one step of the optimizer")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description="rows whose activations are in a device's memory together; their gradients are summed up",
    )
    gradient_checkpointing: bool = Field(
        False, description="keep the input of each layer only, and compute the rest twice: less memory, slower"
    )
    devices: int | None = Field(
        None,
        ge=1,
        description="GPUs that share the rows of each step, None: all that torch sees; "
        "without a GPU processes, None: one",
    )
    base_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of the base model while it trains; auto: bfloat16 on a GPU that has it, else float32; "
        "LoRA's matrices and the optimizer are in float32",
    )
    warmup: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, description="longer gradients are clipped to this norm")
    seed: int = 0
    checkpoint_every: int = Field(10, ge=1)
    validate_every: int = Field(20, ge=1, description="steps between two points of the validation curve")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after this many validations without a better one; keep the best weights",
    )
    adapter_dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16", description="that it is saved in, half as large in bfloat16; what is saved is evaluated"
    )
