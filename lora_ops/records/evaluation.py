"""Records of an evaluation: intervals, metrics, groups."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from lora_ops.paths import EVALUATION, read_record
from lora_ops.records.record import BaseFilesSha256, Record, Sha256

COMPARED_ROWS = 10
SIGNIFICANCE = 0.05
# The systems that answer the held-out rows.
BASE = "base"
BASE_FEW_SHOT = "base_few_shot"
# The base model with the same prompt, whose answer is the label that it finds likeliest.
BASE_LABELS = "base_labels"
ADAPTER = "adapter"
# The adapter when it may only answer with a label, as `serving.tenants.NAME.labels_only` serves it.
ADAPTER_LABELS = "adapter_labels"
MAJORITY = "majority_baseline"
TFIDF = "tfidf_baseline"
LEAD = "lead_words_baseline"
# What people wrote, beside the systems, where it is described how answers look.
TARGET = "target"
# In the order in which pages show them.
SYSTEMS = (BASE, BASE_FEW_SHOT, BASE_LABELS, ADAPTER, ADAPTER_LABELS, TFIDF, MAJORITY, LEAD)
# The ways in which the base model is asked. An adapter must beat all of them, so it beats the best one.
BASES = (BASE, BASE_FEW_SHOT, BASE_LABELS)
OPPONENTS = (*BASES, TFIDF, MAJORITY, LEAD)


class Interval(Record):
    """A value with its 95 % interval; see `lora_ops.evaluation.inference`."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class PairedDifference(Interval):
    """One system minus another one on the same rows."""

    p_value: float = Field(description="of the hypothesis that both systems answer alike")
    p_corrected: float = Field(description="the p-value, corrected for the number of metrics by Holm's method")

    @property
    def is_clear(self) -> bool:
        """Whether chance alone is an unlikely cause."""
        return self.p_corrected < SIGNIFICANCE

    @property
    def verdict(self) -> str:
        """The difference as a verb."""
        if not self.is_clear:
            return "does not clearly differ from"
        return "clearly beats" if self.value > 0 else "is clearly worse than"

    def __str__(self) -> str:
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


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


class ColumnBias(Record):
    """How well the adapter serves each group of one column of the source."""

    groups: dict[str, GroupMetric]
    best: str | None = Field(None, description=f"of the groups with at least {COMPARED_ROWS} rows")
    worst: str | None = None
    gap: Interval | None = Field(None, description="best minus worst; its interval allows for the choice")
    limit: float | None = Field(None, description="evaluate.max_gap")

    def exceeds(self, limit: float | None) -> bool:
        """Return whether the gap is larger than a limit, beyond what chance explains; None is no limit."""
        return self.gap is not None and limit is not None and self.gap.low > limit

    @property
    def exceeds_limit(self) -> bool:
        """Whether the gap clearly exceeds the limit of its evaluation."""
        return self.exceeds(self.limit)

    @property
    def between(self) -> str:
        """The gap and its two groups, in words."""
        if self.gap is None or self.best is None or self.worst is None:
            return f"no gap: fewer than two of {len(self.groups)} groups have {COMPARED_ROWS} rows"
        best, worst = self.groups[self.best], self.groups[self.worst]
        return (
            f"gap {self.gap} between {self.best} ({best.value.value:.3f}, {best.rows} rows) and {self.worst} "
            f"({worst.value.value:.3f}, {worst.rows} rows)"
        )

    def __str__(self) -> str:
        if self.gap is None:
            return self.between
        limit = "no limit" if self.limit is None else f"limit {self.limit}"
        exceeded = ", which it clearly exceeds" if self.exceeds_limit else ""
        return f"{self.between}; {limit}{exceeded}"


class Agreement(Record):
    """Rows that the engine and transformers both answered, and how many of the answers are equal."""

    rows: int = Field(ge=0)
    equal: int = Field(ge=0)


def beats_base(differences: Mapping[str, Mapping[str, PairedDifference]]) -> bool:
    """Return whether the adapter is clearly better than its base model in every metric, however that is asked.

    Each of `BASES` that answered must be beaten: the best of them is the opponent, whichever it is. Older
    records lack some. Each difference must be clear after the correction for the metrics. The number of systems
    needs none, since all must be beaten (intersection-union test: Berger, 1982).

    Args:
        differences: system -> metric -> adapter minus system; the base is one of the systems.
    """
    to_base = [differences[name] for name in BASES if name in differences]
    return all(one.is_clear and one.value > 0 for of in to_base for one in of.values())


