"""The nouns of the project: what is written to disk and read back, as pydantic models."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


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


class EvaluationRecord(Record):
    """Base model and adapter on the same held-out rows."""

    tenant: str
    rows: int
    test_sha256: Sha256
    adapter_sha256: Sha256
    primary: str
    metrics: dict[str, MetricRecord]
    beats_base: bool = Field(description="intervals of the primary metric do not overlap")
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


class Manifest(Record):
    """Everything that is known of one adapter version when it is packaged."""

    schema_version: int = 1
    tenant: str
    version: int | None = Field(None, description="given by the registry, which writes it into the file")
    created_at: datetime
    base_model: BaseModelRecord
    data: DataRecord
    git: GitRecord
    dvc_lock_sha256: Sha256 | None
    params: dict[str, Any]
    packages: dict[str, str]
    training: TrainingRecord
    evaluation: EvaluationRecord
    license: str
    fresh_until: datetime
    report: str
    size_bytes: int
    files: dict[str, FileRecord]

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
