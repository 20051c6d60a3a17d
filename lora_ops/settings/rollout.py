"""`rollout` of params.yaml."""

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, ByteSize, Field, model_validator

from lora_ops.settings.section import Section

Percent = Annotated[float, Field(gt=0, le=100)]


class FlagdSettings(Section):
    """flagd as the flag provider; see https://flagd.dev."""

    resolver: Literal["file", "rpc", "in-process"] = "file"
    path: str = Field("flags.json", description="the file of flags, for `file`; from the repository's root")
    host: str = "127.0.0.1"
    port: int | None = Field(None, ge=1, le=65535, description="None: the resolver's own default")
    deadline_ms: int = Field(200, ge=1, description="then production answers")


def _gateway_address(url: str) -> str:
    if not re.fullmatch(r"https?://[^/\s?#@]+/?", url):
        raise ValueError("this is no address of a gateway: write one such as http://staging:8000, without /v1")
    return url.rstrip("/")


class ShadowSettings(Section):
    """Requests that are asked again of a version in shadow, whose answers no client gets."""

    percent: Percent = Field(20, description="of a tenant's requests that production answered")
    hours: float = Field(24, ge=0, description="in which pairs came")
    requests: int = Field(200, ge=1, description="pairs")
    target: Annotated[str, AfterValidator(_gateway_address)] | None = Field(
        None, description="another gateway that is asked, such as http://staging:8000; None: this one"
    )
    api_key_env: str = Field("SHADOW_API_KEY", description="environment variable with that gateway's key")
    timeout_seconds: float = Field(60, gt=0, description="of one copy at another gateway")
    queue: int = Field(256, ge=1, description="copies that wait; more are left out")
    queue_bytes: ByteSize = Field(ByteSize(16 * 2**20), ge=1024, description="of those copies' prompts")


class CanarySettings(Section):
    """Users who are answered by a new version, step by step, beside a control group of the same size."""

    steps: tuple[Percent, ...] = Field((1, 5, 25, 50), min_length=1, description="per cent of the users")
    waiting: Percent = Field(
        95, lt=100, description="per cent while approvals are awaited; the others are the control group"
    )
    hours: float = Field(1, ge=0, description="that each step takes at least")
    users: int = Field(20, ge=1, description="in the canary that each step needs at least")
    first_p95_seconds: float = Field(
        10, gt=0, description="P95 latency that a version may have where none is in production to compare with"
    )
    window_seconds: float = Field(
        600,
        ge=0,
        le=86_400,
        description="from a user's first request of a period on, in which their requests count",
    )
    period_hours: float = Field(
        24,
        ge=1,
        le=8_760,
        description="after which a user who comes back counts again: else regulars hide a late breach",
    )

    @model_validator(mode="after")
    def _rises(self) -> "CanarySettings":
        if any(left >= right for left, right in pairwise(self.steps)):
            raise ValueError("steps rise, such as [1, 5, 25, 50]")
        if self.steps[-1] > 50:
            raise ValueError("no step is above 50: the control group has as many users as the canary")
        if self.waiting < self.steps[-1]:
            raise ValueError("waiting is at least the last step: nobody goes back to production meanwhile")
        return self


class MarginSettings(Section):
    """How much worse than production a new version may be before it goes back."""

    errors: float = Field(0.02, gt=0, le=0.99, description="share of a user's requests that fail")
    task: float = Field(0.05, gt=0, le=0.99, description="share of a user's answers that fail the task's check")
    insults: float = Field(0.02, gt=0, le=0.99, description="share of answers above the detector's threshold")
    identifiers: float = Field(
        0.02, gt=0, le=0.99, description="share of answers with an identifier that no user gave"
    )
    p95_latency: float = Field(0.25, gt=0, le=100, description="of the P95, as a part of production's")
    tokens: float = Field(
        0.25, gt=0, le=100, description="of the tokens of an answer, as a part of production's"
    )


class ProbeSettings(Section):
    """The request that gateways answer with a version before users are sent to it."""

    gateways: tuple[Annotated[str, AfterValidator(_gateway_address)], ...] = Field(
        (), description="that are asked besides those of this folder, such as http://other-host:8000"
    )
    required: bool = Field(
        True, description="hold where no gateway runs; false: for a CI runner, which has none"
    )
    api_key_env: str = Field("ROLLOUT_API_KEY", description="environment variable with a key for them")
    seconds: float = Field(10, gt=0, description="that an answer may take; the adapter is loaded meanwhile")


class RolloutSettings(Section):
    """How a version goes from `validated` to production; see `lora_ops.rollout`."""

    provider: Literal["registry", "flagd"] = Field("registry", description="who evaluates the routes' flags")
    flagd: FlagdSettings = FlagdSettings()
    shadow: ShadowSettings = ShadowSettings()
    canary: CanarySettings = CanarySettings()
    margins: MarginSettings = MarginSettings()
    probe: ProbeSettings = ProbeSettings()
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="chance of a false verdict, in each of shadow and canary"
    )
    key_percent: Percent = Field(
        100,
        description="of the units that one API key may bring, in shadow and canary; users beyond that don't "
        "count. Lower it where clients who don't trust each other have keys of one tenant",
    )
    accept_replay: bool = Field(
        False, description="replayed requests count as shadow traffic, for a demo or CI; the evidence says so"
    )
    interval_seconds: float = Field(10, gt=0, description="between two looks of `lora-ops rollout run`")
