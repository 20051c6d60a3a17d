"""The manifest: everything that is known of one adapter version when it is packaged."""

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from lora_ops.errors import LoraOpsError
from lora_ops.hashing import canonical, sha256_text
from lora_ops.paths import ADAPTER_FILES
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import DataRecord, SourceRecord
from lora_ops.records.evaluation import BiasAssessment, EvaluationRecord
from lora_ops.records.evidence import HumanEvaluation, PolicyCheck
from lora_ops.records.git import GitRecord
from lora_ops.records.record import Record, Sha256
from lora_ops.records.training import TrainingRecord
from lora_ops.small_files import parse_json

# 1: before the content digest was taken from stored fields. 2: the digest of `content_digest`.
SCHEMA_VERSION = 2


class FileRecord(Record):
    """One file of a package."""

    bytes: int
    sha256: Sha256


class PackagingRecord(Record):
    """The commit and the versions where a package was put together, which may not be those of its training."""

    git: GitRecord
    packages: dict[str, str]


class Manifest(Record):
    """Everything that is known of one adapter version when it is packaged."""

    schema_version: int = SCHEMA_VERSION
    tenant: str
    version: int | None = Field(None, description="given by the registry, which writes it into the file")
    created_at: datetime
    base_model: BaseModelRecord
    data: DataRecord
    git: GitRecord = Field(description="the commit that the training ran at")
    dvc_lock_sha256: Sha256 | None = Field(
        description="of the entries in dvc.lock of the stages that it came from (base_model, and the tenant's "
        "prepare, train, generate, evaluate, cases and suite; earlier releases left out the last two) as JSON "
        "with sorted keys, no spaces; None unless all are there"
    )
    params: dict[str, Any]
    packages: dict[str, str] = Field(description="versions where the training ran")
    packaging: PackagingRecord | None = None
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
    def beats_base(self) -> bool:
        """Whether its evaluation shows that the adapter beats its base model, as the manifest's schema asks.

        Schema 1 had no differences to the base. From schema 2 on an evaluation without them shows nothing.
        """
        compared = bool(self.evaluation.differences) or self.schema_version < 2
        return compared and self.evaluation.beats_base and not self.evaluation.contradicts_itself

    @property
    def adapter_id(self) -> str:
        """`tenant@version`, or `tenant@?` before registration."""
        return f"{self.tenant}@{self.version or '?'}"


def fresh_until(source: SourceRecord, days: int, packaged_at: datetime) -> datetime:
    """Return when data expire: `days` after the source was published, or the packaging if nobody says when.

    Counted from the packaging, old data would be fresh for ever: one only had to package it again.

    Raises:
        LoraOpsError: the day of publication is none.
    """
    return published(source, packaged_at) + timedelta(days=days)


def published(source: SourceRecord, packaged_at: datetime) -> datetime:
    """Return when a source was published, or when it was packaged if nobody says when.

    Raises:
        LoraOpsError: the day of publication is none.
    """
    try:
        return datetime.fromisoformat(source.date).replace(tzinfo=UTC) if source.date else packaged_at
    except ValueError as error:
        raise LoraOpsError(f"'{source.date}' is no day: give data.published of {source.name} anew.") from error


def content_digest(text: str, rule: int | None = None) -> str:
    """Return the SHA-256 over what makes an adapter this adapter, taken from a stored manifest.

    Only named fields of the stored JSON count, so a field that a later release adds to a record changes no
    digest of an older manifest. Clocks, timings, the commit and the given version are left out: packaging the
    same adapter again registers nothing twice.

    Args:
        text: the manifest as it is stored.
        rule: the schema whose rule is used, 1 or 2; default: the manifest's own. Rule 2 reads both schemas.

    Raises:
        KeyError, TypeError, ValueError: the text is not a manifest.
    """
    stored = parse_json(text)
    rule = min(rule or stored.get("schema_version", 1), SCHEMA_VERSION)
    files = {name: stored["files"][name]["sha256"] for name in ADAPTER_FILES if name in stored["files"]}
    if rule == 1:
        kept = {name: stored[name] for name in ("tenant", "base_model", "data", "params", "license")}
        kept |= {"metrics": stored["evaluation"]["metrics"], "files": files}
        return sha256_text(canonical(kept))
    data, params = stored["data"], stored["params"]
    return sha256_text(
        canonical(
            {
                "rule": rule,
                "tenant": stored["tenant"],
                "files": files,
                "base_model": stored["base_model"]["sha256"],
                "source": [data["source"]["sha256"], data["source"].get("date")],
                "splits": {name: split["sha256"] for name, split in data["splits"].items()},
                "license": stored["license"],
                "freshness_days": params.get("package", {}).get("freshness_days"),
                "max_new_tokens": params.get("evaluate", {}).get("max_new_tokens"),
                "metrics": sorted(stored["evaluation"]["metrics"]),
            }
        )
    )
