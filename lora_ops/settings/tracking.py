"""`tracking` of params.yaml."""

from lora_ops.settings.section import Section


class TrackingSettings(Section):
    """Where W&B runs go."""

    project: str
    entity: str | None = None
