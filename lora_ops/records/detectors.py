"""Records of what a detector finds in labelled samples, and of rates that are corrected by it."""

from pydantic import Field

from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record


class DetectorRecord(Record):
    """Which detector gave a result."""

    name: str
    version: str
    digest: str | None = Field(None, description="of its weights; None for rules")
    threshold: float | None = Field(None, description="None for rules")


class Measured(Record):
    """How good a detector is on one labelled sample; intervals are Clopper and Pearson's exact ones."""

    detector: DetectorRecord
    target: str = Field(description="what is looked for, such as `IBAN`")
    sample: str
    true_positives: int = Field(ge=0)
    false_positives: int = Field(ge=0)
    false_negatives: int = Field(ge=0)
    true_negatives: int = Field(ge=0)
    precision: Interval | None = Field(None, description="None where nothing was found or nothing was there")
    recall: Interval | None = Field(None, description="sensitivity; None where nothing was there")
    specificity: Interval | None = Field(None, description="None where no row is without it")
    youden: Interval | None = Field(None, description="sensitivity + specificity - 1; None without either")
    can_correct: bool = Field(False, description="the lower bound of `youden` is above the floor")

    @property
    def rows(self) -> int:
        """All rows of the sample."""
        return self.true_positives + self.false_positives + self.false_negatives + self.true_negatives


class Rate(Record):
    """The share of texts in which a detector found something, and the share that its errors leave."""

    found: int = Field(ge=0)
    rows: int = Field(ge=1)
    raw: Interval
    corrected: Interval | None = Field(None, description="by Rogan and Gladen")
    note: str = ""
