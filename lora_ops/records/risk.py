"""The records of a budget of risky answers that one version broke."""

from datetime import datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from lora_ops.records.evaluation import Interval
from lora_ops.records.record import Record
from lora_ops.settings.risk import RiskKind


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


class RiskMark(Record):
    """What the log's entry of such an incident says, so that the same window is filed once.

    A person who files a `RiskIncident` by hand writes no mark: it is an incident, and it mutes no budget.
    """

    kind: RiskKind
    end: AwareDatetime = Field(description="of the window")
