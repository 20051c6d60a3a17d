"""What the registry says: audit entries, approvals, and the whole record of one version."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import SourceRecord, SplitRecord
from lora_ops.records.evaluation import BiasAssessment, Metrics
from lora_ops.records.evidence import Evidence, HumanEvaluation, PolicyCheck
from lora_ops.records.manifest import GitRecord
from lora_ops.records.record import Record, Sha256

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
    metrics: Metrics
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
