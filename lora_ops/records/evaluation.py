"""Records of an evaluation: intervals, metrics, groups."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lora_ops.paths import EVALUATION, read_record
from lora_ops.records.record import Record, Sha256

COMPARED_ROWS = 10
# The systems that answer the held-out rows.
BASE = "base"
ADAPTER = "adapter"
MAJORITY = "majority_baseline"
TFIDF = "tfidf_baseline"


class Interval(Record):
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def _read_metrics(value: Any) -> Any:
    """Return the metrics of a schema 1 record as metric -> system -> interval.

    Schema 1 named the baselines `floor` (a bare value) and `peer`, and kept a null where one was not measured.
    All metrics lie between 0 and 1, so the whole range is the only interval that holds for a bare value.
    """
    if not isinstance(value, dict):
        return value
    return {name: _read_systems(systems) for name, systems in value.items()}


def _read_systems(systems: Any) -> Any:
    if not isinstance(systems, dict) or not systems.keys() & {"floor", "peer"}:
        return systems
    read = {name: interval for name, interval in systems.items() if name not in ("floor", "peer")}
    if systems.get("floor") is not None:
        read[MAJORITY] = {"value": systems["floor"], "low": 0.0, "high": 1.0}
    if systems.get("peer") is not None:
        read[TFIDF] = systems["peer"]
    return read


# Metric -> system -> its value on the held-out split.
Metrics = Annotated[dict[str, dict[str, Interval]], BeforeValidator(_read_metrics)]


class GroupMetric(Record):
    """One group of the held-out rows and how well it is served."""

    rows: int = Field(ge=0)
    value: Interval


class EvaluationRecord(Record):
    """Base model and adapter on the same held-out rows."""

    tenant: str
    rows: int
    test_sha256: Sha256
    adapter_sha256: Sha256
    primary: str
    metrics: Metrics
    beats_base: bool = Field(description="for every metric the adapter's interval lies wholly above the base's")
    groups: dict[str, GroupMetric] = Field(
        default_factory=dict, description="exact match for each label, with its rows; empty for free text"
    )
    seconds_base: float
    seconds_adapter: float


class BiasAssessment(Record):
    """One metric per group, with the counts that tell how much to believe it."""

    metric: str
    groups: dict[str, GroupMetric]
    report_sha256: Sha256

    @property
    def compared(self) -> dict[str, GroupMetric]:
        """The groups with at least `COMPARED_ROWS` rows: of fewer, a value says next to nothing."""
        return {name: group for name, group in self.groups.items() if group.rows >= COMPARED_ROWS}

    @property
    def largest_gap(self) -> float | None:
        """Best minus worst of the compared groups, in units of the metric; None for fewer than two of them."""
        values = [group.value.value for group in self.compared.values()]
        return max(values) - min(values) if len(values) > 1 else None


def read_evaluation(folder: Path) -> EvaluationRecord:
    """Read the record of the evaluation whose report is in `folder`.

    Raises:
        LoraOpsError: there was none yet.
    """
    return read_record(folder / EVALUATION, EvaluationRecord, "evaluate")
