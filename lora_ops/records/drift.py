"""Records of drift: a row of a drift set, what a measurement is of, and what a comparison says."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from lora_ops.records.record import BaseFilesSha256, Record, Sha256

DriftVerdict = Literal["reference", "none", "drifted", "cannot tell"]
"""`reference`: nothing was compared; `cannot tell`: the base model moved too, which no adapter can do."""
DriftMetricName = Literal["next token", "hidden state"]
UNITS: dict[DriftMetricName, str] = {"next token": " nats", "hidden state": ""}
"""Of each metric, behind a number; a cosine distance has none."""


class DriftRow(Record):
    """One row of a drift set: what a user would ask, by a row that no adapter was trained on."""

    id: Annotated[str, StringConstraints(min_length=1)] = Field(description="of the prepared row")
    group: Annotated[str, StringConstraints(min_length=1)]
    text: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)] = Field(
        description="what the template made of the row"
    )


class MeasuredFacts(Record):
    """What a kept measurement is of, and where it was taken.

    Attributes:
        rows: ids of the drift set's rows, in the order of the arrays.
        set_sha256: of the drift set's file.
        prompts_sha256: of the rows' tokens, with system prompt and chat template.
        engine: which engine answered, with its device and type.
        machine: its CPU or GPU, in words.
    """

    schema_version: int = 1
    tenant: str
    adapter: str
    content_digest: Sha256
    rows: tuple[str, ...]
    set_sha256: Sha256
    prompts_sha256: Sha256
    engine: str
    machine: str
    base_model_sha256: Sha256
    base_files_sha256: BaseFilesSha256 = None
    base_revision: str
    measured_at: datetime


class DriftMetric(Record):
    """One metric of a comparison: means over the rows of the drift set.

    `next token` is in nats, `hidden state` a cosine distance.

    Attributes:
        adapter, base: how far each has moved since the reference.
        difference: adapter minus base, with its 95 % interval from `low` to `high`.
        p_value: that the adapter moved no more than the base; `p_corrected` for all metrics of the run.
        least: the smallest difference that counts.
        beside_base: how far the adapter is from its base now, for scale.
        changed: share of rows whose likeliest token is another one now; None for hidden states.
        is_judged: whether it counts for the verdict. States of another training do not: it finds other ones for
            the same answers.
    """

    name: DriftMetricName
    adapter: float
    base: float
    difference: float
    low: float
    high: float
    p_value: float = Field(ge=0, le=1)
    p_corrected: float = Field(ge=0, le=1)
    least: float = Field(gt=0)
    beside_base: float
    changed: float | None = Field(None, ge=0, le=1)
    is_judged: bool = True

    def is_drift(self, alpha: float) -> bool:
        """Return whether the shift is judged, significant and large."""
        return self.is_judged and self.p_corrected < alpha and self.difference >= self.least

    @property
    def base_moved(self) -> bool:
        """Return whether the base model moved by as much as would count of an adapter."""
        return self.base >= self.least


class PromptShift(Record):
    """How far the prompts of a week are from the training rows, by hashed n-gram counts, in bits.

    Attributes:
        prompts: how many different ones were counted.
        batch: prompts that are compared at once.
        distance: mean divergence of batches of prompts from training rows.
        spread: the same of batches of training rows from all others.
        p_value: share of the latter that are as far away.
        least: the smallest difference that counts.
    """

    prompts: int = Field(ge=1)
    batch: int = Field(ge=1)
    distance: float = Field(ge=0)
    spread: float = Field(ge=0)
    p_value: float = Field(ge=0, le=1)
    least: float = Field(gt=0)

    @property
    def difference(self) -> float:
        """Return what the prompts differ by more than training rows do."""
        return self.distance - self.spread

    def is_drift(self, alpha: float) -> bool:
        """Return whether the shift is both significant and large."""
        return self.p_value < alpha and self.difference >= self.least


class DriftSummary(Record):
    """The last comparison of a version, as its record shows it."""

    verdict: DriftVerdict
    at: datetime
    said: str
    against: str | None = None
    replaced: str | None = None
    report_sha256: Sha256
