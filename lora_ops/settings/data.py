"""`tenants.NAME.data` of params.yaml."""

from datetime import date
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from lora_ops.settings.labels import indistinct
from lora_ops.settings.section import Section, Sha256

SOURCE_SUFFIXES = (".csv", ".jsonl", ".parquet", ".py")


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
    max_near_duplicates: float | None = Field(
        None, ge=0, le=1, description="share of the held-out rows; None: they pass, and many are warned of"
    )
    allow_pii: bool = False
    min_label_share: float = Field(0, ge=0, lt=1, description="of the rows, for each label")
    max_label_shift: float = Field(
        0.25, ge=0, le=1, description="total variation of the labels' shares since the last registered version"
    )
    max_rows_lost: float = Field(0.5, ge=0, le=1, description="share of rows since the last registered version")


class DataSettings(Section):
    """Where a tenant's rows come from and how a row becomes a prompt and its answer."""

    source: str
    encoding: str = Field("utf-8", description="of a CSV or JSONL file, such as latin-1 or utf-16")
    delimiter: str = Field(",", description="between the fields of a CSV file: one character, such as ;")
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
    bias_columns: tuple[str, ...] = Field(
        (), description="columns of the source, such as region or language, whose groups must be served alike"
    )
    seed: int = 7
    moved_groups: tuple[str, ...] = Field(
        (), description="held-out groups that are trained on from now on, as `lora-ops review corrections` says"
    )
    on_pii: Literal["stop", "drop", "redact"] = Field(
        "stop", description="rows with direct identifiers: stop, leave the rows out, or replace what was found"
    )
    contract: ContractLimits = ContractLimits()

    @field_validator("encoding")
    @classmethod
    def _text_encoding(cls, name: str) -> str:
        try:
            "".encode(name)
        except (LookupError, ValueError) as error:
            raise ValueError(
                "Python knows no such text encoding: use utf-8, utf-16, latin-1, cp1252"
            ) from error
        return name

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, mark: str) -> str:
        if len(mark) != 1 or mark in '"\n\r' or mark.isalnum():
            raise ValueError("a delimiter is one character such as ; or a tab, and no letter, digit or quote")
        return mark

    @field_validator("published")
    @classmethod
    def _real_day(cls, day: str | None) -> str | None:
        if day is not None:
            try:
                date.fromisoformat(day)
            except ValueError as error:
                raise ValueError("there is no such day: write YYYY-MM-DD") from error
        return day

    @model_validator(mode="after")
    def _consistent(self) -> "DataSettings":
        if not self.source.endswith(SOURCE_SUFFIXES):
            raise ValueError(f"source must end in one of {', '.join(SOURCE_SUFFIXES)}, not '{self.source}'")
        if self.encoding != "utf-8" and not self.source.endswith((".csv", ".jsonl")):
            raise ValueError(f"encoding is for .csv and .jsonl files, and source is '{self.source}': remove it")
        if self.delimiter != "," and not self.source.endswith(".csv"):
            raise ValueError(f"delimiter is for .csv files, and source is '{self.source}': remove it")
        if (self.requirement is None) != (self.archive_sha256 is None):
            raise ValueError("requirement and archive_sha256 come together or not at all")
        if self.on_pii != "stop" and self.contract.allow_pii:
            raise ValueError("contract.allow_pii keeps direct identifiers: remove it or on_pii")
        if self.task == "labels" and len(set(self.labels)) < 2:
            raise ValueError("task 'labels' needs at least two different labels (or use task: text)")
        problem = indistinct(self.labels)
        if problem:
            raise ValueError(f"labels: {problem}: rename one, or remove it")
        if self.task == "text" and self.labels:
            raise ValueError("task 'text' has free answers: remove labels (or use task: labels)")
        return self
