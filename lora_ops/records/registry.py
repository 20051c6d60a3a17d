"""What the registry says: audit entries, approvals, and the whole record of one version."""

from datetime import datetime
from statistics import stdev
from typing import Any, Literal

from pydantic import Field, model_validator

from lora_ops.records.approval import Approval
from lora_ops.records.base_model import BaseModelRecord
from lora_ops.records.data import SourceRecord, SplitRecord
from lora_ops.records.drift import DriftSummary
from lora_ops.records.evaluation import BiasAssessment, Metrics
from lora_ops.records.evidence import Evidence, HumanEvaluation, PolicyCheck
from lora_ops.records.live import LiveSummary
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


class Subject(Record):
    """What an entry of the audit log is about."""

    kind: str = Field(description="version, route, owners, key, incident, runbook, drift, registry")
    id: str = Field(description="which one; of a version `tenant@number`")

    @classmethod
    def version(cls, tenant: str, number: int) -> "Subject":
        """Return the subject of an entry about one version."""
        return cls(kind="version", id=f"{tenant}@{number}")

    def __str__(self) -> str:
        return self.id if self.kind == "version" else f"{self.kind} {self.id}"


class AuditEntry(Record):
    """One change of the registry; `hash` covers every other field, `previous` is the hash before it.

    Action, kind of subject and states are open texts: an entry of a newer release must not make an older reader
    refuse the log.
    """

    format: int = Field(2, description="how `hash` is taken: 1 for entries of schema 3 and before, else 2")
    seq: int = Field(ge=1)
    at: str = Field(description="UTC, ISO 8601, by the clock of the machine that wrote it; the order is `seq`")
    actor: str
    action: str
    subject: Subject
    body: dict[str, Any]
    previous: Sha256
    hash: Sha256

    @model_validator(mode="before")
    @classmethod
    def _read_format_1(cls, value: Any) -> Any:
        if isinstance(value, dict) and "subject" not in value and "tenant" in value:
            rest = {name: one for name, one in value.items() if name not in ("tenant", "number")}
            return {
                **rest,
                "format": 1,
                "subject": {"kind": "version", "id": f"{value['tenant']}@{value['number']}"},
            }
        return value

    def stored(self) -> dict[str, Any]:
        """Return the entry as its own format writes it: the JSON that is signed and sent."""
        content = self.model_dump(mode="json")
        if self.format == 1:
            subject = content.pop("subject")
            tenant, _, number = subject["id"].rpartition("@")
            del content["format"]
            content |= {"tenant": tenant, "number": int(number)}
        return content

    @property
    def tenant(self) -> str | None:
        """Whose version the entry is about; None for another kind of subject."""
        return self.subject.id.rpartition("@")[0] if self.subject.kind == "version" else None

    @property
    def number(self) -> int | None:
        """The number of the version that the entry is about; None for another kind of subject."""
        return int(self.subject.id.rpartition("@")[2]) if self.subject.kind == "version" else None

    @property
    def effects(self) -> dict[str, Any]:
        """What the entry did to the tables: states, aliases, review_due, route; of the subject's tenant."""
        effects = self.body.get("effects", {})
        return effects if isinstance(effects, dict) else {}

    @property
    def evidence(self) -> list[Evidence]:
        """The reports that it rests on."""
        return [Evidence.model_validate(one) for one in self.body.get("evidence", [])]

    @property
    def kept_files(self) -> list[Evidence]:
        """Every file that is kept for this entry: documents, and what they were counted from."""
        files = []
        for one in self.evidence:
            files.append(one)
            if one.source_sha256:
                counted = f"what the {one.kind} report was counted from"
                files.append(Evidence(kind=one.kind, sha256=one.source_sha256, summary=counted))
        return files

    def effect_on(self, number: int) -> str:
        """Return what it did to version `number`, in words; a promotion also ends another one's turn."""
        if self.number == number:
            return self.action
        if self.subject.kind == "route":
            patch = self.effects.get("route")
            parts = [one for one in patch.values() if isinstance(one, dict)] if isinstance(patch, dict) else []
            shares = [one["percent"] for one in parts if isinstance(one.get("percent"), int | float)]
            return self.action.replace("_", " ") + "".join(f" to {share:g} %" for share in shares)
        return f"{self.effects.get('states', {}).get(str(number), 'replaced')} by {self.subject}"


class Lineage(Record):
    """What a version was made of."""

    base_model: BaseModelRecord
    sources: list[SourceRecord]
    splits: dict[str, SplitRecord]
    data_warnings: list[str] = Field(default_factory=list, description="what weakens the data")
    data_checks: list[str] | None = Field(
        None,
        description="expectations of the tenant's own suite that judged the data; older manifests lack them",
    )
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
    has_page: bool = Field(True, description="whether the runbook did it, whose executed page is kept")
    is_complete: bool = Field(
        True, description="false: written before the route changed, so nothing is captured yet"
    )
    answers: str | None = Field(
        None, description="who answers the tenant by the gateway's console, after the rollback"
    )


class Looks(Record):
    """How often the test rows of a version were looked at: the versions that were judged on them."""

    number: int = Field(ge=1, description="which of them this version is, by number")
    versions: int = Field(ge=1, description="of them in all, this one included")
    limit: int = Field(ge=1, description="registry.max_looks")

    @property
    def too_many(self) -> bool:
        """Whether the test rows had been looked at so often that they are hardly held out."""
        return self.number > self.limit

    def __str__(self) -> str:
        return f"number {self.number} of {self.versions} versions judged on these test rows"


class SeedSpread(Record):
    """One recipe, trained with several seeds."""

    metric: str
    values: dict[str, float] = Field(description="training seed -> the adapter's metric on its test rows")

    def __str__(self) -> str:
        if len(self.values) < 2:
            return "one training of this recipe: the intervals cover the test rows, not the training seed"
        low, high, spread = min(self.values.values()), max(self.values.values()), stdev(self.values.values())
        return (
            f"{len(self.values)} trainings of this recipe with other seeds: {self.metric} {low:.3f} to "
            f"{high:.3f}, standard deviation {spread:.3f}"
        )


class Performance(Record):
    """How good it is, by machine and by people."""

    rows: int
    primary: str
    metrics: Metrics
    verdict: str = Field("", description="of the adapter and its strongest opponent, in words")
    looks: Looks | None = None
    seeds: SeedSpread | None = None
    report_sha256: Sha256 | None
    human_evaluation: HumanEvaluation | None
    policy: list[PolicyCheck]


class Risk(Record):
    """What may go wrong with it, and until when its data may be trusted."""

    bias: BiasAssessment | None
    incidents: list[Evidence]
    fresh_until: datetime
    drift: DriftSummary | None = Field(None, description="by the last run of `lora-ops monitor drift`")


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
    state: str
    aliases: list[str]
    route: list[str] = Field(default_factory=list, description="what its tenant's route says of it, in words")
    author: str
    registered_at: str
    content_digest: Sha256
    signature_sha256: Sha256 | None
    lineage: Lineage
    performance: Performance
    live: LiveSummary | None = Field(None, description="by the last run of `lora-ops monitor report --file`")
    risk: Risk
    ownership: Ownership | None
    approvals: list[Approval]
    history: list[AuditEntry]
    verdict: Verdict