class EvaluationRecord(Record):
    """Base model and adapter on the same held-out rows."""

    tenant: str
    rows: int
    base_files_sha256: BaseFilesSha256 = None
    test_sha256: Sha256
    adapter_sha256: Sha256
    adapter_config_sha256: Sha256 | None = Field(
        None, description="of adapter_config.json, whose lora_alpha changes every answer; older records lack it"
    )
    primary: str
    metrics: Metrics
    beats_base: bool = Field(description="as the function of this name says of the differences")
    clusters: int | None = Field(None, description="groups of the rows: what the intervals resample")
    strongest_opponent: str | None = Field(
        None, description="the system with the highest primary metric, the adapter left out"
    )
    differences: dict[str, dict[str, PairedDifference]] = Field(
        default_factory=dict, description="system -> metric -> adapter minus system"
    )
    traits: dict[str, dict[str, Interval]] = Field(
        default_factory=dict,
        description="copied_share or length_ratio -> system -> how written answers look, which is neither good "
        "nor bad; `target`: what people wrote; empty for labels",
    )
    groups: dict[str, GroupMetric] = Field(
        default_factory=dict, description="exact match for each label, with its rows; empty for free text"
    )
    bias: dict[str, ColumnBias] = Field(
        default_factory=dict, description="column of data.bias_columns -> how well each of its groups is served"
    )
    truncated: dict[str, int] = Field(
        default_factory=dict, description="system -> answers cut at evaluate.max_new_tokens"
    )
    answered_by: str | None = Field(None, description="engine: the one that serves; transformers: with PEFT")
    agreement: dict[str, Agreement] = Field(
        default_factory=dict, description="system -> the sample that the engine and transformers both answered"
    )
    seconds_base: float
    seconds_adapter: float
    settings: dict[str, Any] | None = Field(
        None, description="`evaluate` of params.yaml as the answers were measured by it; older records lack it"
    )

    @property
    def against_strongest(self) -> PairedDifference | None:
        """The adapter minus its strongest opponent in the primary metric; None in a record of schema 1."""
        if self.strongest_opponent is None:
            return None
        return self.differences[self.strongest_opponent][self.primary]

    @property
    def unbeaten(self) -> str:
        """The differences to the base that are not clearly better, in words; empty where all are."""
        return ", ".join(
            f"{metric} {found} against {system.replace('_', ' ')}, corrected p {found.p_corrected:.2g}"
            for system in BASES
            for metric, found in self.differences.get(system, {}).items()
            if not (found.is_clear and found.value > 0)
        )

    @property
    def answered_few_shot(self) -> bool:
        """Whether the adapter was compared with the base model that was shown examples."""
        return BASE_FEW_SHOT in self.differences

    @property
    def answered_labels(self) -> bool:
        """Whether the adapter was compared with the base model whose answers are its likeliest labels."""
        return BASE_LABELS in self.differences

    @property
    def contradicts_itself(self) -> bool:
        """Whether `beats_base` is not what the differences say, or they leave out a metric or a base.

        A record of schema 1 has no differences.
        """
        if not self.differences:
            return False
        lacking = any(
            metric not in self.differences.get(system, {})
            for metric, systems in self.metrics.items()
            for system in BASES
            if system == BASE or system in systems
        )
        return lacking or self.beats_base != beats_base(self.differences)

    @property
    def verdict(self) -> str:
        """What the primary metric says of the adapter and its strongest opponent, in words."""
        difference = self.against_strongest
        if difference is None or self.strongest_opponent is None:
            return "was not compared with its strongest opponent"
        opponent = self.strongest_opponent.replace("_", " ")
        return f"{difference.verdict} its strongest opponent, the {opponent} ({self.primary} {difference})"


class BiasAssessment(Record):
    """One metric per group, with the counts that tell how much to believe it."""

    metric: str
    groups: dict[str, GroupMetric]
    report_sha256: Sha256
    columns: dict[str, ColumnBias] = Field(
        default_factory=dict, description="column of data.bias_columns -> how well each of its groups is served"
    )

    @classmethod
    def of(cls, evaluation: EvaluationRecord, report_sha256: str) -> "BiasAssessment | None":
        """Return the groups that an adapter was measured on, by label and by declared column, or None."""
        if not evaluation.groups and not evaluation.bias:
            return None
        means = [name for name in evaluation.metrics if name != "macro_f1"]
        metric = "exact_match" if evaluation.groups or not means else means[0]
        return cls(
            metric=metric, groups=evaluation.groups, columns=evaluation.bias, report_sha256=report_sha256
        )

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
