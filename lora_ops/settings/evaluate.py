"""`tenants.NAME.evaluate` of params.yaml."""

from typing import Any, Literal

from pydantic import Field

from lora_ops.settings.section import Section

Metric = Literal["exact_match", "macro_f1", "token_f1", "chrf", "rouge_l"]
OF_TEXTS = ("chrf", "rouge_l")
"""Metrics that compare written answers with their targets: a label is right or wrong."""
ANSWERING = ("max_new_tokens", "few_shot")
"""Settings that decide on the answers: the stage `generate` watches these, and the other ones measure."""


class EvaluateSettings(Section):
    """How base model and adapter are compared on the held-out split."""

    metrics: tuple[Metric, ...] = Field(min_length=1)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(50, ge=1)
    # Without a default: DVC's stage watches the key, and fails after its work where params.yaml lacks it.
    few_shot: int = Field(
        ge=0, description="training rows that the base model is shown in `base_few_shot`; 0: no such system"
    )
    bootstrap: int = Field(2000, ge=100)
    samples: int = Field(20, ge=1)
    seed: int = Field(0, ge=0)
    must_beat_base: bool = True
    max_gap: float | None = Field(
        None, gt=0, le=1, description="between two groups of a column of data.bias_columns; None: no limit"
    )

    @property
    def answering(self) -> dict[str, Any]:
        """The settings that decide on the answers, as the record of the answers keeps them."""
        return self.model_dump(mode="json", include=set(ANSWERING))
