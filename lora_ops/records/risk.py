"""Records of the risk in live answers: which kinds are counted, and a budget that one version broke."""

from datetime import datetime
from typing import Literal, get_args

from pydantic import Field

from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record

RiskKind = Literal["identifiers", "insults"]
RISK_KINDS: tuple[RiskKind, ...] = get_args(RiskKind)
RISKY_ANSWERS: dict[RiskKind, str] = {
    "identifiers": "of the scored answers hold an identifier that their prompt lacks",
    "insults": "of the scored answers insult or swear",
}
"""What an answer of each kind does, for a sentence that begins with a share."""


class RiskIncident(Record):
    """A version whose answers broke a budget of their tenant, as an incident of it keeps that."""

    schema_version: int = 1
    incident: Literal["risk_budget"] = "risk_budget"
    tenant: str
    adapter: str
    digest: str
    kind: RiskKind
    start: datetime
    end: datetime
    budget: float = Field(gt=0, lt=1, description="share of the scored answers that may be risky")
    scored: int = Field(ge=1)
    flagged: int = Field(ge=1)
    share: Interval
    corrected: Interval | None = Field(description="by what the policy suite measured; None: it can't correct")
    threshold: float | None = Field(None, description="score from which an answer counts as insulting")
    said: str
