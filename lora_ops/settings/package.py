"""`tenants.NAME.package` of params.yaml."""

from pydantic import Field

from lora_ops.settings.section import Section


class PackageSettings(Section):
    """What the model card and the registry say beside the numbers."""

    license: str
    freshness_days: int = Field(
        365,
        ge=1,
        le=36_500,
        description="after `data.published`, or after the packaging without it, the data has expired",
    )
