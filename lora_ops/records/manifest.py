"""The manifest: everything that is known of one adapter version when it is packaged."""

from datetime import datetime
from typing import Any

from pydantic import Field

from lora_ops.hashing import canonical, sha256_text
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import DataRecord
from lora_ops.records.evaluation import BiasAssessment, EvaluationRecord
from lora_ops.records.evidence import HumanEvaluation, PolicyCheck
from lora_ops.records.record import Record, Sha256
from lora_ops.records.training import TrainingRecord

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_config.json")


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
        kept["metrics"] = {
            name: {system: interval.model_dump() for system, interval in systems.items()}
            for name, systems in self.evaluation.metrics.items()
        }
        kept["files"] = {name: file.sha256 for name, file in self.files.items() if name in ADAPTER_FILES}
        return sha256_text(canonical(kept))
