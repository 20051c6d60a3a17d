"""`objectives` of params.yaml: how available and how fast each adapter is to be, and when somebody is told."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from lora_ops.histograms import ANSWER
from lora_ops.settings.section import Section

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,5}[smhdw]$")]
"""As Prometheus writes it, such as 5m or 3d."""
HostPort = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.\-\[\]:]{1,255}:\d{1,5}$")]


def seconds(duration: str) -> int:
    """Return a duration's seconds."""
    return int(duration[:-1]) * SECONDS[duration[-1]]


def _bucket(value: float) -> float:
    if value not in ANSWER:
        bounds = ", ".join(f"{one:g}" for one in ANSWER)
        raise ValueError(f"answers are counted in buckets, so that this is one of {bounds}")
    return value


def _http_address(url: str) -> str:
    if not re.fullmatch(r"https?://[^/\s?#@]+(/[^\s?#]*)?", url):
        raise ValueError("this is no address: write one such as http://127.0.0.1:9090")
    return url.rstrip("/")


HttpAddress = Annotated[str, AfterValidator(_http_address)]


class LatencyObjective(Section):
    """This share of the answers takes at most so long."""

    seconds: Annotated[float, AfterValidator(_bucket)] = Field(
        5, description="from a request's arrival to the end of its answer"
    )
    share: float = Field(0.95, gt=0, lt=1)


class BurnRate(Section):
    """An error budget that is used up too fast, over a long window and over a short one that ends the alert.

    Source: Google, The Site Reliability Workbook, chapter 5, "Multiwindow, Multi-Burn-Rate Alerts".
    """

    factor: float = Field(gt=0, description="how many times faster than the budget lasts for its 30 days")
    long: Duration
    short: Duration
    severity: Literal["page", "ticket"]

    @model_validator(mode="after")
    def _short_is_shorter(self) -> "BurnRate":
        if seconds(self.short) >= seconds(self.long):
            raise ValueError(f"short ({self.short}) must be shorter than long ({self.long})")
        return self


class SpikeSettings(Section):
    """An adapter's P95 against that of its own trailing weeks."""

    ratio: float = Field(2, gt=1, description="of the P95 now to the P95 before")
    seconds: float = Field(0.1, ge=0, description="that the P95 must have risen by at least")
    window: Duration = Field("10m", description="what is now")
    baseline: Duration = Field("1w", description="what is before, up to an hour ago")
    offset: Duration = Field("1h", description="how long ago the baseline ends: a spike must not raise it")
    minimum_events: int = Field(50, ge=1, description="answers in each of the two")
    pending: Duration = Field("5m", description="how long it must last")
    severity: Literal["page", "ticket"] = Field(
        "ticket", description="a spike that breaks no objective need wake nobody"
    )


class AlertSettings(Section):
    """Where alerts go and how they are grouped; see https://prometheus.io/docs/alerting/0.25/configuration."""

    webhook: HttpAddress | None = Field(
        None, description="gets each alert as JSON; None: Alertmanager's page alone"
    )
    group_wait: Duration = "30s"
    group_interval: Duration = "5m"
    repeat_interval: Duration = "4h"
    runbooks: str = Field(
        "runbooks/README.md", description="where an alert's link leads: a path of the clone, or its address"
    )


class ScrapeSettings(Section):
    """What Prometheus scrapes, and how often."""

    gateways: tuple[HostPort, ...] = Field((), description="host:port of each; none: serving.host and port")
    interval: Duration = "15s"
    key_file: str | None = Field(None, description="a file with a monitor key, where gateways want one")


class ObjectiveSettings(Section):
    """What each adapter promises; see `lora_ops.monitoring`."""

    availability: float = Field(0.999, gt=0, lt=1, description="share of requests that get their answer")
    latency: LatencyObjective = LatencyObjective()
    burn_rates: tuple[BurnRate, ...] = Field(
        (
            BurnRate(factor=14.4, long="1h", short="5m", severity="page"),
            BurnRate(factor=6, long="6h", short="30m", severity="page"),
            BurnRate(factor=1, long="3d", short="6h", severity="ticket"),
        ),
        min_length=1,
    )
    minimum_events: int = Field(
        10, ge=1, description="requests that broke the objective in the long window before anybody is told"
    )
    spike: SpikeSettings = SpikeSettings()
    alerts: AlertSettings = AlertSettings()
    scrape: ScrapeSettings = ScrapeSettings()
    prometheus: HttpAddress = "http://127.0.0.1:9090"
    alertmanager: HttpAddress = "http://127.0.0.1:9093"

    @model_validator(mode="after")
    def _can_burn(self) -> "ObjectiveSettings":
        for name, share in (("availability", self.availability), ("latency.share", self.latency.share)):
            for one in self.burn_rates:
                if one.factor * (1 - share) >= 1:
                    raise ValueError(
                        f"with {name} {share:g} no budget burns {one.factor:g} times too fast, not even "
                        f"where every request breaks it: raise {name} above {1 - 1 / one.factor:.3g}, or "
                        "lower the factor"
                    )
        return self
