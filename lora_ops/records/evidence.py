"""Evidence that a decision rests on, and the reports that the registry reads."""

from typing import Literal

from pydantic import Field, model_validator

from lora_ops.records.record import Record, Sha256

EvidenceKind = Literal["evaluation", "policy", "human_evaluation", "shadow", "canary", "incident", "review"]


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


class Evidence(Record):
    """A report that a decision rests on; the registry keeps the file under its digest."""

    kind: EvidenceKind
    sha256: Sha256
    summary: str = Field(min_length=1)
