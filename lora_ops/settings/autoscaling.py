"""`autoscaling` of params.yaml."""

from pydantic import Field, model_validator

from lora_ops.settings.section import Section

NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
"""Of an object of Kubernetes (RFC 1123)."""


class AutoscalingSettings(Section):
    """How many gateways run: as many as work off the backlog of tokens in time; see docs/costs.md."""

    deployment: str = Field("lora-ops-gateway", pattern=NAME, description="that is scaled")
    namespace: str = Field("default", pattern=NAME)
    prometheus: str = Field(
        "http://prometheus.monitoring:9090", pattern=r"^https?://\S+$", description="as the cluster reaches it"
    )
    selector: str = Field(
        "",
        pattern=r'^([a-zA-Z_]\w*="[^"\\]*"(,[a-zA-Z_]\w*="[^"\\]*")*)?$',
        description='such as job="gateway"',
    )
    prefill_tokens_per_second: float = Field(
        1500, gt=0, description="that one replica reads; `lora-ops autoscaling calibrate` measures it"
    )
    decode_tokens_per_second: float = Field(150, gt=0, description="that one replica writes, of all answers")
    backlog_seconds: float = Field(4, gt=0, description="of its work that one replica may have before it")
    min_replicas: int = Field(1, ge=1, description="never none: nobody would count the backlog")
    max_replicas: int = Field(8, ge=1)
    fallback_replicas: int = Field(2, ge=1, description="while Prometheus answers nothing")
    poll_seconds: int = Field(15, ge=1)
    down_after_seconds: int = Field(300, ge=0, le=3600, description="of less backlog, before replicas go")

    @model_validator(mode="after")
    def _in_order(self) -> "AutoscalingSettings":
        if not self.min_replicas <= self.fallback_replicas <= self.max_replicas:
            raise ValueError("replicas are in order: min_replicas, fallback_replicas, max_replicas")
        return self
