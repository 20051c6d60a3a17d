"""`costs` of params.yaml."""

from pydantic import Field

from lora_ops.settings.section import Section


class DeviceHour(Section):
    """What one device costs for an hour, used or not."""

    cpu: float = Field(0.20, ge=0, description="of a machine that answers on its CPU")
    gpu: float = Field(2.50, ge=0, description="of one GPU and its part of the machine")


class CostSettings(Section):
    """The price table of `lora-ops cost`: examples of the size of list prices, until a team writes its own."""

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="ISO 4217")
    device_hour: DeviceHour = DeviceHour()
    memory_gib_hour: float = Field(
        0.005, ge=0, description="of the memory that an adapter takes; 0 where the device's price pays for it"
    )
    storage_gb_month: float = Field(0.023, ge=0, description="of a version's files; 10^9 bytes, 730 hours")
