"""The nouns of the project: what is written to disk and read back, as pydantic models."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

COMPARED_ROWS = 10
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
State = Literal[
    "candidate",
    "validated",
    "shadow",
    "canary",
    "production",
    "superseded",
    "archived",
    "rejected",
    "revoked",
]
EvidenceKind = Literal["evaluation", "policy", "human_evaluation", "shadow", "canary", "incident", "review"]


class Record(BaseModel):
    """A typed, frozen JSON document."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> str:
        """Indented JSON with a final newline; the same record always gives the same text."""
        return self.model_dump_json(indent=2) + "\n"


class BaseModelRecord(Record):
    """The base model that everything else was made from."""

    id: str
    revision: str
    sha256: Sha256 = Field(description="of model.safetensors")
    parameters: int
    source: str


class SourceRecord(Record):
    """Where a tenant's rows came from."""

    name: str
    version: str
    sha256: Sha256
    url: str | None = None
    date: str | None = Field(None, description="when this version of the source was published, ISO 8601")


class SplitRecord(Record):
    """One split of the prepared data."""

    rows: int
    groups: int
    sha256: Sha256


class Check(Record):
    """One expectation of the data contract and how it went."""

    name: str
    success: bool
    failed_rows: list[str] = Field(default_factory=list, description="`row id: value`, the first 20")
    failed_count: int = 0
    setting: str | None = Field(None, description="what to change in params.yaml where the rows are right")


class ContractRecord(Record):
    """The result of the data contract, kept beside the data."""

    tenant: str
    success: bool
    rows: int
    checks: list[Check]


class DataRecord(Record):
    """What the prepared data is: its source, its splits, what was left out."""

    tenant: str
    task: str
    source: SourceRecord
    splits: dict[str, SplitRecord]
    source_rows: int
    contract_success: bool
    base_model_sha256: Sha256 = Field(description="the prompts carry this model's chat template")


class Example(Record):
    """One prepared row: what the model reads and what it should answer."""

    id: str
    group: str
    text: str
    target: str
    prompt: str
    completion: str


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


class Interval(Record):
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class MetricRecord(Record):
    """One metric on the held-out split, for everyone who was measured."""

    base: Interval
    adapter: Interval
    floor: float | None = Field(None, description="always the most frequent training label")
    peer: Interval | None = Field(None, description="TF-IDF with logistic regression, same training rows")


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
    metrics: dict[str, MetricRecord]
    beats_base: bool = Field(description="for every metric the adapter's interval lies wholly above the base's")
    groups: dict[str, GroupMetric] = Field(
        default_factory=dict, description="exact match for each label, with its rows; empty for free text"
    )
    seconds_base: float
    seconds_adapter: float


class FileRecord(Record):
    """One file of a package."""

    bytes: int
    sha256: Sha256


class GitRecord(Record):
    """The commit that the package was built from."""

    commit: str | None
    dirty: bool


class PolicyCheck(Record):
    """One check of the policy suite and how many prompts failed it."""

    name: str
    passed: bool
    prompts: int = Field(ge=0)
    failed: int = Field(ge=0)
    report_sha256: Sha256 | None = None

    @model_validator(mode="after")
    def _adds_up(self) -> "PolicyCheck":
        if self.failed > self.prompts:
            raise ValueError(f"'{self.name}' fails more prompts than it has")
        if self.passed and self.failed:
            raise ValueError(f"'{self.name}' can't have passed with failed prompts")
        return self


class HumanEvaluation(Record):
    """What people said of pairs of answers, base model beside adapter."""

    annotators: int = Field(ge=1)
    pairs: int = Field(ge=1)
    adapter_better: int = Field(ge=0)
    same: int = Field(ge=0)
    base_better: int = Field(ge=0)
    report_sha256: Sha256

    @model_validator(mode="after")
    def _adds_up(self) -> "HumanEvaluation":
        if self.adapter_better + self.same + self.base_better > self.pairs:
            raise ValueError("there are more votes than pairs")
        return self

    @property
    def lost(self) -> bool:
        """People preferred the base model more often than the adapter."""
        return self.base_better > self.adapter_better


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


