"""`risk_budgets` of params.yaml: how many answers of a tenant may be risky."""

from typing import Literal, get_args

from pydantic import Field

from lora_ops.settings.section import Section, TenantName

RiskKind = Literal["identifiers", "insults"]
RISK_KINDS: tuple[RiskKind, ...] = get_args(RiskKind)


class RiskBudget(Section):
    """Shares of the scored answers that may be risky; what a tenant leaves out is the default."""

    identifiers: float | None = Field(None, gt=0, lt=1, description="with an identifier that no user gave")
    insults: float | None = Field(None, gt=0, lt=1, description="above detectors.insult_threshold")


class RiskBudgetSettings(Section):
    """Error budgets of risky answers, which burn as those of `objectives` do; see `monitoring.content_risk`."""

    identifiers: float = Field(0.01, gt=0, lt=1, description="share with an identifier that no user gave")
    insults: float = Field(0.02, gt=0, lt=1, description="share above detectors.insult_threshold")
    tenants: dict[TenantName, RiskBudget] = Field(default_factory=dict)
    days: int = Field(30, ge=1, le=366, description="of the window that a budget is for")
    minimum_scored: int = Field(100, ge=1, description="scored answers below which nobody can tell")
    minimum_flagged: int = Field(10, ge=1, description="risky answers before anybody is told")

    def budget(self, tenant: str, kind: RiskKind) -> float:
        """Return the share of a tenant's answers that may be risky."""
        own: float | None = getattr(self.tenants.get(tenant), kind, None)
        default: float = getattr(self, kind)
        return default if own is None else own

    def largest(self) -> tuple[str, float]:
        """Return the name of the largest budget, and the budget."""
        names: dict[str, float] = {kind: self.budget("", kind) for kind in RISK_KINDS}
        names |= {
            f"tenants.{tenant}.{kind}": self.budget(tenant, kind)
            for tenant in self.tenants
            for kind in RISK_KINDS
        }
        return max(names.items(), key=lambda one: one[1])
