"""`kpis` of params.yaml."""

from pydantic import Field, model_validator

from lora_ops.settings.section import Section


class KpiSettings(Section):
    """How KPIs are joined to versions and compared; see `lora_ops.monitoring`."""

    units: int = Field(
        100,
        ge=10,
        description="users in each arm, below which no uplift is said: by simulation of skewed KPIs the 95 % "
        "interval of fewer users holds less often",
    )
    days: int = Field(28, ge=7, description="before and after a promotion that are compared; whole weeks")
    least_days: int = Field(7, ge=3, description="with KPIs on either side of a promotion, or nothing is said")
    attribution_days: float = Field(
        30, gt=0, description="from an answer to what a user does; what comes later is not counted for it"
    )
    least_share: float = Field(
        0.9,
        gt=0.5,
        le=1,
        description="of a tenant's answers that one version gave in the time of a row without a request id",
    )
    retire_weeks: int = Field(8, ge=1, description="without a KPI, after which a version is to be retired")
    csat_low: float = Field(1, description="the worst answer to a survey")
    csat_high: float = Field(5, description="the best one")

    @model_validator(mode="after")
    def _in_order(self) -> "KpiSettings":
        if self.days % 7:
            raise ValueError("days are whole weeks, such as 28: a Sunday is compared with a Sunday")
        if self.least_days > self.days:
            raise ValueError("least_days is at most days")
        if not self.csat_low < self.csat_high:
            raise ValueError("csat_low is below csat_high")
        return self