class Manifest(Record):
    """Everything that is known of one adapter version when it is packaged."""

    schema_version: int = 1
    tenant: str
    version: int | None = Field(None, description="given by the registry, which writes it into the file")
    created_at: datetime
    base_model: BaseModelRecord
    data: DataRecord
    git: GitRecord
    dvc_lock_sha256: Sha256 | None = Field(
        description="of the entries in dvc.lock of the stages that it came from (base_model, and the tenant's "
        "prepare, train and evaluate) as JSON with sorted keys and no spaces; None unless all of them are there"
    )
    params: dict[str, Any]
    packages: dict[str, str]
    training: TrainingRecord
    evaluation: EvaluationRecord
    license: str
    fresh_until: datetime = Field(
        description="when its data expires: `freshness_days` after the source was published, or after the "
        "packaging when nobody says when that was"
    )
    report: str
    size_bytes: int
    files: dict[str, FileRecord]
    parent: str | None = Field(None, description="`tenant@version` it follows; given by the registry")
    evaluation_report_sha256: Sha256 | None = None
    policy: list[PolicyCheck] = Field(default_factory=list)
    human_evaluation: HumanEvaluation | None = None
    bias: BiasAssessment | None = None

    @property
    def adapter_id(self) -> str:
        """`tenant@version`, or `tenant@?` before registration."""
        return f"{self.tenant}@{self.version or '?'}"

    def content_digest(self) -> str:
        """SHA-256 over what makes this adapter this adapter.

        Two runs of the same code on the same data give the same digest, so clocks, timings, the commit and
        the given version are left out, and packaging again registers nothing twice.
        """
        kept = self.model_dump(mode="json", include={"tenant", "base_model", "data", "params", "license"})
        kept["metrics"] = {name: metric.model_dump() for name, metric in self.evaluation.metrics.items()}
        kept["files"] = {name: file.sha256 for name, file in self.files.items() if name in ADAPTER_FILES}
        return sha256_text(canonical(kept))


class Evidence(Record):
    """A report that a decision rests on; the registry keeps the file under its digest."""

    kind: EvidenceKind
    sha256: Sha256
    summary: str = Field(min_length=1)


class AuditEntry(Record):
    """One change of the registry; `hash` covers every other field, `previous` is the hash before it."""

    seq: int = Field(ge=1)
    at: str = Field(description="UTC, ISO 8601; never before the entry above it")
    actor: str
    action: str
    tenant: str
    number: int
    body: dict[str, Any]
    previous: Sha256
    hash: Sha256

    @property
    def evidence(self) -> list[Evidence]:
        """The reports that it rests on."""
        return [Evidence.model_validate(one) for one in self.body.get("evidence", [])]

    def effect_on(self, number: int) -> str:
        """What it did to version `number`, in words; a promotion also ends another one's turn."""
        if self.number == number:
            return self.action
        state = self.body.get("effects", {}).get("states", {}).get(str(number), "replaced")
        return f"{state} by {self.tenant}@{self.number}"


class Approval(Record):
    """One person's agreement to production."""

    person: str
    roles: list[str]
    reason: str
    at: str


class Lineage(Record):
    """What a version was made of."""

    base_model: BaseModelRecord
    sources: list[SourceRecord]
    splits: dict[str, SplitRecord]
    git: GitRecord
    params: dict[str, Any]
    dvc_lock_sha256: Sha256 | None
    parent: str | None
    packages: dict[str, str]


class IncidentRecord(Record):
    """A rollback: what left and what returned, who decided, whom to tell, what the dashboards showed."""

    tenant: str
    at: datetime
    actor: str
    reason: str
    leaves: str
    returns: str
    tell: list[str] = Field(description="e-mail addresses: contacts, then the escalation path")
    captured: dict[str, Sha256] = Field(description="files beside this record, by name")
    not_captured: str | None = Field(description="why a dashboard is missing")


class Performance(Record):
    """How good it is, by machine and by people."""

    rows: int
    primary: str
    metrics: dict[str, MetricRecord]
    report_sha256: Sha256 | None
    human_evaluation: HumanEvaluation | None
    policy: list[PolicyCheck]


class Risk(Record):
    """What may go wrong with it, and until when its data may be trusted."""

    bias: BiasAssessment | None
    incidents: list[Evidence]
    fresh_until: datetime


class Ownership(Record):
    """Who answers for it."""

    team: str
    contacts: list[str]
    escalation: list[str]
    review_cadence_days: int
    next_review_due: datetime | None


class Verdict(Record):
    """May it serve today, and why (not)."""

    may_serve: bool
    reasons: list[str]
    warnings: list[str]


class AdapterRecord(Record):
    """The whole answer on one version: what it is, who let it where, on what evidence."""

    id: str
    tenant: str
    number: int
    state: State
    aliases: list[str]
    author: str
    registered_at: str
    content_digest: Sha256
    signature_sha256: Sha256 | None
    lineage: Lineage
    performance: Performance
    risk: Risk
    ownership: Ownership | None
    approvals: list[Approval]
    history: list[AuditEntry]
    verdict: Verdict


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the text that digests are taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256_text(text: str) -> str:
    """SHA-256 of UTF-8 text, in hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def now() -> datetime:
    """The time in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def utc(moment: datetime) -> str:
    """A time as the registry writes it, so that texts sort as times do."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="seconds")
