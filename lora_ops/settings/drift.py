"""`drift` of params.yaml."""

from pydantic import Field

from lora_ops.settings.section import Section


class DriftSettings(Section):
    """When a version that answers otherwise than before has drifted; see `lora_ops.monitoring.drift`.

    A shift below its minimum is none, however significant it is.
    """

    kl: float = Field(
        0.01, gt=0, description="nats: mean divergence of next-token probabilities that counts, of one version"
    )
    cosine: float = Field(
        0.002, gt=0, le=2, description="mean cosine distance of hidden states that counts, of one version"
    )
    other_version: float = Field(
        0.15, gt=0, description="nats that count beside another version: more than two seeds of a recipe differ"
    )
    prompts: float = Field(
        0.002, gt=0, le=1, description="bits: divergence of live prompts beyond training rows' own spread"
    )
    alpha: float = Field(
        0.01, gt=0, lt=0.5, description="chance of a false verdict in one run, all tenants and metrics together"
    )
    tokens: int = Field(
        128, ge=8, le=4096, description="likeliest tokens of a row whose probabilities are kept"
    )
    rows: int = Field(100, ge=20, description="rows of a drift set when it is drawn, each of another group")
