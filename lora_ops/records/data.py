"""Records of a tenant's data: its source, its splits, its contract."""

from pathlib import Path
from typing import Any

from pydantic import Field

from lora_ops.paths import DATA, PROMPT, read_record
from lora_ops.records.record import BaseFilesSha256, Record, Sha256


class SourceRecord(Record):
    """Where a tenant's rows came from."""

    name: str
    version: str
    sha256: Sha256 = Field(description="of the file, the archive, or the rows that a script returned")
    script_sha256: Sha256 | None = Field(None, description="of the Python file that read the rows")
    url: str | None = None
    date: str | None = Field(None, description="when this version of the source was published, ISO 8601")


class SplitRecord(Record):
    """One split of the prepared data."""

    rows: int
    groups: int
    sha256: Sha256


class IdentifiersRecord(Record):
    """What was done with the rows that held direct identifiers (`data.on_pii`)."""

    dropped_rows: int = 0
    redacted_rows: int = 0


class Check(Record):
    """One expectation of the data contract and how it went."""

    name: str
    success: bool
    failed_rows: list[str] = Field(default_factory=list, description="`row id: value`, the first 20, cut")
    failed_count: int = 0
    setting: str | None = Field(None, description="what to change in params.yaml where the rows are right")


class ContractRecord(Record):
    """The result of the data contract, kept beside the data."""

    tenant: str
    success: bool
    rows: int
    checks: list[Check]
    identifiers: IdentifiersRecord | None = None

    @classmethod
    def of(
        cls, tenant: str, rows: int, checks: list[Check], identifiers: IdentifiersRecord | None = None
    ) -> "ContractRecord":
        """Return the result of these checks: it holds where each of them does."""
        success = all(check.success for check in checks)
        return cls(tenant=tenant, success=success, rows=rows, checks=checks, identifiers=identifiers)


class DataRecord(Record):
    """What the prepared data is: its source, its splits, what was left out."""

    tenant: str
    task: str
    source: SourceRecord
    splits: dict[str, SplitRecord]
    source_rows: int
    contract_success: bool
    base_model_sha256: Sha256 = Field(description="the prompts carry this model's chat template")
    base_files_sha256: BaseFilesSha256 = None
    identifiers: IdentifiersRecord | None = Field(None, description="None where `data.on_pii` is stop")
    label_shares: dict[str, float] | None = Field(None, description="of all usable rows; None for free text")
    warnings: list[str] = Field(default_factory=list, description="what weakens the data")
    settings: dict[str, Any] | None = Field(
        None, description="`data` of params.yaml as the rows were prepared by it; older records lack it"
    )
    own_checks: dict[str, Sha256] | None = Field(
        None,
        description="expectation of the tenant's own suite that judged the rows -> SHA-256 of its JSON; empty "
        "without a suite, and older records lack it",
    )


class PromptRecord(Record):
    """What each prompt says besides its row, and the labels that may answer it."""

    system: str | None
    labels: list[str] = Field(default_factory=list, description="empty for free text")


def read_prompt(folder: Path) -> PromptRecord:
    """Read what the prompts of the prepared data in `folder` have in common.

    Raises:
        LoraOpsError: the data is not prepared yet.
    """
    return read_record(folder / PROMPT, PromptRecord, "prepare")


def read_data_record(folder: Path) -> DataRecord:
    """Read the record of the prepared data in `folder`.

    Raises:
        LoraOpsError: the data is not prepared yet.
    """
    return read_record(folder / DATA, DataRecord, "prepare")


def previous_path(tenant: str, root: Path) -> Path:
    """Return where `lora-ops register` keeps the record of the data of a tenant's last version."""
    return root / "data/previous" / f"{tenant}.json"


def read_previous(tenant: str, root: Path) -> DataRecord | None:
    """Read the record of the data of the version that was registered last here, or None where there is none."""
    path = previous_path(tenant, root)
    return read_record(path, DataRecord, "register") if path.is_file() else None
